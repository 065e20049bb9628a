"""Figures of the synthetic pairs: Perlin noise, thresholds, mosaics, likeness to real defects."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy import ndimage

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS, TRUTH, check_images, horizontal_bar, outline

SIGNED = (
    matplotlib.colormaps["vlag"].resampled(25).with_extremes(bad="#ffffff")
)  # for noise: white at zero and where there is none


@styled
def plot_gradients(gradients: np.ndarray, noise: np.ndarray, width: float = 4.2) -> Figure:
    """Noise (H, H) over k x k lattice cells, and the gradient of every lattice point, directions in radians
    (k + 1, k + 1), as an arrow. Raises ValueError if either is not square."""
    if gradients.shape[0] != gradients.shape[1] or noise.shape[0] != noise.shape[1]:
        raise ValueError(f"gradients {gradients.shape} and noise {noise.shape} must be square")
    cells, reach = len(gradients) - 1, np.abs(noise).max()
    fig = new_figure(width, 0.86 * width)
    ax = fig.subplots()
    drawn = ax.imshow(
        noise, cmap=SIGNED, vmin=-reach, vmax=reach, extent=(0, cells, cells, 0), interpolation="nearest"
    )
    y, x = np.mgrid[: cells + 1, : cells + 1]
    arrows = {"color": INK, "angles": "xy", "scale_units": "xy", "scale": 2.6, "width": 0.011}
    ax.quiver(x, y, np.cos(gradients), np.sin(gradients), **arrows)
    ax.plot(x.ravel(), y.ravel(), "o", color=INK, markersize=4)
    ax.set(xlim=(-0.45, cells + 0.45), ylim=(cells + 0.45, -0.45), xticks=range(cells + 1))
    ax.set(yticks=range(cells + 1), xlabel="u (cells)", ylabel="v (cells)")
    ax.grid(color=INK, linewidth=0.6, alpha=0.4)
    fig.colorbar(drawn, ax=ax, shrink=0.8, label="noise").outline.set_visible(False)
    return fig


@styled
def plot_noise(
    columns: dict[str, np.ndarray], threshold: float | None = None, width: float = WIDTH
) -> Figure:
    """Noise (N, H, W), a column each, one row per example, all in one signed colour range; what exceeds
    `threshold` is outlined. NaN stays white."""
    noise = np.stack(list(columns.values()), axis=1)  # rows, columns, H, W
    reach = np.nanmax(np.abs(noise))
    fig, panels, bars = image_grid((len(noise), *noise.shape[2:]), list(columns), coloured=1, width=width)
    for row, column in np.ndindex(panels.shape):
        values = noise[row, column]
        drawn = panels[row, column].imshow(
            values, cmap=SIGNED, vmin=-reach, vmax=reach, interpolation="nearest"
        )
        if threshold is not None:
            outline(panels[row, column], np.nan_to_num(values), threshold, TRUTH)
    horizontal_bar(fig, drawn, bars[0])
    return fig


@styled
def plot_thresholds(curves: pd.DataFrame, default: float) -> Figure:
    """What the threshold does to the masks: share of anomalous pixels, regions a mask, region size, and the
    share of images whose noise nowhere exceeds it, against the index of `curves`.

    The dotted line marks `default`. Raises KeyError for a missing column of share, regions, size, empty.
    """
    names = {
        "share": "anomalous pixels (%)",
        "size": "region size (% of image)",
        "regions": "regions per mask",
        "empty": "empty masks (%)",
    }
    fig = new_figure(WIDTH, 2.7)
    for ax, (column, title), colour in zip(
        fig.subplots(1, 4), names.items(), (ANOMALOUS, OTHERS[1], GOOD, INK), strict=True
    ):
        factor = 1 if column == "regions" else 100
        ax.plot(curves.index, factor * curves[column], color=colour, linewidth=2)
        ax.axvline(default, color=INK, linestyle=":", linewidth=1.2)
        ax.set(title=title, xlabel="threshold", xlim=(curves.index[0], curves.index[-1]))
        ax.set_ylim(bottom=0)
    return fig


@styled
def plot_mosaic(
    images: np.ndarray, masks: np.ndarray | None = None, columns: int = 16, side: int = 36, colours: int = 24
) -> Figure:
    """Many images (N, H, W, 3) as thumbnails `side` pixels wide, row by row, what `masks` (N, H, W) cover
    outlined, regions of under nine thumbnail pixels excepted: an outline would hide them. One picture of few
    colours, outlines painted in, so that hundreds stay light."""
    check_images(images, **({} if masks is None else {"masks": masks}))
    rows, gap = -(-len(images) // columns), 2
    step = max(1, round(side * images.shape[1] / images.shape[2])) + gap, side + gap
    down = (np.arange(n - gap) * m // (n - gap) for n, m in zip(step, images.shape[1:3], strict=True))
    pick = np.ix_(np.arange(len(images)), *down)
    canvas = np.full((rows * step[0], columns * step[1], 3), 255, np.uint8)
    edges = np.zeros(canvas.shape[:2], bool)
    inside = np.zeros(images[pick].shape[:3], bool) if masks is None else masks[pick].astype(bool)
    for index, (image, mask) in enumerate(zip(images[pick], inside, strict=True)):
        top, left = (index // columns) * step[0], (index % columns) * step[1]
        place = slice(top, top + step[0] - gap), slice(left, left + step[1] - gap)
        canvas[place], edges[place] = image, _outer_edge(mask, 9)
    canvas = np.array(Image.fromarray(canvas).quantize(colours, Image.Quantize.MAXCOVERAGE).convert("RGB"))
    canvas[edges] = np.rint(255 * np.array(matplotlib.colors.to_rgb(TRUTH)))
    canvas = canvas[:-gap, :-gap]
    fig = new_figure(canvas.shape[1] / 100, canvas.shape[0] / 100, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.imshow(canvas, interpolation="nearest")
    ax.set_axis_off()
    return fig


def _outer_edge(mask: np.ndarray, least: int) -> np.ndarray:
    """The pixels around the regions of at least `least` pixels."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    large = np.bincount(labels.ravel(), minlength=count + 1) >= least
    large[0] = False
    kept = large[labels]
    return ndimage.binary_dilation(kept) & ~kept


