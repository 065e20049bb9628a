"""Normal and anomalous pairs: a texture blended into a normal image inside a Perlin-noise mask.

The paper distils on such pairs [paper]; the recipe is that of DRAEM as the same authors' published code uses
it [authors]; batches on any device, noise by rotated coordinates, procedural textures are ours [ours].

Legend: B images, H x W pixels. Every random step takes a torch.Generator on the images' device.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from .config import NO_FOREGROUND, Config

LATTICE = 64  # gradients per side, a power of two; coordinates beyond wrap around
CHUNK = 4  # pairs that are made at a time on a CPU, so that they stay in its cache


class Pairs(NamedTuple):
    """normal and anomalous (B, 3, H, W) in [0, 1]; mask (B, H, W) of 0 and 1. Outside the mask both views
    are identical; no mask is empty."""

    normal: Tensor
    anomalous: Tensor
    mask: Tensor


def perlin_noise(gradients: Tensor, cells: Tensor, angles: Tensor, shift: Tensor, size) -> Tensor:
    """Perlin noise (B, H, W), about in [-1, 1] and 0 at every lattice point.

    gradients: directions in radians (B, L, L), L = LATTICE; cells (B,): lattice cells along an image's
    height; angles (B,): rotation in radians; shift (B, 2): of the lattice, in cells, in [0, L). Rotating the
    coordinates leaves no empty corners, and shifting them favours no pixel.
    """
    height, width = size
    y, x = torch.meshgrid(
        torch.arange(height, device=cells.device) / height,
        torch.arange(width, device=cells.device) / height,
        indexing="ij",
    )
    cos, sin = (f(angles)[:, None, None] for f in (torch.cos, torch.sin))
    cells, shift = cells[:, None, None], shift[:, :, None, None] + LATTICE
    u = (cos * x - sin * y) * cells + shift[:, 0]  # B, H, W
    v = (sin * x + cos * y) * cells + shift[:, 1]
    u0, v0 = u.floor(), v.floor()
    fu, fv, column, row = u - u0, v - v0, u0.int(), v0.int()
    slopes = torch.cos(gradients).flatten(), torch.sin(gradients).flatten()
    # all images' gradients lie in one row: `first` is where an image's begin
    first = LATTICE**2 * torch.arange(len(cells), dtype=torch.int32, device=cells.device)[:, None, None]
    columns = [(column + du) & (LATTICE - 1) for du in (0, 1)]
    rows = [
        ((row + dv) & (LATTICE - 1)) * LATTICE + first for dv in (0, 1)
    ]  # where a row of an image's lattice begins
    corners = [_corner(slopes, rows[dv] + columns[du], fu - du, fv - dv) for dv in (0, 1) for du in (0, 1)]
    su, sv = _fade(fu), _fade(fv)
    return math.sqrt(2) * torch.lerp(
        torch.lerp(corners[0], corners[1], su), torch.lerp(corners[2], corners[3], su), sv
    )


def _corner(slopes: tuple[Tensor, Tensor], index: Tensor, du: Tensor, dv: Tensor) -> Tensor:
    """Dot product of one lattice corner's gradient with the way (du, dv) from that corner. (B, H, W)"""
    x, y = (slope.index_select(0, index.flatten()).view_as(du) for slope in slopes)
    return torch.addcmul(x * du, y, dv)


def _fade(t: Tensor) -> Tensor:
    return t * t * t * (t * (6 * t - 15) + 10)


def random_perlin(batch: int, size, scales, rotation: float, rng: Generator) -> Tensor:
    """Perlin noise (B, H, W) with 2^k cells, k drawn from [scales[0], scales[1]), rotated by up to
    +- `rotation` degrees."""
    device = rng.device
    gradients = 2 * math.pi * torch.rand(batch, LATTICE, LATTICE, generator=rng, device=device)
    cells = 2.0 ** torch.randint(scales[0], scales[1], (batch,), generator=rng, device=device)
    angles = (2 * torch.rand(batch, generator=rng, device=device) - 1) * math.radians(rotation)
    shift = LATTICE * torch.rand(batch, 2, generator=rng, device=device)
    return perlin_noise(gradients, cells, angles, shift, size)


def threshold_noise(noise: Tensor, foreground: Tensor, threshold: float) -> Tensor:
    """Where noise exceeds the threshold within the foreground (both (B, H, W)): a mask of 0 and 1.

    Perlin noise may nowhere exceed it: then the threshold falls just below the foreground's highest value,
    so that no mask is empty. [ours]
    """
    inside = torch.where(foreground, noise, torch.full_like(noise, -torch.inf))
    highest = inside.amax((1, 2), keepdim=True)
    return (inside > torch.clamp(highest - 0.1, max=threshold)).float()


def procedural_texture(batch: int, size, rng: Generator) -> Tensor:
    """Textures (B, 3, H, W) in [0, 1] without any file: stripes bent by Perlin noise between two random
    colours, grey to vivid, with a finer noise and grain on top. [ours]"""
    device = rng.device

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=rng, device=device)

    coarse = random_perlin(batch, size, (1, 5), 90, rng)
    fine = random_perlin(batch, size, (4, 7), 90, rng)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, s, device=device) for s in size), indexing="ij")
    angle, cycles = uniform(batch, 1, 1, high=math.pi), 2 ** uniform(batch, 1, 1, low=1.0, high=6.0)
    phase = (torch.cos(angle) * x + torch.sin(angle) * y) * cycles + uniform(batch, 1, 1, high=4.0) * coarse
    stripes = torch.sin(2 * math.pi * phase)
    mix = uniform(batch, 3, 1, 1)
    mix = mix / mix.sum(1, keepdim=True)
    level = 0.5 + mix[:, 0] * stripes / 2 + mix[:, 1] * coarse + mix[:, 2] * fine
    grey, tint = uniform(2, batch, 1, 1, 1), uniform(2, batch, 1, 1, 1)
    first, second = torch.lerp(grey, uniform(2, batch, 3, 1, 1), tint)
    grain = torch.randn(batch, 1, *size, generator=rng, device=device) * uniform(batch, 1, 1, 1, high=0.1)
    return (torch.lerp(first, second, level[:, None]) + grain).clamp(0, 1)


