"""Where on an anomaly a map fails: at its edge, at its centre, or just outside.

The paper says that a student can under-fit the centre or the edge of an anomaly, and that both branches
together cover them [paper]; this measure of it is ours [ours].
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from ..metrics import check_inputs

SQUARE = np.ones((3, 3), bool)


class Zones(NamedTuple):
    """Bool (N, H, W) each, a partition of all pixels: `centre` is the ground truth eroded, `edge` the rest of
    it, `rim` what dilation adds around it, `background` everything beyond."""

    centre: np.ndarray
    edge: np.ndarray
    rim: np.ndarray
    background: np.ndarray


def split_zones(masks: np.ndarray, width: int) -> Zones:
    """Zones of ground-truth masks bool (N, H, W), `width` pixels wide on either side of the outline.

    What lies outside the image counts as more of the same, so that a defect cut off by the image's border has
    no edge there. Raises ValueError for a width that is no whole number from 1 on, or masks of another shape.
    """
    if not (width >= 1 and float(width).is_integer()):
        raise ValueError(f"width must be a whole number of at least 1 pixel, got {width}")
    masks, width = np.asarray(masks, dtype=bool), int(width)
    if masks.ndim != 3:
        raise ValueError(f"masks must have the shape (N, H, W), not {masks.shape}")
    grown = np.zeros_like(masks)
    inner = np.zeros_like(masks)
    for row, mask in enumerate(masks):
        inner[row] = ndimage.binary_erosion(mask, SQUARE, iterations=width, border_value=1)
        grown[row] = ndimage.binary_dilation(mask, SQUARE, iterations=width)
    return Zones(inner, masks & ~inner, grown & ~masks, ~grown)


def zone_recall(maps: np.ndarray, zones: Zones, fpr: float = 0.01) -> dict[str, float]:
    """The fraction of each zone's pixels above the threshold, which the fraction `fpr` of the background
    exceeds.

    maps float (N, H, W). A good map has much of `centre` and `edge`, and little of `rim`; a zone without
    pixels gives NaN. Raises ValueError if there is no background, fpr is not within 0..1, or for maps that
    are not finite or of another shape than the zones.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be within 0..1, got {fpr}")
    maps, _ = check_inputs(maps, zones.background, both=False)
    if not zones.background.any():
        raise ValueError("the zones leave no background: the masks fill their images, or width is too large")
    threshold = np.quantile(maps[zones.background], 1 - fpr)
    found = {"threshold": float(threshold)}
    for name in ("centre", "edge", "rim"):
        inside = maps[getattr(zones, name)]
        found[name] = float((inside > threshold).mean()) if inside.size else float("nan")
    return found


def zone_table(maps: dict[str, np.ndarray], masks: np.ndarray, width: int, fpr: float = 0.01) -> pd.DataFrame:
    """`zone_recall` of several maps by name: rows the maps, columns centre, edge and rim, fractions of 1."""
    zones = split_zones(masks, width)
    rows = {name: zone_recall(values, zones, fpr) for name, values in maps.items()}
    return pd.DataFrame(rows).T[["centre", "edge", "rim"]]
