"""Figures of the fusion: the MSN drawn, its perceptions and its weights; choosing a threshold."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from ..thresholds import error_rates, expected_cost
from .panels import (
    ANOMALOUS,
    COLOUR_MAP,
    DECISION,
    GOOD,
    OTHERS,
    TRUTH,
    check_images,
    horizontal_bar,
    outline,
)

#: parts of the drawing of the MSN, with their colours
PARTS = {
    "calibration": "#e4e4e4",
    "perceptions": "#dfd5ea",
    "attention": "#f6d9bd",
    "output": "#bfe0c8",
    "plain": "#cfd8dc",
}
QUIET, FAINT = "#f7f7f7", "#9a9a9a"
WEIGHT_COLOURS = "RdBu_r"  # red above 1: a larger weight than in the plain mean


@styled
def plot_msn(attentions: tuple[str, ...], *here: str) -> Figure:
    """The segmentation network drawn as boxes, from six maps to one, with the attentions of these names.
    `here`: the PARTS to colour, none for all. Raises ValueError for an unknown part."""
    if unknown := set(here) - set(PARTS):
        raise ValueError(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    fig = new_figure(WIDTH, 2.5, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 18), ylim=(0.1, 5.1))
    ax.set_axis_off()
    here, named = here or tuple(PARTS), "\n".join(attentions) or "none"
    for part, x, y, text in (
        ("calibration", 1.2, 3.2, "six maps $d_k$,\ncalibrated:\n$m_1 \\ldots m_6$"),
        ("perceptions", 4.1, 3.2, "perceptions\n3×3 convolutions\ndilated 1, 2, 4"),
        ("attention", 7.25, 3.2, f"attention:\n{named}\n$x \\leftarrow x\\,(1 + g)$"),
        ("output", 10.3, 3.2, "1×1, $1 + \\tanh$:\nweights\n$w_1 \\ldots w_6$"),
        ("output", 13.4, 3.2, "weighted mean\n$z_{MSN}$"),
        ("plain", 7.25, 0.75, "plain mean of the distances: $z_{plain}$"),
        ("output", 16.6, 3.2, "anomaly map\n$\\sigma(\\cdot)$"),
    ):
        colour, ink = (PARTS[part], INK) if part in here else (QUIET, FAINT)
        box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "#00000030"}
        ax.text(x, y, text, ha="center", va="center", fontsize=10, color=ink, bbox=box)
    for part, start, end, bend in (
        ("perceptions", (2.2, 3.2), (2.75, 3.2), 0),
        ("attention", (5.5, 3.2), (6.3, 3.2), 0),
        ("output", (8.2, 3.2), (9.1, 3.2), 0),
        ("output", (11.5, 3.2), (12.15, 3.2), 0),
        ("output", (1.2, 3.9), (13.4, 3.75), -0.17),
        ("output", (14.65, 3.2), (15.5, 3.2), 0),
        ("plain", (1.2, 2.5), (4.75, 0.75), 0.3),
        ("plain", (9.75, 0.75), (16.6, 2.65), 0.25),
    ):
        arrow = {"arrowstyle": "->", "color": INK if part in here else FAINT, "linewidth": 1.2}
        ax.annotate("", end, start, arrowprops=arrow | {"connectionstyle": f"arc3,rad={bend}"})
    for part, x, y, text in (("output", 15.05, 3.6, "$1 - s$"), ("plain", 15.0, 1.0, "$s$")):
        ax.text(x, y, text, ha="center", va="center", color=INK if part in here else FAINT)
    return fig


@styled
def plot_dilations(values: np.ndarray, cell: tuple[int, int], dilations: tuple[int, ...]) -> Figure:
    """A map (H, W), once per dilation, with the nine cells from which a 3x3 convolution computes its value at
    `cell`."""
    fig = new_figure(7.0, 2.55)
    for ax, dilation in zip(fig.subplots(1, len(dilations), squeeze=False)[0], dilations, strict=True):
        ax.imshow(values, cmap=COLOUR_MAP, interpolation="nearest")
        for row, column in np.ndindex(3, 3):
            corner = cell[1] + dilation * (column - 1) - 0.5, cell[0] + dilation * (row - 1) - 0.5
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=TRUTH, linewidth=1.4))
        ax.set(title=f"dilation {dilation}", xticks=[], yticks=[])
    return fig


@styled
def plot_weights(
    images: np.ndarray, weights: np.ndarray, names: list[str], titles: list[str], masks: np.ndarray
) -> Figure:
    """One row per image (N, H, W, 3), its mask outlined: the weights (N, K, h, w) that its K maps were given.

    White is 1, as in the plain mean; red is larger, blue smaller; one symmetric range for all. Raises
    ValueError for another number of names.
    """
    check_images(images, masks=masks)
    if weights.shape[:2] != (len(images), len(names)):
        raise ValueError(f"weights {weights.shape} for {len(images)} images and {len(names)} maps")
    fig, panels, bars = image_grid(images.shape[:3], ["image", *names], titles, coloured=1)
    reach = max(float(np.abs(weights - 1).max()), 1e-3)
    colours = Normalize(1 - reach, 1 + reach)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        panels[row, 0].imshow(image)
        outline(panels[row, 0], mask, 0.5, TRUTH)
        for ax, weight in zip(panels[row, 1:], weights[row], strict=True):
            ax.imshow(weight, cmap=WEIGHT_COLOURS, norm=colours, interpolation="nearest")
    _, low, _, height = bars[0].get_position().bounds
    left = panels[0, 1].get_position().x0
    bars[0].set_position((left, low, panels[0, -1].get_position().x1 - left, height))
    horizontal_bar(fig, ScalarMappable(colours, WEIGHT_COLOURS), bars[0])
    return fig


@styled
def plot_threshold_choice(
    scores: np.ndarray,
    labels: np.ndarray,
    marked: dict[str, float],
    prevalence: float,
    miss_costs: tuple[float, ...],
) -> Figure:
    """Left: false alarms and misses by threshold, those `marked` as lines. Right: the expected cost where a
    share `prevalence` of the images is anomalous, for each price of a miss in false alarms.

    Each cost is drawn relative to its highest, with a dot at its least. Raises ValueError unless both labels
    occur.
    """
    thresholds = np.linspace(min(scores) - 0.02, max(scores) + 0.02, 400)
    alarms, misses = error_rates(scores, labels, thresholds)
    fig = new_figure(WIDTH, 3.5)
    left, right = fig.subplots(1, 2, sharex=True)
    left.plot(thresholds, alarms, color=GOOD, linewidth=2, label="false alarms")
    left.plot(thresholds, misses, color=ANOMALOUS, linewidth=2, label="misses")
    _mark(left, marked)
    left.set(title="errors", xlabel="threshold", ylim=(-0.02, 1.02))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    for colour, miss in zip([OTHERS[0], ANOMALOUS, OTHERS[2]], miss_costs, strict=False):
        cost = expected_cost(alarms, misses, prevalence, miss)
        least = np.flatnonzero(cost == cost.min())
        best = least[len(least) // 2]  # the middle of the lowest stretch
        right.plot(thresholds, cost / cost.max(), color=colour, linewidth=1.8, label=f"{miss:g} : 1")
        right.plot(thresholds[best], cost[best] / cost.max(), "o", color=colour, markersize=8)
    right.set(
        title=f"relative cost, {prevalence:.0%} of the images defective", xlabel="threshold", ylim=(0, 1.05)
    )
    for ax, columns, title in ((left, 2, None), (right, len(miss_costs), "price of a miss : a false alarm")):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, title=title)
    return fig


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
    """One column per image (N, H, W, 3), one row per threshold: what of the map (N, H, W) lies above it,
    dashed white, and the ground truth, cyan. Raises ValueError for shapes that differ."""
    check_images(images, masks=masks, maps=maps)
    rows = [f"{name}: {value:.2f}" for name, value in thresholds.items()]
    fig, panels, _ = image_grid((len(rows), *images.shape[1:3]), titles, rows, width=width)
    for row, column in np.ndindex(panels.shape):
        ax = panels[row, column]
        ax.imshow(images[column])
        outline(ax, masks[column], 0.5, TRUTH)
        outline(ax, maps[column], list(thresholds.values())[row], DECISION, dash="--")
    return fig
