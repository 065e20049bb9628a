"""An embedded sample data set: three drawn categories in the MVTec AD layout, with exact masks.

`fabric` is a texture, `pcb` an object in a fixed place, `lever` an object in any rotation. Every image is
drawn from its own seed, so it depends neither on the other images nor on how many there are. A defective
image and its mask come from one scene drawn twice, with and without the defect. The drawings are ours; they
serve for learning and testing, and results on them say nothing about MVTec AD.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pooch
from PIL import Image

from . import fabric, lever, pcb
from .canvas import Flaw, add_noise, changed_pixels, expose

GENERATOR_VERSION = 2  # part of the cache's name: raise it whenever an image or a default count changes
TRAIN_IMAGES = {"fabric": 60, "pcb": 60, "lever": 240}  # a part in any rotation needs more, see the README
Counts = tuple[int | None, int, int]
DEFAULT_COUNTS: Counts = (None, 20, 10)  # train (None: as in TRAIN_IMAGES), good, per_defect
AREA = (0.003, 0.10)  # least and largest share of an image that a defect covers
ATTEMPTS = 20  # draws of a defect until its area is in range

_DRAWERS = {"fabric": fabric, "pcb": pcb, "lever": lever}
SAMPLE_CATEGORIES: tuple[str, ...] = tuple(_DRAWERS)


def defect_names(category: str) -> tuple[str, ...]:
    """Names of a category's kinds of defect, sorted; they are its folder names.

    Raises ValueError for an unknown category.
    """
    if category not in _DRAWERS:
        raise ValueError(f"unknown category {category!r}: choose from {', '.join(SAMPLE_CATEGORIES)}")
    return tuple(sorted(_DRAWERS[category].DEFECTS))


def _check(category: str, defect: str | None, size: int) -> None:
    """Raise ValueError for an unknown category or defect and for images that are too small."""
    names = defect_names(category)
    if defect is not None and defect not in names:
        raise ValueError(f"unknown defect {defect!r} of {category}: choose from {', '.join(names)}")
    if size < 32:
        raise ValueError(f"size is {size}: the drawings need at least 32 pixels")


def _generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream belongs to this key alone; words enter by their CRC-32."""
    return np.random.default_rng(
        [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    )


def render_sample(
    category: str,
    defect: str | None = None,
    index: int = 0,
    seed: int = 0,
    size: int = 256,
    split: str = "test",
    repaired: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one photograph (size, size, 3) uint8 and its mask (size, size) bool, True where defective.

    Without a defect the mask is empty, and `split` ("train" or "test") names which good image is meant. With
    `repaired`, the very same scene is drawn, noise included, but the defect is left out: the picture equals
    the defective one everywhere outside the mask. Raises ValueError for an unknown category, defect or split
    and for size < 32.
    """
    _check(category, defect, size)
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: choose from train, test")
    key = (seed, category, split if defect is None else defect, index)
    drawer, cells = _DRAWERS[category], size * max(2, -(-256 // size))
    scene = drawer.draw_scene(_generator(*key, "scene"), cells)
    image = expose(drawer.render(scene, Flaw()), scene.shot, size)
    mask = np.zeros((size, size), dtype=bool)
    if defect is not None:
        flawed, mask = _draw_defect(category, defect, key, scene, image)
        image = image if repaired else np.where(mask[..., None], flawed, image)
    return add_noise(image, scene.shot, _generator(*key, "noise")), mask


def _draw_defect(category: str, defect: str, key: tuple, scene, sound: np.ndarray):
    """Draw defects until one has an area in AREA; returns the noise-free image (H, W, 3) and mask (H, W)."""
    drawer = _DRAWERS[category]
    for attempt in range(ATTEMPTS):
        flaw = drawer.DEFECTS[defect](_generator(*key, "defect", attempt), scene)
        flawed = expose(drawer.render(scene, flaw), scene.shot, len(sound))
        mask = changed_pixels(flawed, sound)
        if AREA[0] <= mask.mean() <= AREA[1]:
            return flawed, mask
    raise RuntimeError(f"no {defect} of {category} at {key} covers a share of the image in {AREA}")


def _write_images(folder: Path, category: str, jobs: list[tuple], seed: int, size: int) -> None:
    """Draw and write the images that `jobs` names as (split, defect or None, index) below `folder`."""
    from ..images import in_threads  # here, for it imports PyTorch

    def draw(job: tuple[str, str | None, int]) -> None:
        split, defect, index = job
        image, mask = render_sample(category, defect, index, seed, size, split)
        target = folder / split / (defect or "good") / f"{index:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target, compress_level=4)
        if defect is not None:
            truth = folder / "ground_truth" / defect / f"{index:03d}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(truth)

    for _ in in_threads(draw, jobs, f"drawing {category}"):
        pass


def write_samples(
    root: str | Path,
    category: str,
    seed: int = 0,
    size: int = 256,
    train: int | None = None,
    good: int = 20,
    per_defect: int = 10,
) -> Path:
    """Write a category in the MVTec AD layout below `root` and return its folder; an older one is replaced.

    `train` (by default the category's number in TRAIN_IMAGES) and `good` count the good images for training
    and test. Raises ValueError for an unknown category and for size < 32.
    """
    _check(category, None, size)
    target = Path(root) / category
    return _write_category(target, seed, size, (train, good, per_defect), replace=target.is_dir())


def _write_category(target: Path, seed: int, size: int, counts: Counts, replace: bool) -> Path:
    """Fill a folder under another name, then rename it to `target`: no unfinished one ever bears that name.

    Where another process finishes the same folder meanwhile, that one stays, unless `replace`.
    """
    category, (train, good, per_defect) = target.name, counts
    train = TRAIN_IMAGES[category] if train is None else train
    jobs = [("train", None, i) for i in range(train)] + [("test", None, i) for i in range(good)]
    jobs += [("test", defect, i) for defect in defect_names(category) for i in range(per_defect)]
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{category}-", dir=target.parent))
    try:
        folder = scratch / category
        folder.mkdir()  # a folder of its own, because mkdtemp's is closed to other users
        _write_images(folder, category, jobs, seed, size)
        _rename(folder, target, replace)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _rename(folder: Path, target: Path, replace: bool) -> None:
    """Give a finished folder its name; an existing one is moved away if `replace`, else it stays."""
    if replace:
        with contextlib.suppress(FileNotFoundError):
            target.rename(folder.parent / "replaced")
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def sample_root(
    seed: int = 0,
    size: int = 256,
    cache_dir: str | Path | None = None,
    categories: tuple[str, ...] = SAMPLE_CATEGORIES,
    train: int | None = None,
    good: int = 20,
    per_defect: int = 10,
) -> Path:
    """Folder in the MVTec AD layout that holds the sample categories; draws those which are missing.

    `cache_dir` defaults to the environment variable DMDD_LITE_CACHE, else to the user's cache folder. The
    folder's name tells generator version, seed, size and, where not the default, the counts; these are as
    in `write_samples`. Raises ValueError for an unknown category and for size < 32.
    """
    for category in categories:
        _check(category, None, size)
    cache = Path(cache_dir or os.environ.get("DMDD_LITE_CACHE") or pooch.os_cache("dmdd-lite"))
    counts = (train, good, per_defect)
    trained_on = "usual" if train is None else train
    suffix = "" if counts == DEFAULT_COUNTS else f"-{trained_on}-{good}-{per_defect}"
    root = cache.expanduser() / f"samples-v{GENERATOR_VERSION}-seed{seed}-{size}px{suffix}"
    for category in categories:
        if not (root / category).is_dir():
            _write_category(root / category, seed, size, counts, replace=False)
    return root
