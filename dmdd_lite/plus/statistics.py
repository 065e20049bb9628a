"""Where an image has which features when it is good: statistics of the teacher's features at every position.

They serve twice [ours]. Their means are where the student's outputs begin, so that it learns what differs
from the usual instead of the usual. And the distance to them, Mahalanobis as in PaDiM [field], is a third
kind of anomaly map beside the two branches', for surfaces that no student predicts well.

Legend: B images, C_k channels, H_k x W_k positions of scale k, D_k channels of the scales up to k, R_k <= D_k
of them that are kept, G components of an image's overall look.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..losses import Features
from ..teacher import FeatureInfo

SHRINKAGE = 0.03  # of the mean variance, added to every variance: few images leave some directions unseen
IMAGES_PER_COMPONENT = 80  # of the overall look: fewer would fit it to single images
NOISE_IMAGES = 16  # at most, from which the noise of the arithmetic is taken
LEAST_OTHERS = 1e-3  # share that other images have in what is expected of one: none where its look is unique


class PositionStatistics(nn.Module):
    """What features good images have at every position, one Gaussian each, given the image's overall look.

    forward: features (B, C_k, H_k, W_k) of three scales -> squared Mahalanobis distances divided by R_k,
    (B, H_k, W_k): near 1 where an image is like the good ones. Before `fit` they are those of a standard
    normal distribution.

    Features count with the root of their size, which makes them less heavy-tailed; at every scale together
    with those of the finer scales, averaged into its cells; and averaged over pool x pool cells. Of more than
    `most` channels so many random mixtures are kept, half as many more at each coarser scale, which has fewer
    positions. The mean at a position is a linear function of the overall look: the first components of the
    channels' means over the image, at most `context` of them and one per 80 images. So other light or another
    make of surface is no defect at every position.
    """

    def __init__(
        self,
        info: FeatureInfo,
        image_size: int,
        pool: tuple = (3, 3, 5),
        most: int = 100,
        context: int = 8,
        seed: int = 0,
    ):
        super().__init__()
        self.scales = len(info.channels)
        sides = [image_size // stride for stride in info.strides]
        # no more than a third of a map: all positions would be one
        self.pools = [min(p, max(3, (side // 3 - 1) | 1)) for p, side in zip(pool, sides, strict=True)]
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("used", torch.zeros((), dtype=torch.float64))
        self.register_buffer("look_mean", torch.zeros(sum(info.channels)))
        self.register_buffer("look", torch.zeros(sum(info.channels), context))
        rng = torch.Generator().manual_seed(seed)
        for k, side in enumerate(sides):
            channels = sum(info.channels[: k + 1])
            kept = min(channels, most * (2 + k) // 2)
            if kept < channels:
                mixture = torch.linalg.qr(torch.randn(channels, kept, generator=rng))[0]
                self.register_buffer(f"mixture_{k}", mixture)
            self.register_buffer(f"mean_{k}", torch.zeros(kept, side, side))
            self.register_buffer(f"slope_{k}", torch.zeros(side * side, kept, context))
            self.register_buffer(f"precision_{k}", torch.eye(kept).repeat(side * side, 1, 1))

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Features]], noise: Features = ()) -> "PositionStatistics":
        """Statistics of the features of all batches, which are asked for twice: first for the overall look.

        noise: variances (R_k, H_k, W_k) that are added to those of the images, see `arithmetic_noise`.
        Raises ValueError for fewer than three images.
        """
        means = [channel_means(map(signed_roots, features)) for features in batches()]
        means = torch.cat(means or [self.look_mean[None][:0]])
        count = len(means)
        if count < 3:
            raise ValueError(
                f"position_maps=True needs at least three training images, got {count}: add good images, "
                "lower holdout, or set position_maps=False"
            )
        self.fit_look(means)
        sums = []
        for features in batches():
            seen = self._look_at(features)
            sums = sums or [_Sums(v, seen.looks.shape[1]) for v in seen.values]
            for part, v in zip(sums, seen.values, strict=True):
                part.add(v, seen.looks)
        for k, part in enumerate(sums):
            mean, slope, covariance = part.moments(count, self.used.item())
            getattr(self, f"mean_{k}").copy_(mean)
            getattr(self, f"slope_{k}").copy_(slope)
            spread = SHRINKAGE * covariance.diagonal(dim1=1, dim2=2).mean() + 1e-12
            unit = torch.eye(covariance.shape[1], device=covariance.device)
            if noise:
                covariance = covariance + torch.diag_embed(noise[k].flatten(1).T)
            factor, failed = torch.linalg.cholesky_ex(covariance + spread * unit)
            if failed.any():  # the looks explain all but rounding
                ridge = (SHRINKAGE * part.spread(count)).clamp(min=spread.clamp(min=1e-12))
                factor = torch.linalg.cholesky(covariance + ridge[:, None, None] * unit)
            getattr(self, f"precision_{k}").copy_(torch.cholesky_inverse(factor))
        return self

    @torch.no_grad()
    def arithmetic_noise(self, teacher: nn.Module, images: Tensor, batch: int = 8) -> Features:
        """Mean squares (R_k, H_k, W_k) of what bf16 instead of float32 convolutions change in the described
        features of images, uint8 (N, 3, S, S). [ours]

        Where good images hardly differ, on an empty background say, their covariance is smaller than that.
        Without this noise, distances there are large as soon as the arithmetic is another one than that of
        the training, and small for no better reason than that it is the same.
        """
        images = images[:: -(-len(images) // NOISE_IMAGES)]
        total = ()
        for part in images.split(batch):
            values = []
            for low in (False, True):
                with torch.autocast(self.count.device.type, torch.bfloat16, enabled=low):
                    features = next(teacher.stream(part, batch))
                values.append(self.described(features))
            squares = [(a - b).square().sum(0) for a, b in zip(*values, strict=True)]
            total = [t + s for t, s in zip(total, squares, strict=True)] if total else squares
        return tuple(t / len(images) for t in total)

    def fit_look(self, means: Tensor):
        """The overall look from the channel means (N, D) of all images: principal components, uncorrelated
        and of variance 1 over these images, as many as the images allow."""
        count, most = len(means), self.look.shape[1]
        self.count.fill_(count)
        self.look_mean.copy_(means.mean(0))
        self.look.zero_()
        off = means - self.look_mean
        spread = off.std(0)
        scale = spread + 1e-3 * spread.mean() + 1e-12
        _, sizes, directions = torch.linalg.svd(off / scale, full_matrices=False)
        used = min(most, count // IMAGES_PER_COMPONENT, int((sizes > 1e-3 * sizes[0]).sum()))
        self.used.fill_(used)
        weights = directions[:used].T / scale[:, None] * count**0.5 / sizes[:used]
        self.look[:, :used] = weights

    def overall(self, features: Features) -> Tensor:
        """The overall look of images, (B, G), zero where it has fewer components."""
        return self._look_at(features).looks

    def forward(self, features: Features, own: Features | None = None) -> Features:
        """own: features of the *training* images that these images are, or were made from; each is then
        measured against the statistics of all training images but itself, as a new image would be."""
        return self.of_views([features], own)[0]

    def of_views(self, views: list[Features], own: Features | None = None) -> list[Features]:
        """What `forward` gives of each of several views of the same images, with less work: what they share
        is computed once."""
        kind = "cpu" if views[0][0].is_meta else views[0][0].device.type  # autocast does not know meta
        with torch.autocast(kind, enabled=False):
            seen = [self._look_at(view) for view in views]
            of_own = None
            if own is not None:
                same = [s for s, view in zip(seen, views, strict=True) if view is own]
                of_own = same[0] if same else self._look_at(own)
            scales = [self._distances(k, seen, of_own) for k in range(self.scales)]
        return list(zip(*scales, strict=True))

    def _distances(self, k: int, seen: list["_Seen"], own: "_Seen | None") -> list[Tensor]:
        """Of scale k and each view: (B, H, W)."""
        batch, _, height, width = seen[0].values[k].shape
        precision, offs = getattr(self, f"precision_{k}"), [self._off_mean(s, k) for s in seen]
        if own is None:
            squares = [(off * (precision @ off)).sum(1) for off in offs]
        else:
            # a regression without one image, from that with it: residuals by their leverage, and the
            # precision by Sherman and Morrison
            n = self.count.to(precision.dtype)
            free = n - 1 - self.used.to(precision.dtype)
            of_own = self._off_mean(own, k)
            leverage, *crossed = ((1 + (s.looks * own.looks).sum(1)) / n for s in (own, *seen))
            others = (1 - leverage).clamp(min=LEAST_OTHERS)
            offs = [off + of_own * (c / others) for off, c in zip(offs, crossed, strict=True)]
            products = (precision @ torch.cat((of_own, *offs), dim=2)).split(batch, dim=2)
            share = 1 / (others * free)
            left = (1 - share * (of_own * products[0]).sum(1)).clamp(min=1e-4)
            squares = [
                ((off * w).sum(1) + share * (of_own * w).sum(1).square() / left) * ((free - 1) / free)
                for off, w in zip(offs, products[1:], strict=True)
            ]
        return [(q / precision.shape[1]).view(height, width, batch).permute(2, 0, 1) for q in squares]

    def described(self, features: Features) -> list[Tensor]:
        """What the statistics are about, of every scale: (B, C_k, H_k, W_k) -> (B, R_k, H_k, W_k)."""
        return self._look_at(features).values

    def _look_at(self, features: Features) -> "_Seen":
        roots = [signed_roots(feature) for feature in features]
        found, finer = [], None
        for k, values in enumerate(roots):
            if finer is not None:
                values = torch.cat((F.adaptive_avg_pool2d(finer, values.shape[2:]), values), dim=1)
            finer, pool = values, self.pools[k]
            if pool > 1:
                values = F.avg_pool2d(values, pool, 1, pool // 2, count_include_pad=False)
            mixture = getattr(self, f"mixture_{k}", None)
            found.append(values if mixture is None else torch.einsum("bchw,cr->brhw", values, mixture))
        return _Seen(found, (channel_means(roots) - self.look_mean) @ self.look)

    def _off_mean(self, seen: "_Seen", k: int) -> Tensor:
        """Distance from the mean of images of that look, position by position: (H_k W_k, R_k, B)."""
        off = (seen.values[k] - getattr(self, f"mean_{k}")).flatten(2).permute(2, 1, 0)
        return torch.baddbmm(
            off.contiguous(), getattr(self, f"slope_{k}"), -seen.looks.T.expand(len(off), -1, -1)
        )


class _Seen(NamedTuple):
    """Images as the statistics see them: described features of every scale, overall look (B, G)."""

    values: list[Tensor]
    looks: Tensor


def signed_roots(feature: Tensor) -> Tensor:
    """Numbers with the root of their size, in single precision."""
    values = feature.float()
    return values.sign() * values.abs().sqrt()


def channel_means(roots: Iterable[Tensor]) -> Tensor:
    """Mean of every channel over the image, all scales: (B, D)."""
    return torch.cat([values.mean((2, 3)) for values in roots], dim=1)


class _Sums:
    """Sums of values (B, R, H, W), of their products with each other and with the looks (B, G), from a first
    guess of the mean on: without it the difference of large sums would be all rounding."""

    def __init__(self, values: Tensor, components: int):
        self.guess = values.mean(0)
        self.total = torch.zeros_like(self.guess)
        positions, kept = self.guess[0].numel(), len(self.guess)
        self.products = values.new_zeros(positions, kept, kept)
        self.with_looks = values.new_zeros(positions, kept, components)

    def add(self, values: Tensor, looks: Tensor):
        off = values - self.guess
        self.total += off.sum(0)
        off = off.flatten(2).permute(2, 1, 0)  # H W, R, B
        self.products.baddbmm_(off, off.transpose(1, 2))
        self.with_looks += off @ looks

    def spread(self, count: int) -> Tensor:
        """Mean square of the values at every position, (H W,), the looks' part included."""
        return self.products.diagonal(dim1=1, dim2=2).mean(1) / count

    def moments(self, count: int, components: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (R, H, W); slope (H W, R, G) of the regression on the looks, whose mean is 0 and whose
        covariance is the unit matrix; covariance (H W, R, R) of what that leaves."""
        off = self.total.flatten(1).T[..., None]  # H W, R, 1
        slope = self.with_looks / count
        left = self.products - off @ off.transpose(1, 2) / count - count * slope @ slope.transpose(1, 2)
        return self.guess + self.total / count, slope, left / max(count - 1 - components, 1)


@torch.no_grad()
def mean_features(batches: Iterable[Features]) -> Features:
    """The mean of features at every position, per scale (1, C_k, H_k, W_k)."""
    totals, count = None, 0
    for features in batches:
        sums = [f.float().sum(0, keepdim=True) for f in features]
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
        count += len(features[0])
    return tuple(total / count for total in totals)


@torch.no_grad()
def channel_moments(batches: Iterable[Features], *priors: Features | None) -> list[tuple[Features, Features]]:
    """Mean and standard deviation of every channel over all images and positions, per scale (C_k,) each: for
    each prior, of what is left when it, per scale (1, C_k, H_k, W_k), is taken off; None takes off nothing.
    The batches are gone through once."""
    totals, count = None, 0
    for features in batches:
        left = [f.float() - (0 if p is None else p[k]) for p in priors for k, f in enumerate(features)]
        sums = [torch.stack((v.mean((2, 3)).sum(0), v.square().mean((2, 3)).sum(0))) for v in left]
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
        count += len(features[0])
    means, squares = zip(*(total / count for total in totals), strict=True)
    spreads = [(s - m.square()).clamp(min=1e-12).sqrt() for m, s in zip(means, squares, strict=True)]
    scales = len(totals) // len(priors)
    starts = range(0, len(totals), scales)
    return [(tuple(means[i : i + scales]), tuple(spreads[i : i + scales])) for i in starts]


def build_position(config: Config, info: FeatureInfo) -> PositionStatistics | None:
    """The statistics that `config` asks for, or None."""
    if not config.position_maps:
        return None
    return PositionStatistics(
        info,
        config.image_size,
        config.position_pool,
        config.position_channels,
        config.position_context,
        config.seed,
    )
