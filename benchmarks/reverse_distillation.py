"""anomalib's ReverseDistillation, beside which ours is timed, where it is installed; random weights."""

from importlib.util import find_spec

import torch
from torchvision.transforms.v2.functional import normalize

NAME = "anomalib ReverseDistillation"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
LEARNING_RATE, BETAS = 0.005, (0.5, 0.99)  # anomalib's


def available(teacher: str) -> bool:
    """Whether anomalib is installed and builds its decoder for this backbone."""
    return teacher.startswith(("resnet", "wide_resnet")) and find_spec("anomalib") is not None


def build(teacher: str, size: tuple[int, int]) -> torch.nn.Module:
    """Its model with three layers for images of `size` (height, width), channels last."""
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    model = ReverseDistillationModel(
        backbone=teacher,
        input_size=size,
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )
    return model.to(memory_format=torch.channels_last)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 3, S, S) -> what the model takes."""
    return normalize(images.float() / 255, **IMAGENET).contiguous(memory_format=torch.channels_last)


def training_step(model: torch.nn.Module, images: torch.Tensor, autocast):
    """A call that trains the model on random batches of `images` (N, 3, S, S) as anomalib's training does;
    `autocast` is a context for its networks. Takes the batch size."""
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

    loss, learned = ReverseDistillationLoss(), [*model.decoder.parameters(), *model.bottleneck.parameters()]
    optimizer = torch.optim.Adam(learned, LEARNING_RATE, BETAS)
    model.train()

    def step(batch: int):
        chosen = normalised(images[torch.randint(len(images), (batch,), device=images.device)])
        with autocast():
            encoded, decoded = model(chosen)
        optimizer.zero_grad()
        encoded, decoded = ([f.float().contiguous() for f in features] for features in (encoded, decoded))
        loss(encoded, decoded).backward()  # it views them as vectors
        optimizer.step()

    return step
