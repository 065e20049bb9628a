"""Figures: functions that return a matplotlib `Figure`, in one style.

Images are uint8 (N, H, W, 3), anomaly maps float (N, H, W), masks bool (N, H, W). Anomaly maps are coloured
with `COLOUR_MAP` over a range that a colour bar tells; ground truth is always cyan, a decision always dashed
white. Nothing is shown or left open in pyplot: the caller displays the `Figure`, or writes it with
`figures.save_figure`. One module a chapter: `results` for 05, the others named after their subject.
"""

from .panels import COLOUR_MAP, DECISION, TRUTH, plot_panels
from .results import (
    plot_examples,
    plot_losses,
    plot_overlay,
    plot_pairs,
    plot_roc_and_pro,
    plot_score_histogram,
)

__all__ = [
    "COLOUR_MAP",
    "DECISION",
    "TRUTH",
    "plot_examples",
    "plot_losses",
    "plot_overlay",
    "plot_pairs",
    "plot_panels",
    "plot_roc_and_pro",
    "plot_score_histogram",
]
