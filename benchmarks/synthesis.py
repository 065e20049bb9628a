"""Pairs a second: PairSynthesizer beside loops over images, as the field makes its pairs.

    python benchmarks/synthesis.py --batch 64 --size 256 --repeat 5 --out synthesis.json

The baselines are written anew after DRAEM's loader, one image at a time: Perlin noise of numpy arrays and its
rotation, three random changes of the texture out of ten, the blend. Rotations and changes are Pillow's,
compiled and as fast as the loader's own or faster. `loop from files` reads and resizes the image and the
texture for every sample, as that loader does (900 px PNG and 600 px JPEG, made for the occasion);
`loop from memory` has both at hand, as PairSynthesizer has. Of DRAEM's samples half stay normal, after the
same work; here all are anomalous.

Times are medians of `--repeat` runs in which all take turns, peak memory that of a run before them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import measure
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from dmdd_lite.config import Config
from dmdd_lite.pairs import PairSynthesizer
from dmdd_lite.utils import resolve_device

BASELINES = ("loop from memory", "loop from files")
BILINEAR = Image.Resampling.BILINEAR


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


def by_level(image: Image.Image, change) -> Image.Image:
    """`change` of the 256 levels, (256, 3) in and out, looked up for every pixel."""
    levels = np.repeat(np.arange(256.0)[:, None], 3, axis=1)
    return image.point(change(levels).clip(0, 255).astype(np.uint8).T.flatten().tolist())


def shift_hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Hue and saturation moved, all levels by a table."""
    hue, saturation = rng.integers(-50, 51, 2)
    levels = np.arange(256)
    table = ((levels + hue) % 256, (levels + saturation).clip(0, 255), levels)
    return image.convert("HSV").point(np.concatenate(table).tolist()).convert("RGB")


# DRAEM's ten kinds of change, with its ranges
CHANGES = (
    lambda image, rng: by_level(image, lambda v: 255 * (v / 255) ** rng.uniform(0.5, 2, 3)),
    lambda image, rng: by_level(image, lambda v: v * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30)),
    lambda image, rng: ImageEnhance.Sharpness(image).enhance(rng.uniform(0, 3)),
    shift_hue,
    lambda image, rng: ImageOps.solarize(image, rng.integers(32, 129)) if rng.random() < 0.5 else image,
    lambda image, rng: ImageOps.posterize(image, int(rng.integers(1, 9))),
    lambda image, rng: ImageOps.invert(image),
    lambda image, rng: ImageOps.autocontrast(image, rng.uniform(0, 20)),
    lambda image, rng: ImageOps.equalize(image),
    lambda image, rng: image.rotate(rng.uniform(-45, 45), BILINEAR),
)


def loop_pair(image: np.ndarray, texture: Image.Image, rng: np.random.Generator):
    """One anomalous view (S, S, 3) and its mask from a float image and a texture of the same size."""
    size = len(image)
    cells = 2 ** rng.integers(0, 6, 2)
    noise = numpy_perlin(size, (int(cells[0]), int(cells[1])), rng)
    turned = Image.fromarray(noise.astype(np.float32)).rotate(rng.uniform(-90, 90), BILINEAR)
    mask = (np.asarray(turned) > 0.5).astype(np.float32)
    for kind in rng.choice(len(CHANGES), 3, replace=False):
        texture = CHANGES[kind](texture, rng)
    changed = np.asarray(texture).astype(np.float32) / 255
    opacity = np.float32(rng.uniform(0.2, 1.0))
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


def read(path: Path, size: int) -> Image.Image:
    return Image.open(path).convert("RGB").resize((size, size), BILINEAR)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args()


def build(options, device: torch.device, folder: Path) -> dict:
    """Name -> a call that makes the batch; ours come first."""
    rng = np.random.default_rng(options.seed)
    generator = torch.Generator(device).manual_seed(options.seed)
    shape = (options.batch, 3, options.size, options.size)
    normal = torch.rand(shape, device=device)
    textures = torch.randint(0, 256, (50, *shape[1:]), dtype=torch.uint8, device=device)
    images = normal.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    pictures = [Image.fromarray(v) for v in textures.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    files, texture_files = write_files(folder, 10, rng)

    def from_files():
        for number in range(options.batch):
            image = np.asarray(read(files[number % 10], options.size)).astype(np.float32) / 255
            loop_pair(image, read(texture_files[rng.integers(10)], options.size), rng)

    return {
        "ours, pictures": lambda: PairSynthesizer(Config(), textures)(normal, None, generator),
        "ours, procedural": lambda: PairSynthesizer(Config())(normal, None, generator),
        BASELINES[0]: lambda: [loop_pair(image, pictures[rng.integers(50)], rng) for image in images],
        BASELINES[1]: from_files,
    }


def compare(ways: dict, device: torch.device, batch: int, repeat: int) -> dict[str, dict]:
    """Seconds, pairs a second, peak memory and, of ours, how many times faster than each baseline."""
    found = {}
    for name, way in ways.items():
        with measure.peak_memory(device) as memory:
            measure.timed(way, device, 1)
        found[name] = {"memory": memory}
    turns = [{name: measure.timed(way, device, 1) for name, way in ways.items()} for _ in range(repeat)]
    for name, values in found.items():
        values["seconds"] = statistics.median(turn[name] for turn in turns)
        values["pairs_per_second"] = batch / values["seconds"]
    for name in set(ways) - set(BASELINES):
        times = {baseline: found[baseline]["seconds"] / found[name]["seconds"] for baseline in BASELINES}
        found[name]["times_faster"] = times
    return found


def main():
    options = parse()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(build(options, device, Path(folder)), device, options.batch, options.repeat)
    print(f"{options.batch} pairs of {options.size} px, median of {options.repeat}, {device}")
    for name, values in found.items():
        line = f"{name:17} {1000 / values['pairs_per_second']:7.2f} ms/pair"
        line += f" {values['pairs_per_second']:8.1f} pairs/s, {measure.memory_text(values['memory'])}"
        line += "".join(
            f", {times:.1f} x {baseline}" for baseline, times in values.get("times_faster", {}).items()
        )
        print(line)
    values = {name: getattr(options, name) for name in ("batch", "size", "repeat")}
    values |= {"goals": measure.goals("synthesis"), "ways": found}
    measure.write_result(options.out, device, options.seed, values)


if __name__ == "__main__":
    main()
