"""The pictures that the embedded teacher learns from [ours]: patchworks of procedural materials, each drawn
once, and two views of each patchwork. No photograph is used, and no label made by people."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as tvf

from dmdd_lite.synthesis import random_perlin

PIECES = 4  # materials a picture, at most
CHANGED = 0.5  # share of views whose light, contrast and colours are not to be relied on
ANGLE, ZOOM, SHIFT = 0.4, 0.5, 0.25  # radians, octaves, half widths: how far the second view may be off


def draws(count: int, rng: Generator) -> Callable[..., Tensor]:
    """What draws (count, *shape) numbers, uniform in [low, high)."""

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(count, *shape, generator=rng)

    return uniform


def material_parameters(count: int, rng: Generator) -> dict[str, Tensor]:
    """What defines each material: two colours, two gratings, and the weights of waves, dots, coarse and fine
    noise, lines and blobs."""
    uniform = draws(count, rng)
    grey, tint = uniform(2, 1, 1, 1), uniform(2, 1, 1, 1)
    return {
        "colours": torch.lerp(grey, uniform(2, 3, 1, 1), tint),
        "angle": uniform(1, 1, high=math.pi),
        "cycles": 2 ** uniform(1, 1, low=1.0, high=4.5),
        "aspect": 2 ** uniform(1, 1, low=-1.0, high=1.0),
        "bend": uniform(1, 1, high=1.5),
        "sharp": uniform(1, 1, low=1.0, high=6.0),
        "thin": 2 ** uniform(1, 1, low=1.0, high=4.0),
        "level": uniform(1, 1, low=-0.6, high=0.6),
        "mix": torch.softmax(5 * uniform(6, 1, 1), dim=1),
        "grain": uniform(1, 1, 1, high=0.12),
    }


def render_materials(p: dict[str, Tensor], size: int, rng: Generator) -> Tensor:
    """One picture (B, 3, size, size) in [0, 1] of each material, never the same twice."""
    batch = len(p["angle"])
    uniform = draws(batch, rng)
    coarse = random_perlin(batch, (size, size), (1, 3), 180, rng)
    fine = random_perlin(batch, (size, size), (3, 5), 180, rng)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    cos, sin = torch.cos(p["angle"]), torch.sin(p["angle"])
    u = (cos * x + sin * y) * p["cycles"] + uniform(1, 1) + p["bend"] * coarse / 3
    v = (cos * y - sin * x) * p["cycles"] * p["aspect"] + uniform(1, 1)
    waves = torch.tanh(p["sharp"] * torch.sin(2 * math.pi * u))
    dots = torch.tanh(p["sharp"] * (torch.sin(2 * math.pi * u) * torch.sin(2 * math.pi * v) - 0.3))
    lines = 1 - 2 * torch.tanh((p["thin"] * coarse).abs())
    blobs = torch.tanh(4 * p["sharp"] * (fine - p["level"]))
    drawn = (waves / 2, dots / 2, coarse, fine, lines / 2, blobs / 2)
    level = 0.5 + sum(share * one for share, one in zip(p["mix"].unbind(1), drawn, strict=True))
    picture = torch.lerp(p["colours"][:, 0], p["colours"][:, 1], level[:, None])
    picture = picture + p["grain"] * torch.randn(batch, 1, size, size, generator=rng)
    return picture.clamp(0, 1)


def patchworks(batch: int, size: int, rng: Generator) -> Tensor:
    """Pictures (B, 3, size, size) in [0, 1] of one to PIECES materials each."""
    pieces = render_materials(material_parameters(batch * PIECES, rng), size, rng)
    return patch(pieces.unflatten(0, (batch, PIECES)), rng)


def patch(pieces: Tensor, rng: Generator) -> Tensor:
    """Pieces (B, PIECES, 3, H, W) side by side in one picture (B, 3, H, W), each but the first left out of
    half of the pictures."""
    batch, _, _, *size = pieces.shape
    uniform = draws(batch, rng)
    noise = random_perlin(batch * PIECES, size, (0, 4), 180, rng).unflatten(0, (batch, PIECES))
    height = noise + 0.4 * uniform(PIECES, 1, 1)
    height[:, 1:] -= 9.0 * (uniform(PIECES - 1, 1, 1) < 0.5)
    return pieces.gather(1, height.argmax(1)[:, None, None].expand(-1, 1, 3, -1, -1))[:, 0]


def two_views(pictures: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) twice (2B, 3, S, S), in [0, 1]: as they are and turned, zoomed and shifted, each
    in a light of its own; and the affine maps (B, 2, 3) from places of the second to those of the first, in
    the coordinates of `affine_grid`."""
    uniform = draws(len(pictures), rng)
    angle, zoom = uniform(low=-ANGLE, high=ANGLE), 2 ** uniform(low=-ZOOM, high=ZOOM)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    shift = uniform(2, 1, low=-SHIFT, high=SHIFT)
    maps = torch.cat([torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1), shift], 2)
    grid = F.affine_grid(maps, list(pictures.shape), align_corners=False)
    second = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return relight(torch.cat([pictures, second]), rng), maps


def relight(pictures: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, S, S) under another, uneven light, the share CHANGED of them by `photometric`; with
    noise, in [0, 1]."""
    batch, size = len(pictures), pictures.shape[2:]
    uniform = draws(batch, rng)
    light = 1 + 0.25 * random_perlin(batch, size, (0, 2), 180, rng)[:, None]
    lit = pictures * light * uniform(1, 1, 1, low=0.85, high=1.15)
    lit = torch.where(uniform(1, 1, 1) < CHANGED, photometric(pictures, rng), lit)
    return (lit + 0.02 * torch.randn(pictures.shape, generator=rng)).clamp(0, 1)


def photometric(pictures: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with another gamma, contrast, balance of colours, saturation (a third
    is grey), brightness and uneven light each, two fifths of them blurred; no longer bounded."""
    batch, uniform = len(pictures), draws(len(pictures), rng)
    pictures = pictures.clamp_min(1e-3) ** torch.exp(uniform(1, 1, 1, low=-0.7, high=0.7))
    mean = pictures.mean((2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * torch.exp(uniform(1, 1, 1, low=-1.2, high=0.4))
    pictures = pictures * torch.exp(uniform(3, 1, 1, low=-0.25, high=0.25))
    grey = pictures.mean(1, keepdim=True)
    saturation = uniform(1, 1, 1, high=1.2) * (uniform(1, 1, 1) > 0.3)
    pictures = grey + (pictures - grey) * saturation + uniform(1, 1, 1, low=-0.25, high=0.25)
    pictures = pictures * (1 + 0.4 * random_perlin(batch, pictures.shape[2:], (0, 2), 180, rng)[:, None])
    blurred = tvf.gaussian_blur(pictures, [5, 5], [0.8, 0.8])
    return torch.where(uniform(1, 1, 1) < 0.4, blurred, pictures)
