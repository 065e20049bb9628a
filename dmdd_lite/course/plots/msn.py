"""Figures of the fusion: the MSN drawn, attention weights, the ablation, strengths."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ...evaluation import METRICS
from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS, TRUTH, check_images, horizontal_bar, outline

GREY, PLAIN, NETWORK, ATTENTION, RESULT = "#8c8c8c", "#e4e4e4", "#dfd5ea", "#f6d9bd", "#bfe0c8"
WEIGHT_COLOURS = "RdBu_r"  # red above 1: trusted more than in the plain mean
PANELS = dict(
    zip(METRICS, ("image AUROC", "pixel AUROC", "pixel AP", "AUPRO", "AUPRO per image"), strict=True)
)


@styled
def plot_msn(attentions: tuple[str, ...]) -> Figure:
    """The segmentation network drawn as boxes, from six calibrated maps to one, with the attentions of
    these names."""
    fig = new_figure(WIDTH, 2.4, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 18), ylim=(0, 4.8))
    ax.set_axis_off()
    named = "\n".join(attentions) or "none"
    for x, y, text, colour in (
        (1.2, 3.4, "distances $d_k$,\ncalibrated:\n$m_1 \\ldots m_6$", PLAIN),
        (3.9, 3.4, "perceptions\n3×3, dilated", NETWORK),
        (6.75, 3.4, f"attention:\n{named}", ATTENTION),
        (9.35, 3.4, "1×1\n$1 + \\tanh$", NETWORK),
        (11.9, 3.4, "weights\n$w_1 \\ldots w_6$", PLAIN),
        (15.8, 3.4, "MSN alone\n$g\\,\\overline{w_k m_k} + b$", RESULT),
        (15.8, 0.7, "fused map $\\sigma(\\cdot)$", RESULT),
        (9.35, 0.7, "plain mean $10\\,(\\overline{d_k} - \\bar d) - 3$", PLAIN),
    ):
        box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "#00000030"}
        ax.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box)
    for points in (
        ((2.2, 3.4), (2.85, 3.4)),
        ((5.0, 3.4), (5.75, 3.4)),
        ((7.75, 3.4), (8.5, 3.4)),
        ((10.2, 3.4), (11.1, 3.4)),
        ((12.7, 3.4), (14.9, 3.4)),
        ((1.4, 2.8), (7.5, 0.75)),
        ((11.3, 0.7), (14.5, 0.7)),
        ((15.8, 2.7), (15.8, 1.15)),
    ):
        ax.annotate("", points[1], points[0], arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.2})
    ax.text(13.05, 0.8, "plain weight", ha="center", va="bottom", fontsize=9)
    ax.text(15.95, 1.9, "1 − plain weight", va="center", fontsize=9)
    return fig


@styled
def plot_weights(
    images: np.ndarray, weights: np.ndarray, names: list[str], titles: list[str], masks: np.ndarray
) -> Figure:
    """One row per image (N, H, W, 3), its mask outlined: the weights (N, K, h, w) that its K maps were given.

    White is 1, as in the plain mean; red is trusted more, blue less; one symmetric range for all. Raises
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
def plot_trust(means: pd.DataFrame) -> Figure:
    """The mean weight of each map (rows) in each place (columns); the line at 1 is the plain mean."""
    fig = new_figure(WIDTH, 2.6)
    ax = fig.subplots()
    ax.axhline(1, color=GREY, linewidth=1)
    for i, (place, values) in enumerate(means.items()):
        colour, marker = ((ANOMALOUS, "D"), (OTHERS[0], "s"), (GOOD, "o"))[i % 3]
        ax.plot(range(len(values)), values, marker, color=colour, markersize=8, alpha=0.85, label=place)
    ax.set_xticks(range(len(means)), means.index)
    ax.set(ylabel="mean weight", xlim=(-0.5, len(means) - 0.5))
    ax.margins(y=0.15)
    fig.legend(loc="outside upper center", ncols=means.shape[1])
    return fig


@styled
def plot_ablation(
    scores: pd.DataFrame,
    plain_weight: float,
    baselines: dict[str, dict[str, float]],
    metrics: tuple[str, ...] = METRICS[:4],
) -> Figure:
    """The rows of `msn_comparison.score_msns` with this `plain_weight`: a dot a seed and a tick at the mean,
    for each fusion and metric; lines for the metrics, as fractions of 1, of named `baselines`.

    Raises ValueError if no row has it.
    """
    rows = scores[scores["plain_weight"] == plain_weight]
    if rows.empty:
        known = sorted(set(scores["plain_weight"]))
        raise ValueError(f"no row with plain_weight {plain_weight}; there are {known}")
    names = list(rows["fusion"].unique())
    fig = new_figure(WIDTH, 1.3 + 0.3 * len(names))
    panels = np.atleast_1d(fig.subplots(1, len(metrics), sharey=True))
    for ax, metric in zip(panels, metrics, strict=True):
        for i, values in enumerate(baselines.values()):
            ax.axvline(100 * values[metric], color=GREY, linestyle=("--", ":")[i % 2], linewidth=1.5)
        for y, name in enumerate(names):
            values = 100 * rows.loc[rows["fusion"] == name, metric].to_numpy()
            ax.plot(values, np.full(len(values), y), "o", color=GOOD, markersize=6, alpha=0.55)
            ax.plot(values.mean(), y, "|", color=INK, markersize=13, markeredgewidth=2)
        ax.set(title=PANELS[metric], ylim=(len(names) - 0.5, -0.5))
        ax.margins(x=0.15)
        ax.grid(axis="y", color="#00000018")
    panels[0].set_yticks(range(len(names)), names)
    fig.legend(panels[0].lines[: len(baselines)], baselines, loc="outside lower center", ncols=len(baselines))
    return fig


@styled
def plot_groups(groups: dict[str, np.ndarray], label: str) -> Figure:
    """Values of several groups as boxes (quartiles, whiskers at 5 and 95 %) with a dot for each value."""
    fig = new_figure(WIDTH, 0.9 + 0.55 * len(groups))
    ax = fig.subplots()
    frame = pd.concat([pd.DataFrame({"group": name, label: values}) for name, values in groups.items()])
    looks = {"x": label, "y": "group", "hue": "group", "legend": False, "ax": ax}
    palette = dict(zip(groups, [OTHERS[1], ANOMALOUS, GOOD, *OTHERS[2:]], strict=False))
    sns.stripplot(frame, palette=palette, alpha=0.25, size=3.5, jitter=0.3, **looks)
    sns.boxplot(frame, palette=palette, fill=False, showfliers=False, whis=(5, 95), width=0.5, **looks)
    ax.set(ylabel="", xlim=(0, None))
    return fig
