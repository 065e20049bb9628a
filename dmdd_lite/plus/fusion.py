"""The map of DMDD+: DMDD's fused map and the position statistics in one. All of it is ours [ours].

plus = sigmoid((1 - w) logit(fused) + w (GAIN p + BIAS)), where p is the calibrated mean of the position maps
over the scales and w the weight of the configuration.

Legend: B images, H_k x W_k positions of scale k, H x W the finest map.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.images import unit_range
from ..losses import Features, stack_maps
from ..model import CALIBRATION_BATCH, DMDD, sigma_of, smooth, smooth_probability
from ..msn import BIAS, GAIN, relative_logarithms
from ..teacher import FeatureInfo
from ..utils import autocast
from .statistics import PositionStatistics

FLOOR = 0.05  # added to squared Mahalanobis distances before their logarithm


class PlusOutput(NamedTuple):
    """plus (B, H, W) in [0, 1]; position maps (B, H_k, W_k) >= 0, near 1 where good."""

    plus: Tensor
    position: Features


class Plus(nn.Module):
    """forward: fused map (B, H, W) in [0, 1], teacher features (B, C_k, H_k, W_k) -> PlusOutput."""

    def __init__(self, config: Config, info: FeatureInfo):
        super().__init__()
        self.weight = config.plus.weight
        self.statistics = PositionStatistics(config.plus, info, config.image_size, config.seed)
        self.register_buffer("level", torch.zeros(len(info.channels)))

    def forward(self, fused: Tensor, features: Features) -> PlusOutput:
        position = self.statistics(features)
        maps = stack_maps(relative_logarithms(position, FLOOR), fused.shape[1:])
        evidence = GAIN * (maps - self.level[:, None, None]).mean(1) + BIAS
        plus = torch.lerp(fused.float().logit(eps=1e-6), evidence, self.weight).sigmoid()
        return PlusOutput(plus, position)


@torch.no_grad()
def fit_plus(model: DMDD, train: Tensor, held_out: Tensor) -> Plus:
    """DMDD+ on top of a trained DMDD: statistics of the training images, levels of the held-out ones, both
    uint8 (N, 3, h, w) on the model's device. Raises ValueError for fewer than three training images."""
    device, config = train.device, model.config
    plus = Plus(config, model.teacher.info).to(device)

    def features(images):
        for part in images.split(CALIBRATION_BATCH):
            with autocast(device, config.precision):  # ends before the yield, or it would leak
                found = model.teacher(unit_range(part, device))
            yield found

    statistics = plus.statistics
    statistics.fit(lambda: features(train), statistics.arithmetic_noise(model.teacher, train))
    for number, found in enumerate(features(held_out), start=1):
        levels = [m.mean() for m in relative_logarithms(statistics(found), FLOOR)]
        plus.level.lerp_(torch.stack(levels), 1 / number)
    return plus.eval()


def plus_maps(output: PlusOutput, config: Config) -> dict[str, Tensor]:
    """The maps that are scored, each (B, *config.size): 'plus', and 'position', the mean over the
    scales of log(1 + distance / FLOOR)."""
    logs = tuple((1 + m.float() / FLOOR).log() for m in output.position)
    position = stack_maps(logs, config.size).mean(1)
    return {"plus": smooth_probability(output.plus, config), "position": smooth(position, sigma_of(config))}
