"""The sample object in a fixed place: a populated circuit board in a tray, and its five kinds of defect.

Lengths are in image widths on the board, from its middle. Copper, vias and lettering are drawn once as the
board's artwork; the parts stand on it as bodies of their own, each in a small crop of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from canvas import (
    CELLS,
    Flaw,
    Layers,
    Pose,
    Shot,
    blob,
    box,
    capsule,
    cover,
    draw_shot,
    paint,
    random_curve,
    rgb,
    shade,
    smooth_field,
    smoothstep,
    stroke,
    turned,
)
from parts import DRAWERS, PARTS, PINS, TIN, WHITE, Part, pads, placed
from PIL import Image, ImageDraw, ImageFont

BOARD, CORNER = 0.88, 0.03  # side and corner radius
SCREW = 0.385  # |x| and |y| of the four screw holes
MASK_GREEN, COPPER, FIBREGLASS, TRAY = rgb(22, 92, 58), rgb(206, 142, 86), rgb(176, 168, 120), rgb(58, 60, 64)


@dataclass(frozen=True)
class Scene:
    """One board in its tray: every random choice but the defect."""

    shot: Shot
    pose: Pose
    x: np.ndarray  # (n, n) coordinates on the board
    y: np.ndarray
    parts: tuple[Part, ...]  # each a little off its nominal place
    tone: tuple[float, ...]  # brightness of each part around 1
    solder: np.ndarray  # (n, n) unevenness of the solder
    weave: np.ndarray  # (n, n) brightness of the board around 1
    foam: np.ndarray  # (n, n) brightness of the tray around 1


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a board: a slight misfit in its tray, parts placed a little unevenly."""
    shot = draw_shot(rng, azimuth=-120, elevation=52)
    pose = Pose(turned(rng.normal(0, 0.010), 1 + rng.normal(0, 0.006)), rng.normal(0, 0.006, 2))
    x, y = pose.own()
    offsets = (rng.normal(0, 1, (len(PARTS), 3)) * (0.0018, 0.0018, 0.012)).tolist()
    parts = tuple(part.moved(*offset) for part, offset in zip(PARTS, offsets, strict=True))
    return Scene(
        shot=shot,
        pose=pose,
        x=x,
        y=y,
        parts=parts,
        tone=tuple((1 + rng.normal(0, 0.05, len(PARTS))).tolist()),
        solder=smooth_field(rng, 64),
        weave=1 + 0.05 * smooth_field(rng, 85) + 0.03 * smooth_field(rng, 5),
        foam=1 + 0.14 * smooth_field(rng, 128) + 0.08 * smooth_field(rng, 30),
    )


