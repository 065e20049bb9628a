"""The explorer without controls: a matplotlib figure of what they would show."""

from matplotlib.figure import Figure

from ..course.plots.panels import plot_panels
from . import pictures
from .model import ALL_SCALES, Explorer
from .readouts import sentence

BLEND = 0.6  # at first
STILL = "A still picture: run in JupyterLab or Colab it can be clicked, zoomed and dragged in."


def static_figure(
    explorer: Explorer,
    index: int,
    name: str = "",
    scale: int = ALL_SCALES,
    threshold: float | None = None,
    share: float = BLEND,
) -> Figure:
    """What the controls show, as a figure that says that it is still: the image with the ground truth, the
    blended picture, the map."""
    name = name or explorer.decisive
    threshold = explorer.pixel_threshold(name, scale) if threshold is None else threshold
    seen, reading = explorer.see(index), explorer.read(index, threshold, name, scale)
    height, width = seen.picture.shape[:2]
    columns = {
        "image": seen.picture[None],
        f"above {threshold:.3g}": pictures.blended(explorer, index, name, scale, threshold, share)[None],
        f"{name} map": pictures.resize(seen.maps[name, scale], (width, height))[None],
    }
    truth = None if seen.truth is None else pictures.resize(seen.truth, (width, height))[None]
    title = f"{explorer.items[index].name} · {sentence(reading)}"
    figure = plot_panels(columns, [title], truth, {f"{name} map": explorer.limits(name, scale)})
    figure.text(0.007, 0.04, STILL, size="small")  # beside the colour bar
    return figure
