"""The MVTec AD folder layout, read and checked.

    <root>/<category>/train/good/*                 defect-free images to train on
    <root>/<category>/test/good/*                  defect-free images to test on
    <root>/<category>/test/<defect>/*              defective images
    <root>/<category>/ground_truth/<defect>/*      a mask per defective image: <stem>_mask.* or <stem>.*

Any category name works, and files may be PNG, JPEG, BMP or TIFF; other files are ignored, and so are hidden
ones and `ground_truth/good`. A mask may have another size than its image, but not other proportions.
Layout: Bergmann et al., "MVTec AD", CVPR 2019.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .images import DataError, in_threads, read_image, read_mask

IMAGE_SUFFIXES: frozenset[str] = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
GOOD, SPLITS = "good", ("train", "test", "ground_truth")


@dataclass(frozen=True)
class TestImage:
    """One image of the test split; `defect` is its folder's name, `mask` is None for "good"."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    path: Path
    defect: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != GOOD


@dataclass(frozen=True)
class Category:
    """One category, all of its files known; `train` and `test` are sorted by path."""

    root: Path
    name: str
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]

    @property
    def labels(self) -> np.ndarray:
        """Bool (N,), True where the test image is anomalous."""
        return np.array([image.is_anomalous for image in self.test], dtype=bool)


# ---- finding files ------------------------------------------------------------------------------------


def list_images(folder: str | Path) -> list[Path]:
    """The images directly in a folder, by suffix (in any case), sorted, without hidden files; with links to
    files that are not there, so that none is left out in silence.

    Raises DataError if there is no such folder.
    """
    return [path for path in _children(Path(folder)) if _is_image(path)]


def open_folder(folder: str | Path, recursive: bool = False) -> tuple[Path, ...]:
    """The images of a flat folder, or with `recursive` those of its sub-folders too (DTD's classes, say), but
    not of hidden ones, nor of links to folders, which may lead round in circles.

    The files are listed, not decoded. Raises DataError if there is no folder, or no image in it.
    """
    images = list_images(folder)
    waiting = _folders(Path(folder)) if recursive else []
    while waiting:
        below = waiting.pop()
        if not below.is_symlink():
            images += list_images(below)
            waiting += _folders(below)
    images.sort()
    if not images:
        hint = "" if recursive else ", or pass recursive=True to look in sub-folders"
        raise DataError(f"{folder}: no images; put PNG, JPEG, BMP or TIFF files there{hint}")
    return tuple(images)


def open_train(root: str | Path, name: str, check_files: bool = True) -> tuple[Path, ...]:
    """The images to train on; the test split is not even listed.

    With `check_files` every image is decoded. Raises one DataError that lists all problems.
    """
    folder, problems = _category_folder(Path(root), name), []
    train = _train_images(folder, problems)
    if check_files:
        problems += _file_problems([(path, None) for path in train])
    if problems:
        raise DataError(problems, str(folder))
    return tuple(train)


def open_category(root: str | Path, name: str, check_files: bool = True) -> Category:
    """Both splits of a category, after everything about them has been checked.

    With `check_files` all images and masks are decoded, and no mask may be empty.
    Raises one DataError that lists all problems, each with its remedy.
    """
    folder, problems = _category_folder(Path(root), name), []
    train = _train_images(folder, problems)
    test = _test_images(folder, problems)
    if check_files:
        files = [(path, None) for path in train] + [(image.path, image.mask) for image in test]
        problems += _file_problems(files)
    if problems:
        raise DataError(problems, str(folder))
    return Category(Path(root), name, tuple(train), tuple(test))


def _children(folder: Path) -> list[Path]:
    """Everything in a folder but what is hidden, sorted. Raises DataError if it cannot be listed."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; check the path")
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _is_image(path: Path) -> bool:
    lost = os.path.islink(path) and not os.path.exists(path)
    return path.suffix.lower() in IMAGE_SUFFIXES and (lost or os.path.isfile(path))


def _folders(parent: Path) -> list[Path]:
    return [p for p in _children(parent) if os.path.isdir(p)] if os.path.isdir(parent) else []


def _is_category(folder: Path) -> bool:
    return os.path.isdir(folder / "train")


def _category_folder(root: Path, name: str) -> Path:
    """The category's own folder; DataError if it cannot be found, as nothing else can be checked then."""
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder; root is the folder that holds the category folders")
    is_name = isinstance(name, str) and name not in ("", "..") and Path(name).name == name
    folder = root / name if is_name else None
    if folder and _is_category(folder):
        return folder
    _check_level(root, folder)
    if folder and os.path.isdir(folder):
        return folder
    others = ", ".join(found.name for found in _folders(root)) or "none"
    raise DataError(f"{root}: no category named {name!r}; categories there: {others}")


def _check_level(root: Path, folder: Path | None):
    """DataError if the root, or the folder of that name in it, is a level above or below its place."""
    here = Path(os.path.abspath(root))
    if _is_category(here):
        raise DataError(f"{root}: is a category itself; pass its parent as root and {here.name!r} as name")
    if here.name in SPLITS and _is_category(here.parent):
        above = here.parent
        raise DataError(f"{root}: lies in a category; pass {above.parent} as root and {above.name!r} as name")
    if folder is None:
        return
    inner = ", ".join(repr(found.name) for found in _folders(folder) if _is_category(found))
    if inner:
        raise DataError(f"{folder}: holds categories itself; pass it as root and as name one of {inner}")
    for between in _folders(root):
        if _is_category(between / folder.name):
            raise DataError(f"{root}: {folder.name!r} lies in {between}; pass that as root")


