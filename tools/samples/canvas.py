"""Drawing tools of the sample data: random fields, shapes, light and camera.

A picture is drawn on a square of n x n cells, n = CELLS, that is finer than the image. Lengths are in image
widths: x runs right and y down, both from -0.5 to 0.5. Reflectances are linear, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

CELLS, SIZE = 512, 256  # per side of the drawing and of the image
GAMMA = 2.2
CHANGED = 2.5  # grey levels of a noise-free difference that count as a change: about one sigma of the noise


@dataclass
class Layers:
    """What the lamp falls on: albedo (3, n, n) in [0, 1], height (n, n) in image widths, gloss (n, n)."""

    albedo: np.ndarray
    height: np.ndarray
    gloss: np.ndarray


@dataclass(frozen=True)
class Flaw:
    """A defect as three edits: of the coordinates, of the category's own shape, of the finished layers."""

    bend: Callable = lambda x, y: (x, y)
    shape: Callable = lambda shape: shape
    paint: Callable = lambda layers: None


@dataclass(frozen=True)
class Shot:
    """Light and camera of one photograph; `light` is the unit vector that points to the lamp."""

    light: np.ndarray
    centre: tuple[float, float]  # of the light spot
    falloff: float  # loss of light from that centre to half an image width away
    tilt: tuple[float, float]  # brightness gradient per image width
    exposure: np.ndarray  # (3, 1, 1) one gain per channel
    blur: float  # sigma in image widths
    noise: float  # sigma in grey levels at mid grey


def draw_shot(rng: np.random.Generator, azimuth: float, elevation: float) -> Shot:
    """Draw the small differences of light and camera between two photographs of one inspection line.

    azimuth and elevation of the lamp are in degrees; azimuth 0 is right, 90 is below.
    """
    a, e = np.radians([azimuth + rng.normal(0, 3), elevation + rng.normal(0, 1.5)])
    return Shot(
        light=np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], dtype=np.float32),
        centre=tuple((0.25 * np.array([np.cos(a), np.sin(a)]) + rng.normal(0, 0.04, 2)).tolist()),
        falloff=0.11 + rng.uniform(-0.02, 0.02),
        tilt=tuple(rng.normal(0, 0.03, 2).tolist()),
        exposure=((1 + rng.normal(0, 0.025, (1, 1, 1))) * (1 + rng.normal(0, 0.006, (3, 1, 1)))).astype(
            np.float32
        ),
        blur=0.0021 + rng.uniform(-0.0003, 0.0004),
        noise=1.9 + rng.uniform(-0.2, 0.2),
    )


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """Linear reflectance (3, 1, 1) of a colour that a screen shows as these values from 0 to 255."""
    return ((np.array([red, green, blue]) / 255) ** GAMMA).astype(np.float32).reshape(3, 1, 1)


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the cell centres, each (n, n) float32 in [-0.5, 0.5]."""
    axis = ((np.arange(n) + 0.5) / n - 0.5).astype(np.float32)
    return tuple(np.meshgrid(axis, axis))


X, Y = grid(CELLS)


@dataclass(frozen=True)
class Pose:
    """How an object lies: a point (2,) of its own coordinates is at turn @ point + shift in the picture."""

    turn: np.ndarray  # (2, 2)
    shift: np.ndarray  # (2,)

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """The object's own x and y at every cell, each (n, n)."""
        back = np.linalg.inv(self.turn).astype(np.float32)
        px, py = X - np.float32(self.shift[0]), Y - np.float32(self.shift[1])
        return back[0, 0] * px + back[0, 1] * py, back[1, 0] * px + back[1, 1] * py

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Picture coordinates (k, 2) of the object's points (k, 2)."""
        return points @ self.turn.T + self.shift


def turned(angle: float, scale: float) -> np.ndarray:
    """The matrix (2, 2) that turns and scales."""
    return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@lru_cache(maxsize=64)
def _spline_weights(bumps: int) -> np.ndarray:
    """Cubic B-spline weights (n, bumps + 3) that interpolate `bumps` intervals at the cells."""
    t = (np.arange(CELLS) + 0.5) / CELLS * bumps
    i = np.floor(t).astype(int)
    f = t - i
    weights = np.zeros((CELLS, bumps + 3), dtype=np.float32)
    parts = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    for k, part in enumerate(parts):
        weights[np.arange(CELLS), i + k] = part / 6
    return weights


