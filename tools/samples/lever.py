"""The sample object in any rotation: a stamped steel lever with ratchet teeth, and its three kinds of defect.

The lever lies in its own coordinates: hub to the left, arm to the right, spur downwards, teeth on the far
side of the hub. It looks different in every rotation, and no mirror image of it is a good part.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from scipy import ndimage

HUB, TIP, SPUR = (-0.17, 0.0), (0.30, -0.04), (-0.10, 0.21)
HUB_RADIUS, TIP_RADIUS, ARM_RADIUS, BORE = 0.165, 0.062, 0.085, 0.062
SLOT = (0.06, -0.016), (0.17, -0.026)
TEETH, TOOTH = 30, 0.017  # teeth per turn (a third of the turn carries them) and their depth
THICKNESS, CHAMFER, COLLAR = 0.030, 0.010, 0.012  # heights
ARM = np.subtract(TIP, HUB)
STEEL, TABLE = rgb(152, 153, 155), rgb(206, 203, 196)


@dataclass(frozen=True)
class Scene:
    """One lever on the table: every random choice but the defect."""

    shot: Shot
    pose: Pose
    x: np.ndarray  # (n, n) coordinates on the lever
    y: np.ndarray
    brushing: np.ndarray  # (n, n) along the lever, unit variance
    sheen: np.ndarray  # (n, n) slow change of the reflection
    table: np.ndarray  # (n, n) brightness of the table around 1
    tone: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a lever in any rotation, near the middle."""
    shot = draw_shot(rng, azimuth=-130, elevation=50)
    turn = turned(rng.uniform(0, 2 * np.pi), 1.22 * (1 + rng.normal(0, 0.01)))
    pose = Pose(turn, rng.normal(0, 0.01, 2) - turn @ np.array([0.005, 0.015]))
    x, y = pose.own()
    brushing = smooth_field(rng, 14, 256) + 0.6 * smooth_field(rng, 5, 102)
    grain = 0.010 * smooth_field(rng, 170) + 0.012 * smooth_field(rng, 42)
    return Scene(
        shot=shot,
        pose=pose,
        x=x,
        y=y,
        brushing=brushing,
        sheen=smooth_field(rng, 3),
        table=1 + grain + 0.012 * smooth_field(rng, 5),
        tone=1 + float(rng.normal(0, 0.02)),
    )


def _outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (n, n) to the lever without its holes, negative inside."""
    hx, hy = x - HUB[0], y - HUB[1]
    angle = np.arctan2(hy, -hx)  # 0 points away from the arm
    saw = (angle * TEETH / (2 * np.pi)) % 1
    teeth = TOOTH * np.minimum(saw / 0.75, (1 - saw) / 0.25) * (np.abs(angle - 0.2) < np.pi * 11.5 / TEETH)
    hub = np.hypot(hx, hy) - HUB_RADIUS - teeth
    arm = capsule(x, y, HUB, TIP, ARM_RADIUS, TIP_RADIUS)
    spur = capsule(x, y, HUB, SPUR, 0.06, 0.034)
    return np.minimum(_melt(hub, arm, 0.05), spur)


def _melt(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Union of two shapes with a fillet of about this radius where they meet."""
    h = np.clip(0.5 + 0.5 * (b - a) / radius, 0, 1)
    return b + h * (a - b) - radius * h * (1 - h)


