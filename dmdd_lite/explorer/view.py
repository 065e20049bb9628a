"""The explorer's controls: plain ipywidgets, of version 7 (Colab) or 8, around pictures to click in."""

import base64
import io
import sys
from contextlib import contextmanager
from html import escape

import numpy as np
from matplotlib.figure import Figure

from ..data.files import SUFFIXES
from ..data.problems import DataError
from . import pictures
from .items import shown
from .model import ALL_SCALES, WHOLE, Explorer
from .readouts import HINT, MAPS, STYLE, distance_table, legend, reading_table, thumbnail, unit
from .still import BLEND, static_figure

NEIGHBOURS = 3  # of each kind
PANELS = ("normality", "abnormality", "position", "fused", "plus")  # always there; another map when chosen


class ExplorerView:
    """The controls in front of an `Explorer`; `widget` is the whole, each control an attribute. Raises
    ImportError without anywidget."""

    def __init__(self, explorer: Explorer, start: int = 0):
        self.explorer, self._busy, self._of = explorer, False, None
        self._build_controls(start)
        self._build_displays()
        self.widget = self._lay_out()
        self.image.observe(self._on_image, "value")
        for choice in (self.map, self.scale):
            choice.observe(self._on_map, "value")
        self.canvas.observe(lambda _: setattr(self.map, "value", self.canvas.chosen), "chosen")
        self.canvas.observe(self._on_threshold, "threshold")
        self.canvas.observe(self._on_pixel, "pixel")
        self.upload.observe(self._on_upload, "value")
        self.back.on_click(lambda _: self._step(-1))
        self.forth.on_click(lambda _: self._step(1))
        for i, button in enumerate(self.go):
            button.on_click(lambda _, i=i: setattr(self.image, "value", self._near[i]))
        self._on_image()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """The live controls, and a picture for where there are none."""
        written = io.BytesIO()
        self.figure().savefig(written, format="png", dpi=100, facecolor="white")
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        return {
            "text/plain": repr(self),
            "application/vnd.jupyter.widget-view+json": view,
            "image/png": base64.b64encode(written.getvalue()).decode(),
        }

    def _ipython_display_(self) -> None:
        """In Colab, which always has a front end, the controls alone; displayed, not returned: only so are
        widgets found that are not its own, as the canvas."""
        if "google.colab" not in sys.modules:
            raise NotImplementedError  # IPython then takes the other
        from IPython.display import display

        display(self.widget)

    def __repr__(self) -> str:
        return f"explorer of {len(self.explorer.items)} images, {self._item.name} shown"

    def figure(self) -> Figure:
        """What is shown now, as a static figure."""
        return static_figure(self.explorer, *self._shown, self.canvas.threshold, self.blend.value)

    # ---- what there is ----------------------------------------------------------------------------------

    def _build_controls(self, start: int) -> None:
        import ipywidgets as w

        from .canvas import PictureCanvas

        wide, style = {"width": "auto", "flex": "1 1 300px"}, {"description_width": "72px"}
        self.image = w.Dropdown(
            options=self._choices(), value=start, description="Image", layout=wide, style=style
        )
        self.back = _button("", "chevron-left", "Previous image, which scores higher")
        self.forth = _button("", "chevron-right", "Next image, which scores lower")
        self.upload = w.FileUpload(accept=",".join(sorted(SUFFIXES)), description="Upload an image")
        self.upload.layout.width = "176px"
        self.map = w.ToggleButtons(
            options=[(MAPS[name][0], name) for name in self.explorer.names],
            tooltips=[MAPS[name][1] for name in self.explorer.names],
            description="Map",
            layout={"width": "auto"},
            style={**style, "button_width": "auto"},  # five of one width would not fit into a row
        )
        self.scale = w.ToggleButtons(
            options=[(name, k) for k, name in enumerate(self.explorer.scales)],
            description="Scale",
            layout={"width": "auto"},
            style={**style, "button_width": "98px"},
        )
        self.blend = w.FloatSlider(
            BLEND, min=0, max=1, step=0.05, description="Blend", layout=wide, style=style
        )
        self.truth = w.Checkbox(True, description="Ground truth", indent=False, layout={"width": "auto"})
        self.canvas = PictureCanvas(opacity=BLEND, chosen=self.map.value)
        self._links = [  # in the browser, without the kernel
            w.jslink((control, "value"), (self.canvas, trait))
            for control, trait in ((self.blend, "opacity"), (self.truth, "show_truth"))
        ]

    def _build_displays(self) -> None:
        import ipywidgets as w

        self.message, self.unit, self.legend = w.HTML(), w.HTML(), w.HTML()
        self.reading, self.table = w.HTML(), w.HTML()
        many = range(2 * NEIGHBOURS)
        self.thumbnails = [w.HTML(layout={"width": "auto", "min_width": "0"}) for _ in many]
        self.go = [_button("Show", "", "Show this image", "auto") for _ in many]
        self._near: list[int] = []

    def _lay_out(self):
        import ipywidgets as w

        def row(*parts, align="center"):
            return w.HBox(parts, layout={"flex_flow": "row wrap", "align_items": align})

        def column(*parts, kind=w.VBox):
            return kind(parts, layout={"flex": "1 1 320px", "max_width": "520px", "margin": "0 10px 4px 0"})

        cells = [
            w.VBox(pair, layout={"flex": "1 1 0", "min_width": "0", "margin": "0 6px 0 0"})
            for pair in zip(self.thumbnails, self.go, strict=True)
        ]
        strips = [
            column(w.HTML(f"<div class=dmdd-heading>{title}</div>"), w.HBox(part))
            for title, part in zip(self._kinds(), (cells[:NEIGHBOURS], cells[NEIGHBOURS:]), strict=True)
        ]
        whole = w.VBox(
            (
                w.HTML(STYLE + self._heading()),
                row(self.image, self.back, self.forth, self.upload),
                self.message,
                row(self.map, self.scale),
                row(column(self.blend, kind=w.HBox), self.truth, self.legend),
                self.unit,
                self.canvas,
                w.HTML(f"<div class=dmdd-caption>{HINT}</div>"),
                row(column(self.reading), column(self.table), align="flex-start"),
                row(*strips, align="flex-start"),
            )
        )
        for part, name in (
            (whole, "explorer"),
            (self.reading, "reading"),
            (self.table, "distances"),
        ):
            part.add_class(f"dmdd-{name}")
        return whole

    def _heading(self) -> str:
        explorer = self.explorer
        text = f"{explorer.count} images"
        if explorer.left_out:
            text += f", evenly spaced, of {explorer.count + explorer.left_out} (a larger limit shows more)"
        return f"<div class=dmdd-heading>Explorer · {text}, sorted by their score</div>"

    def _kinds(self) -> tuple[str, str]:
        if self.explorer.is_labelled:
            return "Good images, nearest in score", "Defective images, nearest in score"
        return "Called good, nearest in score", "Called anomalous, nearest in score"

    def _choices(self) -> list[tuple[str, int]]:
        """Uploads first, the last one on top; then the images by their score, the highest first."""
        explorer, scores = self.explorer, self.explorer.scores()
        uploads = range(len(explorer.items) - 1, explorer.count - 1, -1)
        order = [*uploads, *np.argsort(-scores[: explorer.count], kind="stable").tolist()]
        return [(f"{explorer.items[i].name} · {scores[i]:.2f}", i) for i in order]

    # ---- what happens -----------------------------------------------------------------------------------

    @property
    def _item(self):
        return self.explorer.items[self.image.value]

    @property
    def _shown(self) -> tuple[int, str, int]:
        return self.image.value, *self._key(self.map.value)

    def _key(self, name: str) -> tuple[str, int]:
        return name, ALL_SCALES if name in WHOLE else self.scale.value

    @contextmanager
    def _quietly(self):
        """Controls that are set here do not answer."""
        self._busy, before = True, self._busy
        try:
            yield
        finally:
            self._busy = before

    def _on_image(self, change=None) -> None:
        if self._busy:
            return
        seen, values = self.explorer.see(self.image.value), self.explorer.anomaly_map(*self._shown)
        where = np.unravel_index(values.argmax(), values.shape)[::-1]
        sides = zip(where, seen.size, values.shape[::-1], strict=True)
        lines = {} if seen.truth is None else {"ground_truth": pictures.TRUTH}
        lines |= {"above_the_threshold": pictures.DECISION, "chosen_pixel": pictures.PICKED}
        self.legend.value = legend(**lines)
        with self.canvas.hold_sync():  # all in one message
            with self._quietly():
                self.canvas.pixel = [int((at + 0.5) * own / side) for at, own, side in sides]
            self._on_pixel()
            self._on_map()

    def _on_map(self, change=None) -> None:
        """The maps that are to be seen, and a threshold where it starts if it is another map's."""
        if self._busy:
            return
        index, name, scale = self._shown
        shown = dict.fromkeys((*PANELS, name))  # in this order, each once
        with self._quietly(), self.canvas.hold_sync():
            self.canvas.show(self.explorer, index, [self._key(n) for n in shown if n in self.explorer.names])
            self.canvas.chosen = name
            if self._of != (name, scale):
                self._of, self.canvas.threshold = (name, scale), self.canvas.maps[name]["start"]
        self.unit.value = f"<div class=dmdd-caption>{unit(self.explorer, name, scale)}</div>"
        self._show_neighbours()
        self._on_threshold()

    def _on_threshold(self, change=None) -> None:
        if not self._busy:
            index, *key = self._shown
            reading = self.explorer.read(index, self.canvas.threshold, *key)
            self.reading.value = reading_table(reading, self.explorer.see(index).truth)

    def _on_pixel(self, change=None) -> None:
        if not self._busy:
            x, y = map(min, self.canvas.pixel, (side - 1 for side in self.canvas.size))  # of a larger image?
            self.table.value = distance_table(self.explorer.distances(self.image.value, x, y), x, y)

    def _on_upload(self, change=None) -> None:
        files = uploaded_files(self.upload.value)
        if self._busy or not files:
            return
        name, content = shown(files[-1][0]), files[-1][1]
        try:
            index = self.explorer.add(name, content)
        except DataError as error:
            index, told = self.image.value, f"⚠ {error}; nothing was added"
        else:
            told = f"{name} added; it has no ground truth"
        self.message.value = f"<div class=dmdd-caption role=status>{escape(told)}</div>"
        with self._quietly():
            self.image.options = self._choices()
            self.image.value = index
            if not isinstance(self.upload.value, dict):  # ipywidgets 8: so that the same file can come again
                self.upload.value = ()
        self._on_image()

    def _step(self, by: int) -> None:
        order = [index for _, index in self.image.options]
        self.image.value = order[(order.index(self.image.value) + by) % len(order)]

    # ---- what is shown ----------------------------------------------------------------------------------

    def _show_neighbours(self) -> None:
        index, name, scale = self._shown
        scores = self.explorer.scores(name, scale)
        good, bad = self.explorer.neighbours(index, name, scale, NEIGHBOURS)
        slots = [*good, *[None] * (NEIGHBOURS - len(good)), *bad, *[None] * (NEIGHBOURS - len(bad))]
        self._near = slots
        for slot, picture, button in zip(slots, self.thumbnails, self.go, strict=True):
            for part in (picture, button):
                part.layout.visibility = "hidden" if slot is None else "visible"
            if slot is None:
                continue
            pixels, truth = self.explorer.thumbnail(slot)
            drawn = pixels if truth is None else pictures.outline(pixels, truth, pictures.TRUTH)
            item = self.explorer.items[slot]
            picture.value = thumbnail(pictures.to_png(drawn), item.name, f"score {scores[slot]:.2f}")
            button.tooltip = f"Show {item.name}"


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """(name, content) of what a FileUpload holds: a tuple of dicts in ipywidgets 8, a dict by name in 7."""
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def _button(text: str, icon: str, tooltip: str, width: str = "36px"):
    import ipywidgets as w

    return w.Button(description=text, icon=icon, tooltip=tooltip, layout={"width": width})
