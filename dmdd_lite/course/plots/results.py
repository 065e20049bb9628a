"""Figures of a run: losses, maps beside the mask, scores, ROC and PRO curves."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...metrics import thin_curve
from ..figures import INK, WIDTH, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS, check_images, plot_panels


def plot_examples(
    images: np.ndarray,
    masks: np.ndarray,
    maps: dict[str, np.ndarray],
    titles: list[str],
    ranges: dict[str, tuple[float, float]] | None = None,
) -> Figure:
    """One row per test image: image with the mask outlined, mask, and each of `maps` by name.

    All rows of a map share one colour range, that of `ranges` or else from its smallest to its largest value
    here. Raises ValueError for shapes that differ or another number of titles.
    """
    check_images(images, masks=masks, **maps)
    if len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    columns = {"image": images, "mask": masks, **maps}
    return plot_panels(columns, titles, masks, ranges)


@styled
def plot_score_histogram(scores: np.ndarray, labels: np.ndarray, threshold: float | None = None) -> Figure:
    """Histogram of the image scores (N,), good beside defective (`labels` true), and the threshold's errors.

    Raises ValueError for shapes that differ.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both have the shape (N,)")
    fig = new_figure(WIDTH, 3.2)
    ax = fig.subplots()
    edges = np.histogram_bin_edges(scores, bins=30)
    for chosen, colour, name in ((~labels, GOOD, "good"), (labels, ANOMALOUS, "defective")):
        label = f"{name} ({chosen.sum()})"
        sns.histplot(x=scores[chosen], bins=edges, color=colour, alpha=0.6, label=label, linewidth=0.6, ax=ax)
    if threshold is not None:
        alarms, missed = int((scores[~labels] > threshold).sum()), int((scores[labels] <= threshold).sum())
        text = f"threshold {threshold:.3g}: {alarms} false alarm{'s' * (alarms != 1)}, {missed} missed"
        ax.axvline(threshold, color=INK, linestyle="--", linewidth=1.4, label=text)
    ax.set(xlabel="image score", ylabel="images")
    ax.yaxis.get_major_locator().set_params(integer=True)
    handles = sorted(ax.get_legend_handles_labels()[0], key=lambda handle: isinstance(handle, Line2D))
    fig.legend(handles=handles, loc="outside upper left", ncols=3)
    return fig


@styled
def plot_roc_and_pro(curves: dict[str, dict]) -> Figure:
    """ROC and PRO curve of every map, side by side; that of PRO over the false positive rates of AUPRO.

    Each entry of `curves` has roc=(fpr, tpr), pro=(fpr, pro), and auroc and aupro as fractions of 1. Curves
    of more than 2,000 points are thinned. Each line is thinner than the one before, so that equal curves
    show; the vertical axes begin below the curves' steep part.
    """
    fig = new_figure(WIDTH, 3.9)
    left, right = fig.subplots(1, 2)
    colours = [GOOD, ANOMALOUS, *OTHERS]
    for ax, kind, area, most in ((left, "roc", "auroc", 1), (right, "pro", "aupro", 0.3)):
        lowest = [1.0]
        for i, (name, curve) in enumerate(curves.items()):
            x, y = thin_curve(*curve[kind], 2000)
            line = {"color": colours[i % len(colours)], "linewidth": 1.2 + 0.8 * (len(curves) - 1 - i)}
            ax.plot(x, y, label=f"{name} {100 * curve[area]:.2f}", solid_joinstyle="miter", **line)
            lowest.append(np.interp(0.1 * most, x, y))
        bottom = max(0, np.floor(10 * np.nanmin(lowest) - 0.5) / 10)
        ax.set(xlim=(0, most), ylim=(bottom, 1 + 0.01 * (1 - bottom)), xlabel="false positive rate")
        title = f"{area.upper()} in %"
        ax.legend(loc="lower right", title=title, alignment="left", frameon=True, edgecolor="white")
    left.set(title="ROC", ylabel="true positive rate")
    right.set(title="PRO", ylabel="per-region overlap")
    return fig


@styled
def plot_losses(history: pd.DataFrame) -> Figure:
    """Training losses by iteration: one panel for each of the columns ngm, aim and msn, raw and smoothed; in
    that of aim also aim_inside and aim_outside, smoothed.

    The line is the mean over a window of a 25th of the run. A loss is NaN outside of its stage, and its panel
    shows only that stage. Raises KeyError when a column or `iteration` is missing.
    """
    names = {"ngm": "normality (NGM)", "aim": "abnormality (AIM)", "msn": "segmentation (MSN)"}
    fig = new_figure(WIDTH, 2.9)
    panels = fig.subplots(1, 3)
    window = max(1, len(history) // 25)

    def smoothed(column: str) -> tuple[pd.DataFrame, pd.Series]:
        known = history.loc[history[column].notna(), ["iteration", column]]
        return known, known[column].rolling(window, min_periods=1, center=True).mean()

    for ax, (column, title), colour in zip(panels, names.items(), (GOOD, ANOMALOUS, OTHERS[0]), strict=True):
        known, smooth = smoothed(column)
        ax.plot(known["iteration"], known[column], ".", color=colour, alpha=0.2, markersize=3)
        ax.plot(known["iteration"], smooth, color=colour, linewidth=2)
        ax.set(title=title, xlabel="iteration")
        ax.set_ylim(bottom=0)
        if known.empty:
            ax.set(xticks=[], yticks=[])
            ax.text(0.5, 0.5, "not trained in this run", transform=ax.transAxes, ha="center")
        else:
            first, last = known["iteration"].iloc[[0, -1]]
            ax.set_xlim(first, max(last, first + 1))
            ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    for column, style in (("aim_inside", "--"), ("aim_outside", "-.")):
        known, smooth = smoothed(column)
        label = f"{column.removeprefix('aim_')} the mask"
        panels[1].plot(known["iteration"], smooth, style, color=INK, linewidth=1.2, label=label)
    panels[1].legend(loc="upper right", fontsize="small", frameon=True, framealpha=1, edgecolor="white")
    panels[0].set_ylabel("loss")
    return fig
