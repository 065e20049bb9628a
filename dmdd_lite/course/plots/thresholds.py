"""Figures of the thresholds: errors and costs of images, outlines of pixels."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from ..thresholds import error_rates, expected_cost
from .panels import ANOMALOUS, DECISION, GOOD, OTHERS, TRUTH, check_images, outline

DASHES = ("--", "-", ":")  # of the thresholds


@styled
def plot_threshold_choice(
    scores: np.ndarray,
    labels: np.ndarray,
    marked: dict[str, float],
    prevalence: float,
    miss_costs: tuple[float, ...],
) -> Figure:
    """Left: false alarms and misses by threshold, those `marked` as lines. Right: the expected cost where a
    fraction `prevalence` of the images is anomalous, one row per price of a miss in false alarms.

    The thresholds end where half of the defective images are missed, or behind the highest good score. Each
    cost is drawn relative to its maximum; its longest minimal stretch is shaded, with a dot in the middle.
    Raises ValueError unless both labels occur.
    """
    low, high = _limits(scores, labels, marked)
    thresholds = np.linspace(low, high, 400)
    alarms, misses = error_rates(scores, labels, thresholds)
    fig = new_figure(WIDTH, 4.2)
    left, right = fig.subfigures(1, 2, wspace=0.04)
    ax = left.subplots()
    ax.plot(thresholds, alarms, color=GOOD, linewidth=2, label="false alarms, of good images")
    ax.plot(thresholds, misses, color=ANOMALOUS, linewidth=2, label="misses, of defective images")
    _mark(ax, marked)
    ax.set(title="errors", xlabel="threshold of the image score", ylim=(-0.02, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    left.legend(loc="outside lower center", ncols=2)
    rows = np.atleast_1d(right.subplots(len(miss_costs), 1, sharex=True))
    for ax, miss in zip(rows, miss_costs, strict=True):
        _draw_cost(ax, thresholds, expected_cost(alarms, misses, prevalence, miss), miss)
        _mark(ax, marked)
    rows[-1].set_xlabel("threshold of the image score")
    right.suptitle(f"relative cost, {prevalence:.0%} of the images defective", fontsize=12)
    return fig


def _limits(scores: np.ndarray, labels: np.ndarray, marked: dict[str, float]) -> tuple[float, float]:
    """The range of thresholds in which both errors change, and that of those `marked`."""
    scores, labels = np.asarray(scores), np.asarray(labels, dtype=bool)
    good, anomalous = scores[~labels], scores[labels]
    if not (len(good) and len(anomalous)):
        return 0.0, 1.0  # `error_rates` refuses them
    high = max(good.max(), np.median(anomalous), *marked.values())
    margin = 0.03 * (high - scores.min()) + 1e-6
    return min(scores.min(), *marked.values()) - margin, high + margin


def _draw_cost(ax: Axes, thresholds: np.ndarray, cost: np.ndarray, miss: float):
    """The curve of costs (T,) for one price of a miss, relative to its maximum."""
    least = np.flatnonzero(np.isclose(cost, cost.min()))
    stretch = max(np.split(least, np.flatnonzero(np.diff(least) > 1) + 1), key=len)
    best = thresholds[stretch[len(stretch) // 2]]
    ax.axvspan(thresholds[stretch[0]], thresholds[stretch[-1]], color=OTHERS[1], alpha=0.25, linewidth=0)
    ax.plot(thresholds, cost / cost.max(), color=INK, linewidth=1.8)
    ax.plot(best, cost.min() / cost.max(), "o", color=OTHERS[1], markersize=8, clip_on=False, zorder=3)
    title = f"miss : false alarm = {miss:g} : 1, lowest at {best:.3f}"
    ax.set_title(title, loc="left", fontsize=10)
    ax.set(ylim=(0, 1.1), yticks=(0, 1))


def _mark(ax: Axes, marked: dict[str, float]):
    """Vertical lines of named thresholds, in the legend."""
    for i, (name, value) in enumerate(marked.items()):
        ax.axvline(value, color=INK, linestyle=("--", ":", "-.")[i % 3], linewidth=1.4, label=name)


@styled
def plot_outlines(
    images: np.ndarray,
    masks: np.ndarray,
    maps: np.ndarray,
    thresholds: dict[str, float],
    titles: list[str],
    width: float = WIDTH,
) -> Figure:
    """One panel per image (N, H, W, 3): what of its map (N, H, W) lies above each threshold, white, with
    its own dash, and the mask, cyan. Raises ValueError for shapes that differ."""
    check_images(images, masks=masks, maps=maps)
    fig, panels, _ = image_grid((1, *images.shape[1:3]), titles, coloured=1, width=width)
    for ax, image, mask, values in zip(panels[0], images, masks, maps, strict=True):
        ax.imshow(image)
        handles = [outline(ax, mask, 0.5, TRUTH, "true mask")]
        for (name, level), dash in zip(thresholds.items(), DASHES, strict=False):
            handles.append(outline(ax, values, level, DECISION, f"{name}: {level:.3f}", dash))
    fig.axes[-1].remove()  # the legend takes the place of the bar
    fig.legend(handles=handles, loc="lower center", ncols=len(handles), facecolor="#d0d0d0", frameon=True)
    return fig
