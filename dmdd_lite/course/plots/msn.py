"""Figures of the fusion: the MSN drawn, its perceptions and its weights."""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .panels import (
    COLOUR_MAP,
    TRUTH,
    check_images,
    colour_range,
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
WEIGHT_COLOURS = "RdBu_r"  # red above 1: a larger weight than in the plain mean


@styled
def plot_msn(attentions: tuple[str, ...]) -> Figure:
    """The segmentation network drawn as boxes, from six maps to one, with the attentions of these names."""
    fig = new_figure(WIDTH, 2.5, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 18), ylim=(0.1, 5.1))
    ax.set_axis_off()
    named = "\n".join(attentions) or "none"
    for part, x, y, text in (
        ("calibration", 0.95, 3.2, "six maps\n$d_1 \\ldots d_6$"),
        ("calibration", 3.05, 3.2, "calibrated\n$c_1 \\ldots c_6$"),
        ("perceptions", 5.6, 3.2, "perceptions\n3×3 convolutions\ndilated 1, 2, 4"),
        ("attention", 8.35, 3.2, f"attention:\n{named}\n$F \\leftarrow F\\,(1 + g)$"),
        ("output", 10.9, 3.2, "1×1, $1 + \\tanh$:\nweights\n$w_1 \\ldots w_6$"),
        ("output", 13.75, 3.2, "weighted mean\n$z_{MSN}$"),
        ("plain", 7.25, 0.75, "plain mean of the distances: $z_{plain}$"),
        ("output", 16.75, 3.2, "anomaly map\n$\\sigma(\\cdot)$"),
    ):
        box = {"boxstyle": "round,pad=0.45", "facecolor": PARTS[part], "edgecolor": "#00000030"}
        ax.text(x, y, text, ha="center", va="center", fontsize=10, color=INK, bbox=box)
    for start, end, bend in (
        ((1.75, 3.2), (2.1, 3.2), 0),
        ((4.0, 3.2), (4.2, 3.2), 0),
        ((7.0, 3.2), (7.35, 3.2), 0),
        ((9.35, 3.2), (9.7, 3.2), 0),
        ((12.1, 3.2), (12.5, 3.2), 0),
        ((3.05, 3.75), (13.75, 3.75), -0.19),
        ((15.0, 3.2), (15.65, 3.2), 0),
        ((0.95, 2.65), (4.75, 0.75), 0.3),
        ((9.75, 0.75), (16.75, 2.65), 0.25),
    ):
        arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1.2}
        ax.annotate("", end, start, arrowprops=arrow | {"connectionstyle": f"arc3,rad={bend}"})
    for x, y, text in ((15.3, 4.0, "$1 - \\eta$"), (15.0, 0.95, "$\\eta$")):
        ax.text(x, y, text, ha="center", va="center", color=INK)
    return fig


@styled
def plot_dilations(
    values: np.ndarray, cell: tuple[int, int], dilations: tuple[int, ...], name: str
) -> Figure:
    """The map `name` (H, W), once per dilation, with the nine cells from which a 3x3 convolution computes its
    value at `cell`, and a colour bar."""
    fig = new_figure(7.6, 2.55)
    panels = fig.subplots(1, len(dilations), squeeze=False)[0]
    low, high = colour_range(values, None)
    for ax, dilation in zip(panels, dilations, strict=True):
        drawn = ax.imshow(values, cmap=COLOUR_MAP, vmin=low, vmax=high, interpolation="nearest")
        for row, column in np.ndindex(3, 3):
            corner = cell[1] + dilation * (column - 1) - 0.5, cell[0] + dilation * (row - 1) - 0.5
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=TRUTH, linewidth=1.4))
        ax.set(title=f"dilation {dilation}", xticks=[], yticks=[])
    fig.colorbar(drawn, ax=panels, label=name, shrink=0.8)
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
