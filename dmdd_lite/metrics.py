"""Image and pixel AUROC, average precision, AUPRO and F1 of anomaly maps: NumPy in, fractions of 1 out.

AUPRO is the area under the per-region-overlap curve of Bergmann et al., "The MVTec Anomaly Detection Dataset"
(IJCV 2021), Section 4.2: a region is an 8-connected component of a ground-truth mask, and at a threshold the
PRO is the mean over all regions of the share of the region that scores at or above it.

Two variants are in use, and their values differ, so always name the one you report:

- `aupro` pools all images: one curve, one false positive rate over all normal pixels, good images included.
- aupro_per_image, of `evaluate_maps`, averages the AUPRO of every anomalous image on its own: good images,
  and maps whose level differs between images, cost nothing. RD4AD and URD (published by DMDD's authors for
  their next paper) report this one, with 200 thresholds per image where ours uses all.

Maps and masks are arrays (N, H, W), or lists of N arrays (H, W) of any sizes.

All pixel metrics here come from one table, `PixelTable`: a curve bends only where an anomalous pixel passes
the threshold, so it is enough to know, for each distinct score of an anomalous pixel, how many normal pixels
lie above and how many tie. That takes one sort of the pixels and is exact, in whatever type the maps come:
only the order of the scores counts, so any strictly increasing function of them gives the same numbers.

Beside the maps it takes about 50 bytes an anomalous pixel, and 6 a normal one up to `SLICE` pixels.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_auc_score

SLICE = 2**26  # pixels whose normal scores are sorted at once, so that 10,000 images take no more memory
FPR_LIMIT = 0.3  # up to which the area under the PRO curve is taken, as by Bergmann et al.


class PixelTable(NamedTuple):
    """One row for each of the K distinct scores that anomalous pixels take, the highest score first."""

    above: np.ndarray  # (K,) normal pixels that score higher
    tied: np.ndarray  # (K,) normal pixels with the same score
    anomalous: np.ndarray  # (K,) anomalous pixels with this score
    overlap: np.ndarray  # (K,) sum over the regions of the share of the region with this score
    normal: int  # normal pixels in total


def check_inputs(values, truth, kind: str = "map", both: bool = True):
    """The values as they are and the truth as bool: maps and masks, arrays (N, H, W) or lists of N arrays
    (H, W), or, of the kind "score", scores and labels (N,).

    Raises ValueError for other shapes or none at all, for a truth of floats, for values that are NaN or
    infinite, naming the first image with one, and, with `both`, for a truth of one class.
    """
    kinds = {"map": ("masks", "pixel", "(N, H, W)", 2), "score": ("labels", "image", "(N,)", 0)}
    marks, unit, shape, ndim = kinds[kind]
    if kind == "map" and isinstance(values, list):
        values, truth = [np.asarray(part) for part in values], [_as_bool(part, marks) for part in truth]
        shapes, others = [part.shape for part in values], [part.shape for part in truth]
    else:
        values, truth = np.asarray(values), _as_bool(truth, marks)
        shapes, others = values.shape, truth.shape
    if shapes != others:
        raise ValueError(f"{kind}s have the shape {shapes}, {marks} {others}")
    if not len(values) or any(part.ndim != ndim or not part.size for part in values):
        raise ValueError(f"{kind}s must have the shape {shape} and not be empty, got {shapes}")
    if bad := [i for i, part in enumerate(values) if not np.isfinite(part).all()]:
        raise ValueError(f"{kind} {bad[0]} has NaN or infinite values, {len(bad)} of {len(values)} do")
    if both and not any(part.any() for part in truth):
        raise ValueError(f"{marks} mark no anomalous {unit}")
    if both and all(part.all() for part in truth):
        raise ValueError(f"{marks} leave no normal {unit}")
    return values, truth


def _as_bool(truth, name: str) -> np.ndarray:
    """From bools or integers, 0 is normal; floats are refused, because their threshold is not ours."""
    truth = np.asarray(truth)
    if truth.size and truth.dtype.kind not in "bui":
        raise ValueError(f"{name} must be bool or integer, not {truth.dtype}")
    return truth.astype(bool, copy=False)


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that an anomalous image scores higher than a good one, ties counted half.

    `scores` (N,) finite, `labels` (N,) true where anomalous. Raises ValueError for other shapes, NaN or
    infinite scores, or labels of one class only.
    """
    scores, labels = check_inputs(scores, labels, "score")
    ranks = np.unique(scores, return_inverse=True)[1]  # scikit-learn takes differences, which can overflow
    return float(roc_auc_score(labels, ranks))


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    """AUROC over the pixels of all images together.

    `maps` (N, H, W) finite, `masks` (N, H, W) true where anomalous. Raises ValueError for other shapes, NaN
    or infinite maps, or masks that leave no anomalous or no normal pixel.
    """
    return _sklearn_on_table(roc_auc_score, pixel_table(*check_inputs(maps, masks)))


