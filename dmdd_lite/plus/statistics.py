"""Per-position Gaussian statistics of teacher features on good images (PaDiM [field]), given an image's
overall appearance [ours].

Legend: B images, C_k channels, H_k x W_k positions of scale k, D_k channels of the scales up to k, R_k <= D_k
channels that are kept, G components of an image's overall appearance.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PlusConfig, Size, height_width
from ..losses import Features
from ..teacher import FeatureInfo

SHRINKAGE = 0.03  # of the mean variance, added to every variance: few images leave some directions unseen
IMAGES_PER_COMPONENT = 80  # of the overall appearance: fewer images would be fitted one by one
NOISE_IMAGES = 16  # maximum number from which the noise of the arithmetic is estimated


class PositionStatistics(nn.Module):
    """One Gaussian per position of the features of good images, given the image's overall appearance.

    forward: features (B, C_k, H_k, W_k) of three scales -> squared Mahalanobis distances divided by R_k,
    (B, H_k, W_k): near 1 where an image is like the good ones. Before `fit` they are those of a standard
    normal distribution.

    Features are sign(f) sqrt(|f|), which has lighter tails; every scale includes the finer ones, averaged
    into its cells; all are averaged over pool x pool cells. More than `channels` are reduced by a random
    projection. The mean at a position is a linear function of the overall appearance: the first principal
    components of the channels' means over the image. A different illumination is then no defect everywhere.

    The inverse covariances, the largest part of a detector, are saved as lower triangles in half precision,
    scaled by their maximum, and used as they were saved.
    """

    def __init__(self, config: PlusConfig, info: FeatureInfo, image_size: Size, seed: int = 0):
        super().__init__()
        self.scales = len(info.channels)
        grids = [tuple(side // stride for side in height_width(image_size)) for stride in info.strides]
        # at most a third of a feature map: more would make all positions equal
        limits = [max(3, (min(grid) // 3 - 1) | 1) for grid in grids]
        self.pools = [min(pool, limit) for pool, limit in zip(config.pool, limits, strict=True)]
        self.register_buffer("used", torch.zeros((), dtype=torch.float64))
        self.register_buffer("look_mean", torch.zeros(sum(info.channels)))
        self.register_buffer("look", torch.zeros(sum(info.channels), config.context))
        rng = torch.Generator().manual_seed(seed)
        for k, grid in enumerate(grids):
            channels, positions = sum(info.channels[: k + 1]), grid[0] * grid[1]
            kept = min(channels, config.channels * (2 + k) // 2)
            if kept < channels:
                projection = torch.linalg.qr(torch.randn(channels, kept, generator=rng))[0]
                self.register_buffer(f"projection_{k}", projection)
            self.register_buffer(f"mean_{k}", torch.zeros(kept, *grid))
            self.register_buffer(f"slope_{k}", torch.zeros(positions, kept, config.context))
            packed, scale = pack(torch.eye(kept)[None])
            self.register_buffer(f"packed_{k}", packed.repeat(positions, 1))
            self.register_buffer(f"scale_{k}", scale.repeat(positions))
            unit = torch.eye(kept).repeat(positions, 1, 1)
            self.register_buffer(f"precision_{k}", unit, persistent=False)
        self.register_load_state_dict_post_hook(PositionStatistics._unpack)

    def _unpack(self, *_):
        """After fitting and loading: the precisions as they are saved."""
        for k in range(self.scales):
            packed, scale, precision = (getattr(self, f"{n}_{k}") for n in ("packed", "scale", "precision"))
            unpack(packed, scale, out=precision)

    def forward(self, features: Features) -> Features:
        kind = "cpu" if features[0].is_meta else features[0].device.type  # autocast does not know meta
        with torch.autocast(kind, enabled=False):
            seen = self.describe(features)
            return tuple(self._distances(k, seen) for k in range(self.scales))

    def _distances(self, k: int, seen: "Described") -> Tensor:
        """Of scale k: (B, H, W)."""
        batch, _, height, width = seen.values[k].shape
        precision = getattr(self, f"precision_{k}")
        difference = (seen.values[k] - getattr(self, f"mean_{k}")).flatten(2).permute(2, 1, 0)  # H W, R, B
        slope = getattr(self, f"slope_{k}")
        difference = torch.baddbmm(
            difference.contiguous(), slope, -seen.looks.T.expand(len(difference), -1, -1)
        )
        squares = (difference * (precision @ difference)).sum(1)
        return (squares / precision.shape[1]).view(height, width, batch).permute(2, 0, 1)

    def describe(self, features: Features) -> "Described":
        """What the statistics are computed of: values (B, R_k, H_k, W_k) per scale and looks (B, G)."""
        roots = [signed_roots(feature) for feature in features]
        found, finer = [], None
        for k, values in enumerate(roots):
            if finer is not None:
                values = torch.cat((F.adaptive_avg_pool2d(finer, values.shape[2:]), values), dim=1)
            finer, pool = values, self.pools[k]
            if pool > 1:
                values = F.avg_pool2d(values, pool, 1, pool // 2, count_include_pad=False)
            projection = getattr(self, f"projection_{k}", None)
            found.append(values if projection is None else torch.einsum("bchw,cr->brhw", values, projection))
        return Described(found, (channel_means(roots) - self.look_mean) @ self.look)

    # ---- fitting --------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Features]], noise: Features = ()) -> "PositionStatistics":
        """Fit to the features of all batches, which are requested twice: first for the overall appearance.

        noise: variances (R_k, H_k, W_k) that are added to those of the images, see `arithmetic_noise`.
        Raises ValueError for fewer than three images.
        """
        means = torch.cat([channel_means(map(signed_roots, features)) for features in batches()])
        if len(means) < 3:
            raise ValueError(
                f"DMDD+ needs at least three training images, got {len(means)}: add good images, lower "
                "holdout, or set plus=None"
            )
        self._fit_look(means)
        sums = []
        for features in batches():
            seen = self.describe(features)
            sums = sums or [_Sums(v, seen.looks.shape[1]) for v in seen.values]
            for part, v in zip(sums, seen.values, strict=True):
                part.add(v, seen.looks)
        for k, part in enumerate(sums):
            self._fit_scale(k, *part.moments(len(means), self.used.item()), noise[k] if noise else None)
        self._unpack()
        return self

    def _fit_scale(self, k: int, mean: Tensor, slope: Tensor, covariance: Tensor, noise: Tensor | None):
        getattr(self, f"mean_{k}").copy_(mean)
        getattr(self, f"slope_{k}").copy_(slope)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        floor = SHRINKAGE * diagonal.mean().clamp(min=0) + 1e-12
        if noise is not None:
            covariance = covariance + torch.diag_embed(noise.flatten(1).T)
        unit = torch.eye(covariance.shape[1], device=covariance.device)
        factor, failed = torch.linalg.cholesky_ex(covariance + floor * unit)
        if failed.any():  # the appearance explains all but rounding
            values, vectors = torch.linalg.eigh(covariance)
            values = values.clamp(min=0) + floor.clamp(min=1e-6 * float(diagonal.abs().max()))
            precision = vectors / values[:, None] @ vectors.mT
        else:
            precision = torch.cholesky_inverse(factor)
        for name, values in zip(("packed", "scale"), pack(precision), strict=True):
            getattr(self, f"{name}_{k}").copy_(values)

    @torch.no_grad()
    def arithmetic_noise(self, teacher: nn.Module, images: Tensor) -> Features:
        """Mean squares (R_k, H_k, W_k) of the change of the described features when convolutions run in bf16
        instead of float32, of images uint8 (N, 3, H, W). [ours]

        Where good images hardly differ, on an empty background, their covariance is smaller than that.
        Without this noise, distances there become large as soon as a detector runs in another precision than
        the one it was trained in.
        """
        images = images[:: -(-len(images) // NOISE_IMAGES)]
        total = None
        for part in images.split(8):
            values = []
            for low in (False, True):
                with torch.autocast(self.used.device.type, torch.bfloat16, enabled=low):
                    features = next(teacher.stream(part, 8))
                values.append(self.describe(features).values)
            squares = [(a - b).square().sum(0) for a, b in zip(*values, strict=True)]
            total = squares if total is None else [t + s for t, s in zip(total, squares, strict=True)]
        return tuple(t / len(images) for t in total)

    def _fit_look(self, means: Tensor):
        """The overall appearance from the channel means (N, D) of all images: principal components,
        uncorrelated and of variance 1 over these images, as many as the number of images permits."""
        count, limit = len(means), self.look.shape[1]
        self.look_mean.copy_(means.mean(0))
        self.look.zero_()
        centred = means - self.look_mean
        spread = centred.std(0)
        scale = spread + 1e-3 * spread.mean() + 1e-12
        _, sizes, directions = torch.linalg.svd(centred / scale, full_matrices=False)
        used = min(limit, count // IMAGES_PER_COMPONENT, int((sizes > 1e-3 * sizes[0]).sum()))
        self.used.fill_(used)
        self.look[:, :used] = directions[:used].T / scale[:, None] * count**0.5 / sizes[:used]


class Described(NamedTuple):
    """Images as the statistics see them: values (B, R_k, H_k, W_k) per scale, looks (B, G)."""

    values: list[Tensor]
    looks: Tensor


def pack(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric matrices (N, R, R) as lower triangles float16 (N, R (R + 1) / 2), in [-1, 1], and their
    scales (N,)."""
    rows, columns = torch.tril_indices(*matrices.shape[1:], device=matrices.device)
    scale = matrices.abs().amax((1, 2))
    return (matrices[:, rows, columns] / scale[:, None]).half(), scale