def smooth_field(rng: np.random.Generator, bumps: int, bumps_y: int | None = None) -> np.ndarray:
    """Smooth random field (n, n) of about unit variance whose bumps are 1 / bumps of the picture wide."""
    bumps_y = bumps_y or bumps
    knots = rng.standard_normal((bumps_y + 3, bumps + 3), dtype=np.float32)
    return _spline_weights(bumps_y) @ knots @ _spline_weights(bumps).T / 0.479


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth ramp from 0 at `low` to 1 at `high`."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cover(distance: np.ndarray) -> np.ndarray:
    """Share of each cell inside a shape, in [0, 1], from its signed distance (negative inside)."""
    return np.clip(0.5 - distance * CELLS, 0, 1)


def box(x: np.ndarray, y: np.ndarray, width: float, height: float, radius: float = 0.0) -> np.ndarray:
    """Signed distance to a rectangle about the origin with rounded corners."""
    qx, qy = np.abs(x) - width / 2 + radius, np.abs(y) - height / 2 + radius
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - radius


def capsule(x, y, start, end, radius: float, end_radius: float | None = None) -> np.ndarray:
    """Signed distance (to first order) to a bar with round ends, tapered when the two radii differ."""
    end_radius = radius if end_radius is None else end_radius
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    x, y = x - ax, y - ay
    t = np.clip((x * (dx / (dx * dx + dy * dy))) + y * (dy / (dx * dx + dy * dy)), 0, 1)
    distance = np.hypot(x - t * dx, y - t * dy)
    return distance - (radius + t * (end_radius - radius))


def blob(rng, x, y, centre, radius: float, rough: float = 0.25) -> np.ndarray:
    """Signed distance (roughly) to an irregular spot; rough is the size of its bulges over the radius."""
    dx, dy = x - float(centre[0]), y - float(centre[1])
    angle = np.arctan2(dy, dx)
    wave = sum(rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 8))
    return np.hypot(dx, dy) - radius * np.clip(1 + rough * wave, 0.4, 1.8)


def random_curve(rng, start, heading: float, length: float, bend: float, steps: int = 40) -> np.ndarray:
    """Points (steps, 2) of a smooth curve; bend is the standard deviation of its turning in radians."""
    turning = ndimage.gaussian_filter1d(rng.standard_normal(steps), steps / 6, mode="nearest")
    turning = turning / (turning.std() + 1e-9) * bend / np.sqrt(steps)
    angle = heading + np.cumsum(turning)
    step = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length / steps
    return np.asarray(start) + np.cumsum(step, axis=0)