@styled
def plot_strengths(groups: dict[str, dict[str, np.ndarray]], limit: float) -> Figure:
    """Distances to the nearest good patch: a bar per entry from the 10 to the 90 % quantile, thick from 25 to
    75 %, a dot at the median. `groups` maps a heading to named distances; what lies right of `limit` is
    plainly visible. Raises ValueError for an entry without distances.
    """
    count = sum(len(entries) for entries in groups.values())
    fig = new_figure(WIDTH, 0.9 + 0.3 * count)
    ax = fig.subplots()
    position, ticks, handles = 0.0, {}, []
    for (heading, entries), colour in zip(groups.items(), (INK, ANOMALOUS, GOOD, *OTHERS), strict=False):
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
        limit, color=INK, linestyle="--", linewidth=1.2, label="99 % of good patches are left of it"
    )
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set(xlabel="cosine distance to the nearest good patch", ylim=(position, -0.8))
    ax.set_xlim(left=0)
    fig.legend(handles=[*handles, line], loc="outside upper left", ncols=len(handles) + 1)
    return fig


@styled
def plot_plane(panels: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Patches in a plane: a panel per entry, named points (P, 2) in it; the same names have the same colour
    and all panels the same axes."""
    fig = new_figure(WIDTH, WIDTH / len(panels) + 0.4)
    axes = fig.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    colours = dict(zip(names, ("#b8b8b8", GOOD, ANOMALOUS, *OTHERS), strict=False))
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for name, place in points.items():
            ax.plot(*place.T, "o", color=colours[name], markersize=2.8, markeredgewidth=0, alpha=0.6)
        ax.set(title=title, xticks=[], yticks=[])
    handles = [Line2D([], [], marker="o", linestyle="", color=colours[n], label=n) for n in names]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(names))
    return fig
