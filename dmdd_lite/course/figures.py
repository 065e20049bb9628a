"""How every figure is made and written: one style, a grid of image panels, small PNG files."""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..utils import write_atomically

INK = "#333333"
LIMIT = 400_000  # bytes of a PNG

#: inches: a figure is 9 wide, which at 100 dpi is the width of a page on GitHub
WIDTH, _MARGIN, _GAP, _HEADER, _TITLE, _BAR = 9.0, 0.06, 0.08, 0.3, 0.36, 0.42


def style() -> dict:
    """Matplotlib settings of all figures, for `matplotlib.rc_context`: light, thin, on white."""
    return sns.axes_style("ticks") | {
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.dpi": 100,
        "savefig.facecolor": "white",
    }


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw within `style`, whatever the caller's settings are, and leave those as they were."""

    @functools.wraps(function)
    def within_style(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(style()):
            return function(*args, **kwargs)

    return within_style


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure, in inches, closed in pyplot already; made there because Jupyter shows no others."""
    fig = plt.figure(figsize=(width, height), layout=layout)
    plt.close(fig)
    return fig


def image_grid(
    shape: tuple[int, int, int],
    columns: list[str],
    titles: list[str] | None = None,
    coloured: int = 0,
    width: float = WIDTH,
) -> tuple[Figure, np.ndarray, list[Axes]]:
    """Bare panels (rows, columns) for images of `shape` (N, H, W), bars under the last `coloured` columns.

    Placed by hand in inches: unlike the layout engines it keeps the gaps even and a long row title whole.
    """
    rows, height, across = shape
    panel = (width - 2 * _MARGIN - (len(columns) - 1) * _GAP) / len(columns)
    tall, title = panel * height / across, _TITLE if titles else _GAP
    top = _HEADER + rows * (tall + title)
    full = top + (_BAR if coloured else _MARGIN)
    fig = new_figure(width, full, layout="none")

    def place(column: int, down: float, high: float) -> Axes:
        left = _MARGIN + column * (panel + _GAP)
        return fig.add_axes((left / width, 1 - (down + high) / full, panel / width, high / full))

    panels = np.empty((rows, len(columns)), dtype=object)
    for row, column in np.ndindex(panels.shape):
        panels[row, column] = ax = place(column, _HEADER + row * (tall + title) + title, tall)
        ax.set_axis_off()
    for column, name in enumerate(columns):
        middle = (_MARGIN + column * (panel + _GAP) + panel / 2) / width
        fig.text(middle, 1 - _HEADER / 2 / full, name, ha="center", va="center", fontsize=12, weight="bold")
    for row, text in enumerate(titles or []):
        down = _HEADER + row * (tall + title) + title - 0.07
        at = _MARGIN / width, 1 - down / full
        fig.text(*at, text, ha="left", va="bottom", parse_math=False)  # names of files may hold a $
    bars = [place(column, top + 0.08, 0.09) for column in range(len(columns) - coloured, len(columns))]
    return fig, panels, bars


def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write a PNG, whole or not at all; returns its path. One that would exceed LIMIT has 256 colours, and
    then 100 instead of 160 dpi."""
    for dpi, colours in ((160, None), (160, 256), (100, 256)):
        drawn, written = io.BytesIO(), io.BytesIO()
        fig.savefig(drawn, format="png", dpi=dpi, facecolor="white")
        picture = Image.open(drawn).convert("RGB")
        if colours:  # k-means, until no more than 20,000 pixels change: two or three rounds
            picture = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=20_000)
        picture.save(written, format="PNG", optimize=True)
        if written.tell() <= LIMIT:
            break
    return write_atomically(path, lambda temporary: temporary.write_bytes(written.getvalue()))
