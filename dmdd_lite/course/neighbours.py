"""Two detectors that train no network, to measure how far a teacher's own features go.

`NearestNeighbour` asks how far each patch of an image is from the nearest patch of good images: SPADE and
PatchCore [field], here with a random subset in place of PatchCore's coreset. `SubspaceStudent` copies the
teacher through its first principal components, a student whose capacity is a number [ours].
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import cosine_distance, stack_maps
from ..model import smooth
from ..teacher import Teacher

DISTANCES = ("euclidean", "cosine")
CHUNK = 2**24  # distances held at once: 64 MB


class NearestNeighbour:
    """Anomaly map: the distance of every patch feature to the nearest of those kept from good images.

    A patch feature joins all scales of the teacher at one stride, each averaged over `neighbourhood` x
    `neighbourhood` of its own cells [field]. 'euclidean': each scale is divided by its total standard
    deviation over the kept patches, so that all weigh the same [ours]; 'cosine': the sum over scales of
    1 - cos, which is what distillation maps measure. `sigma` smooths the maps, in pixels at 256.
    Raises ValueError for another distance or an even neighbourhood.
    """

    def __init__(
        self, distance: str = "euclidean", stride: int = 8, neighbourhood: int = 3, sigma: float = 4.0
    ):
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, not {distance!r}")
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise ValueError(f"neighbourhood must be odd and positive, not {neighbourhood}")
        self.distance, self.stride, self.neighbourhood, self.sigma = distance, stride, neighbourhood, sigma

    def fit(
        self, teacher: Teacher, images: Tensor, patches: int = 10_000, seed: int = 0, batch: int = 8
    ) -> "NearestNeighbour":
        """Keep `patches` random patches of good images, uint8 (N, 3, H, W), or all if there are no more.

        Which ones are kept depends on `seed` alone, not on `batch` or the device.
        """
        self.teacher = teacher
        rows, columns = _grid(images, self.stride)
        total = len(images) * rows * columns
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(total, generator=rng)[:patches].sort().values
        kept, first = [], 0
        for scales in self._patches(images, batch):
            features = torch.cat(scales, dim=1)  # patches of this batch, sum of C_k
            here = chosen[(chosen >= first) & (chosen < first + len(features))] - first
            kept.append(features[here.to(features.device)])
            first += len(features)
        kept = torch.cat(kept).split(teacher.info.channels, dim=1)
        self._spreads = [scale.var(0, correction=0).sum().sqrt().clamp(min=1e-12) for scale in kept]
        self.bank = self._join(kept)  # patches, sum of C_k
        return self

    @torch.no_grad()
    def maps(self, images: Tensor, batch: int = 8) -> Tensor:
        """Smoothed distance at every pixel: uint8 (N, 3, H, W) -> float32 (N, H, W) on the CPU."""
        grid, size = _grid(images, self.stride), images.shape[-2:]
        found = []
        for scales in self._patches(images, batch):
            distances = nearest(self._join(scales), self.bank).view(-1, *grid)
            if self.distance == "cosine":  # of unit features, half the squared distance is 1 - cos
                distances = distances.square() / 2
            found.append(_full_size([distances], size, self.sigma))
        return torch.cat(found)

    def _patches(self, images: Tensor, batch: int) -> Iterator[list[Tensor]]:
        """Per batch and scale the features (patches of the batch, C_k) on the common grid."""
        size = _grid(images, self.stride)
        n = self.neighbourhood
        for features in self.teacher.stream(images, batch):
            local = [F.avg_pool2d(f, n, 1, n // 2, count_include_pad=False) for f in features]
            scales = [F.interpolate(f, size, mode="bilinear", align_corners=False) for f in local]
            yield [scale.permute(0, 2, 3, 1).flatten(0, 2) for scale in scales]

    def _join(self, scales: list[Tensor]) -> Tensor:
        """Scales joined so that the plain Euclidean distance is the one asked for."""
        if self.distance == "cosine":
            return torch.cat([F.normalize(scale, dim=1) for scale in scales], dim=1)
        return torch.cat([s / spread for s, spread in zip(scales, self._spreads, strict=True)], dim=1)


def nearest(queries: Tensor, bank: Tensor, chunk: int = CHUNK) -> Tensor:
    """Euclidean distance (Q,) of every query (Q, C) to the nearest row of `bank` (P, C).

    At most `chunk` distances are held at once. The nearest row is found through matrix products, whose
    rounding hides small distances; the distance to it is then computed from the difference.
    """
    found = []
    for part in queries.split(max(1, chunk // len(bank))):
        rows = torch.cdist(part, bank).argmin(dim=1)
        found.append((part - bank[rows]).norm(dim=1))
    return torch.cat(found)


class SubspaceStudent:
    """A student that is no network: the teacher's features projected on the first principal components that
    they have on good images. [ours]

    `share` of the components, 0 to 1, is its capacity: with none it knows nothing, with all it copies
    whatever the teacher says, defects too. Features are centred per channel by their mean on good images.
    """

    @torch.no_grad()
    def fit(self, teacher: Teacher, images: Tensor, batch: int = 8) -> "SubspaceStudent":
        """Components of all pixels of good images, uint8 (N, 3, H, W), at every scale on its own.

        Sets `means` (C_k,), `components` (C_k, C_k) with the first in column 0, and their falling
        `variances` (C_k,). Covariances are summed in float64, so memory does not grow with N.
        """
        self.teacher = teacher
        device = teacher.mean.device
        sums = [torch.zeros(c, dtype=torch.float64, device=device) for c in teacher.info.channels]
        squares = [torch.zeros(c, c, dtype=torch.float64, device=device) for c in teacher.info.channels]
        counts = [0] * len(sums)
        for features in teacher.stream(images, batch):
            for k, feature in enumerate(features):
                pixels = feature.transpose(0, 1).flatten(1).double()  # C, B H W
                sums[k] += pixels.sum(1)
                squares[k] += pixels @ pixels.T
                counts[k] += pixels.shape[1]
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        self.means = [mean.float() for mean in means]
        self.variances, self.components = [], []
        for square, count, mean in zip(squares, counts, means, strict=True):
            values, vectors = torch.linalg.eigh(square / count - mean.outer(mean))  # rising
            self.variances.append(values.flip(0).clamp(min=0).float())
            self.components.append(vectors.flip(1).float())
        return self

    def distances(self, features: tuple[Tensor, ...], share: float) -> list[Tensor]:
        """Per scale the cosine distance (B, H_k, W_k) of the centred features to their projection.

        1 everywhere for `share` 0, and 0, but for rounding, for 1. Raises ValueError for a share outside of
        [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share of the components must lie in [0, 1], not {share}")
        found = []
        for feature, mean, components in zip(features, self.means, self.components, strict=True):
            kept = components[:, : round(share * len(mean))]
            centred = feature - mean[:, None, None]
            copied = torch.einsum("ck,dk,bdhw->bchw", kept, kept, centred)
            found.append(cosine_distance(copied, centred))
        return found

    @torch.no_grad()
    def maps(self, images: Tensor, share: float, sigma: float = 4.0, batch: int = 8) -> Tensor:
        """Sum of the distances over scales, smoothed: uint8 (N, 3, H, W) -> float32 (N, H, W) on the CPU."""
        parts = (self.distances(f, share) for f in self.teacher.stream(images, batch))
        return torch.cat([_full_size(part, images.shape[-2:], sigma) for part in parts])


def _grid(images: Tensor, stride: int) -> tuple[int, int]:
    return images.shape[-2] // stride, images.shape[-1] // stride


def _full_size(coarse: list[Tensor], size: tuple[int, int], sigma: float) -> Tensor:
    """Maps of one batch, (B, h_k, w_k) each, summed at full size (B, H, W), smoothed, on the CPU."""
    return smooth(stack_maps(coarse, size).sum(1), sigma * min(size) / 256).cpu()
