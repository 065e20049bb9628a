"""A detector that trains no network: the distance of each patch of an image to the nearest patch of good
images, as in SPADE and PatchCore [field], with a random subset in place of PatchCore's coreset [ours]."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import stack_maps
from ..model import smooth
from ..teacher import Teacher

CHUNK = 2**24  # distances held at once: 64 MB


class NearestNeighbour:
    """Anomaly map: the distance of every patch feature to the nearest of those kept from good images.

    A patch feature joins all scales of the teacher at stride 8, each averaged over `neighbourhood` x
    `neighbourhood` of its own cells [field]. Each scale is divided by its total standard deviation over the
    kept patches, so that all have the same weight [ours]. `sigma` smooths the maps, in pixels at 256.
    Raises ValueError for an even neighbourhood.
    """

    def __init__(self, neighbourhood: int = 3, sigma: float = 4.0):
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise ValueError(f"neighbourhood must be odd and positive, not {neighbourhood}")
        self.neighbourhood, self.sigma = neighbourhood, sigma

    def fit(
        self, teacher: Teacher, images: Tensor, patches: int = 10_000, seed: int = 0
    ) -> "NearestNeighbour":
        """Keep `patches` random patches of good images, uint8 (N, 3, H, W), or all if there are no more.

        Which ones are kept depends on `seed` alone, not on the device.
        """
        self.teacher = teacher
        rows, columns = _grid(images)
        total = len(images) * rows * columns
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(total, generator=rng)[:patches].sort().values
        kept, first = [], 0
        for scales in self._patches(images):
            features = torch.cat(scales, dim=1)  # patches of this batch, sum of C_k
            here = chosen[(chosen >= first) & (chosen < first + len(features))] - first
            kept.append(features[here.to(features.device)])
            first += len(features)
        kept = torch.cat(kept).split(teacher.info.channels, dim=1)
        self._spreads = [scale.var(0, correction=0).sum().sqrt().clamp(min=1e-12) for scale in kept]
        self.bank = self._join(kept)  # patches, sum of C_k
        return self

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Smoothed distance at every pixel: uint8 (N, 3, H, W) -> float32 (N, H, W) on the CPU."""
        grid, size = _grid(images), images.shape[-2:]
        found = []
        for scales in self._patches(images):
            distances = nearest(self._join(scales), self.bank).view(-1, *grid)
            full = stack_maps([distances], size)[:, 0]
            found.append(smooth(full, self.sigma * size[0] / 256).cpu())
        return torch.cat(found)

    def _patches(self, images: Tensor) -> Iterator[list[Tensor]]:
        """Per batch and scale the features (patches of the batch, C_k) on the common grid."""
        size = _grid(images)
        n = self.neighbourhood
        for features in self.teacher.stream(images):
            local = [F.avg_pool2d(f, n, 1, n // 2, count_include_pad=False) for f in features]
            scales = [F.interpolate(f, size, mode="bilinear", align_corners=False) for f in local]
            yield [scale.permute(0, 2, 3, 1).flatten(0, 2) for scale in scales]

    def _join(self, scales: list[Tensor]) -> Tensor:
        """Scales joined, each divided by its spread: (patches, sum of C_k)."""
        return torch.cat([s / spread for s, spread in zip(scales, self._spreads, strict=True)], dim=1)


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance (Q,) of every query (Q, C) to the nearest row of `bank` (P, C).

    At most CHUNK distances are held at once. The nearest row is found through matrix products, whose
    rounding hides small distances; the distance to it is then computed from the difference.
    """
    found = []
    for part in queries.split(max(1, CHUNK // len(bank))):
        rows = torch.cdist(part, bank).argmin(dim=1)
        found.append((part - bank[rows]).norm(dim=1))
    return torch.cat(found)


def _grid(images: Tensor) -> tuple[int, int]:
    return images.shape[-2] // 8, images.shape[-1] // 8
