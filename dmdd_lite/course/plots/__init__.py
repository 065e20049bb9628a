"""Figures: functions that return a matplotlib `Figure`, in one style.

Images are uint8 (N, H, W, 3), anomaly maps float (N, H, W), masks bool (N, H, W). Anomaly maps are coloured
with `COLOUR_MAP` over a range that a colour bar tells; ground truth is always cyan, a decision always dashed
white. Nothing is shown or left open in pyplot: the caller displays the `Figure`, or writes it with
`figures.save_figure`. One module a chapter: `results` for 05, the others named after their subject.
"""

from .ablation import plot_row_differences
from .distillation import (
    plot_arrows,
    plot_zones,
)
from .features import feature_colours
from .msn import plot_dilations, plot_msn, plot_weights
from .pairs import (
    plot_gradients,
    plot_mosaic,
    plot_noise,
    plot_plane,
    plot_strengths,
    plot_thresholds,
)
from .panels import COLOUR_MAP, DECISION, TRUTH, plot_panels
from .results import (
    plot_examples,
    plot_losses,
    plot_pairs,
    plot_roc_and_pro,
    plot_score_histogram,
)
from .thresholds import plot_outlines, plot_threshold_choice

__all__ = [
    "COLOUR_MAP",
    "DECISION",
    "TRUTH",
    "feature_colours",
    "plot_arrows",
    "plot_dilations",
    "plot_examples",
    "plot_gradients",
    "plot_losses",
    "plot_mosaic",
    "plot_msn",
    "plot_noise",
    "plot_outlines",
    "plot_pairs",
    "plot_panels",
    "plot_plane",
    "plot_roc_and_pro",
    "plot_row_differences",
    "plot_score_histogram",
    "plot_strengths",
    "plot_threshold_choice",
    "plot_thresholds",
    "plot_weights",
    "plot_zones",
]
