"""The Multi-perception Segmentation Network (MSN): anomaly maps of several kinds and scales to one.

'Focused fusion of the anomaly maps by multiple attention' is all that the paper's abstract says [paper];
perceptions, the kinds of attention and the residual form are ours [ours].

Legend: B images, K maps (6 of normality and abnormality, 3 more of positions, each kind fine to coarse), P
perceptions of W channels, H x W the finest map.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import Config
from .device import send
from .losses import stack_maps

GAIN, BIAS = 2.0, -3.0  # of the logit at first: e^1.5 times the usual distance is as likely damaged as not
LEAST_EXPLAINED = 0.1  # of a scale; what a few held-out images say below it is chance
COARSE_SHARE = 0.4  # of the coarsest position map in a blended image score
SPREAD, SPREAD_IMAGES = 0.4, 10  # usual spread of maxima over good images; how many images it counts as
FLOOR = {
    "normality": 0.02,
    "abnormality": 0.02,
    "position": 0.05,
}  # added to distances before their logarithm


class FusionOutput(NamedTuple):
    """fused anomaly map (B, H, W) in [0, 1]; logits (B, H, W) that the masks train; weights (B, K, H, W) that
    each map was given, in (0, 2) by the MSN's attention."""

    fused: Tensor
    logits: Tensor
    weights: Tensor


def average(x: Tensor, dims) -> Tensor:
    """x.mean(dims, keepdim=True); as a sum whose gradient is divided before it is spread, because the other
    order loses the channels-last layout, which makes every step after it slow."""
    total = x.sum(dims, keepdim=True)
    return total * (total.numel() / x.numel())


class ChannelAttention(nn.Module):
    """Squeeze and excitation: one gate in (0, 1) a channel from the image's mean and maximum. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 4)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.gate(average(x, (2, 3))) + self.gate(nn.functional.adaptive_max_pool2d(x, 1))
        return pooled.sigmoid()  # B, C, 1, 1


class SpatialAttention(nn.Module):
    """One gate in (0, 1) a pixel from the channels' mean and maximum around it. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        highest = x.movedim(1, -1).max(-1).values[:, None]  # amax counts ties, at several times the cost
        return self.gate(torch.cat((average(x, 1), highest), dim=1)).sigmoid()  # B, 1, H, W


