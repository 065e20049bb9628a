"""Procedural anomaly textures, for training without a folder of textures. [ours]"""

import math

import torch
from torch import Tensor

from ..config import Size, height_width
from ..pairs import random_perlin, step_generator

COUNT, BATCH = 256, 8  # textures of a training, and how many are drawn at once


@torch.no_grad()
def procedural_textures(size: Size, seed: int = 0, count: int = COUNT) -> Tensor:
    """Textures uint8 (count, 3, H, W) of this size, the same for the same seed: stripes bent by Perlin
    noise between two random colours, grey to vivid, with a finer noise and grain on top."""
    rng = step_generator(seed, "textures", 0)
    parts = [_draw(min(BATCH, count - start), height_width(size), rng) for start in range(0, count, BATCH)]
    return (255 * torch.cat(parts)).round().to(torch.uint8)


def _draw(batch: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=rng)

    coarse, fine = (random_perlin(batch, size, scales, rng) for scales in ((1, 5), (4, 7)))
    angle, cycles = uniform(batch, 1, 1, high=math.pi), 2 ** uniform(batch, 1, 1, low=1.0, high=6.0)
    y, x = (torch.linspace(0, side / min(size), side) for side in size)
    y, x = y[:, None], x[None]
    straight = torch.cos(angle) * x + torch.sin(angle) * y
    wave = torch.sin(2 * math.pi * (straight * cycles + uniform(batch, 1, 1, high=4.0) * coarse))
    mix = uniform(3, batch, 1, 1)
    mix = mix / mix.sum(0)
    level = 0.5 + mix[0] * wave / 2 + mix[1] * coarse + mix[2] * fine
    grey, vivid, tint = uniform(2, batch, 1, 1, 1), uniform(2, batch, 3, 1, 1), uniform(2, batch, 1, 1, 1)
    first, second = torch.lerp(grey, vivid, tint)
    grain = torch.randn(batch, 1, *size, generator=rng) * uniform(batch, 1, 1, 1, high=0.1)
    return (torch.lerp(first, second, level[:, None]) + grain).clamp(0, 1)