def pixel_ap(maps: np.ndarray, masks: np.ndarray) -> float:
    """Average precision over the pixels of all images together; takes and raises what `pixel_auroc` does."""
    return _sklearn_on_table(average_precision_score, pixel_table(*check_inputs(maps, masks)))


def aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Area under the pooled PRO curve up to the false positive rate 0.3, divided by 0.3: 1 is perfect.

    Exact: every threshold, ties included, and linear interpolation at the limit, so that only the order of
    the pixels matters. A constant map gives 0.15. Takes and raises what `pixel_auroc` does.
    """
    return _area(*pro_curve(maps, masks))


def pro_curve(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate and PRO, both (P,) rising from 0 to 1: every vertex of the pooled curve.

    Between two vertices the curve over all thresholds is a straight line. Takes and raises what `pixel_auroc`
    does.
    """
    return _curve(pixel_table(*check_inputs(maps, masks)))


def decision_metrics(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """image_precision, image_recall, image_f1 and false_alarm_rate (of the good images) of calling images
    anomalous that score above the threshold.

    Takes and raises what `image_auroc` does, but labels may be of one class: what needs the other is NaN. The
    precision is NaN also where no image scores above.
    """
    scores, labels = check_inputs(scores, labels, "score", both=False)
    called = scores > threshold
    hits, calls, anomalous, good = (int(n.sum()) for n in (called & labels, called, labels, ~labels))
    return {
        "image_precision": hits / calls if calls and anomalous and good else math.nan,
        "image_recall": hits / anomalous if anomalous else math.nan,
        "image_f1": 2 * hits / (calls + anomalous) if anomalous and good else math.nan,
        "false_alarm_rate": (calls - hits) / good if good else math.nan,
    }


def evaluate_maps(
    maps: np.ndarray,
    masks: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float | None = None,
    outlined: np.ndarray | None = None,
) -> dict[str, float]:
    """All five metrics of one test set: image_auroc, pixel_auroc, pixel_ap, aupro, aupro_per_image; with a
    threshold of the scores also `decision_metrics`, and best_pixel_f1: the highest F1 that any threshold of
    the maps gives to the pixels of all images together.

    outlined (N,): True for the images whose masks are known, None = for all; the metrics of pixels are of
    these alone, and NaN where no mask among them marks a pixel or leaves one, or, of aupro_per_image, all
    those fill their images; image_auroc is NaN for labels of one class. Takes and raises what those functions
    do, and ValueError when there is not one score for each map, or a good image's mask is not empty. (That of
    an anomalous one may be: a thin defect can vanish when resized.)
    """
    scores, labels = check_inputs(scores, labels, "score", both=False)
    if len(scores) != len(maps):
        raise ValueError(f"{len(scores)} scores for {len(maps)} maps")
    found = {"image_auroc": image_auroc(scores, labels) if labels.any() and not labels.all() else math.nan}
    known = np.flatnonzero(np.ones(len(labels), bool) if outlined is None else outlined)
    maps, masks = check_inputs(maps, masks, both=False)
    wrong = [i for i, mask in enumerate(masks) if mask.any() and not labels[i]]
    if wrong:
        raise ValueError(f"image {wrong[0]} is labelled good, but its mask marks a defect")
    if threshold is not None:
        found |= decision_metrics(scores, labels, threshold)
    maps, masks = [maps[i] for i in known], [masks[i] for i in known]
    if not any(mask.any() for mask in masks) or all(mask.all() for mask in masks):
        names = ("pixel_auroc", "pixel_ap", "aupro", "aupro_per_image", "best_pixel_f1")
        return found | dict.fromkeys(names[: 4 if threshold is None else 5], math.nan)
    table = pixel_table(maps, masks)
    if threshold is not None:
        found["best_pixel_f1"] = _best_f1(table)
    return found | {
        "pixel_auroc": _sklearn_on_table(roc_auc_score, table),
        "pixel_ap": _sklearn_on_table(average_precision_score, table),
        "aupro": _area(*_curve(table)),
        "aupro_per_image": _mean_area(maps, masks),
    }


def thin_curve(x: np.ndarray, y: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` vertices of a curve that rises from (0, 0), at about equal distances along it.

    Both ends stay, and no dropped vertex is farther than (x + y at the end) / (max_points - 1) from a kept
    one. Raises ValueError for fewer than 2 points.
    """
    if max_points < 2:
        raise ValueError(f"a curve needs at least 2 points, not {max_points}")
    if len(x) <= max_points:
        return x, y
    travelled = x + y  # length along a staircase, never falling
    kept = np.unique(np.searchsorted(travelled, np.linspace(0.0, travelled[-1], max_points)))
    return x[kept], y[kept]


def pixel_table(maps: np.ndarray, masks: np.ndarray) -> PixelTable:
    """Count the pixels of `maps` by score, as far as the curves need; `masks` has both classes.

    The arguments are taken as checked: the public metrics do that.
    """
    share = np.concatenate([_shares(mask) for mask in masks if mask.any()])
    marked = np.concatenate([values[mask] for values, mask in zip(maps, masks, strict=True)])
    values, row = np.unique(marked, return_inverse=True)
    above, tied = np.zeros((2, len(values)), dtype=np.int64)
    step = max(1, SLICE // max(values.size for values in maps))
    for start in range(0, len(maps), step):
        part = slice(start, start + step)
        normal = np.concatenate([v[~mask] for v, mask in zip(maps[part], masks[part], strict=True)])
        normal.sort()
        not_above = np.searchsorted(normal, values, side="right")
        above += normal.size - not_above
        tied += not_above - np.searchsorted(normal, values, side="left")
    columns = (above, tied, np.bincount(row), np.bincount(row, weights=share))
    return PixelTable(*(column[::-1] for column in columns), sum(mask.size for mask in masks) - len(row))


def _shares(mask: np.ndarray) -> np.ndarray:
    """The share of its 8-connected region that each anomalous pixel of a mask (H, W) is."""
    regions = ndimage.label(mask, structure=np.ones((3, 3)))[0][mask]
    return 1.0 / np.bincount(regions)[regions].astype(np.float64)


def _best_f1(table: PixelTable) -> float:
    """The threshold at one of the rows is the best: between two of them only normal pixels are added."""
    hits = np.cumsum(table.anomalous)
    return float((2 * hits / (hits + table.above + table.tied + hits[-1])).max())


def _curve(table: PixelTable) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the PRO curve: (0, 0), then before and after each row of the table, then (1, 1)."""
    after = np.cumsum(table.overlap)
    after /= after[-1]  # the sum is the number of regions, but for rounding
    before = np.concatenate(([0.0], after[:-1]))
    fpr = np.stack((table.above, table.above + table.tied), axis=1).ravel() / table.normal
    pro = np.stack((before, after), axis=1).ravel()
    return np.concatenate(([0.0], fpr, [1.0])), np.concatenate(([0.0], pro, [1.0]))


def _area(fpr: np.ndarray, pro: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """Trapezoid area of a curve up to `limit`, the point at the limit interpolated, divided by `limit`."""
    inside = int(np.searchsorted(fpr, limit, side="right"))
    x = np.append(fpr[:inside], limit)
    y = np.append(pro[:inside], np.interp(limit, fpr, pro))
    return float(auc(x, y) / limit)


def _mean_area(maps, masks) -> float:
    """aupro_per_image: the mean of the AUPRO of each image alone whose mask has both classes of pixels; NaN
    if none has."""
    parts = [slice(i, i + 1) for i, mask in enumerate(masks) if mask.any() and not mask.all()]
    areas = [_area(*_curve(pixel_table(maps[part], masks[part]))) for part in parts]
    return float(np.mean(areas)) if areas else math.nan


def _sklearn_on_table(metric, table: PixelTable) -> float:
    """Call a scikit-learn metric on the table, as weighted samples whose scores are ranks.

    Normal pixels between two rows become one sample: no anomalous pixel tells them apart.
    """
    rows = len(table.above)
    reached = np.concatenate(([0], table.above + table.tied))  # normal pixels down to and with each row
    between = np.append(table.above, table.normal) - reached
    ranks = np.concatenate((-2 * np.arange(rows) - 1, -2 * np.arange(rows) - 1, -2 * np.arange(rows + 1)))
    weights = np.concatenate((table.anomalous, table.tied, between))
    labels = np.arange(len(ranks)) < rows
    used = weights > 0
    return float(metric(labels[used], ranks[used], sample_weight=weights[used]))
