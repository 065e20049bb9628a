"""Choosing a threshold: what each one would cost in false alarms, misses and money. [ours]

Decisions follow `Detector`: an image is anomalous if its score is *above* the threshold.
"""

import numpy as np
import pandas as pd


def error_rates(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """False alarms (share of the good images above) and misses (share of the anomalous ones at or below) of
    each threshold (T,), for image scores (N,) and labels (N,), true where anomalous.

    Raises ValueError unless both kinds of image are there.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError("error rates need good and anomalous images")
    good, anomalous = np.sort(scores[~labels]), np.sort(scores[labels])
    at_or_below = [np.searchsorted(kind, thresholds, side="right") / len(kind) for kind in (good, anomalous)]
    return 1 - at_or_below[0], at_or_below[1]


def expected_cost(false_alarms, misses, prevalence: float, miss_cost: float, alarm_cost: float = 1.0):
    """Mean cost of an image where a share `prevalence` in 0..1 is anomalous, in the unit of the costs."""
    if not 0 <= prevalence <= 1:
        raise ValueError(f"prevalence must be within 0..1, got {prevalence}")
    return (1 - prevalence) * alarm_cost * false_alarms + prevalence * miss_cost * misses


def threshold_table(scores: np.ndarray, labels: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """What named thresholds do: rows the thresholds, columns threshold, false alarms and misses (counts of
    images), and their shares in percent."""
    labels = np.asarray(labels, dtype=bool)
    values = np.array(list(thresholds.values()))
    alarms, misses = error_rates(scores, labels, values)
    return pd.DataFrame(
        {
            "threshold": values.round(3),
            "false alarms": np.rint(alarms * (~labels).sum()).astype(int),
            "of good, %": (100 * alarms).round(1),
            "misses": np.rint(misses * labels.sum()).astype(int),
            "of anomalous, %": (100 * misses).round(1),
        },
        index=list(thresholds),
    )


def outline_quality(maps: np.ndarray, masks: np.ndarray, thresholds: dict[str, float]) -> pd.DataFrame:
    """What outlines at each threshold are worth: rows the thresholds, columns precision, recall and their
    overlap (intersection over union) of the pixels of the defective images, and the share of the good images
    on which anything is outlined; in percent.

    maps float and masks bool (N, H, W), a mask empty for a good image; precision is NaN with no pixel above.
    """
    defective = masks.any((1, 2))
    rows = {}
    for name, threshold in thresholds.items():
        above, truth = maps[defective] > threshold, masks[defective]
        hits, found = (above & truth).sum(), above.sum()
        rows[name] = {
            "threshold": threshold,
            "precision": 100 * hits / found if found else np.nan,
            "recall": 100 * hits / truth.sum(),
            "overlap": 100 * hits / (above | truth).sum(),
            "good images marked": 100 * (maps[~defective] > threshold).any((1, 2)).mean(),
        }
    return pd.DataFrame(rows).T


def best_outline(maps: np.ndarray, masks: np.ndarray) -> float:
    """The threshold above which the pixels of maps (N, H, W) overlap most with bool masks (intersection over
    union, all pixels pooled), halfway to the next lower value.

    Raises ValueError for masks without a pixel.
    """
    truth = masks.reshape(-1)
    if not truth.any():
        raise ValueError("no anomalous pixel in the masks: there is nothing to outline")
    values = maps.reshape(-1).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(truth[order])
    overlap = hits / (np.arange(1, len(values) + 1) + hits[-1] - hits)
    lower = np.append(values[1:], values[-1] - 1)
    best = np.where(values > lower, overlap, -1).argmax()  # a threshold cannot part equal values
    return float((values[best] + lower[best]) / 2)
