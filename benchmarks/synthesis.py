"""Pairs a second: the batched call beside a loop over images in numpy, as the field makes its pairs.

    python benchmarks/synthesis.py --batch 64 --size 256 --repeat 5

The loop is written anew after DRAEM's description: per image a Perlin noise of numpy arrays, its rotation, a
texture from memory under three changes, the blend. Medians of `--repeat` runs, the two taking turns.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from scipy import ndimage

from dmdd_lite.config import Config
from dmdd_lite.device import describe, peak_memory_mb, resolve_device
from dmdd_lite.synthesis import PairSynthesizer


def numpy_perlin(size: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Perlin noise (size, size) with a lattice of cells[0] x cells[1], by arrays over all pixels."""
    angles = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    gradients = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    step = (size // cells[0], size // cells[1])
    tiled = gradients.repeat(step[0], 0).repeat(step[1], 1)
    grid = np.mgrid[: cells[0] : cells[0] / size, : cells[1] : cells[1] / size].transpose(1, 2, 0) % 1
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            corner = tiled[dy * step[0] :, dx * step[1] :][:size, :size]
            corners.append(((grid - (dy, dx)) * corner).sum(-1))
    fade = grid**3 * (grid * (grid * 6 - 15) + 10)
    top = corners[0] + fade[..., 1] * (corners[1] - corners[0])
    bottom = corners[2] + fade[..., 1] * (corners[3] - corners[2])
    return np.sqrt(2) * (top + fade[..., 0] * (bottom - top))


def numpy_pair(image: np.ndarray, texture: np.ndarray, rng: np.random.Generator):
    """One anomalous view (S, S, 3) and its mask from a float image and a uint8 texture of the same size."""
    size = len(image)
    cells = 2 ** rng.integers(0, 6, 2)
    noise = numpy_perlin(size, (int(cells[0]), int(cells[1])), rng)
    noise = ndimage.rotate(noise, rng.uniform(-90, 90), reshape=False, order=1)
    mask = (noise > 0.5).astype(np.float32)
    changed = texture.astype(np.float32) / 255
    changed = changed ** rng.uniform(0.5, 2, 3)
    changed = np.clip(changed * rng.uniform(0.8, 1.2, 3) + rng.uniform(-0.1, 0.1), 0, 1)
    changed = 1 - changed if rng.random() < 0.3 else changed
    opacity = rng.uniform(0.2, 1.0)
    inside = mask[..., None]
    return image * (1 - inside) + inside * ((1 - opacity) * image + opacity * changed), mask


def seconds(call, device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device, rng = resolve_device(options.device), np.random.default_rng(options.seed)
    shape = (options.batch, 3, options.size, options.size)
    normal = torch.rand(shape, device=device)
    textures = torch.randint(0, 256, (50, *shape[1:]), dtype=torch.uint8, device=device)
    images = normal.permute(0, 2, 3, 1).cpu().numpy()
    pictures = textures.permute(0, 2, 3, 1).cpu().numpy()
    generator = torch.Generator(device).manual_seed(options.seed)
    ways = {
        "numpy, image by image": lambda: [numpy_pair(i, pictures[rng.integers(50)], rng) for i in images],
        "batched, textures": lambda: PairSynthesizer(Config(), textures)(normal, None, generator),
        "batched, procedural": lambda: PairSynthesizer(Config())(normal, None, generator),
    }
    taken = {name: [] for name in ways}
    for _ in range(options.repeat + 1):
        for name, way in ways.items():
            taken[name].append(seconds(way, device))
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first warms up
    peer = medians["numpy, image by image"]
    print(f"{options.batch} pairs of {options.size} px, median of {options.repeat}, {device}")
    for name, value in medians.items():
        rate = options.batch / value
        print(f"{name:24} {1000 * value:8.0f} ms  {rate:8.1f} pairs/s  {peer / value:6.1f} x numpy")
    print(f"peak memory {peak_memory_mb(device):.0f} MB")
    print(json.dumps(describe(device)))


if __name__ == "__main__":
    main()
