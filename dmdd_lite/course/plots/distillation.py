"""Figures of the distillation: features as arrows, losses beside those of trivial branches, zones of a defect
and recall in them, and the pictures that a branch expects, still and moving."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from ...utils import write_atomically
from ..figures import INK, WIDTH, image_grid, new_figure, styled
from ..zones import Zones
from .panels import ANOMALOUS, COLOUR_MAP, GOOD, OTHERS, TRUTH, outline

GREY = "#8c8c8c"
GIF_BYTES = 3_000_000
ZONE_COLOURS = {"centre": "#d7301f", "edge": "#fdae61", "rim": "#9b5de5"}


@styled
def plot_arrows(
    fields: dict[str, np.ndarray], fraction: np.ndarray, marked: tuple[int, int] | None = None
) -> Figure:
    """Features of two channels as arrows, one panel per field (H, W, 2); cells are shaded by the anomalous
    `fraction` (H, W) in [0, 1], and the cell `marked` (row, column) is framed."""
    height, width = fraction.shape
    fig = new_figure(WIDTH, WIDTH / len(fields) * height / width + 0.35)
    for ax, (name, field) in zip(fig.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        ax.imshow(fraction, cmap="Oranges", vmin=0, vmax=2)
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        ax.quiver(
            x,
            y,
            field[..., 0],
            field[..., 1],
            pivot="mid",
            scale=1,
            scale_units="x",
            angles="uv",
            width=0.015,
        )
        ax.set_xticks(np.arange(width - 1) + 0.5, [])
        ax.set_yticks(np.arange(height - 1) + 0.5, [])
        ax.grid(color="white", linewidth=1)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(name)
        if marked:
            ax.add_patch(
                FancyBboxPatch(
                    (marked[1] - 0.42, marked[0] - 0.42), 0.84, 0.84, "round,pad=0", fc="none", ec=INK
                )
            )
    return fig


@styled
def plot_zones(images: np.ndarray, zones: Zones) -> Figure:
    """Images uint8 (N, H, W, 3) in a row, the `zones` of their defects coloured over them, the masks
    outlined."""
    count, height, width, _ = images.shape
    fig, panels, _ = image_grid((1, height, width), [""] * count)
    for ax, i in zip(panels[0], range(count), strict=True):
        picture = images[i] / 255
        for name, colour in ZONE_COLOURS.items():
            inside = getattr(zones, name)[i]
            rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
            picture[inside] = 0.35 * picture[inside] + 0.65 * rgb
        ax.imshow(picture, interpolation="nearest")
        outline(ax, (zones.centre | zones.edge)[i], 0.5, TRUTH)
    for k, (name, colour) in enumerate(ZONE_COLOURS.items()):
        fig.text(0.43 + 0.07 * k, 0.99, name, color=colour, va="top", ha="center", fontsize=12, weight="bold")
    return fig


@styled
def plot_student_losses(history: pd.DataFrame, trivial: pd.DataFrame) -> Figure:
    """Losses of a student by iteration, columns iteration, ngm, aim, aim_inside and aim_outside of `history`:
    their sum, and both parts of AIM beside those of the branches in the rows of `trivial` (columns inside,
    outside), which are dashed. Lines are means over a window of a 25th of the run.
    """
    fig = new_figure(WIDTH, 3.3)
    total, inside, outside = fig.subplots(1, 3, sharex=True)
    outside.sharey(inside)
    history = history.assign(total=history["ngm"] + history["aim"])
    lines = {"total": (INK, "total"), "ngm": (GOOD, "NGM"), "aim": (ANOMALOUS, "AIM")}
    for column, (colour, label) in lines.items():
        _draw_loss(total, history, column, colour, label)
    total.set(title="both views", ylabel="loss")
    total.legend()
    for ax, part in ((inside, "inside"), (outside, "outside")):
        _draw_loss(ax, history, f"aim_{part}", ANOMALOUS, "A")
        for (name, row), colour in zip(trivial.iterrows(), (INK, GOOD, OTHERS[0], GREY), strict=False):
            ax.axhline(row[part], color=colour, linestyle="--", linewidth=1.2, label=f"${name}$")
        ax.set_title(f"AIM {part} the mask, $x_a$")
    for ax in fig.axes:
        ax.set(xlabel="iteration", xlim=(0, history["iteration"].max()))
        ax.set_ylim(bottom=0)
    fig.legend(*inside.get_legend_handles_labels(), loc="outside lower right", ncols=5)
    return fig


def _draw_loss(ax, history: pd.DataFrame, column: str, colour: str, label: str):
    window = max(1, len(history) // 25)
    ax.plot(history["iteration"], history[column], ".", color=colour, alpha=0.2, markersize=3)
    smooth = history[column].rolling(window, min_periods=1, center=True).mean()
    ax.plot(history["iteration"], smooth, color=colour, linewidth=2, label=label)


@styled
def plot_zone_recalls(seeds: pd.DataFrame, run: pd.DataFrame) -> Figure:
    """Recall in centre, edge and rim, one panel each, one line per map: every seed a dot, their mean a bar,
    below them this `run`, a diamond. Both have the maps as index, those of `run` last, and the zones as
    columns, in fractions of 1; a map may lack in either."""
    names = list(dict.fromkeys([*seeds.index, *run.index]))
    bar = {"marker": "|", "linestyle": "", "markersize": 16, "markeredgewidth": 2}
    diamond = {"marker": "D", "linestyle": "", "markerfacecolor": "white", "markersize": 5}
    fig = new_figure(WIDTH, 1.1 + 0.42 * len(names))
    for ax, (zone, colour) in zip(fig.subplots(1, 3, sharey=True), ZONE_COLOURS.items(), strict=True):
        means = seeds.groupby(level=0)[zone].mean().reindex(names)
        rows = [names.index(name) for name in seeds.index]
        ax.plot(100 * seeds[zone], rows, "o", color=colour, alpha=0.7)
        ax.plot(100 * means, range(len(names)), color=INK, **bar)
        below = [row + 0.28 for row in range(len(names))]
        ax.plot(100 * run[zone].reindex(names), below, color=INK, **diamond)
        ax.set(title=zone, xlabel="recall (%)", ylim=(len(names) - 0.5, -0.5))
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x", color="#dddddd")
    entries = [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="one seed (colour of its panel)"),
        Line2D([], [], color=INK, label="mean of the seeds", **bar),
        Line2D([], [], color=INK, label="this run", **diamond),
    ]
    fig.legend(handles=entries, loc="outside lower center", ncols=3)
    return fig


@styled
def plot_reconstruction(
    columns: dict[str, np.ndarray],
    badge: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
    masks: np.ndarray | None = None,
) -> Figure:
    """One row per image, one column per entry: pictures uint8 (N, S, S, 3), or anomaly maps float (N, H, W)
    in colours between `limits`. masks: bool (N, H, W), outlined in the first column; badge: a text in the
    second."""
    first = next(iter(columns.values()))
    fig, panels, _ = image_grid(first.shape[:3], list(columns))
    for axes, values in zip(panels.T, columns.values(), strict=True):
        options = {"cmap": COLOUR_MAP, "vmin": limits[0], "vmax": limits[1]} if values.ndim == 3 else {}
        for ax, value in zip(axes, values, strict=True):
            ax.imshow(value, interpolation="bicubic" if options else "antialiased", **options)
    for ax, mask in zip(panels[:, 0], [] if masks is None else masks, strict=False):
        outline(ax, mask, 0.5, TRUTH)
    if badge:
        paper = {"facecolor": "black", "alpha": 0.75, "edgecolor": "none", "pad": 3}
        at = panels[0, 1].transAxes
        panels[0, 1].text(0.03, 0.04, badge, color="white", transform=at, bbox=paper, weight="bold")
    return fig


def save_gif(figures: list[Figure], path: str | Path) -> Path:
    """Write figures of one size, 100 dots per inch, as an endless animation of at most `GIF_BYTES`; the
    last one stays longer. All frames share one palette, so that what stays the same is stored once. Raises
    ValueError if it is larger even in 32 colours."""
    frames = [_pixels(figure) for figure in figures]
    times, sample = [350] * (len(frames) - 1) + [3000], _side_by_side(frames[0], frames[-1])
    for colours in (256, 192, 128, 64, 32):
        palette = sample.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=20_000)
        few = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
        written = io.BytesIO()
        few[0].save(written, "GIF", save_all=True, append_images=few[1:], duration=times, loop=0)
        if written.tell() <= GIF_BYTES:
            break
    else:
        raise ValueError(f"{written.tell()} bytes in {colours} colours, over the limit of {GIF_BYTES}")
    return write_atomically(path, lambda temporary: temporary.write_bytes(written.getvalue()))


def _pixels(figure: Figure) -> Image.Image:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, facecolor="white")
    return Image.open(drawn).convert("RGB")


def _side_by_side(*pictures: Image.Image) -> Image.Image:
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures]))
