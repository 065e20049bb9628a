"""What all figures share: colours, outlines, colour bars, and a grid of any images, maps and masks."""

import numpy as np
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..figures import WIDTH, image_grid, styled

COLOUR_MAP = "inferno"
GOOD, ANOMALOUS, *OTHERS = sns.color_palette("colorblind").as_hex()
TRUTH, DECISION = "#00e5ff", "#ffffff"


@styled
def plot_panels(
    columns: dict[str, np.ndarray],
    titles: list[str] | None = None,
    truth: np.ndarray | None = None,
    ranges: dict[str, tuple[float, float]] | None = None,
    width: float = WIDTH,
) -> Figure:
    """One row per example, one column per entry: images uint8 (N, H, W, 3), masks bool (N, H, W), or maps
    float (N, H, W) in one colour range a column: that of `ranges`, else of its values.

    `truth` (N, H, W) is outlined in the first column. Columns may differ in resolution, not in N or aspect.
    Columns of maps that come last have a colour bar. Raises ValueError for another number of rows.
    """
    first = next(iter(columns.values()))
    for name, values in columns.items():
        if len(values) != len(first):
            raise ValueError(f"column {name!r} has {len(values)} rows, the first {len(first)}")
    bars = 0
    for values in reversed(columns.values()):
        if values.ndim == 4 or values.dtype == bool:
            break
        bars += 1
    fig, panels, below = image_grid(first.shape[:3], list(columns), titles, coloured=bars, width=width)
    for column, (name, values) in enumerate(columns.items()):
        drawn = _draw_column(panels[:, column], values, (ranges or {}).get(name))
        if column >= len(columns) - bars:
            horizontal_bar(fig, drawn, below[column - len(columns) + bars])
    if truth is not None:
        for ax, mask in zip(panels[:, 0], truth, strict=True):
            outline(ax, mask, 0.5, TRUTH)
    return fig


def _draw_column(axes: np.ndarray, values: np.ndarray, limits):
    """Draw one column of panels; returns the last picture, whose colours are those of all."""
    if values.ndim == 4:
        options = {}
    elif values.dtype == bool:
        options = {"cmap": "gray", "vmin": 0, "vmax": 1}
    else:
        low, high = colour_range(values, limits)
        options = {"cmap": COLOUR_MAP, "vmin": low, "vmax": high}
    for ax, value in zip(axes, values, strict=True):
        drawn = ax.imshow(value, interpolation="nearest", **options)
    return drawn


def horizontal_bar(fig: Figure, drawn, ax: Axes) -> None:
    """Colour bar in `ax` with only the two ends of the range, so that neighbours never touch."""
    bar = fig.colorbar(drawn, cax=ax, orientation="horizontal", ticks=drawn.get_clim())
    bar.outline.set_visible(False)
    low, high = drawn.get_clim()
    ends = [value if abs(value) > 1e-3 * (high - low) else 0.0 for value in (low, high)]
    bar.ax.set_xticklabels([f"{value:.2f}" if high - low > 0.1 else f"{value:.2g}" for value in ends])
    bar.ax.tick_params(length=0)
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)


def outline(
    ax: Axes, values: np.ndarray, level: float, colour: str, name: str = "", dash: str = "-"
) -> Line2D:
    """Thin contour of `values` (H, W) at `level`, its rim dark to show on any image; returns a legend entry.

    Nothing is drawn where the values do not cross the level.
    """
    rim = [patheffects.withStroke(linewidth=2.6, foreground="#000000b0")]
    if values.min() < level <= values.max():
        lines = ax.contour(
            values.astype(np.float64), levels=[level], colors=[colour], linewidths=1.2, linestyles=dash
        )
        lines.set_path_effects(rim)
    return Line2D([], [], color=colour, linestyle=dash, path_effects=rim, label=name)


def colour_range(values: np.ndarray, limits: tuple[float, float] | None) -> tuple[float, float]:
    """`limits` or the range of the values, widened when it is a single point."""
    low, high = limits or (float(values.min()), float(values.max()))
    return (low, high) if high > low else (low, low + 1e-6)


def check_images(images: np.ndarray, **others: np.ndarray) -> None:
    """Refuse images that are not uint8 (N, H, W, 3), or others that are not (N, H, W)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
    for name, values in others.items():
        if values.shape != images.shape[:3]:
            raise ValueError(f"{name} have the shape {values.shape}, images {images.shape}")