def _holes(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Signed distances (n, n) to the bore with its keyway, the tip's hole, the spur's hole and the slot."""
    key = box(x - HUB[0], y - HUB[1] + BORE, 0.036, 0.05)
    bore = np.minimum(np.hypot(x - HUB[0], y - HUB[1]) - BORE, key)
    tip = np.hypot(x - TIP[0], y - TIP[1]) - 0.031
    spur = np.hypot(x - SPUR[0], y - SPUR[1]) - 0.016
    return [bore, tip, spur, capsule(x, y, *SLOT, 0.020)]


def _solid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (n, n) to a good lever with its holes."""
    return np.maximum.reduce([_outline(x, y), *(-hole for hole in _holes(x, y))])


def render(scene: Scene, flaw: Flaw) -> np.ndarray:
    """Light (3, n, n) leaving table and lever; flaw.shape edits [outline, *holes]."""
    x, y = scene.x, scene.y
    outline, *holes = flaw.shape([_outline(x, y), *_holes(x, y)])
    distance = np.maximum.reduce([outline, *(-hole for hole in holes)])
    metal = cover(distance)
    ring = np.abs(np.hypot(x - HUB[0], y - HUB[1]) - 0.088) - 0.022
    collar = smoothstep(-np.maximum(ring, distance + 0.004), 0, 0.008)
    where = (np.stack([y, x]) + 0.5) * CELLS - 0.5
    brushing = ndimage.map_coordinates(scene.brushing, where, order=1, mode="reflect")
    height = THICKNESS * metal + CHAMFER * smoothstep(-distance, -0.003, 0.013) + COLLAR * collar
    height += 0.5e-4 * brushing * metal
    steel = STEEL * (scene.tone * (1 + 0.035 * brushing + 0.07 * scene.sheen))
    layers = Layers(TABLE * scene.table, height + 0.0004 * scene.table, np.zeros_like(height))
    layers.albedo += metal * (steel - layers.albedo)
    layers.gloss += metal * 0.42 * (1 + 0.07 * brushing + 0.12 * scene.sheen)
    flaw.paint(layers)
    return shade(layers, scene.shot, ambient=0.42, soft=0.006, shininess=18)


def _metal_spot(rng: np.random.Generator) -> np.ndarray:
    """A point (2,) on the flat of the lever, clear of its holes."""
    angle = rng.uniform(0.9, 2 * np.pi - 0.9)
    spots = (
        HUB + 0.128 * np.array([np.cos(angle), np.sin(angle)]),
        HUB + ARM * rng.uniform(0.36, 0.46),
        HUB + ARM * rng.uniform(0.76, 0.84),
    )
    return spots[rng.choice(3, p=(0.5, 0.3, 0.2))]


def _missing_hole(rng: np.random.Generator, scene: Scene) -> Flaw:
    """The tip's hole or the slot was never punched, or came out much too small."""
    which = int(rng.choice([2, 4]))
    shrink = float(rng.uniform(0.010, 0.014)) if rng.random() < 0.4 else 1.0
    return Flaw(shape=lambda shapes: [s + shrink if k == which else s for k, s in enumerate(shapes)])


def _rust(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A mottled brown patch without gloss."""
    mottle = smooth_field(rng, 40) + 0.7 * smooth_field(rng, 100)
    distance = blob(rng, scene.x, scene.y, _metal_spot(rng), rng.uniform(0.045, 0.095), 0.4)
    on_metal = cover(_solid(scene.x, scene.y))
    share = smoothstep(-distance + 0.008 * mottle, -0.004, 0.018) * on_metal * rng.uniform(0.55, 0.95)
    colour = rgb(128, 78, 44) * (1 + 0.22 * np.clip(mottle, -2, 2))
    return Flaw(paint=lambda layers: paint(layers, share, colour, 0.03, lift=0.0006 * mottle))


def _scratch(rng: np.random.Generator, scene: Scene) -> Flaw:
    """One to three scores through the brushed face: a bright groove with a dark flank."""
    start, heading = _metal_spot(rng), rng.uniform(0, 2 * np.pi)
    grooves = np.float32(0)
    for _ in range(int(rng.integers(1, 4))):
        points = random_curve(rng, (0, 0), heading + rng.normal(0, 0.12), rng.uniform(0.20, 0.36), 0.25)
        points = points - points.mean(axis=0) + start + rng.normal(0, 0.014, 2)
        width = rng.uniform(0.014, 0.024) * np.sin(np.linspace(0.3, np.pi - 0.3, len(points) - 1))
        grooves = np.maximum(grooves, stroke(scene.pose.to_picture(points), width))
    on_metal = cover(_solid(scene.x, scene.y))
    bright = rgb(238, 238, 240) if rng.random() < 0.5 else rgb(66, 64, 64)
    return Flaw(paint=lambda layers: paint(layers, 0.95 * grooves * on_metal, bright, 0.35, lift=-0.003))


DEFECTS = {
    "missing_hole": _missing_hole,
    "rust": _rust,
    "scratch": _scratch,
}
