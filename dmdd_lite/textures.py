"""Perlin noise, and the textures that fill a mask: drawn ones and changed pictures.

Random numbers are drawn first and kept in tuples, so that noise and textures can be evaluated at whole images
or at a mask's pixels alone; both are the same formulas. Noise by rotated coordinates and procedural textures
are ours [ours].

Legend: B images, H x W pixels, P of them. Every draw takes a torch.Generator on the images' device.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

LATTICE = 64  # gradients per side, a power of two; coordinates beyond wrap around

Pixels = tuple[Tensor, Tensor]  # rows and columns: (H, 1) and (1, W) for whole images, (1, P) for P pixels


class Noise(NamedTuple):
    """What Perlin noise is made of, see `perlin_noise`."""

    gradients: Tensor
    cells: Tensor
    angles: Tensor
    shift: Tensor


def every_pixel(size, device) -> Pixels:
    """Rows (H, 1) and columns (1, W) of an image of that size."""
    height, width = size
    return torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]


def perlin_noise(
    gradients: Tensor, cells: Tensor, angles: Tensor, shift: Tensor, size, pixels: Pixels | None = None
) -> Tensor:
    """Perlin noise (B, H, W), about in [-1, 1] and 0 at every lattice point; (B, 1, P) at P pixels.

    gradients: directions in radians (B, L, L), L = LATTICE; cells (B,): lattice cells along an image's
    height; angles (B,): rotation in radians; shift (B, 2): of the lattice, in cells, in [0, L). Rotating the
    coordinates leaves no empty corners, and shifting them favours no pixel.
    """
    y, x = (place / size[0] for place in pixels or every_pixel(size, cells.device))
    cos, sin, cells = (v[:, None, None] for v in (torch.cos(angles), torch.sin(angles), cells))
    # coordinates u and v in cells (2, B, H, W): what the column adds and what the row adds
    uv = torch.stack((cos * x, sin * x)) * cells + torch.stack((-sin * y, cos * y)) * cells
    uv += shift.T[:, :, None, None] + LATTICE
    corner = uv.floor()
    near = uv.sub_(corner)  # way from the corner before, in [0, 1)
    fade = near**3 * (near * (6 * near - 15) + 10)
    way, lookup = (near, near - 1), _gradient_lookup(gradients, corner)

    def ramp(du, dv):  # dot product of one corner's gradient with the way from it
        gradient_u, gradient_v = lookup(du, dv)
        return torch.addcmul(gradient_u * way[du][0], gradient_v, way[dv][1])

    above, below = (torch.lerp(ramp(0, dv), ramp(1, dv), fade[0]) for dv in (0, 1))
    return math.sqrt(2) * torch.lerp(above, below, fade[1])


def _gradient_lookup(gradients: Tensor, corner: Tensor):
    """A function of (du, dv) that looks up both components (B, H, W) of the gradients at corner + (du, dv).

    The lattice is continued by one row and one column, so that the corners behind lie a fixed number of
    places further in the flat table: one index serves all four.
    """
    side = LATTICE + 1
    table = functional.pad(gradients[:, None], (0, 1, 0, 1), mode="circular").flatten()
    components = torch.cos(table), torch.sin(table)
    column, row = corner.int() & (LATTICE - 1)
    first = side**2 * torch.arange(len(gradients), dtype=torch.int32, device=table.device)
    index = (torch.add(column, row, alpha=side) + first[:, None, None]).flatten()

    def lookup(du, dv):
        return (part[du + dv * side :].index_select(0, index).view_as(column) for part in components)

    return lookup


def draw_noise(batch: int, scales, rotation: float, rng: Generator) -> Noise:
    """Draws for noise with 2^k cells, k from [scales[0], scales[1]), rotated by up to +- `rotation`
    degrees."""
    device = rng.device
    gradients = 2 * math.pi * torch.rand(batch, LATTICE, LATTICE, generator=rng, device=device)
    cells = 2.0 ** torch.randint(scales[0], scales[1], (batch,), generator=rng, device=device)
    angles = (2 * torch.rand(batch, generator=rng, device=device) - 1) * math.radians(rotation)
    return Noise(gradients, cells, angles, LATTICE * torch.rand(batch, 2, generator=rng, device=device))


def random_perlin(batch: int, size, scales, rotation: float, rng: Generator) -> Tensor:
    """Perlin noise (B, H, W) with 2^k cells, k drawn from [scales[0], scales[1]), rotated by up to
    +- `rotation` degrees."""
    return perlin_noise(*draw_noise(batch, scales, rotation, rng), size)


class Stripes(NamedTuple):
    """Draws of procedural textures: two noises (B, 2, ...), a coarse and a fine one; colours (B, 3, 1, 1);
    grain (B, 1, H, W); the rest (B, 1, 1)."""

    noises: Noise
    angle: Tensor
    cycles: Tensor
    bend: Tensor
    mix: Tensor  # shares of stripes, coarse and fine noise, (B, 3, 1, 1)
    first: Tensor
    second: Tensor
    grain: Tensor
    graininess: Tensor  # (B, 1, 1, 1)


def draw_stripes(batch: int, size, rng: Generator) -> Stripes:
    """Draws for `stripes`."""
    device = rng.device

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=rng, device=device)

    noises = (draw_noise(batch, scales, 90, rng) for scales in ((1, 5), (4, 7)))
    noises = Noise(*(torch.stack(pair, 1) for pair in zip(*noises, strict=True)))
    angle, cycles = uniform(batch, 1, 1, high=math.pi), 2 ** uniform(batch, 1, 1, low=1.0, high=6.0)
    bend, mix = uniform(batch, 1, 1, high=4.0), uniform(batch, 3, 1, 1)
    grey, tint = uniform(2, batch, 1, 1, 1), uniform(2, batch, 1, 1, 1)
    first, second = torch.lerp(grey, uniform(2, batch, 3, 1, 1), tint)
    grain = torch.randn(batch, 1, *size, generator=rng, device=device)
    graininess = uniform(batch, 1, 1, 1, high=0.1)
    mix = mix / mix.sum(1, keepdim=True)
    return Stripes(noises, angle, cycles, bend, mix, first, second, grain, graininess)


def stripes(drawn: Stripes, size, pixels: Pixels) -> Tensor:
    """Textures (B, 3, H, W) or (B, 3, 1, P) in [0, 1]: stripes bent by Perlin noise between two random
    colours, grey to vivid, with a finer noise and grain on top. [ours]"""
    y, x = (torch.linspace(0, 1, s, device=p.device)[p] for s, p in zip(size, pixels, strict=True))
    noises = perlin_noise(*(v.flatten(0, 1) for v in drawn.noises), size, pixels)
    coarse, fine = noises.unflatten(0, (-1, 2)).unbind(1)
    straight = torch.cos(drawn.angle) * x + torch.sin(drawn.angle) * y
    wave = torch.sin(2 * math.pi * (straight * drawn.cycles + drawn.bend * coarse))
    level = 0.5 + drawn.mix[:, 0] * wave / 2 + drawn.mix[:, 1] * coarse + drawn.mix[:, 2] * fine
    grain = drawn.grain.flatten(2)[..., pixels[0] * size[1] + pixels[1]] * drawn.graininess
    return (torch.lerp(drawn.first, drawn.second, level[:, None]) + grain).clamp(0, 1)


def procedural_texture(batch: int, size, rng: Generator) -> Tensor:
    """Textures (B, 3, H, W) in [0, 1] without any file, see `stripes`. [ours]"""
    return stripes(draw_stripes(batch, size, rng), size, every_pixel(size, rng.device))


class Change(NamedTuple):
    """Draws that change pictures: how they are turned (B, 1, 1), order of the channels (B, 3), whether they
    are inverted (B, 1, 1, 1), colours (B, 3, 1, 1)."""

    mirror: Tensor
    flip: Tensor
    turn: Tensor
    order: Tensor
    invert: Tensor
    gamma: Tensor
    contrast: Tensor
    brightness: Tensor


def draw_change(batch: int, size, rng: Generator) -> Change:
    """Draws for `changed_picture` and `augment_texture`; only square pictures take a quarter turn."""
    device = rng.device

    def coin():
        return torch.rand(batch, 1, 1, generator=rng, device=device) < 0.5

    def uniform(low, high):
        return low + (high - low) * torch.rand(batch, 3, 1, 1, generator=rng, device=device)

    mirror, flip = coin(), coin()
    turn = coin() if size[0] == size[1] else torch.zeros_like(flip)
    order = torch.rand(batch, 3, generator=rng, device=device).argsort(1)
    invert = (coin() & coin())[..., None]
    gamma = torch.exp(uniform(-0.5, 0.5))
    return Change(mirror, flip, turn, order, invert, gamma, uniform(0.6, 1.4), uniform(-0.15, 0.15))


def _turned(drawn: Change, size, pixels: Pixels) -> Tensor:
    """Which place of the flat picture each pixel shows: (B, H, W) or (B, 1, P)."""
    rows, columns = (torch.where(drawn.turn, *pair) for pair in (pixels[::-1], pixels))
    rows = torch.where(drawn.flip, size[0] - 1 - rows, rows)
    return rows * size[1] + torch.where(drawn.mirror, size[1] - 1 - columns, columns)


def _seen(pictures: Tensor, chosen: Tensor, drawn: Change, pixels: Pixels) -> Tensor:
    """Values of the chosen (B,) of the pictures (T, 3, H, W), turned and with their channels reordered, at
    the pixels: (B, 3, H, W) or (B, 3, 1, P)."""
    height, width = pictures.shape[2:]
    channel = (3 * chosen[:, None] + drawn.order)[:, :, None, None]  # among all pictures' channels
    index = height * width * channel + _turned(drawn, (height, width), pixels)[:, None]
    return pictures.flatten().index_select(0, index.flatten()).view_as(index)


def _recolour(values: Tensor, drawn: Change) -> Tensor:
    """Inversion, gamma, contrast and brightness of values (B, 3, h, w) in [0, 1]."""
    values = torch.where(drawn.invert, 1 - values, values)
    values = values.clamp(1e-4, 1) ** drawn.gamma
    return ((values - 0.5) * drawn.contrast + 0.5 + drawn.brightness).clamp(0, 1)


def changed_picture(pictures: Tensor, chosen: Tensor, drawn: Change, pixels: Pixels) -> Tensor:
    """Of pictures uint8 (T, 3, H, W) those chosen (B,), changed as drawn: (B, 3, H, W) or (B, 3, 1, P) in
    [0, 1]. A picture has 256 levels, so its colours are changed once a level and then looked up."""
    levels = _recolour(torch.arange(256, device=pictures.device).expand(1, 3, 1, -1) / 255, drawn)
    seen = _seen(pictures, chosen, drawn, pixels)
    return levels.flatten(2).gather(2, seen.flatten(2).long()).view_as(seen)


def augment_texture(textures: Tensor, rng: Generator) -> Tensor:
    """Random mirror, quarter turn, channel order, inversion, contrast and gamma of each texture
    (B, 3, H, W) in [0, 1], in place of DRAEM's imgaug set. [ours]"""
    batch, _, *size = textures.shape
    drawn, each = draw_change(batch, size, rng), torch.arange(batch, device=textures.device)
    return _recolour(_seen(textures, each, drawn, every_pixel(size, textures.device)), drawn)
