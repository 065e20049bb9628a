"""DMDD put together: teacher, student and MSN, from images to anomaly maps and image scores."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config
from .data.images import unit_range
from .losses import Features, distance_maps, stack_maps
from .msn import MSN, Calibration, MSNInputs, fuse
from .student import build_student
from .teacher import Teacher
from .utils import autocast

CALIBRATION_BATCH = 8  # good images at a time


class ModelOutput(NamedTuple):
    """fused (B, H_1, W_1) in [0, 1], the MSN's map; weights (B, K, H_1, W_1) of its attention; per scale,
    fine to coarse, normality and abnormality maps (B, H_k, W_k) in [0, 2], () without the branch; inputs,
    what was fused."""

    fused: Tensor
    weights: Tensor
    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]
    inputs: MSNInputs


class DMDD(nn.Module):
    """forward: images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32 -> ModelOutput.

    The same output in training and evaluation; the teacher stays frozen in both.
    """

    def __init__(self, config: Config, teacher: Teacher):
        super().__init__()
        self.config = config
        self.teacher = teacher
        self.student = build_student(config, teacher.info)
        maps = len(config.branches) * len(teacher.info.channels)
        self.calibration = Calibration(maps)
        self.msn = MSN(maps, config.msn_attention)

    def forward(self, images: Tensor) -> ModelOutput:
        return self.of_features(images, self.teacher(images))

    def of_features(self, images: Tensor, features: Features) -> ModelOutput:
        """`forward` of images whose teacher features are known."""
        branches = self.branch_maps(images, features)
        inputs = self.calibration(sum(branches, ()))
        logits, weights = self.msn(inputs.maps)
        return ModelOutput(fuse(logits, inputs.plain, self.config.plain_weight), weights, *branches, inputs)

    def branch_maps(self, images: Tensor, features: Features) -> list[Features]:
        """The maps of normality and abnormality before they are calibrated; () for a branch that the student
        lacks."""
        return [distance_maps(branch, features) for branch in self.student(images, features)]

    @torch.no_grad()
    def calibrate(self, good: Tensor):
        """Take the levels of all maps from good images, uint8 (N, 3, H, W) on any device. [ours]"""
        device = self.teacher.mean.device
        for number, batch in enumerate(good.split(CALIBRATION_BATCH), start=1):
            images = unit_range(batch, device)
            with autocast(device, self.config.precision):
                branches = self.branch_maps(images, self.teacher(images))
            self.calibration.observe(sum(branches, ()), 1 / number)


def build_model(config: Config, teacher: Teacher) -> DMDD:
    """The model with a student and an MSN initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DMDD(config, teacher)


def full_size_maps(output: ModelOutput, config: Config) -> dict[str, Tensor]:
    """The maps that are scored, each (B, *config.size): bilinear upsampling, then a Gaussian.

    'fused' is the MSN's [paper]; 'normality' and 'abnormality' are sums over the scales, 'sum' is the sum of
    both [ours].
    """
    maps = {name: stack_maps(getattr(output, name), config.size).sum(1) for name in config.branches}
    maps["sum"] = sum(maps.values())
    maps = {name: smooth(values, sigma_of(config)) for name, values in maps.items()}
    return {"fused": smooth_probability(output.fused, config), **maps}


def smooth_probability(maps: Tensor, config: Config) -> Tensor:
    """Maps (B, H, W) in [0, 1] upsampled to (B, *config.size) and smoothed as logits: a single high pixel
    does not disappear in the saturation of its neighbours. [ours]"""
    logits = stack_maps([maps.float().logit(eps=1e-6)], config.size)[:, 0]
    return smooth(logits, sigma_of(config)).sigmoid()


def sigma_of(config: Config) -> float:
    """Of the Gaussian, in pixels at the configuration's image size, in proportion to the shorter side."""
    return config.smoothing_sigma * min(config.size) / 256


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing (B, H, W) -> (B, H, W), as scipy's mode='mirror' with truncate=4. [authors]

    One axis after the other: the square kernel of torchvision would cost 16 times as much. As channels of one
    image the maps are smoothed faster than as images, but an exported file takes any number of images.
    """
    if sigma == 0:
        return maps
    kernel = 2 * round(4 * sigma) + 1
    axis = 1 if torch.compiler.is_compiling() else 0  # also while it is exported
    rows = gaussian_blur(maps.unsqueeze(axis), [kernel, 1], [sigma, sigma])
    return gaussian_blur(rows, [1, kernel], [sigma, sigma]).squeeze(axis)


def image_scores(maps: Tensor) -> Tensor:
    """Image score (B,) of smoothed maps (B, H, W): the maximum. [authors]"""
    return maps.flatten(1).amax(1)
