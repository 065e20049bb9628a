"""What training sees: the good images, read once and kept on the device, and the pairs made of them."""

import dataclasses
import hashlib

import torch
from torch import Tensor

from .config import Config
from .data.images import load_images, send
from .data.layout import open_folder, open_train
from .pairs import Pairs, PairSynthesizer, foreground_masks, step_generator


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What training sees, all on the device: images and held-out images uint8 (N, 3, S, S), foreground masks
    bool (N, S, S) or None, textures uint8 (T, 3, S, S) or None; and a fingerprint of the files."""

    images: Tensor
    held_out: Tensor
    foreground: Tensor | None
    textures: Tensor | None
    fingerprint: str


def load_training_data(
    config: Config,
    data_root,
    category: str,
    texture_root="",
    device: torch.device | str = "cpu",
    progress=True,
) -> TrainingData:
    """Read and check train/good and the textures; never opens the test split. Raises DataError."""
    paths = open_train(data_root, category)
    texture_paths = open_folder(texture_root, recursive=True) if texture_root else []
    images = load_images(paths, config.image_size, "reading images" if progress else None)
    foreground = foreground_masks(images, category, config.foreground)
    rng = torch.Generator().manual_seed(config.seed)
    held = round(config.holdout * len(paths))
    if config.holdout > 0 and len(paths) > 1:
        held = max(1, held)
    order = torch.randperm(len(paths), generator=rng)
    kept, out = order[held:].sort().values, order[:held].sort().values
    textures = None
    if texture_paths:
        chosen = torch.randperm(len(texture_paths), generator=rng)[: config.texture_limit].tolist()
        selected = [texture_paths[i] for i in sorted(chosen)]
        textures = load_images(selected, config.image_size, "reading textures" if progress else None).to(
            device
        )
    names = "\n".join([category, *(path.name for path in paths), *(path.name for path in texture_paths)])
    return TrainingData(
        images[kept].to(device),
        images[out].to(device),
        None if foreground is None else foreground[kept].to(device),
        textures,
        hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
    )


class PairSource:
    """The pairs of every iteration, each a function of the seed and the iteration alone."""

    def __init__(self, config: Config, data: TrainingData):
        self.config, self.data = config, data
        self.synthesizer = PairSynthesizer(config, data.textures)

    def indices(self, iteration: int) -> Tensor:
        """Which images the iteration sees, (B,) on the CPU: a new order every epoch."""
        count, start = len(self.data.images), iteration * self.config.batch_size
        epochs = range(start // count, (start + self.config.batch_size - 1) // count + 1)
        rngs = (step_generator(self.config.seed, "order", epoch) for epoch in epochs)
        order = torch.cat([torch.randperm(count, generator=rng) for rng in rngs])
        return order[start - epochs[0] * count :][: self.config.batch_size]

    def batch(self, iteration: int, index: Tensor | None = None) -> Pairs:
        """`batch_size` pairs on the data's device; `index` where `indices` of the iteration is known."""
        device = self.data.images.device
        index = send(self.indices(iteration) if index is None else index, device)
        normal = self.data.images[index].float() / 255
        foreground = None if self.data.foreground is None else self.data.foreground[index]
        if self.config.illumination:
            rng = step_generator(self.config.seed, "light", iteration)
            normal = vary_light(normal, self.config.illumination, rng)
        rng = step_generator(self.config.seed, "pairs", iteration, device)
        return self.synthesizer(normal, foreground, rng)


def vary_light(images: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] with other contrast, around each image's mean, and brightness: both
    factors uniform in [1 - most, 1 + most]; rng on the CPU. [field]"""
    contrast, brightness = 1 + most * (2 * torch.rand(2, len(images), 1, 1, 1, generator=rng) - 1)
    contrast, brightness = send(contrast, images.device), send(brightness, images.device)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (brightness * torch.lerp(mean, images, contrast)).clamp(0, 1)
