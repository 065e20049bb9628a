"""Pairs a second: the batched call beside loops over images in numpy, as the field makes its pairs.

    python benchmarks/synthesis.py --batch 64 --size 256 --repeat 5

The loops are written anew after DRAEM: per image a Perlin noise of numpy arrays, its rotation, a
texture under three changes, the blend. DRAEM's loader also reads and resizes the image and the texture from
their files for every sample, which the second loop does (900 px PNG and 600 px JPEG, made for the occasion);
the first has both in memory, as ours has. Medians of `--repeat` runs, all taking turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
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


def write_files(folder: Path, count: int, rng: np.random.Generator) -> tuple[list[Path], list[Path]]:
    """Images and textures of the sizes of MVTec AD's and DTD's, smooth with some grain."""
    found = []
    for name, side, suffix in (("image", 900, "png"), ("texture", 600, "jpg")):
        paths = [folder / f"{name}{number}.{suffix}" for number in range(count)]
        for path in paths:
            coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
            Image.fromarray((smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)).save(
                path
            )
        found.append(paths)
    return found[0], found[1]


def read(path: Path, size: int) -> np.ndarray:
    """uint8 (size, size, 3)."""
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


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
    folder = tempfile.TemporaryDirectory()
    files, texture_files = write_files(Path(folder.name), 10, rng)

    def from_files():
        for number in range(options.batch):
            image = read(files[number % 10], options.size).astype(np.float32) / 255
            numpy_pair(image, read(texture_files[rng.integers(10)], options.size), rng)

    ways = {
        "numpy, from memory": lambda: [numpy_pair(i, pictures[rng.integers(50)], rng) for i in images],
        "numpy, from files": from_files,
        "batched, textures": lambda: PairSynthesizer(Config(), textures)(normal, None, generator),
        "batched, procedural": lambda: PairSynthesizer(Config())(normal, None, generator),
    }
    taken = {name: [] for name in ways}
    for _ in range(options.repeat + 1):
        for name, way in ways.items():
            taken[name].append(seconds(way, device))
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first warms up
    folder.cleanup()
    print(f"{options.batch} pairs of {options.size} px, median of {options.repeat}, {device}")
    for name, value in medians.items():
        rate = options.batch / value
        ratios = [medians[peer] / value for peer in ("numpy, from memory", "numpy, from files")]
        print(f"{name:20} {1000 * value:8.0f} ms {rate:8.1f} pairs/s", end="")
        print(f" {ratios[0]:6.1f} x memory {ratios[1]:6.1f} x files")
    print(f"peak memory {peak_memory_mb(device):.0f} MB")
    print(json.dumps(describe(device)))


if __name__ == "__main__":
    main()
