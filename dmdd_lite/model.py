"""DMDD put together: teacher, student and segmentation network, from images to anomaly maps."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config
from .fusion import build_fusion
from .losses import distillation_maps, stack_maps
from .student import StudentOutput, build_student
from .teacher import Teacher

#: the maps of a complete model
MAP_NAMES = ("fused", "normality", "abnormality", "sum")


class ModelOutput(NamedTuple):
    """fused (B, H_1, W_1) in [0, 1]; weights (B, 6, H_1, W_1) of the attention; per scale, fine to coarse,
    normality and abnormality maps (B, H_k, W_k) in [0, 2], () for a branch that is not there."""

    fused: Tensor
    weights: Tensor
    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]


class DMDD(nn.Module):
    """forward: images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32 -> ModelOutput.

    The same output in training and evaluation; the teacher stays frozen in both.
    """

    def __init__(self, config: Config, teacher: Teacher):
        super().__init__()
        self.config = config
        self.teacher = teacher
        self.student = build_student(config, teacher.info)
        self.fusion = build_fusion(config, len(config.branches) * len(teacher.info.channels))

    def forward(self, images: Tensor) -> ModelOutput:
        features = self.teacher(images)
        decoupled: StudentOutput = self.student(images, features)
        normality = distillation_maps(decoupled.normality, features)
        abnormality = distillation_maps(decoupled.abnormality, features)
        output = self.fusion(fusion_input(normality, abnormality))
        return ModelOutput(output.fused, output.weights, normality, abnormality)


def fusion_input(normality: tuple[Tensor, ...], abnormality: tuple[Tensor, ...]) -> Tensor:
    """What the MSN sees: the maps of both branches at the finest one's size, (B, 6, H_1, W_1), detached, so
    that fusing never trains the student."""
    maps = (*normality, *abnormality)
    return stack_maps(maps, maps[0].shape[1:]).detach()


def build_model(config: Config, teacher: Teacher) -> DMDD:
    """The model with a student and a segmentation network initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DMDD(config, teacher)


def full_size_maps(output: ModelOutput, config: Config) -> dict[str, Tensor]:
    """The maps that are scored, each (B, S, S), S = image_size: bilinear upsampling, then a Gaussian.

    'normality' and 'abnormality' are sums over scales, 'sum' is both [ours], 'fused' the MSN's [paper]. A
    student of one branch has no map of the other.
    """
    size = (config.image_size, config.image_size)
    fused = F.interpolate(output.fused[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    maps = {"fused": fused}
    for name in config.branches:
        maps[name] = stack_maps(getattr(output, name), size).sum(1)
    maps["sum"] = sum(maps[name] for name in config.branches)
    return {name: smooth(m, config.smoothing_sigma * config.image_size / 256) for name, m in maps.items()}


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing (B, H, W) -> (B, H, W), as scipy's mode='mirror' with truncate=4. [authors]

    One axis after the other: the square kernel of torchvision would cost 16 times as much.
    """
    if sigma == 0:
        return maps
    kernel = 2 * round(4 * sigma) + 1
    rows = gaussian_blur(maps, [kernel, 1], [sigma, sigma])
    return gaussian_blur(rows, [1, kernel], [sigma, sigma])


def image_scores(maps: Tensor, config: Config) -> Tensor:
    """Image score (B,) of smoothed maps (B, H, W): the maximum [authors] or the mean of the top pixels."""
    flat = maps.flatten(1)
    if config.score_rule == "max":
        return flat.amax(1)
    return flat.topk(min(config.score_top, flat.shape[1]), dim=1).values.mean(1)
