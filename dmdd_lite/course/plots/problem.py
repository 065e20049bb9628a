"""Figures of chapter 01: the task, four families of methods, nearest cells, and the metrics."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from ..figures import INK, WIDTH, image_grid, new_figure, styled
from .diagram import IMAGE, MSN, RESULT, STUDENT, TEACHER
from .panels import ANOMALOUS, COLOUR_MAP, GOOD, OTHERS, TRUTH, horizontal_bar, outline

STORE, COMPARED = "#f8d0d4", "#c62828"

#: per family: title, input of the right lane, what works there, what comes out, the note below
FAMILIES = (
    ("Memory bank", "good images", "teacher $T$", "stored\nfeatures", "the nearest stored feature"),
    ("Student-teacher", "", "student $S$", "$S_k(x)$", "the student's imitation"),
    ("Reverse distillation", "", "decoder $D$", "$D_k(T(x))$", "the decoder's reconstruction"),
    ("DMDD", "", "student $S$", "", "two branches, then the MSN"),
)
EXAMPLES = ("PatchCore", "STFPM", "RD4AD", "Liu et al., 2024")


@styled
def plot_kinds(images: np.ndarray, masks: np.ndarray, names: list[str]) -> Figure:
    """One column per image uint8 (N, H, W, 3): the picture with its defect outlined, and below it the mask,
    bool (N, H, W)."""
    fig, panels, _ = image_grid((2, *images.shape[1:3]), names)
    for (top, bottom), image, mask in zip(panels.T, images, masks, strict=True):
        top.imshow(image)
        outline(top, mask, 0.5, TRUTH)
        bottom.imshow(mask, cmap="gray", vmin=0, vmax=1)
        bottom.add_patch(Rectangle((0, 0), 1, 1, transform=bottom.transAxes, fc="none", ec=INK, lw=0.8))
    return fig


@styled
def plot_families() -> Figure:
    """Four families of methods side by side: on the left of each panel the frozen teacher of the test image
    x, on the right what its features are compared with."""
    fig = new_figure(WIDTH, 4.5, layout="none")
    for k, family in enumerate(FAMILIES):
        ax = fig.add_axes((k / 4 + 0.005, 0, 0.24, 1))
        ax.set(xlim=(0, 5), ylim=(0, 10))
        ax.set_axis_off()
        _draw_family(ax, *family, EXAMPLES[k])
        if k:
            ax.plot([-0.08, -0.08], [0.3, 9.7], color="#cccccc", linewidth=1, clip_on=False)
    return fig


def _draw_family(ax: Axes, title: str, source: str, worker: str, output: str, note: str, example: str):
    ax.text(2.5, 9.65, title, ha="center", va="center", fontsize=12, weight="bold")
    ax.text(2.5, 9.2, example, ha="center", va="center", fontsize=9.5)
    _box(ax, (0.2, 8.0), (2.0, 0.75), "image $x$", IMAGE)
    _network(ax, (0.2, 6.0), "teacher $T$", TEACHER)
    _arrow(ax, (1.2, 8.0), (1.2, 7.3))
    _arrow(ax, (1.2, 6.0), (1.2, 5.2))
    decoder = worker.startswith("decoder")
    _network(ax, (2.8, 6.0), worker, TEACHER if source else STUDENT, widening=decoder)
    _arrow(ax, (3.8, 6.0), (3.8, 5.2))
    if source:
        _box(ax, (2.8, 8.0), (2.0, 0.75), source, IMAGE)
        _arrow(ax, (3.8, 8.0), (3.8, 7.3))
    elif decoder:
        _arrow(ax, (2.03, 6.65), (2.97, 6.65))
    else:
        _arrow(ax, (2.2, 8.37), (3.8, 7.3), bend="angle,angleA=0,angleB=90")
    if output:
        _box(ax, (0.2, 4.3), (2.0, 0.9), "$T_k(x)$", TEACHER)
        _box(ax, (2.8, 4.3), (2.0, 0.9), output, STORE if source else STUDENT)
        _arrow(ax, (2.2, 4.75), (2.8, 4.75), "<|-|>", COMPARED)
        _arrow(ax, (2.5, 4.6), (2.5, 2.35))
    else:
        _draw_branches(ax)
    _box(ax, (1.3, 1.55), (2.4, 0.8), "anomaly map", RESULT)
    ax.text(2.5, 0.75, f"$T_k(x)$ against\n{note}", ha="center", va="center", fontsize=9.5)


def _draw_branches(ax: Axes):
    """The two branches of DMDD, each compared with the teacher, and the MSN that fuses their maps."""
    _box(ax, (0.2, 3.65), (2.0, 1.55), "$T_k(x)$", TEACHER)
    for y, name, colour in ((4.47, "$N_k(x)$", GOOD), (3.65, "$A_k(x)$", ANOMALOUS)):
        _box(ax, (2.8, y), (2.0, 0.73), name, colour, "white")
        _arrow(ax, (2.2, y + 0.36), (2.8, y + 0.36), "<|-|>", COMPARED)
    _box(ax, (1.75, 2.75), (1.5, 0.55), "MSN", MSN)
    _arrow(ax, (2.5, 3.87), (2.5, 3.3))
    _arrow(ax, (2.5, 2.75), (2.5, 2.35))


def _box(ax: Axes, at: tuple, size: tuple, text: str, colour: str, ink: str = INK):
    """A box with its lower left corner `at`."""
    shape = FancyBboxPatch(at, *size, "round,pad=0,rounding_size=0.12", fc=colour, ec=INK, lw=1)
    ax.add_patch(shape)
    x, y = at[0] + size[0] / 2, at[1] + size[1] / 2
    ax.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)


def _network(ax: Axes, at: tuple, text: str, colour: str, widening: bool = False):
    """A network from top to bottom, 2.0 wide and 1.3 high, whose feature maps shrink, or grow if widening."""
    x, y = at
    top, bottom = (0.35, 0) if widening else (0, 0.35)
    corners = [(x + bottom, y), (x + 2 - bottom, y), (x + 2 - top, y + 1.3), (x + top, y + 1.3)]
    ax.add_patch(Polygon(corners, fc=colour, ec=INK, lw=1, joinstyle="round"))
    ax.text(x + 1, y + 0.65, text, ha="center", va="center", fontsize=9)


def _arrow(ax: Axes, start: tuple, end: tuple, kind: str = "-|>", colour: str = INK, bend: str = "arc3"):
    look = {"arrowstyle": kind, "color": colour, "connectionstyle": bend, "shrinkA": 0.5, "shrinkB": 0.5}
    ax.annotate("", end, start, arrowprops=look)


@styled
def plot_matches(
    tests: np.ndarray, trains: np.ndarray, cells: np.ndarray, stride: int, titles: list[str]
) -> Figure:
    """Two panels per match: the surroundings of a cell of a test image, and of the training cell that it is
    compared with. Images uint8 (N, H, W, 3), `cells` int (N, 2, 2): row and column of both cells."""
    names = ["test image", "nearest good cell"] * len(tests)
    fig, panels, _ = image_grid((1, 1, 1), names, [""])
    for k, title in enumerate(titles):
        for ax, image, cell in zip(panels[0, 2 * k :], (tests[k], trains[k]), cells[k], strict=False):
            ax.imshow(image)
            left, top = cell[1] * stride - 0.5, cell[0] * stride - 0.5
            ax.set_xlim(left - 2.5 * stride, left + 3.5 * stride)
            ax.set_ylim(top + 3.5 * stride, top - 2.5 * stride)
            for colour, width in (("white", 4), (ANOMALOUS, 2)):
                ax.add_patch(Rectangle((left, top), stride, stride, fc="none", ec=colour, lw=width))
        panels[0, 2 * k].set_title(title, loc="left", fontsize=11, pad=4)
    return fig


@styled
def plot_scores(scores: dict[str, np.ndarray], labels: np.ndarray) -> Figure:
    """One panel per detector: the image scores (N,) as dots, good images below, defective ones above; dashed
    the highest score of a good image."""
    fig = new_figure(WIDTH, 2.4)
    height = np.random.default_rng(0).uniform(-0.28, 0.28, len(labels))
    for ax, (name, values) in zip(
        fig.subplots(1, len(scores), sharey=True, squeeze=False)[0], scores.items(), strict=True
    ):
        for level, colour, chosen in ((0, GOOD, ~labels), (1, ANOMALOUS, labels)):
            ax.plot(values[chosen], level + height[chosen], "o", color=colour, alpha=0.75, markersize=5)
        ax.axvline(values[~labels].max(), color=INK, linestyle="--", linewidth=1.2)
        ax.set(title=name, xlabel="image score", ylim=(-0.5, 1.5))
        ax.set_yticks([0, 1], ["good", "defective"])
    return fig


@styled
def plot_blobs(regions: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> Figure:
    """Defects numbered from 1 (H, W) in their own colours, an anomaly map (H, W), and what of it lies at or
    above the threshold, each pixel in the colour of its defect, else grey."""
    names = ["three defects", "anomaly map", f"map $\\geq$ {threshold:.2f}"]
    fig, panels, bars = image_grid((1, *regions.shape), names, coloured=2)
    colours = ListedColormap(["white", *region_colours(regions.max()), "#9e9e9e"])
    found = np.where(anomaly_map >= threshold, np.where(regions > 0, regions, regions.max() + 1), 0)
    for ax, numbers in ((panels[0, 0], regions), (panels[0, 2], found)):
        ax.imshow(numbers, cmap=colours, vmin=0, vmax=regions.max() + 1, interpolation="nearest")
        ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fc="none", ec=INK, lw=1))
    for number, colour in enumerate(region_colours(regions.max()), 1):
        outline(panels[0, 2], regions == number, 0.5, colour)
        row, column = np.argwhere(regions == number).mean(axis=0)
        panels[0, 0].text(column, row, str(number), ha="center", va="center", color="white", weight="bold")
    horizontal_bar(fig, panels[0, 1].imshow(anomaly_map, cmap=COLOUR_MAP), bars[0])
    bars[1].set_axis_off()
    return fig


def region_colours(count: int) -> list[str]:
    """One colour per defect, in the order of their numbers."""
    return ([ANOMALOUS, OTHERS[0], OTHERS[2], OTHERS[1]] * count)[:count]


@styled
def plot_pixel_metrics(
    fpr: np.ndarray, recall: np.ndarray, precision: np.ndarray, overlaps: np.ndarray, at: int
) -> Figure:
    """Three panels over all thresholds (T,), from the highest to the lowest: recall against the false
    positive rate, precision against recall, and the overlap (T, R) of each defect with their mean against the
    false positive rate. The shaded areas are the metrics; the dots mark threshold number `at`."""
    fig = new_figure(WIDTH, 3.3)
    roc, pr, pro = fig.subplots(1, 3)
    for ax, x, y in ((roc, fpr, recall), (pr, recall, precision)):
        ax.plot(x, y, color=GOOD, linewidth=2)
        ax.fill_between(x, y, color=GOOD, alpha=0.15, linewidth=0)
        ax.plot(x[at], y[at], "o", color=INK)
    for k, colour in enumerate(region_colours(overlaps.shape[1])):
        pro.plot(fpr, overlaps[:, k], color=colour, linewidth=1.3, label=f"defect {k + 1}")
    mean = overlaps.mean(axis=1)
    pro.plot(fpr, mean, color=INK, linewidth=2.4, label="mean")
    pro.fill_between(fpr, mean, where=fpr <= 0.3, color=INK, alpha=0.12, linewidth=0)
    pro.plot(fpr[at], mean[at], "o", color=INK)
    pro.axvline(0.3, color=INK, linestyle=":", linewidth=1.2)
    roc.set(title="pixel AUROC", xlabel="false positive rate", ylabel="recall")
    pr.set(title="pixel AP", xlabel="recall", ylabel="precision")
    pro.set(title="AUPRO", xlabel="false positive rate", ylabel="overlap per defect")
    for ax in (roc, pr, pro):
        ax.set(xlim=(0, 1), ylim=(0, 1.03))
    pro.legend(loc="lower right")
    return fig
