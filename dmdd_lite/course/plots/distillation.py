"""Figures of the distillation: the decoupling drawn, features as arrows, zones and recall by depth, and where
a student's features lie between the teacher's of both views."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from ..zones import Zones
from .panels import ANOMALOUS, GOOD, OTHERS, TRUTH, outline

GREY = "#8c8c8c"
#: of every plot by map: plain distillation, either branch, both
COLOURS = {"plain": GREY, "normality": GOOD, "abnormality": ANOMALOUS, "sum": OTHERS[0]}
ZONE_COLOURS = {"centre": "#d7301f", "edge": "#fdae61", "rim": "#4393c3"}


@styled
def plot_decoupling() -> Figure:
    """The student of DMDD drawn as boxes: frozen teacher and student of one structure, the 1x1 convolutions
    that widen, the split, and what either half is compared with."""
    fig = new_figure(WIDTH, 2.75, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 19.6), ylim=(0.1, 5.9))
    ax.set_axis_off()
    _box(ax, 0.2, 2.9, 1.3, 1.2, "image\n$x$", "#eeeeee")
    _trapezoid(ax, (2.6, 6.0), 4.75, "frozen teacher\n$T_1, T_2, T_3$", "#d9d9d9")
    _trapezoid(ax, (2.6, 6.0), 2.0, "student,\nuntrained at first", "#dfd5ea")
    _box(ax, 7.0, 1.1, 2.6, 1.8, "1×1 convs\n$C_k$ to $2C_k$", "#eeeeee")
    _box(ax, 10.3, 2.35, 1.1, 1.2, "$N_k$", GOOD, "white")
    _box(ax, 10.3, 0.55, 1.1, 1.2, "$A_k$", ANOMALOUS, "white")
    _arrow(ax, (1.5, 3.7), (2.6, 4.75))
    _arrow(ax, (1.5, 3.3), (2.6, 2.0))
    _arrow(ax, (6.0, 2.0), (7.0, 2.0))
    for y in (2.95, 1.15):
        _arrow(ax, (9.6, 2.0), (10.3, y))
        _arrow(ax, (11.4, y), (13.0, y), "<->")
    _comparison(ax, 13.0, 2.35, "$T_k(x_n)$", "NGM: close to\nthe good part", GOOD)
    _comparison(ax, 13.0, 0.55, "$T_k(x_a)$", "AIM: close outside\n$M$, far inside", ANOMALOUS)
    along = {"arrowstyle": "-|>", "linestyle": "--", "connectionstyle": "angle,angleA=0,angleB=90"}
    ax.annotate("", (13.9, 3.6), (6.0, 4.75), arrowprops={**along, "color": INK})
    ax.text(10.0, 4.85, "features to compare with", ha="center", va="bottom", fontsize=10)
    ax.text(10.85, 3.65, "split", ha="center", va="bottom", fontsize=10)
    return fig


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, ink: str = INK):
    shape = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.15", fc=colour, ec=INK, lw=1)
    ax.add_patch(shape)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink, fontsize=11)


def _trapezoid(ax: Axes, span: tuple, middle: float, text: str, colour: str):
    """A network whose features shrink on their way from left to right."""
    left, right = span
    corners = [(left, middle - 1), (left, middle + 1), (right, middle + 0.6), (right, middle - 0.6)]
    ax.add_patch(Polygon(corners, fc=colour, ec=INK, lw=1, joinstyle="round"))
    ax.text((left + right) / 2, middle, text, ha="center", va="center", fontsize=11)


def _arrow(ax: Axes, start: tuple, end: tuple, kind: str = "-|>"):
    ax.annotate("", end, start, arrowprops={"arrowstyle": kind, "color": INK, "shrinkA": 1, "shrinkB": 1})


def _comparison(ax: Axes, x: float, y: float, teacher: str, text: str, colour: str):
    """The teacher's feature that a branch is compared with, and the loss in words beside it."""
    _box(ax, x, y, 1.8, 1.2, teacher, "#d9d9d9")
    ax.text(x + 2.0, y + 0.6, text, ha="left", va="center", color=colour, fontsize=10, weight="bold")