def _train_images(category: Path, problems: list[str]) -> list[Path]:
    folder = category / "train" / GOOD
    images = list_images(folder) if os.path.isdir(folder) else []
    if not images:
        state = "no images" if os.path.isdir(folder) else "no such folder"
        problems.append(f"{folder}: {state}; put the defect-free images to train on there")
    return images


def _test_images(category: Path, problems: list[str]) -> list[TestImage]:
    """The test split with its masks; what is wrong with its structure is appended to `problems`."""
    split, truth = category / "test", category / "ground_truth"
    if not os.path.isdir(split):
        problems.append(f"{split}: no such folder; put test images into test/good and test/<defect>")
        return []
    test: list[TestImage] = []
    for folder in _folders(split):
        images, masks = list_images(folder), {}
        if images and folder.name != GOOD:
            masks = _match_masks(images, truth / folder.name, problems)
        elif not images and folder.name != GOOD:
            problems.append(f"{folder}: no images; put the defective images there or remove the folder")
        test += [TestImage(path, folder.name, masks.get(path)) for path in images]
    defects = {folder.name for folder in _folders(split)} - {GOOD}
    if all(image.is_anomalous for image in test):
        problems.append(f"{split / GOOD}: no images; put at least one defect-free test image there")
    if not defects:
        problems.append(f"{split}: no defective images; put at least one into test/<defect>")
    for folder in _folders(truth):
        if folder.name not in defects | {GOOD}:
            problems.append(f"{folder}: no test folder of that name; add {split / folder.name} or remove it")
    return test


def _match_masks(images: list[Path], folder: Path, problems: list[str]) -> dict[Path, Path]:
    """The mask of each image: the one file in `folder` with the stem `<stem>_mask` or `<stem>`."""
    owners: dict[Path, list[str]] = {
        path: [] for path in (list_images(folder) if os.path.isdir(folder) else [])
    }
    if not owners:
        problems.append(f"{folder}: no masks for {len(images)} images; add <image stem>_mask.png for each")
        return {}
    by_stem: dict[str, list[Path]] = {}
    for mask in owners:
        by_stem.setdefault(mask.stem, []).append(mask)
    matched: dict[Path, Path] = {}
    for image in images:
        fits = by_stem.get(f"{image.stem}_mask", []) + by_stem.get(image.stem, [])
        for mask in fits:
            owners[mask].append(image.name)
        if not fits:
            problems.append(f"{image}: no mask; add {folder / image.stem}_mask.png")
        elif len(fits) > 1:
            names = " and ".join(mask.name for mask in fits)
            problems.append(f"{image}: ambiguous masks {names}; keep one of them in {folder}")
        else:
            matched[image] = fits[0]
    for mask, names in owners.items():
        if not names:
            problems.append(f"{mask}: mask without its image; add the image or remove the mask")
        elif len(names) > 1:
            problems.append(f"{mask}: ambiguous, fits {' and '.join(names)}; give the images other stems")
    return matched


def _file_problems(files: list[tuple[Path, Path | None]]) -> list[str]:
    """What decoding brings to light; a file is an image and its mask, if it has one."""
    return [text for found in in_threads(_problems_of, files) for text in found]


def _problems_of(file: tuple[Path, Path | None]) -> list[str]:
    path, mask = file
    image, marked = _tried(read_image, path), None if mask is None else _tried(read_mask, mask)
    problems = [found for found in (image, marked) if isinstance(found, str)]
    if isinstance(marked, torch.Tensor) and not marked.any():
        problems.append(
            f"{mask}: empty mask; mark the defect (transparency is not read), or move the image to test/good"
        )
    if not problems and mask is not None and _differ_in_proportions(image.shape[1:], marked.shape):
        (height, width), (rows, columns) = image.shape[1:], marked.shape
        problems.append(
            f"{mask}: a mask of {columns} x {rows} pixels does not fit its image of {width} x {height}; "
            "turn the mask as the image is turned, or draw it anew"
        )
    return problems


def _tried(read, path: Path) -> torch.Tensor | str:
    """What reading gives, or what is wrong."""
    try:
        return read(path)
    except DataError as error:
        return str(error)


def _differ_in_proportions(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (H, W) are of proportions more than a tenth apart."""
    across, down = one[0] * other[1], one[1] * other[0]
    return max(across, down) > 1.1 * min(across, down)


def load_masks(
    test: Sequence[TestImage],
    size: int,
    progress: str | None = "reading masks",
    workers: int | None = None,
) -> torch.Tensor:
    """Bool (N, size, size) in the order of `test`; all False for good images."""
    masks = torch.zeros((len(test), size, size), dtype=torch.bool)
    rows = [row for row, image in enumerate(test) if image.mask is not None]
    found = in_threads(lambda row: read_mask(test[row].mask, size), rows, progress, workers)
    for row, mask in zip(rows, found, strict=True):
        masks[row] = mask
    return masks
