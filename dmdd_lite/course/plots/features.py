"""Figures of chapter 01: single channels, features as colours, distances, and a student's capacity."""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS


def feature_colours(features: np.ndarray, clip: float = 2.0) -> np.ndarray:
    """The first three principal components of the pixels of features (N, C, H, W) as uint8 (N, H, W, 3).

    One colour means one thing in all N images: components and range are theirs together; `clip` percent at
    either end saturate. A component's sign, which is arbitrary, makes its largest weight positive.
    Raises ValueError for fewer than three channels.
    """
    count, channels, height, width = features.shape
    if channels < 3:
        raise ValueError(f"three components need three channels, not {channels}")
    pixels = features.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    first = vectors[:, :-4:-1]  # the three of the largest variance, falling
    first = first * np.sign(first[np.abs(first).argmax(axis=0), range(3)])
    values = pixels @ first
    low, high = np.percentile(values, [clip, 100 - clip], axis=0)
    colours = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * colours).astype(np.uint8).reshape(count, height, width, 3)


@styled
def plot_channels(image: np.ndarray, features: dict[str, np.ndarray], channels: int = 5) -> Figure:
    """One row per entry of `features` (C, h, w): the image (H, W, 3), then the channels that vary most.

    Each channel is grey from its own least to its own largest value; its index stands above it.
    """
    shape = (len(features), *image.shape[:2])
    fig, panels, _ = image_grid(shape, ["image", *[""] * channels], list(features))
    for row, feature in zip(panels, features.values(), strict=True):
        row[0].imshow(image)
        most = feature.reshape(len(feature), -1).var(axis=1).argsort()[::-1][:channels]
        for ax, channel in zip(row[1:], most, strict=False):
            ax.imshow(feature[channel], cmap="gray", interpolation="nearest")
            ax.set_title(f"channel {channel}", fontsize=10, pad=3, color=INK)
    return fig


@styled
def plot_distributions(panels: dict[str, dict[str, np.ndarray]], xlabel: str) -> Figure:
    """One panel per entry, in it one histogram of density per named set of values (any shape).

    All panels share the horizontal axis, from 0 or the smallest value to the largest.
    """
    everything = np.concatenate([np.ravel(v) for sets in panels.values() for v in sets.values()])
    edges = np.linspace(min(0.0, everything.min()), everything.max(), 60)
    fig = new_figure(WIDTH, 2.8)
    axes = fig.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (title, sets) in zip(axes, panels.items(), strict=True):
        for (name, values), colour in zip(sets.items(), (GOOD, ANOMALOUS, *OTHERS), strict=False):
            drawn = {"stat": "density", "element": "step", "alpha": 0.35, "linewidth": 1.4}
            sns.histplot(x=np.ravel(values), bins=edges, color=colour, label=name, ax=ax, **drawn)
        ax.set(title=title, xlabel=xlabel, yticks=[], ylabel="")
        ax.spines["left"].set_visible(False)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


@styled
def plot_capacity(
    shares: np.ndarray,
    metrics: dict[str, np.ndarray],
    distances: dict[str, np.ndarray],
    marks: list[float] | None = None,
) -> Figure:
    """Against a student's capacity (K,): left its metrics in percent (K,) each, right how far it is from
    the teacher, on a logarithmic axis. `marks` are dotted in both. Values below 1e-6 are drawn there.
    """
    fig = new_figure(WIDTH, 3.6)
    left, right = fig.subplots(1, 2, sharex=True)
    for (name, values), colour in zip(metrics.items(), (OTHERS[0], OTHERS[1], OTHERS[2]), strict=False):
        left.plot(shares, values, "o-", label=name, color=colour, markersize=4, linewidth=1.8)
    for (name, values), colour in zip(distances.items(), (GOOD, ANOMALOUS), strict=False):
        right.plot(
            shares, np.maximum(values, 1e-6), "o-", label=name, color=colour, markersize=4, linewidth=1.8
        )
    left.axhline(50, color="#999999", linewidth=0.8, zorder=0)
    left.set(title="what the maps are worth", ylabel="percent", ylim=(0, 101))
    right.set(title="mean distance to the teacher", yscale="log")
    for ax in (left, right):
        ax.set(xlabel="share of the components that the student copies", xlim=(-0.02, 1.02))
        for mark in marks or []:
            ax.axvline(mark, color=INK, linestyle=":", linewidth=1.2, zorder=0)
        ax.legend(loc="lower center")
    return fig
