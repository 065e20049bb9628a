"""Normal and anomalous pairs: a texture blended into a normal image inside a Perlin-noise mask.

The paper distils on such pairs [paper]; the recipe is that of DRAEM as the same authors' published code uses
it [authors]. The MSN learns from other alterations of the same normal images [ours].

Legend: B images, H x W pixels. Every random step takes a torch.Generator on the images' device.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config

LATTICE = 64  # Perlin gradients per side, a power of two; coordinates beyond wrap around
ROTATION = 90.0  # the noise is rotated by up to so many degrees [authors]


class Pairs(NamedTuple):
    """normal and anomalous (B, 3, H, W) in [0, 1]; mask (B, H, W) of 0 and 1. Outside the mask both views
    are identical; no mask is empty."""

    normal: Tensor
    anomalous: Tensor
    mask: Tensor


# ---- mask ---------------------------------------------------------------------------------------------


def perlin_noise(gradients: Tensor, cells: Tensor, angles: Tensor, shift: Tensor, size) -> Tensor:
    """Perlin noise (B, H, W), about in [-1, 1] and 0 at every lattice point.

    gradients: directions in radians (B, L, L), L = LATTICE; cells (B,): lattice cells along an image's
    height; angles (B,): rotation in radians; shift (B, 2): of the lattice, in cells, in [0, L). Rotating the
    coordinates leaves no empty corners, and shifting them favours no pixel [ours].
    """
    y, x = (torch.arange(n, device=cells.device) / size[0] for n in size)
    y, x = y[:, None], x[None]
    cos, sin, cells = (v[:, None, None] for v in (torch.cos(angles), torch.sin(angles), cells))
    uv = torch.stack((cos * x, sin * x)) * cells + torch.stack((-sin * y, cos * y)) * cells  # 2, B, H, W
    uv = uv + shift.T[:, :, None, None] + LATTICE
    corner = uv.floor()
    near = uv - corner  # position in the cell, in [0, 1)
    fade = near**3 * (near * (6 * near - 15) + 10)
    lookup = _gradient_lookup(gradients, corner)

    def ramp(du, dv):  # dot product of one corner's gradient with the position relative to that corner
        gradient_u, gradient_v = lookup(du, dv)
        return gradient_u * (near[0] - du) + gradient_v * (near[1] - dv)

    above, below = (torch.lerp(ramp(0, dv), ramp(1, dv), fade[0]) for dv in (0, 1))
    return math.sqrt(2) * torch.lerp(above, below, fade[1])


def _gradient_lookup(gradients: Tensor, corner: Tensor):
    """A function of (du, dv) that gives both components (B, H, W) of the gradients at corner + (du, dv).

    The lattice is extended by one row and one column, so that one index of a flat table serves all corners.
    """
    side = LATTICE + 1
    table = F.pad(gradients[:, None], (0, 1, 0, 1), mode="circular").flatten()
    components = torch.cos(table), torch.sin(table)
    column, row = corner.int() & (LATTICE - 1)
    first = side**2 * torch.arange(len(gradients), dtype=torch.int32, device=table.device)
    index = (row * side + column + first[:, None, None]).flatten()

    def lookup(du, dv):
        return (part[du + dv * side :].index_select(0, index).view_as(column) for part in components)

    return lookup


def random_perlin(batch: int, size, scales, rng: Generator) -> Tensor:
    """Perlin noise (B, H, W) with 2^k cells along the shorter side, k drawn from [scales[0], scales[1]),
    randomly rotated."""

    def uniform(*shape):
        return torch.rand(*shape, generator=rng, device=rng.device)

    gradients = 2 * math.pi * uniform(batch, LATTICE, LATTICE)
    cells = 2.0 ** torch.randint(scales[0], scales[1], (batch,), generator=rng, device=rng.device)
    cells = cells * (size[0] / min(size))  # along the height
    angles = (2 * uniform(batch) - 1) * math.radians(ROTATION)
    return perlin_noise(gradients, cells, angles, LATTICE * uniform(batch, 2), size)


def threshold_noise(noise: Tensor, foreground: Tensor | None, threshold: float) -> Tensor:
    """Where noise (B, H, W) exceeds the threshold within the foreground (bool, None = everywhere): a mask of
    0 and 1.

    Perlin noise may exceed it nowhere: then the threshold is just below the highest value of the foreground,
    so that no mask is empty. [ours]
    """
    inside = noise if foreground is None else noise.masked_fill(~foreground, -torch.inf)
    highest = inside.amax((1, 2), keepdim=True)
    return (inside > (highest - 0.1).clamp(max=threshold)).to(noise.dtype)


# ---- pairs --------------------------------------------------------------------------------------------


@torch.no_grad()
def augment_textures(textures: Tensor, rng: Generator) -> Tensor:
    """Random mirroring, quarter turn of squares, channel order, inversion, gamma, contrast and brightness
    of each texture (B, 3, H, W) in [0, 1], in place of DRAEM's imgaug set. [ours]"""
    batch, device = len(textures), textures.device

    def uniform(low, high):
        return low + (high - low) * torch.rand(batch, 3, 1, 1, generator=rng, device=device)

    def coin(probability=0.5):
        return torch.rand(batch, 1, 1, 1, generator=rng, device=device) < probability

    x = torch.where(coin(), textures.flip(3), textures)
    x = torch.where(coin(), x.flip(2), x)
    if x.shape[2] == x.shape[3]:
        x = torch.where(coin(), x.transpose(2, 3), x)
    order = torch.rand(batch, 3, generator=rng, device=device).argsort(1)
    x = x.gather(1, order[:, :, None, None].expand_as(x))
    x = torch.where(coin(0.25), 1 - x, x)
    x = x.clamp(min=1e-4) ** torch.exp(uniform(-0.5, 0.5))
    return ((x - 0.5) * uniform(0.6, 1.4) + 0.5 + uniform(-0.15, 0.15)).clamp(0, 1)


