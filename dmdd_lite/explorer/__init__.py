"""Behind `widgets.explore`: `items` (which images), `model` (what is known of them), `readouts` and
`pictures` (how it is said and drawn), `view` (the controls), `still` (a figure instead)."""

from .model import Explorer
from .still import static_figure
from .view import ExplorerView

__all__ = ["Explorer", "ExplorerView", "static_figure"]