@styled
def plot_arrows(
    fields: dict[str, np.ndarray], share: np.ndarray, marked: tuple[int, int] | None = None
) -> Figure:
    """Features of two channels as arrows, one panel per field (H, W, 2); cells are shaded by the anomalous
    `share` (H, W) in [0, 1], and the cell `marked` (row, column) is framed."""
    height, width = share.shape
    fig = new_figure(WIDTH, WIDTH / len(fields) * height / width + 0.35)
    for ax, (name, field) in zip(fig.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        ax.imshow(share, cmap="Oranges", vmin=0, vmax=2)
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
    """Images uint8 (N, H, W, 3) in a row, the `zones` of their defects coloured over them."""
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
def plot_recall_by_depth(profile: pd.DataFrame, width: int) -> Figure:
    """Recall of every map (a column of `profile`, fractions of 1) against the depth inside the defect (its
    index, negative outside); the zones of `width` are shaded."""
    profile = profile.dropna(how="all")  # deeper than any defect
    fig = new_figure(WIDTH, 3.6)
    ax = fig.subplots()
    x = profile.index - np.sign(profile.index) / 2  # pixel centres: there is no depth 0
    bounds = {"rim": (-width, 0), "edge": (0, width), "centre": (width, x.max() + 0.5)}
    for name, (low, high) in bounds.items():
        colour = ZONE_COLOURS[name]
        ax.axvspan(low, high, color=colour, alpha=0.12, linewidth=0)
        ax.text((low + high) / 2, 1.02, name, ha="center", va="bottom", color=colour, weight="bold")
    colours = _colours(profile.columns)
    for name, values in profile.items():
        ax.plot(x, values, "o-", color=colours[name], label=name, linewidth=2, markersize=4)
    label = "pixels inside (> 0) or outside (< 0) the outline"
    ax.set(xlim=(x.min() - 0.5, x.max() + 0.5), ylim=(0, 1), xlabel=label, ylabel="recall")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def _colours(names) -> dict[str, str]:
    """The colour of every map by name: that of `COLOURS`, else one of the others."""
    spare = iter([c for c in OTHERS if c not in COLOURS.values()] * 4)
    return {name: COLOURS[name] if name in COLOURS else next(spare) for name in names}


@styled
def plot_gap(rows: pd.DataFrame) -> Figure:
    """What `probes.watch` yields, one panel per model: as training goes on, distances inside the anomaly and
    outside it, and to the normal view's features."""
    names = list(dict.fromkeys(rows["model"]))
    fig = new_figure(WIDTH, 3.2)
    lines = {
        "seen inside": (ANOMALOUS, "-", "to $T(x_a)$, in the anomaly"),
        "seen outside": (GREY, "-", "to $T(x_a)$, elsewhere"),
        "restored inside": (GOOD, "--", "to $T(x_n)$, in the anomaly"),
    }
    for ax, name in zip(fig.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        own = rows[rows["model"] == name]
        for column, (colour, dash, label) in lines.items():
            ax.plot(own["iteration"], own[column], dash, color=colour, label=label, linewidth=2)
        ax.set(title=name, xlabel="iteration", ylim=(0, 1.1))
    fig.axes[0].set_ylabel("cosine distance of $N(x_a)$")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


@styled
def plot_answers(seen: dict[str, np.ndarray], restored: dict[str, np.ndarray]) -> Figure:
    """Pixels in anomalies by how far a student's feature is from T(x_a) (`seen`, any shape, by model) and
    from T(x_n) (`restored`): one density per model, with the share above the diagonal.

    Above the diagonal the student copies what it sees; below, it restores what should be there.
    """
    fig = new_figure(WIDTH, 0.55 + (WIDTH - 0.8) / max(2, len(seen)))
    panels = fig.subplots(1, len(seen), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, seen, strict=True):
        x, y = seen[name].ravel(), restored[name].ravel()
        ax.hexbin(x, y, gridsize=40, extent=(0, 1.4, 0, 1.4), cmap="magma_r", mincnt=1, linewidths=0)
        ax.plot([0, 1.4], [0, 1.4], color=INK, linewidth=1)
        ax.set(
            title=name,
            aspect="equal",
            xlim=(0, 1.4),
            ylim=(0, 1.4),
            xlabel="distance to $T(x_a)$: what it sees",
        )
        paper = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}
        ax.text(0.06, 1.32, f"copies: {np.mean(y > x):.0%}", va="top", bbox=paper)
        ax.text(1.34, 0.06, f"restores: {np.mean(y <= x):.0%}", ha="right", bbox=paper)
    panels[0].set_ylabel("distance to $T(x_n)$: what should be")
    return fig
