"""Normal and anomalous pairs: a texture blended into a normal image inside a Perlin-noise mask.

The paper distils on such pairs [paper]; the recipe is that of DRAEM as the same authors' published code uses
it [authors]. A GPU makes a batch at once, without waiting for it. A CPU makes an image a thread and textures
at the mask's pixels alone [ours].

Legend: B images, H x W pixels. Every random step takes a torch.Generator on the images' device.
"""

import contextlib
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor

from .config import NO_FOREGROUND, Config
from .textures import (
    LATTICE,
    Change,
    Noise,
    Stripes,
    augment_texture,
    changed_picture,
    draw_change,
    draw_noise,
    draw_stripes,
    every_pixel,
    perlin_noise,
    procedural_texture,
    random_perlin,
    stripes,
)

__all__ = [
    "LATTICE",
    "PairSynthesizer",
    "Pairs",
    "augment_texture",
    "foreground_mask",
    "foreground_masks",
    "otsu_threshold",
    "perlin_noise",
    "procedural_texture",
    "random_perlin",
    "step_generator",
    "threshold_noise",
]

CHUNK = 4  # pairs whose random numbers a CPU draws together
THREADS = 4  # at most: more would wait for each other at Python's lock


class Pairs(NamedTuple):
    """normal and anomalous (B, 3, H, W) in [0, 1]; mask (B, H, W) of 0 and 1. Outside the mask both views
    are identical; no mask is empty."""

    normal: Tensor
    anomalous: Tensor
    mask: Tensor


class Draws(NamedTuple):
    """Random numbers of B pairs: noise, opacity (B, 1, 1, 1), and the textures' (chosen pictures (B,) and
    their change, or the stripes)."""

    noise: Noise
    opacity: Tensor
    chosen: Tensor | None
    texture: Change | Stripes


def only(drawn, i: int):
    """Draws, or a part of them, of pair i alone: a batch of one."""
    if isinstance(drawn, tuple):
        return type(drawn)(*(only(part, i) for part in drawn))
    return None if drawn is None else drawn[i : i + 1]


def threshold_noise(noise: Tensor, foreground: Tensor | None, threshold: float) -> Tensor:
    """Where noise (B, H, W) exceeds the threshold within the foreground (bool, None = everywhere): a mask of
    0 and 1.

    Perlin noise may nowhere exceed it: then the threshold falls just below the foreground's highest value,
    so that no mask is empty. [ours]
    """
    inside = noise if foreground is None else noise.masked_fill(~foreground, -torch.inf)
    highest = inside.amax((1, 2), keepdim=True)
    mask = torch.empty_like(noise)  # of floats at once: faster than to convert a bool mask
    return torch.gt(inside, torch.clamp(highest - 0.1, max=threshold), out=mask)


class PairSynthesizer:
    """Makes pairs from normal images, on their device.

    textures: uint8 (T, 3, H, W) of the images' size on the same device, or None for procedural ones.
    """

    def __init__(self, config: Config, textures: Tensor | None = None):
        self.config, self.textures = config, textures

    def __call__(self, normal: Tensor, foreground: Tensor | None, rng: Generator) -> Pairs:
        """normal (B, 3, H, W) in [0, 1]; foreground bool (B, H, W), None = everywhere; -> Pairs.

        The number of CPU threads changes nothing but the time.
        """
        if normal.device.type != "cpu":
            return self.at_once(normal, foreground, self.draw(len(normal), normal.shape[2:], rng))
        pairs = Pairs(normal, torch.empty(normal.shape), torch.empty(normal.shape[0], *normal.shape[2:]))
        threads = min(torch.get_num_threads(), THREADS, len(normal))
        run = map if threads == 1 else _pool(threads, os.getpid()).map
        for _ in run(lambda job: self._fill(pairs, foreground, *job), self._jobs(normal, rng)):
            pass
        return pairs

    def draw(self, batch: int, size, rng: Generator) -> Draws:
        """All random numbers of a batch."""
        options, device = self.config, rng.device
        noise = draw_noise(batch, options.perlin_scales, options.perlin_rotation, rng)
        low, high = options.opacity
        opacity = low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=device)
        if self.textures is None:
            return Draws(noise, opacity, None, draw_stripes(batch, size, rng))
        chosen = torch.randint(len(self.textures), (batch,), generator=rng, device=device)
        return Draws(noise, opacity, chosen, draw_change(batch, size, rng))

    def at_once(self, normal: Tensor, foreground: Tensor | None, drawn: Draws) -> Pairs:
        """Whole images in one call: nothing depends on how many pixels a mask has, so a GPU need not wait."""
        size = normal.shape[2:]
        mask = self._mask(foreground, drawn, size)
        texture = self._texture(drawn, size, every_pixel(size, normal.device))
        blended = torch.lerp(normal, texture, drawn.opacity)
        return Pairs(normal, torch.where(mask[:, None] > 0, blended, normal), mask)

    def _jobs(self, normal: Tensor, rng: Generator):
        """Index and draws of each image; one thread draws, in a fixed order."""
        for start in range(0, len(normal), CHUNK):
            count = min(CHUNK, len(normal) - start)
            drawn = self.draw(count, normal.shape[2:], rng)
            yield from ((start + i, only(drawn, i)) for i in range(count))

    @torch.inference_mode()
    def _fill(self, pairs: Pairs, foreground: Tensor | None, i: int, drawn: Draws):
        """Write pair i: the texture is made and blended at the mask's pixels alone."""
        normal, anomalous, mask = (v[i : i + 1] for v in pairs)
        size = mask.shape[1:]
        mask.copy_(self._mask(None if foreground is None else foreground[i : i + 1], drawn, size))
        index = mask.flatten().nonzero()[:, 0]
        rows = index // size[1]
        texture = self._texture(drawn, size, (rows[None], (index - rows * size[1])[None])).flatten(2)
        index = index.expand(1, 3, -1)
        blended = torch.lerp(normal.flatten(2).gather(2, index), texture, drawn.opacity[..., 0])
        anomalous.copy_(normal).flatten(2).scatter_(2, index, blended)

    def _mask(self, foreground: Tensor | None, drawn: Draws, size) -> Tensor:
        return threshold_noise(perlin_noise(*drawn.noise, size), foreground, self.config.perlin_threshold)

    def _texture(self, drawn: Draws, size, pixels) -> Tensor:
        """Anomaly textures (B, 3, H, W) or (B, 3, 1, P) in [0, 1]."""
        if self.textures is None:
            return stripes(drawn.texture, size, pixels)
        return changed_picture(self.textures, drawn.chosen, drawn.texture, pixels)


@functools.cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """`count` threads that compute on one core each: one pool a process, since a fork copies no threads.

    torch's operations on one image are too short to be shared out. Its number of threads belongs to the
    calling thread, but also becomes the default of later ones; hence it is set back.
    """
    before, together = torch.get_num_threads(), threading.Barrier(count)

    def compute_alone():
        torch.get_num_threads()  # a thread's first question would overwrite what was set before it
        torch.set_num_threads(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()

    pool = ThreadPoolExecutor(count, "pairs", compute_alone)
    try:
        list(pool.map(abs, range(count)))
    except BaseException:  # where one cannot be started, the others must not wait for it for ever
        together.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)
    return pool


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