class CoordinateAttention(nn.Module):
    """A gate a row times a gate a column, for every channel: where along each axis to look. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 4)
        self.squeeze = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True))
        self.rows, self.columns = nn.Conv2d(hidden, channels, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # as (B, H, W, C), where sums along one axis of the image, here and in the gradient, are fast
        across, down = (average(x.movedim(1, -1), axis).movedim(-1, 1) for axis in (2, 1))
        rows, columns = self.rows(self.squeeze(across)), self.columns(self.squeeze(down))
        gates = rows.movedim(1, -1).sigmoid() * columns.movedim(1, -1).sigmoid()
        return gates.movedim(-1, 1)  # B, C, H, W


class SelfAttention(nn.Module):
    """Every pixel looks at an 8 x 8 summary of the image; the answer gates each channel. [ours]"""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key, self.value = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        summary = nn.functional.adaptive_avg_pool2d(x, 8)
        q, k, v = (
            f.flatten(2).transpose(1, 2) for f in (self.query(x), self.key(summary), self.value(summary))
        )
        answer = nn.functional.scaled_dot_product_attention(q, k, v)  # B, H W, C
        return answer.transpose(1, 2).reshape(x.shape).sigmoid()


ATTENTIONS = {
    "channel": ChannelAttention,
    "spatial": SpatialAttention,
    "coordinate": CoordinateAttention,
    "self": SelfAttention,
}


class Calibration(nn.Module):
    """Distances of different kinds made comparable before they are fused. [ours]

    forward: a tuple of maps (B, H_k, W_k), distances >= 0 of `kinds` x `scales`, each kind fine to coarse ->
    (B, K, H_1, W_1), detached: logarithms of the distances over what they are on good images, so that 1 is
    e times as far from the teacher as usual, times the share that a map has in the plain mean. Of an image's
    own level, the lower quartile of its map, `relative` is taken off first.

    Branches together have the same share as the statistics of positions. Among scales the share is how
    much of the features the student explains, see `observe`.
    """

    def __init__(
        self, kinds: tuple[str, ...], scales: int = 3, by_scale: str = "explained", relative: float = 0.4
    ):
        super().__init__()
        self.kinds, self.scales, self.by_scale, self.relative = kinds, scales, by_scale, relative
        self.register_buffer("floor", torch.tensor([FLOOR[kind] for kind in kinds]).repeat_interleave(scales))
        self.register_buffer("level", torch.zeros(len(kinds) * scales))
        self.register_buffer("explained", torch.ones(scales))
        self.register_buffer("score_mean", torch.zeros(2))
        self.register_buffer("score_spread", torch.full((2,), SPREAD))

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        shares, levels = (values[:, None, None] for values in (self.shares(), self.level))
        return shares * (stack_maps(self.logarithms(maps), maps[0].shape[1:]) - levels)

    def logarithms(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of distances (B, H_k, W_k), detached, less the share of the image's own level."""
        logs = [(m.detach().float() + f).log() for m, f in zip(maps, self.floor, strict=True)]
        return tuple(m - self.relative * lower_quartile(m) for m in logs) if self.relative else tuple(logs)

    def shares(self) -> Tensor:
        """Of every map, (K,), 1 on average."""
        branches = sum(kind != "position" for kind in self.kinds)
        kinds = [1.0 if kind == "position" else 1 / branches for kind in self.kinds]
        explained = self.explained.clamp(min=LEAST_EXPLAINED)
        scales = explained if self.by_scale == "explained" else torch.ones_like(explained)
        shares = (torch.tensor(kinds, device=scales.device)[:, None] * scales).flatten()
        return shares / shares.mean()

    def blend(self, maxima: Tensor) -> Tensor:
        """Image scores (B,) in [0, 1] of two maxima each, (B, 2), the fused map's logit first: on its scale,
        a weighted mean of how many spreads either is above good images', the second with `COARSE_SHARE`."""
        fused, coarsest = ((maxima - self.score_mean) / self.score_spread.clamp(min=1e-6)).unbind(1)
        above = torch.lerp(fused, coarsest, COARSE_SHARE)
        return (self.score_mean[0] + self.score_spread[0] * above).sigmoid()

    @torch.no_grad()
    def observe_maxima(self, maxima: Tensor):
        """Take notice of the maxima (N, 2) of good images: their mean, and their spread as if
        `SPREAD_IMAGES` more had the usual one, for a few images say little of it."""
        self.score_mean.copy_(maxima.mean(0))
        squares = (maxima - self.score_mean).square().sum(0) + SPREAD_IMAGES * SPREAD**2
        self.score_spread.copy_((squares / (len(maxima) + SPREAD_IMAGES - 1)).sqrt())

    @torch.no_grad()
    def observe(self, maps: tuple[Tensor, ...], usual: tuple[Tensor, ...] = (), share: float = 1.0):
        """Take notice of good images: `maps` as in `forward`, and per scale the distance (B, H_k, W_k) of the
        teacher's features to their mean at every position, () where that is not known.

        What a scale explains is 1 - (the first kind's distance) / (that distance), on average. share: of this
        observation in the running averages, the first time 1.
        """
        level = torch.stack([m.mean() for m in self.logarithms(maps)])
        self.level.lerp_(level, share)
        if usual:
            pairs = zip(maps[: self.scales], usual, strict=True)
            explained = torch.stack(
                [1 - m.float().mean() / u.float().mean().clamp(min=1e-6) for m, u in pairs]
            )
            self.explained.lerp_(explained, share)