class PairSynthesizer:
    """Makes pairs from normal images, on their device. textures: uint8 (T, 3, H, W) of the images' size."""

    def __init__(self, config: Config, textures: Tensor):
        self.config, self.textures = config, textures

    @torch.no_grad()
    def __call__(self, normal: Tensor, foreground: Tensor | None, rng: Generator) -> Pairs:
        """normal (B, 3, H, W) in [0, 1]; foreground bool (B, H, W), None = everywhere; -> Pairs."""
        batch, device = len(normal), normal.device
        noise = random_perlin(batch, normal.shape[2:], self.config.perlin_scales, rng)
        mask = threshold_noise(noise, foreground, self.config.perlin_threshold)
        chosen = torch.randint(len(self.textures), (batch,), generator=rng, device=device)
        texture = augment_textures(self.textures[chosen].float() / 255, rng)
        low, high = self.config.opacity
        opacity = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=device)
        blended = torch.lerp(normal, texture, opacity)
        return Pairs(normal, torch.where(mask[:, None] > 0, blended, normal), mask)


def step_generator(seed: int, purpose: str, step: int, device="cpu") -> Generator:
    """The generator of one step and purpose, so that the pairs of any step can be made again on their own."""
    words = [seed, *purpose.encode(), step]
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    )


# ---- what the MSN learns from -------------------------------------------------------------------------


@torch.no_grad()
def alter(normal: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], each altered within its mask (B, H, W) of 0 and 1, with soft borders, in
    one of six ways: brightness, contrast of detail, blur, noise, tint, or the content of another image of the
    batch, mirrored; -> (B, 3, H, W) in [0, 1]. H and W at least 16.

    The branches have learned to tell pasted textures. What combines their maps must learn from anomalies that
    they have not seen, as in stacking (Wolpert, 1992). [ours]
    """
    batch, device = len(normal), normal.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=device)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, device=device)

    with torch.autocast(device.type, enabled=False):  # filters are convolutions
        soft = gaussian_blur(mask[:, None].to(normal.dtype), [5, 5], [1.0, 1.0])
        around = gaussian_blur(normal, [31, 31], [8.0, 8.0])
        blurred = gaussian_blur(normal, [11, 11], [2.5, 2.5])
    sign = (uniform(-1, 1) > 0).to(normal.dtype) * 2 - 1
    detail = torch.where(uniform(0, 1) < 0.5, uniform(0, 0.4), uniform(1.8, 3))
    ways = torch.stack(
        (
            normal + sign * uniform(0.04, 0.3),
            torch.lerp(around, normal, detail),
            blurred,
            normal + uniform(0.04, 0.15) * gaussian(1, *normal.shape[2:]),
            normal * (1 + sign * uniform(0.1, 0.4)) * torch.exp(0.2 * gaussian(3, 1, 1)),
            normal.roll(1, 0).flip(3),
        )
    )
    way = torch.randint(len(ways), (batch,), generator=rng, device=device)
    altered = torch.lerp(normal, ways[way, torch.arange(batch, device=device)], soft).clamp(0, 1)
    return altered.contiguous(memory_format=torch.channels_last)


class PairSource:
    """The pairs of every step, each a function of the seed and the step alone, so that a checkpoint needs no
    generator state. images uint8 (N, 3, H, W), foreground bool (N, H, W) or None, textures uint8."""

    def __init__(self, config: Config, images: Tensor, foreground: Tensor | None, textures: Tensor):
        self.config, self.images, self.foreground = config, images, foreground
        self.synthesizer = PairSynthesizer(config, textures)

    def indices(self, step: int) -> Tensor:
        """Which images the step sees, (B,) on the CPU: a new order every epoch."""
        count, start = len(self.images), step * self.config.batch_size
        epochs = range(start // count, (start + self.config.batch_size - 1) // count + 1)
        rngs = (step_generator(self.config.seed, "order", epoch) for epoch in epochs)
        order = torch.cat([torch.randperm(count, generator=rng) for rng in rngs])
        return order[start - epochs[0] * count :][: self.config.batch_size]

    def batch(self, step: int) -> Pairs:
        """`batch_size` pairs on the images' device."""
        index = self.indices(step).to(self.images.device)
        foreground = None if self.foreground is None else self.foreground[index]
        rng = step_generator(self.config.seed, "pairs", step, self.images.device)
        return self.synthesizer(self.images[index].float() / 255, foreground, rng)

    def altered(self, pairs: Pairs, step: int) -> Tensor:
        """What the MSN learns from instead of the pairs' textures: the normal views, altered where the pair's
        mask is, (B, 3, H, W) in [0, 1]. [ours]"""
        rng = step_generator(self.config.seed, "alterations", step, pairs.normal.device)
        return alter(pairs.normal, pairs.mask, rng)
