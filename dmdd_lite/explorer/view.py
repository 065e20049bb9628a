"""The explorer's controls: plain ipywidgets, of version 7 (Colab) or 8, around what `model` knows."""

import base64
import io
import sys
from contextlib import contextmanager
from html import escape

import numpy as np
from matplotlib.figure import Figure

from ..data.problems import DataError
from . import pictures
from .items import shown
from .model import ALL_SCALES, WHOLE, Explorer, Seen
from .readouts import MAPS, STYLE, distance_table, legend, reading_table, thumbnail, unit
from .still import BLEND, static_figure

NEIGHBOURS = 3  # of each kind
STEPS = 200  # of the threshold's slider


class ExplorerView:
    """The controls in front of an `Explorer`; `widget` is the whole, each control an attribute."""

    def __init__(self, explorer: Explorer, start: int = 0):
        self.explorer, self._busy, self._drawn = explorer, False, None
        self._build_controls(start)
        self._build_displays()
        self.widget = self._lay_out()
        self.image.observe(self._on_image, "value")
        for choice in (self.map, self.scale):
            choice.observe(self._on_map, "value")
        for slider in (self.threshold, self.blend, self.x, self.y):
            slider.observe(self._on_slider, "value")
        self.upload.observe(self._on_upload, "value")
        self.reset.on_click(lambda _: setattr(self.threshold, "value", self._first_threshold()))
        self.back.on_click(lambda _: self._step(-1))
        self.forth.on_click(lambda _: self._step(1))
        for i, button in enumerate(self.go):
            button.on_click(lambda _, i=i: setattr(self.image, "value", self._near[i]))
        self._on_map()
        self._on_image()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """The live controls, and a picture for where there are none. Colab is given the controls alone: it
        always has a front end, and which of the two it prefers is not documented."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        bundle = {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": view}
        if "google.colab" not in sys.modules:
            written = io.BytesIO()
            self.figure().savefig(written, format="png", dpi=100, facecolor="white")
            bundle["image/png"] = base64.b64encode(written.getvalue()).decode()
        return bundle

    def __repr__(self) -> str:
        return f"explorer of {len(self.explorer.items)} images, {self._item.name} shown"

    def figure(self) -> Figure:
        """What is shown now, as a static figure."""
        return static_figure(self.explorer, *self._shown, self.threshold.value, self.blend.value)

    # ---- what there is ----------------------------------------------------------------------------------

    def _build_controls(self, start: int) -> None:
        import ipywidgets as w

        wide, style = {"width": "auto", "flex": "1 1 300px"}, {"description_width": "72px"}
        self.image = w.Dropdown(
            options=self._choices(), value=start, description="Image", layout=wide, style=style
        )
        self.back = _button("", "chevron-left", "Previous image, which scores higher")
        self.forth = _button("", "chevron-right", "Next image, which scores lower")
        self.upload = w.FileUpload(accept=".png,.jpg,.jpeg,.bmp,.tif,.tiff", description="Upload an image")
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
        slider = {"layout": wide, "style": style}
        self.blend = w.FloatSlider(BLEND, min=0, max=1, step=0.05, description="Blend", **slider)
        self.threshold = w.FloatSlider(description="Threshold", readout_format=".3f", **slider)
        self.reset = _button("Reset", "undo", "Put the threshold back to where it started", "84px")
        self.x = w.IntSlider(description="Pixel x", **slider)
        self.y = w.IntSlider(description="Pixel y", **slider)

    def _build_displays(self) -> None:
        import ipywidgets as w

        fluid = {"width": "100%", "height": "auto"}
        self.original, self.picture = w.Image(layout=fluid), w.Image(layout=fluid)
        self.message, self.unit = w.HTML(), w.HTML()
        self.left, self.right = w.HTML(), w.HTML()
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
            column(_text(f"<div class=dmdd-heading>{title}</div>"), w.HBox(part))
            for title, part in zip(self._kinds(), (cells[:NEIGHBOURS], cells[NEIGHBOURS:]), strict=True)
        ]
        whole = w.VBox(
            (
                _text(STYLE + self._heading()),
                row(self.image, self.back, self.forth, self.upload),
                self.message,
                row(column(self.map), column(self.scale)),
                row(column(self.threshold, self.reset, kind=w.HBox), column(self.blend, kind=w.HBox)),
                self.unit,
                row(column(self.left, self.original), column(self.right, self.picture), align="flex-start"),
                row(column(self.x, kind=w.HBox), column(self.y, kind=w.HBox)),
                row(column(self.reading), column(self.table), align="flex-start"),
                row(*strips, align="flex-start"),
            )
        )
        for part, name in (
            (whole, "explorer"),
            (self.threshold, "threshold"),
            (self.picture, "picture"),
            (self.original, "original"),
            (self.reading, "reading"),
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
        return self.image.value, self.map.value, self.scale.value

    def _first_threshold(self) -> float:
        low, high = self.explorer.limits(*self._shown[1:])
        return min(max(self.explorer.threshold(*self._shown[1:]), low), high)

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
        with self._quietly():
            width, height = self.explorer.see(self.image.value).size
            values = self.explorer.anomaly_map(*self._shown)
            row, column = np.unravel_index(values.argmax(), values.shape)
            self.x.max, self.y.max = width - 1, height - 1
            self.x.value = int((column + 0.5) * width / values.shape[1])
            self.y.value = int((row + 0.5) * height / values.shape[0])
        self._show_neighbours()
        self._draw()

    def _on_map(self, change=None) -> None:
        if self._busy:
            return
        with self._quietly():
            self.scale.disabled = self.map.value in WHOLE
            if self.scale.disabled:
                self.scale.value = ALL_SCALES
            self._fit_threshold(self._first_threshold())
        self.unit.value = f"<div class=dmdd-caption>{unit(self.explorer, *self._shown[1:])}</div>"
        self._show_neighbours()
        self._draw()

    def _on_slider(self, change=None) -> None:
        if not self._busy:
            self._draw()

    def _on_upload(self, change=None) -> None:
        files = uploaded_files(self.upload.value)
        if self._busy or not files:
            return
        name, content = shown(files[-1][0]), files[-1][1]
        try:
            index = self.explorer.add(name, content)
        except DataError as error:
            self.message.value = (
                f"<div class=dmdd-caption role=status>⚠ {escape(str(error))}; nothing was added</div>"
            )
            index = self.image.value
        else:
            self.message.value = (
                f"<div class=dmdd-caption role=status>{escape(name)} added; it has no ground truth</div>"
            )
        with self._quietly():
            self.image.options = self._choices()
            self.image.value = index
            self._fit_threshold(self.threshold.value)
            if not isinstance(self.upload.value, dict):  # ipywidgets 8: so that the same file can come again
                self.upload.value = ()
        self._on_image()

    def _step(self, by: int) -> None:
        order = [index for _, index in self.image.options]
        self.image.value = order[(order.index(self.image.value) + by) % len(order)]

    def _fit_threshold(self, value: float) -> None:
        """Set the range before the value and never a minimum above a maximum.

        The slider only knows whole steps above its minimum, which is chosen so that the first threshold is
        one: else the browser would round it.
        """
        low, high = self.explorer.limits(*self._shown[1:])
        step = (high - low) / STEPS
        low += (self._first_threshold() - low) % step
        self.threshold.min, self.threshold.max = min(low, self.threshold.min), max(high, self.threshold.max)
        self.threshold.step = step
        self.threshold.value = value
        self.threshold.min, self.threshold.max = low, high

    # ---- what is shown ----------------------------------------------------------------------------------

    def _draw(self) -> None:
        index, name, scale = self._shown
        seen = self.explorer.see(index)
        width, height = seen.size
        where = (self.x.value + 0.5) / width, (self.y.value + 0.5) / height
        if self._drawn != (index, *where):  # the threshold's slider does not wait for it
            self._drawn = (index, *where)
            self._draw_original(seen, where)
        drawn = pictures.blended(self.explorer, *self._shown, self.threshold.value, self.blend.value)
        self.picture.value = pictures.to_png(pictures.cross_hair(drawn, *where))
        reading = self.explorer.read(index, self.threshold.value, name, scale)
        self.right.value = legend(f"{MAPS[name][0]} map", above_the_threshold=pictures.DECISION)
        self.reading.value = reading_table(reading, seen.truth)
        found = self.explorer.distances(index, self.x.value, self.y.value)
        self.table.value = distance_table(found, self.x.value, self.y.value)

    def _draw_original(self, seen: Seen, where: tuple[float, float]) -> None:
        drawn, lines = seen.picture, {"chosen_pixel": pictures.PICKED}
        if seen.truth is not None:
            truth = pictures.resize(seen.truth, drawn.shape[1::-1])
            drawn = pictures.outline(drawn, truth, pictures.TRUTH)
            lines = {"ground_truth": pictures.TRUTH, **lines}
        self.original.value = pictures.to_png(pictures.cross_hair(drawn, *where))
        self.left.value = legend("Image", **lines)

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


def _text(html: str):
    import ipywidgets as w

    return w.HTML(html)