def augment_texture(textures: Tensor, rng: Generator) -> Tensor:
    """Random mirror, quarter turn, channel order, inversion, contrast and gamma of each texture
    (B, 3, H, W) in [0, 1], in place of DRAEM's imgaug set. [ours]"""
    batch, device = textures.shape[0], textures.device

    def coin():
        return torch.rand(batch, 1, 1, 1, generator=rng, device=device) < 0.5

    def uniform(low, high):
        return low + (high - low) * torch.rand(batch, 3, 1, 1, generator=rng, device=device)

    out = torch.where(coin(), textures.flip(3), textures)
    out = torch.where(coin(), out.flip(2), out)
    if out.shape[2] == out.shape[3]:
        out = torch.where(coin(), out.transpose(2, 3), out)
    order = torch.rand(batch, 3, generator=rng, device=device).argsort(1)
    out = out.gather(1, order[:, :, None, None].expand_as(out))
    out = torch.where(coin() & coin(), 1 - out, out)
    out = out.clamp(1e-4, 1) ** torch.exp(uniform(-0.5, 0.5))
    return ((out - 0.5) * uniform(0.6, 1.4) + 0.5 + uniform(-0.15, 0.15)).clamp(0, 1)


class PairSynthesizer:
    """Makes pairs from normal images, on their device.

    textures: uint8 (T, 3, H, W) of the images' size on the same device, or None for procedural ones.
    """

    def __init__(self, config: Config, textures: Tensor | None = None):
        self.config, self.textures = config, textures

    def __call__(self, normal: Tensor, foreground: Tensor | None, rng: Generator) -> Pairs:
        """normal (B, 3, H, W) in [0, 1]; foreground bool (B, H, W), None = everywhere; -> Pairs."""
        size = CHUNK if normal.device.type == "cpu" else len(normal)
        parts = []
        for start in range(0, len(normal), size):
            here = slice(start, start + size)
            parts.append(self._few(normal[here], None if foreground is None else foreground[here], rng))
        return Pairs(normal, *(torch.cat(part) for part in zip(*parts, strict=True)))

    def _few(self, normal: Tensor, foreground: Tensor | None, rng: Generator) -> tuple[Tensor, Tensor]:
        """Anomalous views and masks of a few images."""
        batch, _, *size = normal.shape
        options = self.config
        noise = random_perlin(batch, size, options.perlin_scales, options.perlin_rotation, rng)
        if foreground is None:
            foreground = torch.ones_like(noise, dtype=torch.bool)
        mask = threshold_noise(noise, foreground, options.perlin_threshold)
        low, high = options.opacity
        opacity = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=normal.device)
        blended = torch.lerp(normal, self.texture(batch, size, rng), opacity)
        return torch.where(mask[:, None] > 0, blended, normal), mask

    def texture(self, batch: int, size, rng: Generator) -> Tensor:
        """Anomaly textures (B, 3, H, W) in [0, 1]."""
        if self.textures is None:
            return procedural_texture(batch, size, rng)
        index = torch.randint(len(self.textures), (batch,), generator=rng, device=rng.device)
        return augment_texture(self.textures[index].float() / 255, rng)


def foreground_mask(image: np.ndarray) -> np.ndarray | None:
    """Where the object is: uint8 (H, W, 3) -> bool (H, W), or None where no object stands out.

    Distance to the border's median colour, cut by Otsu's threshold, holes filled. None if the border itself
    is mixed, or the object is under 3 % of the image (small or flat objects). [ours, for the authors' idea]
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (2, 2, 0))
    rim = max(2, round(0.02 * min(image.shape[:2])))
    border = np.ones(image.shape[:2], bool)
    border[rim:-rim, rim:-rim] = False
    distance = np.linalg.norm(smooth - np.median(smooth[border], axis=0), axis=2)
    mask = ndimage.binary_fill_holes(distance > otsu_threshold(distance))
    mask = ndimage.binary_opening(mask, iterations=2)
    mask = ndimage.binary_dilation(mask, iterations=2)
    separated = distance[mask].mean() > 4 * distance[~mask].mean() if mask.any() and not mask.all() else False
    return mask if separated and mask[border].mean() < 0.3 and mask.mean() > 0.03 else None


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that separates the values into the two most distinct classes (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.argmax(np.nan_to_num(between, nan=-1.0))])


def foreground_masks(images: Tensor, category: str, mode: str = "auto") -> Tensor | None:
    """Masks bool (N, H, W) for training images uint8 (N, 3, H, W), or None where anomalies may lie anywhere:
    mode 'none', a texture of NO_FOREGROUND, or no object found in a fifth of the images or more."""
    if mode == "none" or category in NO_FOREGROUND:
        return None
    found = [foreground_mask(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
    if sum(mask is None for mask in found) * 5 >= len(found):
        return None
    everywhere = np.ones(images.shape[-2:], bool)
    return torch.from_numpy(np.stack([everywhere if mask is None else mask for mask in found]))


def step_generator(seed: int, purpose: str, step: int, device="cpu") -> Generator:
    """The generator of one step and purpose, so that any step's pairs can be made again on their own."""
    words = [seed, *purpose.encode(), step]
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    )
