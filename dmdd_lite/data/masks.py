"""Masks: which pixels are defective, and what is left of a defect at the size of the maps.

RULES say how a mask is read. 'nonzero': every pixel but black is defective, as in masks of labels. 'half':
what exceeds half of the mask's maximum, as in masks with soft borders. 'auto': 'half' for JPEG and lossy
WebP, for floating point and for masks that look soft (`looks_soft`), else 'nonzero'. Of colours the brightest
channel counts; of a palette its colours, not the indices, which optimisers permute; transparency is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from ..config import Size, height_width
from .files import read_mask_values
from .images import in_threads
from .problems import DataError, some

RULES = ("auto", "nonzero", "half")
EIGHT = np.ones((3, 3), bool)  # neighbours of a pixel that may belong to its region
LEVELS = 16  # values of a mask of labels at most
#: least share of a soft mask's intermediate pixels that are on slopes, and of its area in regions with a core
SOFT = 0.9


def read_mask(
    path: str | Path | tuple[Path, ...], size: Size | None = None, rule: str = "auto"
) -> torch.Tensor:
    """Bool (H, W), of another size after `resize_mask`; True where one of the files is defective. Raises
    DataError as `images.read_image`, or for files of different sizes, ValueError for another rule."""
    check_rule(rule)
    if isinstance(path, tuple):
        masks = [read_mask(file, None, rule) for file in path]
        if len({mask.shape for mask in masks}) > 1:
            raise DataError(f"{place(path)}: masks of different sizes; they must be of one image")
        mask = torch.stack(masks).any(0)
        return mask if size is None else torch.from_numpy(resize_mask(mask.numpy(), size))
    values, lossy = read_mask_values(path)
    if rule == "auto":
        rule = "half" if lossy or values.dtype.kind == "f" or looks_soft(values) else "nonzero"
    mask = values > (values.max() / 2 if rule == "half" else 0)
    return torch.from_numpy(mask if size is None else resize_mask(mask, size))


def check_rule(rule: str):
    """Raises ValueError for none of RULES."""
    if rule not in RULES:
        raise ValueError(f"mask_rule must be one of {', '.join(RULES)}, got {rule!r}")


def place(mask: Path | tuple[Path, ...]) -> Path:
    """What messages name: the file, or the folder of several."""
    return mask[0].parent if isinstance(mask, tuple) else mask


def looks_soft(values: np.ndarray) -> bool:
    """Whether a mask (H, W) has soft borders instead of labels: more than LEVELS values, nearly all of those
    well between zero and the highest on slopes, and nearly all of its area in regions that reach half of
    it."""
    highest = values.max()
    margin = highest / LEVELS  # rounding and ringing stay within
    between = (values > margin) & (values < highest - margin)
    if not between.any() or len(np.unique(values)) <= LEVELS:
        return False
    flat = ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(values, 3)
    if (between & ~flat).sum() < SOFT * between.sum():
        return False
    regions, count = ndimage.label(values > 0, EIGHT)
    peaks = ndimage.maximum(values, regions, np.arange(1, count + 1))
    with_core = np.concatenate(([False], peaks > highest / 2))[regions]
    return bool(with_core.sum() >= SOFT * (values > 0).sum())


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Bool (H, W) -> bool of another size: True where more than half of a cell's area is. Thin defects vanish
    where cells are larger than they."""
    height, width = height_width(size)
    cells = _cell_means(_cell_means(mask.astype(np.float64), height).T, width).T
    return cells > 0.5 + 1e-9  # sums are rounded


def _cell_means(values: np.ndarray, size: int) -> np.ndarray:
    """(n, m) -> (size, m): means of equal parts of the first axis, with fractions of the values at edges."""
    sums = np.concatenate((np.zeros((1, values.shape[1])), values.cumsum(0)))
    edges = np.linspace(0, len(values), size + 1)
    whole = np.minimum(edges.astype(int), len(values) - 1)
    at_edges = sums[whole] + (edges - whole)[:, None] * values[whole]
    return np.diff(at_edges, axis=0) * size / len(values)


def load_masks(test: Sequence, size: Size, progress: str | None = None, rule: str = "auto") -> torch.Tensor:
    """Bool (N, H, W) of this size in the order of the TestImages; all False for those without a mask."""
    masks = torch.zeros((len(test), *height_width(size)), dtype=torch.bool)
    rows = [row for row, image in enumerate(test) if image.mask is not None]
    found = in_threads(lambda row: read_mask(test[row].mask, size, rule), rows, progress)
    for row, mask in zip(rows, found, strict=True):
        masks[row] = mask
    return masks


def vanished_regions(mask: np.ndarray, size: Size) -> tuple[int, int]:
    """How many 8-connected regions of a mask (H, W) leave no pixel when it is resized, and how many it
    has."""
    regions, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return 0, 0
    sides = zip(mask.shape, height_width(size), strict=True)
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in sides)
    left = np.unique(regions[resize_mask(mask, size)[rows][:, columns]])
    return count - int((left > 0).sum()), count


def vanishing(paths: Sequence[Path | tuple[Path, ...]], size: Size, rule: str = "auto") -> list[str]:
    """A warning if regions of these masks vanish at this image size, else none."""

    def count(path) -> tuple[int, int]:
        try:
            return vanished_regions(read_mask(path, None, rule).numpy(), size)
        except DataError:  # whoever evaluates is told of it
            return 0, 0

    counts = list(in_threads(count, paths))
    lost, every = sum(lost for lost, _ in counts), sum(every for _, every in counts)
    if not lost:
        return []
    names = [place(path).name for path, (gone, _) in zip(paths, counts, strict=True) if gone]
    return [
        f"{lost} of {every} defects vanish from their masks at image_size {size} ({some(names)}): choose a "
        "larger image_size, or evaluate at full size"
    ]
