"""DMDD put together: teacher, student and segmentation network, from images to anomaly maps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config
from .data.images import unit_range
from .losses import Features, distillation_maps, stack_maps
from .msn import Calibration, build_msn, fuse
from .plus.mix import POSITION_FLOOR, Plus
from .plus.statistics import build_position
from .student import StudentOutput, build_student
from .teacher import Teacher
from .utils import autocast

#: the maps of a complete model
MAP_NAMES = ("fused", "normality", "abnormality", "sum", "plus", "position")

CALIBRATION_BATCH = 8  # good images at a time


class ModelOutput(NamedTuple):
    """fused, the MSN's map, and plus, that of DMDD+, (B, H_1, W_1) in [0, 1]; weights (B, K, H_1, W_1) of the
    attention; per scale, fine to coarse, normality and abnormality maps (B, H_k, W_k) in [0, 2] and position
    maps >= 0 (near 1 where good); maps (B, K, H_1, W_1) and plain (B, H_1, W_1), what was fused. () for a
    kind of map, None for a plus map, that the model lacks."""

    fused: Tensor
    plus: Tensor | None
    weights: Tensor
    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]
    position: tuple[Tensor, ...]
    maps: Tensor
    plain: Tensor

    def apply(self, change: Callable[[Tensor], Tensor]) -> "ModelOutput":
        """The same with every tensor changed."""

        def changed(values):
            if isinstance(values, tuple):
                return tuple(map(changed, values))
            return None if values is None else change(values)

        return ModelOutput(*map(changed, self))


class DMDD(nn.Module):
    """forward: images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32 -> ModelOutput.

    The same output in training and evaluation; the teacher stays frozen in both.
    """

    def __init__(self, config: Config, teacher: Teacher):
        super().__init__()
        self.config = config
        self.teacher = teacher
        self.student = build_student(config, teacher.info)
        self.position = build_position(config, teacher.info)
        self.plus = None if self.position is None else Plus(len(teacher.info.channels))
        maps = len(config.branches) * len(teacher.info.channels)
        self.calibration = Calibration(maps)
        self.msn = build_msn(config, maps)

    def forward(self, images: Tensor, trained_on: bool = False) -> ModelOutput:
        """trained_on: these are training images, for which the position statistics are leave-one-out."""
        features = self.teacher(images)
        return self.of_features(images, features, features if trained_on else None)

    def of_features(self, images: Tensor, features: Features, own: Features | None = None) -> ModelOutput:
        """`forward` of images whose teacher features are known; own as in PositionStatistics."""
        branches = self.branch_maps(images, features)
        position = () if self.position is None else self.position(features, own)
        inputs = self.calibration(sum(branches, ()))
        output = self.msn(inputs.maps)
        fused = fuse(output.logits, inputs.plain, self.config.msn_skip)
        plus = None if self.plus is None else self.plus(fused, position)
        return ModelOutput(fused, plus, output.weights, *branches, position, *inputs)

    def branch_maps(self, images: Tensor, features: Features) -> list[Features]:
        """The maps of normality and abnormality before they are calibrated, of images and their teacher
        features; () for a branch that the student lacks."""
        decoupled: StudentOutput = self.student(images, features)
        return [distillation_maps(branch, features) for branch in decoupled]

    @torch.no_grad()
    def calibrate(self, good: Tensor, trained_on: bool = False):
        """Take the levels of all maps from good images, uint8 (N, 3, H, W) on any device, batch by batch.
        trained_on: as in `forward`. [ours]"""
        device = self.teacher.mean.device
        for number, batch in enumerate(good.split(CALIBRATION_BATCH), start=1):
            images = unit_range(batch, device)
            with autocast(device, self.config.precision):
                features = self.teacher(images)
                branches = self.branch_maps(images, features)
            self.calibration.observe(sum(branches, ()), 1 / number)
            if self.plus is not None:
                self.plus.observe(self.position(features, features if trained_on else None), 1 / number)


def build_model(config: Config, teacher: Teacher) -> DMDD:
    """The model with a student and a segmentation network initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DMDD(config, teacher)


def full_size_maps(output: ModelOutput, config: Config) -> dict[str, Tensor]:
    """The maps that are scored, each (B, S, S), S = image_size: bilinear upsampling, then a Gaussian.

    'fused' is the MSN's [paper]; 'normality' and 'abnormality' are sums over scales, 'sum' is both [ours];
    'plus' is that of DMDD+ and 'position' the mean over scales of log(1 + distance / 0.05) [ours]. 'fused'
    and 'plus' are smoothed as logits: a lone high pixel does not disappear in its neighbours' saturation
    [ours]. There is no map of a kind that the model lacks.
    """
    size = (config.image_size, config.image_size)
    logits = {"fused": output.fused} | ({"plus": output.plus} if config.position_maps else {})
    maps = {name: stack_maps([m.float().logit(eps=1e-6)], size)[:, 0] for name, m in logits.items()}
    for name in config.branches:
        maps[name] = stack_maps(getattr(output, name), size).sum(1)
    if config.position_maps:
        maps["position"] = stack_maps(position_levels(output.position), size).mean(1)
    maps["sum"] = sum(maps[name] for name in config.branches)
    maps = {name: smooth(m, config.smoothing_sigma * config.image_size / 256) for name, m in maps.items()}
    return {name: maps[name].sigmoid() if name in logits else maps[name] for name in map_names(config)}


def position_levels(maps: Features) -> Features:
    """log(1 + distance / 0.05), which is 0 at no distance: position maps (B, H_k, W_k) for the eye. [ours]"""
    return tuple((1 + m.float() / POSITION_FLOOR).log() for m in maps)


def map_names(config: Config) -> tuple[str, ...]:
    """The maps that a model of this configuration has, of MAP_NAMES."""
    known = ("fused", "sum", *config.branches, *["plus", "position"] * config.position_maps)
    return tuple(name for name in MAP_NAMES if name in known)


def decisive_map(config: Config) -> str:
    """The map whose image score decides: that of DMDD+ where there is one, else DMDD's."""
    return "plus" if config.position_maps else "fused"


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
    """Image score (B,) of smoothed maps (B, H, W), each map by itself: the maximum [authors] or the mean of
    the top pixels [field]."""
    flat = maps.flatten(1)
    if config.score_rule == "top":
        return flat.topk(min(config.score_top, flat.shape[1]), dim=1).values.mean(1)
    return flat.amax(1)
