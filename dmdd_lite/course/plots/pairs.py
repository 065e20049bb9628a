"""Figures of the synthetic pairs: Perlin noise, masks, mosaics, strength beside real defects."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS, check_images, horizontal_bar, outline

SIGNED = matplotlib.colormaps["vlag"]  # for noise: white at zero


@styled
def plot_gradients(
    gradients: np.ndarray, noise: np.ndarray, point: tuple[float, float] | None = None
) -> Figure:
    """Noise (H, H) over k x k lattice cells, the gradient of every lattice point, directions in radians
    (k + 1, k + 1), as an arrow, and a ring at `point` (u, v). Raises ValueError if either is not square."""
    if gradients.shape[0] != gradients.shape[1] or noise.shape[0] != noise.shape[1]:
        raise ValueError(f"gradients {gradients.shape} and noise {noise.shape} must be square")
    cells, reach = len(gradients) - 1, np.abs(noise).max()
    fig = new_figure(5.0, 4.3)
    ax = fig.subplots()
    drawn = ax.imshow(
        noise, cmap=SIGNED, vmin=-reach, vmax=reach, extent=(0, cells, cells, 0), interpolation="nearest"
    )
    y, x = np.mgrid[: cells + 1, : cells + 1]
    arrows = {"color": INK, "angles": "xy", "scale_units": "xy", "scale": 2.6, "width": 0.011}
    ax.quiver(x, y, np.cos(gradients), np.sin(gradients), **arrows)
    ax.plot(x.ravel(), y.ravel(), "o", color=INK, markersize=4)
    if point is not None:
        ax.plot(*point, "o", color="none", markeredgecolor="black", markeredgewidth=2, markersize=11)
    ax.set(xlim=(-0.45, cells + 0.45), ylim=(cells + 0.45, -0.45), xticks=range(cells + 1))
    ax.set(yticks=range(cells + 1), xlabel="u (cells)", ylabel="v (cells)")
    ax.grid(color=INK, linewidth=0.6, alpha=0.4)
    fig.colorbar(drawn, ax=ax, shrink=0.8, label="noise").outline.set_visible(False)
    return fig


@styled
def plot_noise(
    columns: dict[str, np.ndarray],
    masks: np.ndarray | None = None,
    edge: float | None = None,
    width: float = WIDTH,
) -> Figure:
    """Noise (H, W), a column each, in one signed colour range; below it its mask, of bool masks (N, H, W);
    a line where the noise crosses `edge`."""
    noise = np.stack(list(columns.values()))
    reach = np.abs(noise).max()
    rows = 1 if masks is None else 2
    fig, panels, bars = image_grid((rows, *noise.shape[1:]), list(columns), coloured=1, width=width)
    for column, values in enumerate(noise):
        drawn = panels[0, column].imshow(
            values, cmap=SIGNED, vmin=-reach, vmax=reach, interpolation="nearest"
        )
        if edge is not None:
            outline(panels[0, column], values, edge, INK)
        if masks is not None:
            panels[1, column].imshow(masks[column], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    horizontal_bar(fig, drawn, bars[0])
    return fig


@styled
def plot_mosaic(images: np.ndarray, columns: int = 8) -> Figure:
    """Many images uint8 (N, H, W, 3), row by row."""
    check_images(images)
    fig, panels, _ = image_grid((-(-len(images) // columns), *images.shape[1:3]), [""] * columns)
    for ax, image in zip(panels.flat, images, strict=False):
        ax.imshow(image, interpolation="nearest")
    return fig


@styled
def plot_strengths(groups: dict[str, dict[str, np.ndarray]], limit: float) -> Figure:
    """Distance to the nearest good vector: a bar per entry from the 10 to the 90 % quantile, thick from 25 to
    75 %, a dot at the median. `groups` maps a heading to named distances; 99 % of the good cells lie left of
    `limit`. Raises ValueError for an entry without distances.
    """
    count = sum(len(entries) for entries in groups.values())
    fig = new_figure(WIDTH, 0.9 + 0.3 * count)
    ax = fig.subplots()
    position, ticks, handles = 0.0, {}, []
    for (heading, entries), colour in zip(groups.items(), (GOOD, ANOMALOUS, *OTHERS), strict=False):
        for name, values in entries.items():
            if not len(values):
                raise ValueError(f"{name!r} has no distances")
            low, first, median, third, high = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9))
            ax.plot((low, high), (position, position), color=colour, linewidth=1.5)
            ax.plot((first, third), (position, position), color=colour, linewidth=7, alpha=0.55)
            ax.plot(median, position, "o", color="white", markeredgecolor=colour, markersize=7)
            ticks[position] = name
            position += 1
        handles.append(Line2D([], [], color=colour, linewidth=7, alpha=0.55, label=heading))
        position += 0.5
    line = ax.axvline(
        limit, color=INK, linestyle="--", linewidth=1.2, label="99 % of the good cells are below"
    )
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set(xlabel="cosine distance to the nearest good feature vector", ylim=(position, -0.8))
    ax.set_xlim(left=0)
    fig.legend(handles=[*handles, line], loc="outside upper left", ncols=len(handles) + 1)
    return fig
