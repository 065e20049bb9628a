"""DMDD put together: teacher, student and segmentation network, from images to anomaly maps."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config
from .device import autocast, unit_range
from .fusion import FLOOR, Calibration, build_fusion, map_kinds
from .losses import Features, cosine_distance, distillation_maps, stack_maps
from .position import build_position
from .student import StudentOutput, build_student
from .teacher import Teacher

#: the maps of a complete model
MAP_NAMES = ("fused", "normality", "abnormality", "position", "sum")

CALIBRATION_BATCH = 8  # good images at a time


class ModelOutput(NamedTuple):
    """fused (B, H_1, W_1) in [0, 1]; weights (B, K, H_1, W_1) of the attention; per scale, fine to coarse,
    normality and abnormality maps (B, H_k, W_k) in [0, 2] and position maps >= 0 (near 1 where good), () for
    a kind that is not there; inputs (B, K, H_1, W_1), what was fused."""

    fused: Tensor
    weights: Tensor
    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]
    position: tuple[Tensor, ...]
    inputs: Tensor


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
        kinds, scales = map_kinds(config), len(teacher.info.channels)
        self.calibration = Calibration(kinds, scales, config.fusion_scales, config.fusion_relative)
        self.fusion = build_fusion(config, len(kinds) * scales)

    def forward(self, images: Tensor, trained_on: bool = False) -> ModelOutput:
        """trained_on: they are images of the training, which the statistics of positions then leave out, each
        for itself."""
        features = self.teacher(images)
        kinds = self.distances(images, features, features if trained_on else None)
        inputs = self.calibration(sum(kinds, ()))
        output = self.fusion(inputs)
        return ModelOutput(output.fused, output.weights, *kinds, inputs)

    def distances(self, images: Tensor, features: Features, own: Features | None = None) -> list[Features]:
        """The maps of normality, abnormality and positions before they are calibrated, () for a kind that is
        not there, of images and their teacher features; own as in PositionStatistics."""
        branches = self.branch_maps(images, features)
        return [*branches, () if self.position is None else self.position(features, own)]

    def branch_maps(self, images: Tensor, features: Features) -> list[Features]:
        """Of `distances`, the maps of normality and abnormality."""
        decoupled: StudentOutput = self.student(images, features)
        return [distillation_maps(branch, features) for branch in decoupled]

    @torch.no_grad()
    def calibrate(self, good: Tensor, trained_on: bool = False, shares: bool = True):
        """Take the levels of all maps, and their shares unless they are to stay, from good images, uint8
        (N, 3, H, W) on any device, batch by batch. trained_on: as in `forward`. [ours]"""
        device = self.teacher.mean.device
        for number, batch in enumerate(good.split(CALIBRATION_BATCH), start=1):
            images = unit_range(batch, device)
            with autocast(device, self.config.precision):
                features = self.teacher(images)
                kinds = self.distances(images, features, features if trained_on else None)
                usual = usual_distances(self.student, features) if shares else ()
            self.calibration.observe(sum(kinds, ()), usual, 1 / number)


def usual_distances(student: nn.Module, features: Features) -> Features:
    """What the maps of a branch would be if its features were the student's prior: per scale (B, H_k, W_k);
    () for a student that has none."""
    priors = [decoupling.prior for decoupling in student.decouple]
    if priors[0] is None:
        return ()
    return tuple(cosine_distance(prior.float(), f.float()) for prior, f in zip(priors, features, strict=True))


def build_model(config: Config, teacher: Teacher) -> DMDD:
    """The model with a student and a segmentation network initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DMDD(config, teacher)


def full_size_maps(output: ModelOutput, config: Config) -> dict[str, Tensor]:
    """The maps that are scored, each (B, S, S), S = image_size: bilinear upsampling, then a Gaussian.

    'normality' and 'abnormality' are sums over scales, 'sum' is both [ours], 'fused' the MSN's [paper], which
    is smoothed as logits, that a lone high pixel may not hide in its neighbours' saturation [ours];
    'position' is the mean over scales of log(1 + distance / 0.05) [ours]. There is no map of a kind that the
    model lacks.
    """
    size = (config.image_size, config.image_size)
    logits = output.fused.float().logit(eps=1e-6)
    maps = {"fused": F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]}
    for name in config.branches:
        maps[name] = stack_maps(getattr(output, name), size).sum(1)
    if config.position_maps:
        maps["position"] = stack_maps(position_levels(output.position), size).mean(1)
    maps["sum"] = sum(maps[name] for name in config.branches)
    maps = {name: smooth(m, config.smoothing_sigma * config.image_size / 256) for name, m in maps.items()}
    return {**maps, "fused": maps["fused"].sigmoid()}


def position_levels(maps: Features) -> Features:
    """log(1 + distance / 0.05), which is 0 at no distance: position maps (B, H_k, W_k) for the eye. [ours]"""
    return tuple((1 + m.float() / FLOOR["position"]).log() for m in maps)


def map_names(config: Config) -> tuple[str, ...]:
    """The maps that a model of this configuration has, of MAP_NAMES."""
    return tuple(name for name in MAP_NAMES if name in ("fused", "sum", *map_kinds(config)))


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


def blended_maxima(fused: Tensor, output: ModelOutput, config: Config) -> Tensor:
    """What `Calibration.blend` takes: the maxima (B, 2) of the fused map's logit, from the smoothed map
    (B, S, S), and of the coarsest position map. [ours]

    A coarse map has few cells, so that the highest of a good image stays low.
    """
    size = (config.image_size, config.image_size)
    coarsest = stack_maps(position_levels(output.position[-1:]), size)[:, 0]
    coarsest = smooth(coarsest, config.smoothing_sigma * config.image_size / 256)
    return torch.stack((fused.amax((1, 2)).logit(eps=1e-6), coarsest.amax((1, 2))), dim=1)
