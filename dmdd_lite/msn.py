"""The Multi-perception Segmentation Network (MSN): the branches' anomaly maps at three scales to one map.

'Focused fusion of the anomaly maps by multiple attention' is all that the paper's abstract states [paper];
perceptions, the kinds of attention and the mix with the plain mean are ours [ours].

Legend: B images, K maps (normality and abnormality, each fine to coarse: 6), P perceptions of W channels,
H x W the finest map.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .losses import Features, stack_maps

GAIN, BIAS = 2.0, -3.0  # of the logit at the start: e^1.5 times the mean distance has probability 0.5
SLOPE = 10.0  # of the plain logit, per unit of mean distance
FLOOR = 0.02  # added to distances before their logarithm
RELATIVE = 0.4  # fraction of an image's own lower quartile that is subtracted from its maps
PERCEPTIONS, WIDTH = (1, 2, 4), 16  # dilations of the perceptions, and channels of each


class MSNOutput(NamedTuple):
    """logits (B, H, W), trained with the masks; weights (B, K, H, W) of the maps, by attention in (0, 2)."""

    logits: Tensor
    weights: Tensor


class MSNInputs(NamedTuple):
    """maps (B, K, H, W), calibrated logarithms of distances; plain (B, H, W), logit of their mean."""

    maps: Tensor
    plain: Tensor


class ChannelAttention(nn.Module):
    """Squeeze and excitation: one gate in (0, 1) per channel from the image's mean and maximum. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 4)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.gate(_mean(x, (2, 3))) + self.gate(nn.functional.adaptive_max_pool2d(x, 1))
        return pooled.sigmoid()  # B, C, 1, 1


class SpatialAttention(nn.Module):
    """One gate in (0, 1) per pixel from the mean and the maximum of the channels around it. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        highest = x.movedim(1, -1).max(-1).values[:, None]  # amax counts ties, at several times the cost
        return self.gate(torch.cat((_mean(x, 1), highest), dim=1)).sigmoid()  # B, 1, H, W


class CoordinateAttention(nn.Module):
    """A gate per row times a gate per column, for every channel: where to look along each axis. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 4)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True))
        self.rows, self.columns = nn.Conv2d(hidden, channels, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # as (B, H, W, C), where sums along one axis of the image, here and in the gradient, are fast
        across, down = (_mean(x.movedim(1, -1), axis).movedim(-1, 1) for axis in (2, 1))
        rows, columns = self.rows(self.squeeze(across)), self.columns(self.squeeze(down))
        gates = rows.movedim(1, -1).sigmoid() * columns.movedim(1, -1).sigmoid()
        return gates.movedim(-1, 1)  # B, C, H, W


class SelfAttention(nn.Module):
    """Every pixel attends to an 8 x 8 summary of the image; the result gates each channel. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key, self.value = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        summary = nn.functional.adaptive_avg_pool2d(x, 8)
        q, k, v = (
            f.flatten(2).transpose(1, 2) for f in (self.query(x), self.key(summary), self.value(summary))
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)  # B, H W, C
        return attended.transpose(1, 2).reshape(x.shape).sigmoid()


ATTENTIONS = {
    "channel": ChannelAttention,
    "spatial": SpatialAttention,
    "coordinate": CoordinateAttention,
    "self": SelfAttention,
}


def _mean(x: Tensor, dims) -> Tensor:
    """x.mean(dims, keepdim=True); as a sum whose gradient is divided before it is expanded, because the other
    order loses the channels-last layout, which makes every later step slow."""
    total = x.sum(dims, keepdim=True)
    return total * (total.numel() / x.numel())


class Calibration(nn.Module):
    """Makes the distances of both branches and all scales comparable before they are fused. [ours]

    forward: K maps (B, H_k, W_k), distances >= 0 -> MSNInputs, detached. A calibrated map is log(d + FLOOR),
    less RELATIVE times the lower quartile of the image's own map, less the mean of that on good images: 1 is
    e times the mean distance of good images. plain: SLOPE times the mean distance above that of good images,
    plus BIAS.
    """

    def __init__(self, maps: int = 6):
        super().__init__()
        self.register_buffer("level", torch.zeros(maps))
        self.register_buffer("distance", torch.zeros(()))

    def forward(self, maps: Features) -> MSNInputs:
        size = maps[0].shape[1:]
        logs = stack_maps(relative_logarithms(maps), size) - self.level[:, None, None]
        distance = stack_maps([m.detach().float() for m in maps], size).mean(1)
        return MSNInputs(logs, SLOPE * (distance - self.distance) + BIAS)

    @torch.no_grad()
    def observe(self, maps: Features, weight: float = 1.0):
        """Update the levels from maps of good images. weight: of these in the running means, at first 1."""
        self.level.lerp_(torch.stack([m.mean() for m in relative_logarithms(maps)]), weight)
        self.distance.lerp_(torch.stack([m.float().mean() for m in maps]).mean(), weight)


def relative_logarithms(maps: Features, floor: float = FLOOR) -> tuple[Tensor, ...]:
    """log(d + floor) of distances (B, H_k, W_k), detached, less RELATIVE times its lower quartile."""
    logs = [(m.detach().float() + floor).log() for m in maps]
    return tuple(m - RELATIVE * lower_quartile(m) for m in logs)


def lower_quartile(maps: Tensor) -> Tensor:
    """Of maps (B, H, W), (B, 1, 1): the least value that a quarter of the pixels do not exceed."""
    flat = maps.flatten(1)
    lowest = flat.topk(-(-flat.shape[1] // 4), dim=1, largest=False, sorted=False).values  # ONNX has topk
    return lowest.amax(1)[:, None, None]


def fuse(logits: Tensor, plain: Tensor, plain_weight: float) -> Tensor:
    """The fused map in [0, 1]: logits of the MSN and of the plain mean, the latter with weight
    `plain_weight`."""
    return torch.lerp(logits.float(), plain, plain_weight).sigmoid()


class MSN(nn.Module):
    """forward: calibrated, detached maps (B, K, H, W) -> MSNOutput.

    Attention re-weights the maps, pixel by pixel, and the logit is their weighted mean: the network cannot
    see a defect where no map does. Untrained, every weight is 1. [ours]
    """

    def __init__(self, maps: int = 6, attentions=("channel", "spatial", "coordinate")):
        super().__init__()
        channels = WIDTH * len(PERCEPTIONS)
        self.perceptions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(maps, WIDTH, 3, padding=d, dilation=d), nn.ReLU(inplace=True))
            for d in PERCEPTIONS
        )
        self.attentions = nn.ModuleDict({name: ATTENTIONS[name](channels) for name in attentions})
        self.reweight = nn.Conv2d(channels, maps, 1)
        self.gain, self.bias = nn.Parameter(torch.tensor(GAIN)), nn.Parameter(torch.tensor(BIAS))
        nn.init.zeros_(self.reweight.weight)
        nn.init.zeros_(self.reweight.bias)

    def forward(self, maps: Tensor) -> MSNOutput:
        seen = torch.cat([perceive(maps) for perceive in self.perceptions], dim=1)  # B, P W, H, W
        for attention in self.attentions.values():
            seen = seen * (1 + attention(seen))
        weights = 1 + torch.tanh(self.reweight(seen))  # B, K, H, W
        return MSNOutput(self.gain * (weights * maps).mean(1) + self.bias, weights)
