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

OURS, BASELINES = "ours", ("loop from memory", "loop from files")
BILINEAR = Image.Resampling.BILINEAR


def numpy_perlin(size: int, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Perlin noise (size, size) with a lattice of cells[0] x cells[1], by arrays over all pixels."""
    angles = 2 * np.pi * rng.random(cells + 1)
    gradients = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    step = size // cells
    tiled = gradients.repeat(step[0], 0).repeat(step[1], 1)
    grid = np.mgrid[: cells[0] : cells[0] / size, : cells[1] : cells[1] / size].transpose(1, 2, 0) % 1

    def ramp(dy, dx):
        corner = tiled[dy * step[0] :, dx * step[1] :][:size, :size]
        return ((grid - (dy, dx)) * corner).sum(-1)

    fade = grid**3 * (grid * (grid * 6 - 15) + 10)
    top, bottom = (ramp(dy, 0) + fade[..., 1] * (ramp(dy, 1) - ramp(dy, 0)) for dy in (0, 1))
    return np.sqrt(2) * (top + fade[..., 0] * (bottom - top))


# ten kinds of change, as many as DRAEM has, with about its ranges
CHANGES = (
    lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3)),
    lambda image, rng: ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 2.0)),
    lambda image, rng: ImageEnhance.Sharpness(image).enhance(rng.uniform(0, 3)),
    lambda image, rng: ImageEnhance.Color(image).enhance(rng.uniform(0, 2)),
    lambda image, rng: ImageOps.solarize(image, rng.integers(32, 129)) if rng.random() < 0.5 else image,
    lambda image, rng: ImageOps.posterize(image, int(rng.integers(1, 9))),
    lambda image, rng: ImageOps.invert(image),
    lambda image, rng: ImageOps.autocontrast(image, rng.uniform(0, 20)),
    lambda image, rng: ImageOps.equalize(image),
    lambda image, rng: image.rotate(rng.uniform(-45, 45), BILINEAR),
)


def loop_pair(image: np.ndarray, texture: Image.Image, rng: np.random.Generator):
    """One anomalous view (S, S, 3) and its mask from a float image and a texture of the same size."""
    noise = numpy_perlin(len(image), 2 ** rng.integers(0, 6, 2), rng)
    turned = Image.fromarray(noise.astype(np.float32)).rotate(rng.uniform(-90, 90), BILINEAR)
    mask = (np.asarray(turned) > 0.5).astype(np.float32)
    for kind in rng.choice(len(CHANGES), 3, replace=False):
        texture = CHANGES[kind](texture, rng)
    changed = np.asarray(texture).astype(np.float32) / 255
    opacity = np.float32(rng.uniform(0.2, 1.0))
    inside = mask[..., None]
    return image * (1 - inside) + inside * ((1 - opacity) * image + opacity * changed), mask


def write_files(folder: Path, name: str, side: int, rng: np.random.Generator) -> list[Path]:
    """Ten pictures, smooth with some grain."""
    paths = [folder / f"{number}{name}" for number in range(10)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grainy = (smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(path)
    return paths


def build(options, device: torch.device, folder: Path) -> dict:
    """Name -> a call that makes the batch; ours comes first."""
    rng, size = np.random.default_rng(options.seed), options.size
    generator = torch.Generator(device).manual_seed(options.seed)
    normal = torch.rand((options.batch, 3, size, size), device=device)
    textures = torch.randint(0, 256, (50, 3, size, size), dtype=torch.uint8, device=device)
    images = normal.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    pictures = [Image.fromarray(v) for v in textures.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    files, others = (write_files(folder, *kind, rng) for kind in (("image.png", 900), ("texture.jpg", 600)))
    synthesizer = PairSynthesizer(Config(), textures)

    def read(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB").resize((size, size), BILINEAR)

    def from_files():
        for number in range(options.batch):
            image = np.asarray(read(files[number % 10])).astype(np.float32) / 255
            loop_pair(image, read(others[rng.integers(10)]), rng)

    def from_memory():
        return [loop_pair(image, pictures[rng.integers(50)], rng) for image in images]

    ours = {OURS: lambda: synthesizer(normal, None, generator)}
    return ours | dict(zip(BASELINES, (from_memory, from_files), strict=True))


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
    times = {baseline: found[baseline]["seconds"] / found[OURS]["seconds"] for baseline in BASELINES}
    found[OURS]["times_faster"] = times
    return found


def told(found: dict) -> str:
    return f"{found['pairs_per_second']:.1f} pairs/s, {measure.memory_text(found['memory'])}"


def main():
    parser = measure.parser(__doc__, batch=64, size=256, repeat=5, seed=0, device="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(build(options, device, Path(folder)), device, options.batch, options.repeat)
    rows = []
    for name, times in found[OURS]["times_faster"].items():
        rows.append(["pairs", told(found[OURS]), f"{name}: {told(found[name])}", f"{times:.1f}"])
    measure.write_result(options.out, device, options.seed, {"table": rows, "ways": found})


if __name__ == "__main__":
    main()