def stroke(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Cover (n, n) in [0, 1] of a line through points (k, 2); width is one number or one per segment."""
    pixels = (np.asarray(points) + 0.5) * CELLS
    widths = np.broadcast_to(np.asarray(width) * CELLS, (len(pixels) - 1,))
    image = Image.new("L", (CELLS, CELLS))
    pen = ImageDraw.Draw(image)
    for a, b, w in zip(pixels[:-1], pixels[1:], widths, strict=True):
        pen.line([tuple(a), tuple(b)], fill=255, width=max(1, round(w)))
        if w >= 3:
            pen.ellipse([*(b - w / 2 + 0.5), *(b + w / 2 - 0.5)], fill=255)
    return ndimage.gaussian_filter(np.asarray(image, dtype=np.float32) / 255, 0.7)


def paint(layers: Layers, share: np.ndarray, colour=None, gloss: float | None = None, lift=0.0) -> None:
    """Lay a coat over the layers in place: share (n, n) in [0, 1], colour (3, 1, 1) or (3, n, n)."""
    if colour is not None:
        for channel, tint in zip(layers.albedo, colour, strict=True):  # one at a time stays in the cache
            channel += share * (tint - channel)
    if gloss is not None:
        layers.gloss += share * (gloss - layers.gloss)
    layers.height += lift * share


def _cast_shadow(height: np.ndarray, light: np.ndarray, soft: float) -> np.ndarray:
    """Lit share (n, n) in [0, 1] of a relief, found by steps towards the lamp; soft is the blur in cells."""
    slope = light[2] / np.hypot(*light[:2])  # rise of the ray per image width
    reach = int(np.ceil((height.max() - height.min()) / slope * CELLS))
    stride = max(1, reach // 10)
    direction = light[:2] / np.hypot(*light[:2])
    padded = np.pad(height, reach + 1, mode="edge")
    blocker = np.full_like(height, -1)
    for k in range(stride, reach + 1, stride):
        row, col = (reach + 1 + np.rint(k * direction[::-1])).astype(int)
        np.maximum(
            blocker, padded[row : row + CELLS, col : col + CELLS] - np.float32(k * slope / CELLS), out=blocker
        )
    shade = np.clip((blocker - height) / np.float32(max(stride * slope / CELLS, 1e-6)), 0, 1)
    return 1 - ndimage.gaussian_filter(shade, soft, truncate=2.5)


def shade(layers: Layers, shot: Shot, ambient: float, soft: float, shininess: float = 24.0) -> np.ndarray:
    """Light leaving the layers, (3, n, n) linear: diffuse, specular, cast shadow and darkened corners.

    ambient is the share of light from everywhere, soft the blur of the cast shadow in image widths.
    """
    gy, gx = np.gradient(layers.height * np.float32(CELLS))
    norm = 1 / np.sqrt(1 + gx * gx + gy * gy)
    lx, ly, lz = shot.light
    lit = _cast_shadow(layers.height, shot.light, max(0.6, soft * CELLS))
    diffuse = np.maximum((lz - gx * lx - gy * ly) * norm, 0) / lz
    half = shot.light + np.array([0, 0, 1], dtype=np.float32)
    half /= np.linalg.norm(half)
    glint = np.maximum((half[2] - gx * half[0] - gy * half[1]) * norm, 0) ** shininess  # Blinn and Phong
    around = ndimage.gaussian_filter(layers.height[::2, ::2], 0.008 * CELLS / 2, truncate=2.5)
    around = around.repeat(2, axis=0).repeat(2, axis=1)
    corner = np.clip(1 - 14 * (around - layers.height), 0.5, 1.05)
    power = ambient * corner + (1 - ambient) * lit * diffuse
    return layers.albedo * power + layers.gloss * glint * (0.25 + 0.75 * lit)


def expose(linear: np.ndarray, shot: Shot) -> np.ndarray:
    """Noise-free photograph (SIZE, SIZE, 3), grey levels in [0, 255], of linear light (3, n, n)."""
    small = sum(linear[:, i::2, j::2] for i in range(2) for j in range(2)) / 4
    x, y = grid(SIZE)
    (cx, cy), (tx, ty) = shot.centre, shot.tilt
    lamp = 1 - shot.falloff * 4 * ((x - cx) ** 2 + (y - cy) ** 2) + x * tx + y * ty
    small = ndimage.gaussian_filter(small, (0, shot.blur * SIZE, shot.blur * SIZE))
    small = small * lamp * shot.exposure
    small = np.where(small > 0.7, 0.7 + 0.3 * np.tanh((small - 0.7) / 0.3), small)  # the film's shoulder
    return np.ascontiguousarray(np.moveaxis(255 * np.maximum(small, 0) ** (1 / GAMMA), 0, 2))


def add_noise(image: np.ndarray, shot: Shot, rng: np.random.Generator) -> np.ndarray:
    """Photograph (H, W, 3) uint8 with sensor noise that grows with the light, mostly shared by channels."""
    shared = rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    single = rng.standard_normal(image.shape, dtype=np.float32)
    sigma = shot.noise * np.sqrt(0.35 + 0.65 * image / 128)
    return np.clip(np.rint(image + sigma * (0.75 * shared + 0.5 * single)), 0, 255).astype(np.uint8)


def changed_pixels(flawed: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Mask (H, W) bool of the pixels that differ by more than CHANGED grey levels in some channel.

    Gaps of up to four pixels are closed, and specks dropped that are fewer than a 10 000th of the image or a
    tenth of the largest region, so that one defect is one region or few: region measures such as PRO would
    otherwise count every speck.
    """
    mask = np.abs(flawed - sound).max(axis=2) > CHANGED
    square = np.ones((3, 3), dtype=bool)
    closed = ndimage.binary_closing(np.pad(mask, 4), square, iterations=2)[4:-4, 4:-4]
    labels, count = ndimage.label(closed, structure=square)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    keep = areas >= max(3, mask.size / 10_000, areas.max() / 10)
    return keep[labels]