def _route(rng: np.random.Generator, start: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """Corner points (4, 2) of a trace: straight off the pad, a turn by 45 degrees, straight again."""
    side = np.array([-outward[1], outward[0]]) * rng.choice([-1, 1])
    steps = (
        outward * rng.uniform(0.02, 0.05),
        (outward + side) * rng.uniform(0.02, 0.06),
        side * rng.uniform(0.03, 0.14),
    )
    points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return np.clip(points, -0.41, 0.41)


@lru_cache
def _artwork() -> Image.Image:
    """The bare board's print, n x n RGB: red buried copper, green bare metal, blue lettering."""
    rng, n = np.random.default_rng(11), CELLS  # the same layout on every board
    planes = [Image.new("L", (n, n)) for _ in range(3)]
    copper, metal, letters = (ImageDraw.Draw(plane) for plane in planes)
    font = ImageFont.load_default(size=0.03 * n)
    for part in PARTS:
        for pad in pads(part):
            _print_pad(rng, copper, metal, part, pad)
        if part.h < 0.06:
            letters.text(tuple((placed(part, 0, -0.052) + 0.5) * n), part.label, 255, font, anchor="mm")
    for corner in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        at = (SCREW * np.array(corner) + 0.5) * n
        metal.ellipse([*(at - 0.038 * n), *(at + 0.038 * n)], fill=255)
    letters.rectangle([0.075 * n, 0.28 * n, 0.079 * n, 0.36 * n], fill=255)
    return Image.merge("RGB", planes)


def _print_pad(rng: np.random.Generator, copper, metal, part: Part, pad: tuple):
    """A pad, the trace that leads off it, and the via at the trace's end."""
    px, py, w, h = pad
    corners = [placed(part, px + x * w / 2, py + y * h / 2) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    metal.polygon([tuple((corner + 0.5) * CELLS) for corner in corners], fill=255)
    middle = placed(part, px, py)
    outward = middle - (part.x, part.y)
    axis = np.eye(2)[int(abs(outward[1]) > abs(outward[0]) or part.kind == "chip")]
    route = (_route(rng, middle, axis * (np.sign(outward @ axis) or -1)) + 0.5) * CELLS
    copper.line([tuple(point) for point in route], fill=255, width=round(0.0115 * CELLS), joint="curve")
    for radius, fill in ((0.010, 170), (0.0045, 0)):
        metal.ellipse([*(route[-1] - radius * CELLS), *(route[-1] + radius * CELLS)], fill=fill)


def _bare_board(scene: Scene) -> Layers:
    """Tray and board without parts."""
    n, pose = CELLS, scene.pose
    back = np.linalg.inv(pose.turn)
    middle = back @ (0.5 + pose.shift) * n - 0.5 * n
    matrix = (back[0, 0], back[0, 1], -middle[0], back[1, 0], back[1, 1], -middle[1])
    print_ = _artwork().transform((n, n), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    copper, metal, letters = np.moveaxis(np.asarray(print_, dtype=np.float32) / 255, 2, 0)
    distance = box(scene.x, scene.y, BOARD, BOARD, CORNER)
    distance = np.maximum(distance, 0.021 - np.hypot(np.abs(scene.x) - SCREW, np.abs(scene.y) - SCREW))
    board = cover(distance)
    layers = Layers(TRAY * scene.foam, 0.0006 * scene.foam, np.full((n, n), 0.01, np.float32))
    green = (MASK_GREEN + copper * (rgb(44, 128, 78) - MASK_GREEN)) * scene.weave
    paint(layers, board, green, 0.055, lift=0.016 + 0.0007 * copper)
    paint(layers, board * smoothstep(distance, -0.005, -0.001), FIBREGLASS, 0.02)
    bumps = 0.0010 + 0.0004 * scene.solder
    paint(layers, board * metal, TIN * (1 + 0.10 * scene.solder), 0.26, lift=bumps)
    paint(layers, board * letters, WHITE, 0.02, lift=0.0001)
    return layers


def _crop(scene: Scene, part: Part, margin: float = 0.06):
    """The part's place in the picture (two slices) and x, y (rows, columns) about its middle, unturned."""
    middle = scene.pose.to_picture(np.array((part.x, part.y))) + 0.5
    c, s = float(np.cos(part.turn)), float(np.sin(part.turn))
    w, h = part.w / 2 + margin, part.h / 2 + margin
    reach = np.array([abs(c) * w + abs(s) * h, abs(s) * w + abs(c) * h])
    low = np.maximum(((middle - reach) * CELLS).astype(int), 0)
    high = np.minimum(((middle + reach) * CELLS).astype(int) + 1, CELLS)
    at = (slice(low[1], high[1]), slice(low[0], high[0]))
    dx, dy = scene.x[at] - part.x, scene.y[at] - part.y
    return at, c * dx + s * dy, c * dy - s * dx


def _place(layers: Layers, scene: Scene, part: Part, tone: float) -> None:
    """Stand one part on the board, in place."""
    at, x, y = _crop(scene, part)
    view = Layers(layers.albedo[(slice(None), *at)], layers.height[at], layers.gloss[at])
    DRAWERS[part.kind](view, part, x, y, tone * (1 + 0.04 * scene.solder[at]))


def render(scene: Scene, flaw: Flaw) -> np.ndarray:
    """Light (3, n, n) leaving the board; flaw.shape edits the list of parts, None where one is missing."""
    layers = _bare_board(scene)
    for part, tone in zip(flaw.shape(list(scene.parts)), scene.tone, strict=True):
        if part is not None:
            _place(layers, scene, part, tone)
    flaw.paint(layers)
    return shade(layers, scene.shot, ambient=0.42, soft=0.004, shininess=20)


def _pick(rng: np.random.Generator, *kinds: str) -> int:
    """Number of a random part of one of these kinds."""
    return int(rng.choice([k for k, part in enumerate(PARTS) if part.kind in kinds]))


def _swap(number: int, part: Part | None) -> Flaw:
    """The flaw that puts `part` in place of a part."""
    return Flaw(shape=lambda parts: [part if k == number else old for k, old in enumerate(parts)])


def _missing_part(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A part was never placed, or has come off: its pads lie bare."""
    kinds = ("resistor", "capacitor") if rng.random() < 0.6 else ("led", "can", "chip", "header")
    return _swap(_pick(rng, *kinds), None)


def _skewed_part(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A part sits turned and shifted on its pads."""
    number = _pick(rng, "resistor", "capacitor", "led", "chip")
    part = scene.parts[number]
    large = part.kind == "chip"
    turn = rng.choice([-1, 1]) * np.radians(rng.uniform(8, 16) if large else rng.uniform(20, 60))
    dx, dy = rng.normal(0, 0.008, 2)
    return _swap(number, replace(part, x=part.x + dx, y=part.y + dy, turn=part.turn + turn))


def _wrong_part(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A capacitor sits for a resistor or the reverse, or a red lamp for a yellow."""
    number = _pick(rng, "resistor", "capacitor", "led")
    part = scene.parts[number]
    if part.kind == "led":
        return _swap(number, replace(part, label="red"))
    return _swap(number, replace(part, kind="capacitor" if part.kind == "resistor" else "resistor"))


def _scratch(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A tool has slipped: one or two scores through the green mask down to bare copper."""
    heading = rng.uniform(0, 2 * np.pi)
    start = rng.uniform(-0.25, 0.25, 2)
    lines = np.float32(0)
    for _ in range(int(rng.integers(1, 3))):
        points = random_curve(rng, (0, 0), heading + rng.normal(0, 0.1), rng.uniform(0.2, 0.5), 0.3)
        points = points - points.mean(axis=0) + start + rng.normal(0, 0.025, 2)
        width = rng.uniform(0.008, 0.014) * np.sin(np.linspace(0.3, np.pi - 0.3, len(points) - 1))
        lines = np.maximum(lines, stroke(scene.pose.to_picture(np.clip(points, -0.42, 0.42)), width))
    free = cover(box(scene.x, scene.y, BOARD, BOARD))
    for part in scene.parts:  # the blade jumps over what stands on the board
        at, x, y = _crop(scene, part)
        free[at] *= 1 - cover(box(x, y, part.w + 0.03, part.h + (0.06 if part.kind == "chip" else 0.01)))
    share = 0.85 * lines * free
    colour = rgb(198, 190, 150) if rng.random() < 0.5 else COPPER
    return Flaw(paint=lambda layers: paint(layers, share, colour, 0.12, lift=-0.0015))


def _solder_splash(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Solder where none belongs: a bridge between pins of the chip, or drops on the board."""
    chip = scene.parts[0]
    px, py, *_ = pads(chip)[int(rng.integers(1, 2 * PINS["chip"]))]
    pitch = chip.w / PINS["chip"]
    if rng.random() < 0.5:
        spot = placed(chip, float(np.clip(px, -2.4 * pitch, 2.4 * pitch)) + pitch / 2, py * 1.12)
        along = np.array([np.cos(chip.turn), np.sin(chip.turn)]) * pitch * rng.uniform(0.5, 1.0)
        ends = (spot - along).tolist(), (spot + along).tolist()
        distance = capsule(scene.x, scene.y, *ends, *rng.uniform(0.022, 0.036, 2).tolist())
    else:
        spot = rng.uniform(-0.33, 0.33, 2)
        distance = blob(rng, scene.x, scene.y, spot, rng.uniform(0.034, 0.065), 0.10)
    for _ in range(int(rng.integers(0, 4))):
        dx, dy, radius = *(spot + rng.normal(0, 0.05, 2)).tolist(), float(rng.uniform(0.006, 0.012))
        distance = np.minimum(distance, np.hypot(scene.x - dx, scene.y - dy) - radius)
    dome = 0.014 * np.sqrt(np.clip(-distance / 0.03, 0, 1))
    share = cover(distance)
    colour = TIN * (1 + 0.05 * scene.solder)
    return Flaw(paint=lambda layers: paint(layers, share, colour, 0.42, lift=dome))


DEFECTS = {
    "missing_part": _missing_part,
    "scratch": _scratch,
    "skewed_part": _skewed_part,
    "solder_splash": _solder_splash,
    "wrong_part": _wrong_part,
}
