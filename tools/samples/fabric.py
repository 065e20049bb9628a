"""The sample texture: a twill cloth of blue warp and pale weft threads, and its five kinds of defect.

u counts warp threads to the right and v weft threads downwards. Each thread is a round bar that dives under
and over the crossing ones; of two bars at one place the higher is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from canvas import (
    Flaw,
    Layers,
    Shot,
    X,
    Y,
    blob,
    draw_shot,
    paint,
    random_curve,
    rgb,
    shade,
    smooth_field,
    smoothstep,
    stroke,
)

THREADS = 34  # across the image
MARGIN = 16  # threads beyond each border, so that a shifted or turned cloth has no edge
OVER = np.array([1, 1, -1, -1], dtype=np.float32)  # 2/2 twill: warp above weft at (i - j) mod 4
BURIED = -9.0  # height of a thread that is not there
WARP, WEFT, BACKING = rgb(86, 100, 122), rgb(188, 184, 172), rgb(26, 25, 27)

# what a stain leaves of red, green and blue: oil, coffee, rust water
TINTS = np.array([[0.62, 0.58, 0.50], [0.66, 0.47, 0.30], [0.78, 0.56, 0.40]], dtype=np.float32)[
    ..., None, None
]


@dataclass(frozen=True)
class Scene:
    """One piece of cloth before the lens: every random choice but the defect."""

    shot: Shot
    u: np.ndarray  # (n, n) thread coordinates, before a flaw bends them
    v: np.ndarray
    tone: np.ndarray  # (2, threads) brightness of each warp and weft thread
    width: np.ndarray  # (2, threads) half width in pitches
    lint: np.ndarray  # (n, n) brightness of the nap
    fibre: np.ndarray  # (n, n) wander of the twisted fibres


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a cloth: its shift, slight turn, uneven threads and light."""
    shot = draw_shot(rng, azimuth=-125, elevation=48)
    angle, pitch = rng.normal(0, 0.012), THREADS * (1 + rng.normal(0, 0.012))
    shift = rng.uniform(0, 4, 2) + MARGIN + THREADS / 2
    c, s = float(np.cos(angle)), float(np.sin(angle))
    u, v = pitch * (X * c + Y * s) + float(shift[0]), pitch * (Y * c - X * s) + float(shift[1])
    count = THREADS + 2 * MARGIN + 8
    return Scene(
        shot=shot,
        u=(u + 0.09 * smooth_field(rng, 7) + 0.05 * smooth_field(rng, 20)).astype(np.float32),
        v=(v + 0.09 * smooth_field(rng, 7) + 0.05 * smooth_field(rng, 20)).astype(np.float32),
        tone=(1 + rng.normal(0, 0.055, (2, count))).astype(np.float32),
        width=np.clip(rng.normal(0.47, 0.022, (2, count)), 0.4, 0.52).astype(np.float32),
        lint=1 + 0.05 * smooth_field(rng, 102) + 0.035 * smooth_field(rng, 14),
        fibre=0.12 * smooth_field(rng, 40),
    )


def _bar(along: np.ndarray, across: np.ndarray, width: np.ndarray, sign: int) -> np.ndarray:
    """Height (n, n) in pitches of the bars counted by `across`; sign 1 for warp, -1 for weft."""
    index = np.floor(across).astype(np.int32)
    last = np.floor(along - 0.5).astype(np.int32)
    blend = smoothstep(along - 0.5 - last, 0.12, 0.88)
    dive = OVER[(sign * (index - last)) % 4] * sign
    dive = dive + blend * (OVER[(sign * (index - last - 1)) % 4] * sign - dive)
    offset = (across - index - 0.5) / width[index]
    round_top = np.sqrt(np.maximum(1 - offset * offset, 0))
    return np.where(np.abs(offset) < 1, 0.16 * dive + 0.34 * round_top, BURIED)


def _yarn(scene: Scene, along: np.ndarray, across: np.ndarray, kind: int) -> np.ndarray:
    """Brightness (n, n) around 1 of the twisted yarns of a kind, 0 for warp and 1 for weft."""
    index = np.floor(across).astype(np.int32)
    twist = np.sin(2 * np.pi * (2.3 * along + 1.5 * (across - index) + scene.fibre + 0.37 * index))
    return scene.tone[kind][index] * scene.lint * (1 + 0.10 * twist)


def render(scene: Scene, flaw: Flaw) -> np.ndarray:
    """Light (3, n, n) leaving the cloth; flaw.shape edits the pair of warp and weft heights."""
    u, v = flaw.bend(scene.u, scene.v)
    warp, weft = flaw.shape((_bar(v, u, scene.width[0], 1), _bar(u, v, scene.width[1], -1)))
    top = warp >= weft
    height = np.maximum(np.maximum(warp, weft), -0.35)
    colour = np.where(top, WARP * _yarn(scene, v, u, 0), WEFT * _yarn(scene, u, v, 1))
    depth = smoothstep(height, -0.3, 0.42)
    albedo = np.where((height <= -0.35), BACKING, colour * (0.38 + 0.62 * depth))
    layers = Layers(
        albedo.astype(np.float32),
        (height * 0.42 / THREADS).astype(np.float32),
        np.float32(0.012) * top,
    )
    flaw.paint(layers)
    return shade(layers, scene.shot, ambient=0.45, soft=0.0015)