def unpack(packed: Tensor, scale: Tensor, out: Tensor):
    """Write what `pack` took into `out` (N, R, R)."""
    rows, columns = torch.tril_indices(*out.shape[1:], device=out.device)
    values = packed.float() * scale[:, None]
    out[:, rows, columns] = values
    out[:, columns, rows] = values


def signed_roots(feature: Tensor) -> Tensor:
    """sign(f) sqrt(|f|) in single precision."""
    values = feature.float()
    return values.sign() * values.abs().sqrt()


def channel_means(roots: Iterable[Tensor]) -> Tensor:
    """Mean of every channel over the image, all scales: (B, D)."""
    return torch.cat([values.mean((2, 3)) for values in roots], dim=1)


class _Sums:
    """Sums of values (B, R, H, W), of their products with each other and with the looks (B, G), relative to a
    first estimate of the mean: without it the difference of large sums would be dominated by rounding."""

    def __init__(self, values: Tensor, components: int):
        self.estimate = values.mean(0)
        self.total = torch.zeros_like(self.estimate)
        positions, kept = self.estimate[0].numel(), len(self.estimate)
        self.products = values.new_zeros(positions, kept, kept)
        self.with_looks = values.new_zeros(positions, kept, components)

    def add(self, values: Tensor, looks: Tensor):
        difference = values - self.estimate
        self.total += difference.sum(0)
        difference = difference.flatten(2).permute(2, 1, 0)  # H W, R, B
        self.products.baddbmm_(difference, difference.transpose(1, 2))
        self.with_looks += difference @ looks

    def moments(self, count: int, components: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (R, H, W); slope (H W, R, G) of the regression on the looks, whose mean is 0 and whose
        covariance is the unit matrix; covariance (H W, R, R) of the residuals."""
        mean = self.total.flatten(1).T[..., None]  # H W, R, 1
        slope = self.with_looks / count
        left = self.products - mean @ mean.transpose(1, 2) / count - count * slope @ slope.transpose(1, 2)
        return self.estimate + self.total / count, slope, left / max(count - 1 - components, 1)
