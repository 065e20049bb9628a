"""Where an image has which features when it is good: statistics of the teacher's features at every position.

They serve twice [ours]. Their means are where the student's outputs begin, so that it learns what differs
from the usual instead of the usual. And the distance to them, Mahalanobis as in PaDiM [field], is a third
kind of anomaly map beside the two branches', for surfaces that no student predicts well.

Legend: B images, C_k channels, H_k x W_k positions of scale k, R <= C_k channels that are kept.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .losses import Features
from .teacher import FeatureInfo

SHRINKAGE = 0.03  # of the mean variance, added to every variance: few images leave some directions unseen


class PositionStatistics(nn.Module):
    """Mean and covariance of good images' features at every position, one Gaussian each.

    forward: features (B, C_k, H_k, W_k) of three scales -> squared Mahalanobis distances divided by R,
    (B, H_k, W_k): near 1 where an image is like the good ones. Before `fit` they are those of a standard
    normal distribution. Features count with the root of their size, which makes them less heavy-tailed,
    averaged over `pool` x `pool` cells; of more than `most` channels so many random mixtures are kept.
    """

    def __init__(self, info: FeatureInfo, image_size: int, pool: int = 3, most: int = 100, seed: int = 0):
        super().__init__()
        self.pool, self.scales = pool, len(info.channels)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        rng = torch.Generator().manual_seed(seed)
        for k, (channels, stride) in enumerate(zip(info.channels, info.strides, strict=True)):
            side, kept = image_size // stride, min(channels, most)
            if kept < channels:
                mixture = torch.linalg.qr(torch.randn(channels, kept, generator=rng))[0]
                self.register_buffer(f"mixture_{k}", mixture)
            self.register_buffer(f"mean_{k}", torch.zeros(kept, side, side))
            self.register_buffer(f"precision_{k}", torch.eye(kept).repeat(side * side, 1, 1))

    @torch.no_grad()
    def fit(self, batches: Iterable[Features]) -> "PositionStatistics":
        """Statistics of the features of all batches. Raises ValueError for fewer than three images."""
        count, sums = 0, []
        for features in batches:
            values = [self.described(f, k) for k, f in enumerate(features)]
            if not sums:
                sums = [_Sums(v) for v in values]
            for part, v in zip(sums, values, strict=True):
                part.add(v)
            count += len(values[0])
        if count < 3:
            raise ValueError(
                f"position_maps=True needs at least three training images, got {count}: add good images, "
                "lower holdout, or set position_maps=False"
            )
        self.count.fill_(count)
        for k, part in enumerate(sums):
            mean, covariance = part.moments(count)
            getattr(self, f"mean_{k}").copy_(mean)
            spread = SHRINKAGE * covariance.diagonal(dim1=1, dim2=2).mean()
            ridge = (spread + 1e-12) * torch.eye(covariance.shape[1], device=covariance.device)
            factor = torch.linalg.cholesky(covariance + ridge)
            getattr(self, f"precision_{k}").copy_(torch.cholesky_inverse(factor))
        return self

    def forward(self, features: Features, own: Features | None = None) -> Features:
        """own: features of the *training* images that these images are, or were made from; each is then
        measured against the statistics of all training images but itself, as a new image would be."""
        return tuple(self.distances(f, k, None if own is None else own[k]) for k, f in enumerate(features))

    def distances(self, feature: Tensor, k: int, own: Tensor | None = None) -> Tensor:
        """Of scale k: (B, C_k, H_k, W_k) -> (B, H_k, W_k), in single precision."""
        kind = "cpu" if feature.is_meta else feature.device.type  # autocast does not know meta
        with torch.autocast(kind, enabled=False):
            return self._distances(feature, k, own)

    def _distances(self, feature: Tensor, k: int, own: Tensor | None) -> Tensor:
        batch, _, height, width = feature.shape
        precision = getattr(self, f"precision_{k}")
        if own is None:
            off = self._off_mean(feature, k)
            squared = (off * (precision @ off)).sum(1)
        else:  # Sherman and Morrison: the precision without one image, from that with it
            n, of_own = self.count.to(precision.dtype), self._off_mean(own, k)
            off = self._off_mean(feature, k) + of_own / (n - 1)
            weighted, share = precision @ of_own, n / (n - 1).square()
            left = (1 - share * (of_own * weighted).sum(1)).clamp(min=1e-4)
            squared = (off * (precision @ off)).sum(1) + share * (off * weighted).sum(1).square() / left
            squared = squared * (n - 2) / (n - 1)
        return (squared / precision.shape[1]).view(height, width, batch).permute(2, 0, 1)

    def described(self, feature: Tensor, k: int) -> Tensor:
        """What the statistics are about: (B, C_k, H_k, W_k) -> (B, R, H_k, W_k)."""
        values = feature.float()
        values = values.sign() * values.abs().sqrt()
        if self.pool > 1:
            values = F.avg_pool2d(values, self.pool, 1, self.pool // 2, count_include_pad=False)
        mixture = getattr(self, f"mixture_{k}", None)
        return values if mixture is None else torch.einsum("bchw,cr->brhw", values, mixture)

    def _off_mean(self, feature: Tensor, k: int) -> Tensor:
        """Distance from the mean, position by position: (H_k W_k, R, B)."""
        return (self.described(feature, k) - getattr(self, f"mean_{k}")).flatten(2).permute(2, 1, 0)


class _Sums:
    """Sums of values (B, R, H, W) and of their products, from a first guess of the mean on: without it the
    difference of large sums would be all rounding."""

    def __init__(self, values: Tensor):
        self.guess = values.mean(0)
        self.total = torch.zeros_like(self.guess)
        positions, kept = self.guess[0].numel(), len(self.guess)
        self.products = values.new_zeros(positions, kept, kept)

    def add(self, values: Tensor):
        off = values - self.guess
        self.total += off.sum(0)
        off = off.flatten(2).permute(2, 1, 0)  # H W, R, B
        self.products.baddbmm_(off, off.transpose(1, 2))

    def moments(self, count: int) -> tuple[Tensor, Tensor]:
        """Mean (R, H, W) and covariance (H W, R, R)."""
        off = self.total.flatten(1).T[..., None]  # H W, R, 1
        covariance = (self.products - off @ off.transpose(1, 2) / count) / (count - 1)
        return self.guess + self.total / count, covariance


@torch.no_grad()
def mean_features(batches: Iterable[Features]) -> Features:
    """The mean of features at every position, per scale (1, C_k, H_k, W_k)."""
    totals, count = None, 0
    for features in batches:
        sums = [f.float().sum(0, keepdim=True) for f in features]
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
        count += len(features[0])
    return tuple(total / count for total in totals)


def build_position(config: Config, info: FeatureInfo) -> PositionStatistics | None:
    """The statistics that `config` asks for, or None."""
    if not config.position_maps:
        return None
    return PositionStatistics(
        info, config.image_size, config.position_pool, config.position_channels, config.seed
    )
