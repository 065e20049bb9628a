"""The parts on the sample circuit board: where they stand and what they look like.

Lengths are in image widths on the board, from its middle; x and y of a drawing are about the part's middle.
Each part is drawn into a small crop of the picture's layers, in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from canvas import CELLS, Layers, box, cover, paint, rgb, smoothstep
from PIL import Image, ImageDraw, ImageFont

TIN, GOLD, WHITE = rgb(178, 180, 182), rgb(206, 170, 92), rgb(224, 222, 214)
BLACK, TAN = rgb(36, 36, 39), rgb(172, 132, 92)


@dataclass(frozen=True)
class Part:
    """A part on the board: its kind, middle, width, height, turn in radians and label."""

    kind: str
    x: float
    y: float
    w: float
    h: float
    turn: float = 0.0
    label: str = ""

    def moved(self, dx: float, dy: float, turn: float) -> Part:
        """The same part a little further right, down and round."""
        return replace(self, x=self.x + dx, y=self.y + dy, turn=self.turn + turn)


PARTS = (
    Part("chip", -0.10, -0.07, 0.27, 0.145, label="DM-2024"),
    Part("can", 0.265, -0.235, 0.19, 0.19),
    Part("header", 0.0, 0.345, 0.46, 0.07),
    Part("led", 0.315, 0.20, 0.085, 0.085),
    Part("led", 0.315, 0.055, 0.085, 0.085),
    *(
        Part("resistor", x, 0.215, 0.10, 0.052, label=text)
        for x, text in ((-0.24, "R1"), (-0.09, "R2"), (0.06, "R3"))
    ),
    Part("resistor", 0.205, 0.05, 0.10, 0.052, -np.pi / 2, "R4"),
    Part("resistor", 0.205, 0.215, 0.10, 0.052, -np.pi / 2, "R5"),
    *(
        Part("capacitor", x, -0.265, 0.095, 0.056, label=text)
        for x, text in ((-0.23, "C1"), (-0.09, "C2"), (0.05, "C3"))
    ),
    Part("capacitor", -0.355, -0.06, 0.095, 0.056, np.pi / 2, "C4"),
    Part("capacitor", -0.355, 0.13, 0.095, 0.056, np.pi / 2, "C5"),
)
HEIGHTS = {"chip": 0.022, "can": 0.055, "header": 0.035, "led": 0.016, "resistor": 0.010, "capacitor": 0.016}
PINS = {"chip": 7, "header": 6}


def pads(part: Part) -> list[tuple[float, float, float, float]]:
    """Solder pads of a part as (x, y, width, height) about its middle, before its turn."""
    if part.kind in PINS:
        count, rows = PINS[part.kind], (-1, 1) if part.kind == "chip" else (0,)
        pitch = part.w / count
        across = 0.5 * part.h + 0.016 if part.kind == "chip" else 0.0
        tall = 0.046 if part.kind == "chip" else 0.05
        return [
            ((k - (count - 1) / 2) * pitch, r * across, 0.5 * pitch, tall) for r in rows for k in range(count)
        ]
    reach = 0.5 * part.w - (0.0 if part.kind in ("can", "led") else 0.006)
    return [(side * reach, 0.0, 0.042, 0.8 * part.h if part.kind != "can" else 0.06) for side in (-1, 1)]


def placed(part: Part, x: float, y: float) -> np.ndarray:
    """Board coordinates (2,) of a point given about the part's middle."""
    c, s = np.cos(part.turn), np.sin(part.turn)
    return np.array([part.x + c * x - s * y, part.y + s * x + c * y])


@lru_cache
def _lettering(text: str, w: float, h: float) -> np.ndarray:
    """Print on a part (rows, columns) in [0, 1], as large as the part."""
    n = CELLS
    image = Image.new("L", (round(w * n), round(h * n)))
    font = ImageFont.load_default(size=0.048 * n)
    pen = ImageDraw.Draw(image)
    pen.text((0.56 * w * n, 0.42 * h * n), text, fill=255, font=font, anchor="mm")
    pen.ellipse([0.03 * n, 0.70 * h * n, 0.048 * n, 0.70 * h * n + 0.018 * n], fill=200)
    return np.asarray(image, dtype=np.float32) / 255


def _raise(layers: Layers, distance, colour, gloss, tall: float, bevel: float) -> None:
    """Add a solid with a bevelled edge, in place."""
    body = cover(distance)
    paint(layers, body, colour, gloss)
    layers.height += tall * smoothstep(-distance, -0.5 / CELLS, bevel) * (body > 0)