def _spot(rng: np.random.Generator, reach: float) -> np.ndarray:
    """A point (2,) at least `reach` away from the image border."""
    return rng.uniform(-0.5 + reach, 0.5 - reach, 2)


def _broken_thread(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Two to four neighbouring threads are missing over a stretch; the crossing ones sag there."""
    kind, count = int(rng.integers(2)), int(rng.integers(2, 5))
    first = int(rng.integers(5, THREADS - 5)) + MARGIN + 2
    ends = np.sort(rng.uniform(0.35, 0.65) + np.array([-0.5, 0.5]) * rng.uniform(0.3, 0.8)) * THREADS + MARGIN
    fray = ends[:, None] + rng.normal(0, 0.8, (2, count))

    def cut(heights):
        across, along = (scene.u, scene.v) if kind == 0 else (scene.v, scene.u)
        row = np.floor(across).astype(int) - first
        gone = (row >= 0) & (row < count)
        row = np.clip(row, 0, count - 1)
        gone &= (along > fray[0][row]) & (along < fray[1][row])
        sagging = np.float32(0.16) * gone
        return tuple(np.where(gone, BURIED, h) if k == kind else h - sagging for k, h in enumerate(heights))

    return Flaw(shape=cut)


def _foreign_fibre(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A coloured thread, hair or bristle lies on the cloth and throws a shadow."""
    length = rng.uniform(0.25, 0.8)
    points = random_curve(rng, _spot(rng, 0.2), rng.uniform(0, 2 * np.pi), length, rng.uniform(0.6, 3.0))
    points = np.clip(points - points.mean(axis=0) + _spot(rng, 0.3), -0.49, 0.49)
    line = stroke(points, rng.uniform(0.011, 0.022))
    colours = (rgb(168, 44, 40), rgb(36, 32, 30), rgb(226, 224, 216), rgb(52, 104, 62))
    colour = colours[rng.integers(len(colours))]
    return Flaw(paint=lambda layers: paint(layers, line, colour * scene.lint, 0.03, lift=0.012))


def _hole(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Both systems of threads are torn: a dark gap with ragged edge and a few loose ends across it."""
    radius = rng.uniform(0.045, 0.11)
    centre = _spot(rng, 2 * radius)
    distance = blob(rng, X, Y, centre, radius, rough=0.35)
    ragged = rng.normal(0, 0.011, scene.tone.shape)

    def cut(heights):
        index = (np.floor(scene.u).astype(int), np.floor(scene.v).astype(int))
        return tuple(np.where(distance + ragged[k][index[k]] < 0, BURIED, heights[k]) for k in range(2))

    ends = [_loose_end(rng, centre, radius) for _ in range(int(rng.integers(3, 7)))]

    def fray(layers):
        for k, end in enumerate(ends):
            paint(layers, end, (WARP, WEFT)[k % 2] * 0.8, lift=0.004)

    return Flaw(shape=cut, paint=fray)


def _loose_end(rng: np.random.Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    """Cover (n, n) of one thin fibre that reaches from a hole's edge inwards."""
    angle = rng.uniform(0, 2 * np.pi)
    start = centre + 1.05 * radius * np.array([np.cos(angle), np.sin(angle)])
    return stroke(random_curve(rng, start, angle + np.pi + rng.normal(0, 0.5), radius, 1.2), 0.0045)


def _snag(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Threads are pulled aside: the weave is squeezed together within a patch and opens beside it."""
    reach = rng.uniform(0.13, 0.22)
    centre = _spot(rng, reach)
    angle = rng.uniform(0, np.pi)
    dx, dy = (X - float(centre[0])) / reach, (Y - float(centre[1])) / reach
    c, s = float(np.cos(angle)), float(np.sin(angle))
    side, along = dx * c + dy * s, dy * c - dx * s
    window = np.maximum(1 - side**2 - (along / 0.8) ** 2, 0) ** 2
    push = float(rng.choice([-1, 1]) * rng.uniform(2.0, 3.2)) * window * np.cos(2.6 * side)
    gap = smoothstep(window, 0.5, 1.0) * rng.uniform(0.3, 0.5)
    return Flaw(
        bend=lambda u, v: (u + push * c, v + push * s), shape=lambda heights: tuple(h - gap for h in heights)
    )


def _stain(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Oil, coffee or rust water has soaked in: a tinted patch, darker towards its rim."""
    radius = rng.uniform(0.06, 0.15)
    distance = blob(rng, X, Y, _spot(rng, 1.5 * radius), radius, rough=0.25)
    distance = distance + 0.004 * smooth_field(rng, 34)
    soaked = smoothstep(-distance, -0.006, 0.014)
    rim = np.exp(-(((distance + 0.012) / 0.012) ** 2))
    tint = TINTS[rng.integers(len(TINTS))]
    strength = float(rng.uniform(0.6, 1.0)) * soaked * (0.75 + 0.25 * rim)

    def soak(layers):
        layers.albedo *= 1 + strength * (tint - 1)

    return Flaw(paint=soak)


DEFECTS = {
    "broken_thread": _broken_thread,
    "foreign_fibre": _foreign_fibre,
    "hole": _hole,
    "snag": _snag,
    "stain": _stain,
}
