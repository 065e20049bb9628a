"""The explorer's pictures in the browser: an image under its anomaly maps, drawn by canvas.js.

Importing this needs anywidget, of the extra `notebooks`.
"""

from pathlib import Path

import numpy as np

from . import pictures
from .model import ALL_SCALES, Explorer
from .readouts import MAPS

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("the explorer's controls need anywidget: pip install 'dmdd-lite[notebooks]'") from error


class PictureCanvas(anywidget.AnyWidget):
    """Panels with one crosshair, one zoom and a threshold that moves without the kernel.

    image: PNG of any resolution; size: width and height in which `pixel` counts. maps, by name: values uint16
    (little endian) from low to high, title, and start, the threshold; all of one shape (rows, columns), as is
    truth, a mask. names: the maps to show; chosen: the one whose threshold is `threshold`.
    """

    _esm = Path(__file__).parent / "canvas.js"

    image = traitlets.Bytes().tag(sync=True)
    size = traitlets.List([1, 1]).tag(sync=True)
    shape = traitlets.List([1, 1]).tag(sync=True)
    truth = traitlets.Bytes().tag(sync=True)
    maps = traitlets.Dict().tag(sync=True)
    names = traitlets.List().tag(sync=True)
    chosen = traitlets.Unicode().tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)  # comes when the slider is let go
    pixel = traitlets.List([0, 0]).tag(sync=True)  # column and row
    opacity = traitlets.Float(0.6).tag(sync=True)
    show_truth = traitlets.Bool(True).tag(sync=True)
    palette = traitlets.Bytes(pictures.palette().astype(np.uint8).tobytes()).tag(sync=True)
    colours = traitlets.Dict(
        {name: f"rgb{getattr(pictures, name.upper())}" for name in ("truth", "decision", "picked")}
    ).tag(sync=True)

    def show(self, explorer: Explorer, index: int, keys: list[tuple[str, int]]) -> None:
        """An image with maps, each by its name and scale. What is there already is not sent again."""
        seen = explorer.see(index)
        maps = {name: _packed(explorer, index, name, scale) for name, scale in keys}
        self.names, self.maps, self.shape = list(maps), maps, list(seen.maps[keys[0]].shape)
        self.size = list(seen.size)
        self.image = pictures.to_png(seen.picture)
        self.truth = b"" if seen.truth is None else seen.truth.tobytes()


def _packed(explorer: Explorer, index: int, name: str, scale: int) -> dict:
    """An entry of `PictureCanvas.maps`."""
    low, high = explorer.limits(name, scale)
    shares = np.clip((explorer.anomaly_map(index, name, scale) - low) / (high - low), 0, 1)
    return {
        "values": np.rint(65535 * shares).astype("<u2").tobytes(),
        "low": low,
        "high": high,
        "title": MAPS[name][0] + f", {explorer.scales[scale]}" * (scale != ALL_SCALES),
        "start": min(max(explorer.pixel_threshold(name, scale), low), high),
    }