def _draw_chip(layers: Layers, part: Part, x, y, tone) -> None:
    """A black integrated circuit with gull-wing pins, a print and a dot at pin 1."""
    for px, py, w, _ in pads(part):
        _raise(layers, box(x - px, y - py * 0.97, 0.8 * w, 0.036, 0.003), TIN, 0.42, 0.007, 0.006)
    _raise(layers, box(x, y, part.w, part.h, 0.006), BLACK * tone, 0.045, HEIGHTS["chip"], 0.009)
    text = _lettering(part.label, part.w, part.h)
    row, col = ((y + part.h / 2) * CELLS).astype(int), ((x + part.w / 2) * CELLS).astype(int)
    inside = (row >= 0) & (row < text.shape[0]) & (col >= 0) & (col < text.shape[1])
    ink = np.where(inside, text[row.clip(0, text.shape[0] - 1), col.clip(0, text.shape[1] - 1)], 0)
    paint(layers, 0.75 * ink, rgb(190, 190, 186))


def _draw_can(layers: Layers, part: Part, x, y, tone) -> None:
    """An electrolytic capacitor: aluminium can on a black base, its negative side marked."""
    _raise(layers, box(x, y, part.w, part.w, 0.02), BLACK, 0.03, 0.012, 0.006)
    radius = np.hypot(x, y)
    _raise(layers, radius - 0.44 * part.w, TIN * 0.95 * tone, 0.30, HEIGHTS["can"], 0.016)
    top = cover(radius - 0.385 * part.w)
    paint(layers, top * cover(x + 0.20 * part.w), rgb(44, 44, 50), 0.06)
    vent = np.minimum(box(x, y, 0.4 * part.w, 0.006), box(x, y, 0.006, 0.4 * part.w))
    paint(layers, cover(vent), None, None, lift=-0.0016)


def _draw_header(layers: Layers, part: Part, x, y, tone) -> None:
    """A row of gilt pins in a black plastic strip that is notched between the pins."""
    pitch = part.w / PINS["header"]
    notch = np.abs((x / pitch + 0.5 * PINS["header"]) % 1 - 0.5) - 0.44
    strip = box(x, y, part.w, part.h, 0.004) + np.maximum(notch, 0) * 0.12
    _raise(layers, strip, BLACK * 1.15 * tone, 0.05, 0.022, 0.008)
    for px, py, _, _ in pads(part):
        _raise(layers, box(x - px, y - py, 0.026, 0.026, 0.002), GOLD, 0.35, HEIGHTS["header"] - 0.02, 0.008)


def _draw_led(layers: Layers, part: Part, x, y, tone) -> None:
    """A white package with a yellow domed lens and two tinned ends."""
    _raise(layers, box(x, y, part.w + 0.012, 0.6 * part.h, 0.003), TIN, 0.35, 0.004, 0.004)
    _raise(layers, box(x, y, part.w, part.h, 0.006), WHITE * tone, 0.04, HEIGHTS["led"], 0.006)
    radius = np.hypot(x, y) / (0.36 * part.w)
    lens = cover((radius - 1) * 0.36 * part.w)
    dome = 0.010 * np.sqrt(np.maximum(1 - radius * radius, 0))
    paint(layers, lens, rgb(222, 186, 62) if part.label != "red" else rgb(196, 52, 40), 0.25, lift=dome)


def _draw_two_ended(layers: Layers, part: Part, x, y, tone) -> None:
    """A chip resistor (black, with a printed value) or ceramic capacitor (tan), with tinned ends."""
    tall = HEIGHTS[part.kind]
    for px, _, _, _ in pads(part):
        fillet = box(x - px * 1.05, y, 0.036, 0.72 * part.h, 0.010)
        _raise(layers, fillet, TIN * tone, 0.40, 0.6 * tall, 0.014)
    body = box(x, y, part.w, part.h, 0.003)
    _raise(layers, body, TIN * 1.05 * tone, 0.30, tall, 0.006)
    middle = cover(np.abs(x) - 0.32 * part.w) * cover(body)
    paint(layers, middle, (BLACK if part.kind == "resistor" else TAN) * tone, 0.04)
    if part.kind == "resistor":
        print_ = np.abs(np.abs(x) % 0.016 - 0.008) - 0.0022
        print_ = np.maximum.reduce([print_, np.abs(y) - 0.011, np.abs(x) - 0.024])
        paint(layers, 0.7 * cover(print_), WHITE)


DRAWERS = {
    "chip": _draw_chip,
    "can": _draw_can,
    "header": _draw_header,
    "led": _draw_led,
    "resistor": _draw_two_ended,
    "capacitor": _draw_two_ended,
}
