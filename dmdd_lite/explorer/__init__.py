"""The explorer: a detector's answers to the images of a folder, by hand.

    from dmdd_lite.explorer import explore

    explore(detector, "folder of images")  # or a Category, or an Evaluation

Maps of an image side by side, to click, hover, zoom and drag in, and plain ipywidgets, of version 7 (Colab)
or 8. Beside the live controls the output holds a static picture, which is what GitHub, nbconvert and a closed
notebook show; without a notebook `explore` returns it as a figure.

`items` finds the images, `model` holds what is known of them, `readouts` and `pictures` describe and draw it,
`view` has the controls, `canvas` the pictures in the browser, `still` a figure in their place.
"""

from pathlib import Path

from matplotlib.figure import Figure

from ..data.category import Category
from ..detector import Detector
from ..evaluation import Evaluation
from .model import Explorer
from .still import static_figure
from .view import ExplorerView

__all__ = ["Explorer", "ExplorerView", "explore", "static_figure"]


def explore(
    detector: Detector,
    source: str | Path | Category | Evaluation,
    start: int | None = None,
    limit: int = 200,
    progress: bool = True,
) -> "ExplorerView | Figure":
    """Controls to look at every image of `source` with; without a notebook kernel or anywidget, a figure.

    `start` is the first image's index, else the one that scores highest. Of a folder or category with more
    than `limit` images that many are taken, evenly spaced. Raises what `Explorer` does.
    """
    explorer = Explorer(detector, source, limit, progress)
    first = int(explorer.scores().argmax()) if start is None else start
    return ExplorerView(explorer, first) if _has_front_end() else static_figure(explorer, first)


def _has_front_end() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    if getattr(get_ipython(), "kernel", None) is None:
        return False
    try:
        from . import canvas  # noqa: F401
    except ImportError as error:
        print(f"A static figure: {error} and restart the kernel.")
        return False
    return True