def lower_quartile(maps: Tensor) -> Tensor:
    """Of maps (B, H, W), (B, 1, 1): the least value that a quarter of the pixels do not exceed."""
    flat = maps.flatten(1)
    return flat.kthvalue(-(-flat.shape[1] // 4), dim=1).values[:, None, None]


def jitter_maps(maps: Tensor, spread: float, rng: torch.Generator) -> Tensor:
    """Calibrated maps (B, K, H, W) plus spread (z + z_k), z ~ N(0, 1) for each image and z_k for each map:
    distances some times larger or smaller.

    Real defects are weaker and stronger than synthetic ones; without this the network learns the scale of the
    latter. rng: on the CPU. [ours]
    """
    batch, count = maps.shape[:2]
    image = torch.randn(batch, 1, 1, 1, generator=rng)
    single = torch.randn(batch, count, 1, 1, generator=rng)
    return maps + send(spread * (image + single), maps.device)


def fade_maps(maps: Tensor, count: int, share: float, rng: torch.Generator) -> Tensor:
    """Calibrated maps (2 B, K, H, W), of B normal views and then of their B damaged ones: in a random `share`
    of the pairs, the first `count` maps of the damaged view come nearer to the normal view's, all of them by
    the same random part of the way.

    A student may reconstruct a real defect better than any synthetic one; without this the network learns
    that where the branches see nothing, there is nothing. rng: on the CPU. [ours]
    """
    if not share or not count:
        return maps
    normal, damaged = maps.chunk(2)
    chance, left = torch.rand(2, len(normal), 1, 1, 1, generator=rng)
    left = send(torch.where(chance < share, left, 1.0), maps.device)
    faded = torch.lerp(normal[:, :count], damaged[:, :count], left.to(maps.dtype))
    return torch.cat((normal, torch.cat((faded, damaged[:, count:]), dim=1)))


def zoom_maps(maps: Tensor, mask: Tensor, most: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seven batches in ten: one random square of maps (B, K, H, W) and mask (B, H, W), enlarged up to `most`
    times to the full size.

    Real defects can be far larger than the synthetic ones; their maps then look like enlarged ones.
    rng: on the CPU. [ours]
    """
    side, chance = maps.shape[-1], torch.rand(4, generator=rng).tolist()
    crop = round(side / most + chance[1] * (side - side / most))
    if chance[0] > 0.7 or crop >= side:
        return maps, mask
    top, left = (int(c * (side - crop + 1)) for c in chance[2:])
    both = torch.cat((maps, mask[:, None].to(maps.dtype)), dim=1)[..., top : top + crop, left : left + crop]
    both = nn.functional.interpolate(both, (side, side), mode="bilinear", align_corners=False)
    return both[:, :-1], both[:, -1]


class WeightedSum(nn.Module):
    """The least that learns to fuse: one weight a map and a bias. Same input and output as the MSN. [ours]"""

    def __init__(self, maps: int = 6, skip: float = 0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(maps)), nn.Parameter(torch.tensor(BIAS))
        self.skip = skip

    def forward(self, maps: Tensor) -> FusionOutput:
        weights = self.weight[:, None, None].expand_as(maps)
        logits = GAIN * (weights * maps).mean(1) + self.bias
        return FusionOutput(_with_plain(maps, logits, self.skip), logits, weights)


def _with_plain(maps: Tensor, logits: Tensor, skip: float) -> Tensor:
    """The fused map: what was learned, and the untrained mean with the share `skip`, mixed as logits."""
    plain = (GAIN * maps.mean(1) + BIAS).float()
    return torch.lerp(logits.float(), plain, skip).sigmoid()


class SegmentationNetwork(nn.Module):
    """MSN. forward: calibrated, detached maps (B, K, H, W) -> FusionOutput.

    Untrained it is the plain mean: every attention weight is 1, the head adds 0, so that the fused map begins
    as an increasing function of the maps' mean, which training re-weights and corrects. What it learns can
    be wrong for real defects whose maps look unlike synthetic ones: `skip` is the share that the untrained
    mean keeps in the fused map. [ours]
    """

    def __init__(
        self,
        maps: int = 6,
        width: int = 16,
        perceptions=(1, 2, 4),
        attentions=("channel", "spatial", "coordinate"),
        skip: float = 0.0,
    ):
        super().__init__()
        channels = width * len(perceptions)
        self.perceptions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(maps, width, 3, padding=d, dilation=d), nn.ReLU(inplace=True))
            for d in perceptions
        )
        self.attentions = nn.ModuleDict({name: ATTENTIONS[name](channels) for name in attentions})
        self.reweight = nn.Conv2d(channels, maps, 1)
        self.head = nn.Sequential(
            nn.Conv2d(channels + maps, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, 1, 1)
        )
        self.gain, self.bias = nn.Parameter(torch.tensor(GAIN)), nn.Parameter(torch.tensor(BIAS))
        self.skip = skip
        for last in (self.reweight, self.head[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, maps: Tensor) -> FusionOutput:
        seen = torch.cat([perceive(maps) for perceive in self.perceptions], dim=1)  # B, P W, H, W
        for attention in self.attentions.values():
            seen = seen * (1 + attention(seen))
        weights = 1 + torch.tanh(self.reweight(seen))  # B, K, H, W
        weighted = weights * maps
        correction = self.head(torch.cat((seen, weighted.to(seen.dtype)), dim=1))[:, 0]
        logits = self.gain * weighted.mean(1) + self.bias + correction
        return FusionOutput(_with_plain(maps, logits, self.skip), logits, weights)


def map_kinds(config: Config) -> tuple[str, ...]:
    """The kinds of maps that are fused, in the order in which they are."""
    return (*config.branches, *["position"] * config.position_maps)


def build_fusion(config: Config, maps: int = 6) -> nn.Module:
    """The fusion that `config.fusion` names, of so many maps."""
    if config.fusion == "weighted":
        return WeightedSum(maps, config.fusion_skip)
    return SegmentationNetwork(
        maps, config.fusion_width, config.fusion_perceptions, config.fusion_attention, config.fusion_skip
    )
