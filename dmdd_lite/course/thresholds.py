"""Choosing a threshold: what each one would cost in false alarms, misses and money. [ours]

Decisions follow `Detector`: an image is anomalous if its score is *above* the threshold.
"""

import numpy as np
import pandas as pd

from ..metrics import check_inputs


def error_rates(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """False alarms (share of the good images above) and misses (share of the anomalous ones at or below) of
    each threshold (T,), for image scores (N,) and labels (N,), true where anomalous.

    Raises ValueError unless both kinds of image are there, or for scores that are NaN or infinite.
    """
    try:
        scores, labels = check_inputs(scores, labels, "score")
    except ValueError as error:
        raise ValueError(f"error rates need good and anomalous images with scores: {error}") from error
    good, anomalous = np.sort(scores[~labels]), np.sort(scores[labels])
    at_or_below = [np.searchsorted(kind, thresholds, side="right") / len(kind) for kind in (good, anomalous)]
    return 1 - at_or_below[0], at_or_below[1]


def alarm_bound(held_out: int, confidence: float = 0.95) -> float:
    """The false-alarm rate that the maximum of `held_out` good scores keeps with probability `confidence`.

    The rate of the next images above a maximum of n is distributed as Beta(1, n): P(rate > r) = (1 - r)^n,
    for continuous scores of the same distribution. Raises ValueError for numbers out of range.
    """
    if held_out < 1 or not 0 < confidence < 1:
        raise ValueError(f"at least one image and a confidence within 0..1, got {held_out} and {confidence}")
    return 1 - (1 - confidence) ** (1 / held_out)


def expected_cost(false_alarms, misses, prevalence: float, miss_cost: float, alarm_cost: float = 1.0):
    """Mean cost of an image where a share `prevalence` in 0..1 is anomalous, in the unit of the costs."""
    if not 0 <= prevalence <= 1:
        raise ValueError(f"prevalence must be within 0..1, got {prevalence}")
    return (1 - prevalence) * alarm_cost * false_alarms + prevalence * miss_cost * misses


def threshold_table(scores: np.ndarray, labels: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """What named thresholds do: rows the thresholds, columns threshold, false alarms and misses (counts of
    images), and their shares in percent."""
    values = np.array(list(thresholds.values()))
    alarms, misses = error_rates(scores, labels, values)
    labels = np.asarray(labels) != 0
    return pd.DataFrame(
        {
            "threshold": values.round(3),
            "false alarms": np.rint(alarms * (~labels).sum()).astype(int),
            "of good, %": (100 * alarms).round(1),
            "misses": np.rint(misses * labels.sum()).astype(int),
            "of defective, %": (100 * misses).round(1),
        },
        index=list(thresholds),
    )


def outline_quality(maps: np.ndarray, masks: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """What outlines at each threshold are worth: rows the thresholds, columns precision, recall and their
    overlap (intersection over union) of the pixels of the defective images, and the share of the good images
    on which anything is outlined; in percent.

    maps float and masks bool (N, H, W), a mask empty for a good image; precision is NaN with no pixel above,
    and the last column without good images. Raises ValueError as `metrics.check_inputs` does, and for masks
    without a pixel.
    """
    maps, masks = _outlined(maps, masks)
    defective = masks.any((1, 2))
    rows = {}
    for name, threshold in thresholds.items():
        above, truth = maps[defective] > threshold, masks[defective]
        marked = (maps[~defective] > threshold).any((1, 2))
        hits, found = (above & truth).sum(), above.sum()
        rows[name] = {
            "threshold": threshold,
            "precision": 100 * hits / found if found else np.nan,
            "recall": 100 * hits / truth.sum(),
            "overlap": 100 * hits / (above | truth).sum(),
            "good images marked": np.nan if defective.all() else 100 * marked.mean(),
        }
    return pd.DataFrame(rows).T


def best_outline(maps: np.ndarray, masks: np.ndarray) -> float:
    """The threshold above which the pixels of maps (N, H, W) overlap most with bool masks (intersection over
    union, all pixels pooled), halfway to the next lower value, or that value if no number lies between.

    Raises ValueError as `metrics.check_inputs` does, and for masks without a pixel.
    """
    maps, masks = _outlined(maps, masks)
    values, row = np.unique(maps.reshape(-1), return_inverse=True)  # a threshold cannot part equal values
    above = np.bincount(row)[::-1].cumsum()
    hits = np.bincount(row, weights=masks.reshape(-1))[::-1].cumsum()
    best = len(values) - 1 - (hits / (above + hits[-1] - hits)).argmax()
    value = float(values[best])
    if best:
        lower = float(values[best - 1])
    else:
        lower = min(value - 1, float(np.nextafter(values[0], -np.inf, dtype=_floats(maps))))
    between = value / 2 + lower / 2
    return between if _floats(maps).type(between) < values[best] else lower


def _floats(maps: np.ndarray) -> np.dtype:
    """The type in which NumPy compares these maps with a number."""
    return maps.dtype if maps.dtype.kind == "f" else np.dtype(np.float64)


def _outlined(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps, masks = check_inputs(maps, masks, both=False)
    if not masks.any():
        raise ValueError("no anomalous pixel in the masks: there is nothing to outline")
    return maps, masks
