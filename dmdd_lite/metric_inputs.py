"""Checks of what the metrics take."""

import numpy as np


def checked_maps(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite maps, as they are, and bool masks, both (N, H, W) or lists of (H, W); ValueError says what else
    they are."""
    if isinstance(maps, list):
        maps, masks = [_numbers(m, "maps") for m in maps], [_as_bool(mask, "masks") for mask in masks]
        shapes, others = [m.shape for m in maps], [mask.shape for mask in masks]
    else:
        maps, masks = _numbers(maps, "maps"), _as_bool(masks, "masks")
        shapes, others = maps.shape, masks.shape
    if any(values.ndim != 2 for values in maps) or (not isinstance(maps, list) and maps.ndim != 3):
        raise ValueError(f"maps must have the shape (N, H, W), not {shapes}")
    if not len(maps) or any(values.size == 0 for values in maps):
        raise ValueError(f"maps are empty: shape {shapes}")
    bad = [i for i, values in enumerate(maps) if not np.isfinite(values).all()]
    if bad:
        raise ValueError(f"map {bad[0]} has NaN or infinite values ({len(bad)} of {len(maps)} maps do)")
    if shapes != others:
        raise ValueError(f"maps have the shape {shapes}, masks {others}")
    return maps, masks


def maps_and_masks(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`checked_maps`, with at least one anomalous and one normal pixel."""
    maps, masks = checked_maps(maps, masks)
    if not any(mask.any() for mask in masks):
        raise ValueError("masks mark no anomalous pixel")
    if all(mask.all() for mask in masks):
        raise ValueError("masks leave no normal pixel")
    return maps, masks


def scores_and_labels(scores: np.ndarray, labels: np.ndarray, both: bool = True):
    """Finite scores and bool labels, both (N,); ValueError for others, and with `both` for a single class."""
    scores, labels = _numbers(scores, "scores"), _as_bool(labels, "labels")
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both have the shape (N,)")
    if scores.size == 0:
        raise ValueError("scores are empty")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"score {bad[0]} is NaN or infinite")
    if both and (labels.all() or not labels.any()):
        raise ValueError(f"labels have no {'normal' if labels.all() else 'anomalous'} image")
    return scores, labels


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, not {values.dtype}")
    return values


def _as_bool(values: np.ndarray, name: str) -> np.ndarray:
    """Bool array from bools or integers (0 is normal); floats are refused, their threshold is not ours."""
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "bui":
        raise ValueError(f"{name} must be bool or integer, not {values.dtype}")
    return values if values.dtype == bool else values != 0


def check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must lie in (0, 1], not {fpr_limit}")
