"""The MVTec AD folder layout, read and checked.

    <root>/<category>/train/good/*                 defect-free images to train on
    <root>/<category>/test/good/*                  defect-free images to test on
    <root>/<category>/test/<defect>/*              defective images
    <root>/<category>/ground_truth/<defect>/*      a mask per defective image: <stem>_mask.* or <stem>.*

Any category name works, and files may be PNG, JPEG, BMP, TIFF, WebP or GIF, in sub-folders too; a warning
tells of others. Hidden ones and `ground_truth/good` do not count. A mask may have another size than its
image, but not other proportions; a defective image without one counts for the metrics of images only. Layout:
Bergmann et al., "MVTec AD", CVPR 2019."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .checks import examine
from .folders import children, find_images, folders, ignored
from .images import bit_depth
from .masks import RULES, vanishing
from .problems import DataError, DataWarning, counted, some

GOOD, SPLITS = "good", ("train", "test", "ground_truth")


@dataclass(frozen=True)
class TestImage:
    """One image of the test split; `defect` is its folder's name, `mask` None for "good", or if missing."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    path: Path
    defect: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != GOOD


@dataclass(frozen=True)
class Category:
    """One category, all of its files known; `train` and `test` are sorted by path. mask_rule: how masks are
    read, one of `masks.RULES`; warnings: what was told when it was opened."""

    root: Path
    name: str
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]
    mask_rule: str = "auto"
    warnings: tuple[str, ...] = ()

    @cached_property
    def depth(self) -> int:
        """Bits of the training images, as of `images.bit_depth`, which reads them."""
        return bit_depth(self.train)

    @property
    def labels(self) -> np.ndarray:
        """Bool (N,), True where the test image is anomalous."""
        return np.array([image.is_anomalous for image in self.test], dtype=bool)

    @property
    def outlined(self) -> np.ndarray:
        """Bool (N,), True where it is known which pixels are defective."""
        return np.array([not image.is_anomalous or image.mask is not None for image in self.test], dtype=bool)


def open_train(root: str | Path, name: str, check_files: bool = True) -> tuple[Path, ...]:
    """The images to train on; the test split is not even listed.

    With `check_files` every image is decoded. Warns of files that are ignored and of constant images. Raises
    one DataError that lists all problems."""
    folder, problems, told = _category_folder(Path(root), name), [], []
    train = _train_images(folder, problems, told)
    _finish(
        folder, problems, told, [(path, None) for path in train] if check_files else [], len(train), "auto"
    )
    return tuple(train)


def open_category(root: str | Path, name: str, check_files: bool = True, mask_rule: str = "auto") -> Category:
    """Both splits of a category, after everything about them has been checked.

    With `check_files` all images and masks are decoded. Warns of what falsifies numbers unless it is meant:
    files that are ignored, defective images without a mask, test images that are also in train/good, constant
    images, masks that mark nothing or nearly everything. Raises one DataError that lists all problems, each
    with its remedy; ValueError for an unknown mask_rule."""
    if mask_rule not in RULES:
        raise ValueError(f"mask_rule must be one of {', '.join(RULES)}, got {mask_rule!r}")
    folder, problems, told = _category_folder(Path(root), name), [], []
    train = _train_images(folder, problems, told)
    test = _test_images(folder, problems, told)
    files = [(path, None) for path in train] + [(image.path, image.mask) for image in test]
    _finish(folder, problems, told, files if check_files else [], len(train), mask_rule)
    return Category(Path(root), name, tuple(train), tuple(test), mask_rule, tuple(told))


def vanishing_defects(root: str | Path, name: str, size: int) -> list[str]:
    """A warning if defects of the category's masks vanish at this image size, else none; no image is read."""
    category = Path(root) / name
    defects = [folder for folder in folders(category / "ground_truth") if folder.name != GOOD]
    return vanishing([path for folder in defects for path in find_images(folder, category)[0]], size)


def _finish(folder: Path, problems: list[str], told: list[str], files: list, train: int, rule: str):
    """Decode the files, then raise DataError with all problems, or warn of what was told."""
    found = examine(files, train, rule)
    problems += found[0]
    told += found[1]
    if problems:
        raise DataError(problems, str(folder))
    for text in told:
        warnings.warn(text, DataWarning, stacklevel=3)


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
    others = ", ".join(found.name for found in folders(root)) or "none"
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
    inner = ", ".join(repr(found.name) for found in folders(folder) if _is_category(found))
    if inner:
        raise DataError(f"{folder}: holds categories itself; pass it as root and as name one of {inner}")
    for between in folders(root):
        if _is_category(between / folder.name):
            raise DataError(f"{root}: {folder.name!r} lies in {between}; pass that as root")


def _train_images(category: Path, problems: list[str], told: list[str]) -> list[Path]:
    folder = category / "train" / GOOD
    images, others = find_images(folder, category) if os.path.isdir(folder) else ([], [])
    if not images:
        state = "no images" if os.path.isdir(folder) else "no such folder"
        problems.append(f"{folder}: {state}; put the defect-free images to train on there")
    beside = others + _files(category / "train")
    for place in folders(category / "train"):
        beside += [path for found in find_images(place, category) for path in found if place != folder]
    told += ignored(sorted(beside), category)
    return images


def _files(folder: Path) -> list[Path]:
    """What a folder, which need not exist, holds beside folders."""
    return [path for path in children(folder) if not os.path.isdir(path)] if os.path.isdir(folder) else []


def _test_images(category: Path, problems: list[str], told: list[str]) -> list[TestImage]:
    """The test split with its masks; what is wrong with its structure is appended to `problems`."""
    split, truth = category / "test", category / "ground_truth"
    if not os.path.isdir(split):
        problems.append(f"{split}: no such folder; put test images into test/good and test/<defect>")
        return []
    test: list[TestImage] = []
    left = _files(split) + _files(truth)
    for folder in folders(split):
        (images, others), masks = find_images(folder, category), {}
        left += others
        if images and folder.name != GOOD:
            masks = _match_masks(images, folder, truth / folder.name, problems)
            if missing := [path.relative_to(split) for path in images if path not in masks]:
                told.append(
                    f"{counted(missing, 'defective image')} without a mask: {some(missing)}; counted for the "
                    f"metrics of images only, unless you add {truth / folder.name}/<image stem>_mask.png"
                )
        elif not images and folder.name != GOOD:
            problems.append(f"{folder}: no images; put the defective images there or remove the folder")
        test += [TestImage(path, folder.name, masks.get(path)) for path in images]
    defects = {folder.name for folder in folders(split)} - {GOOD}
    if all(image.is_anomalous for image in test):
        problems.append(f"{split / GOOD}: no images; put at least one defect-free test image there")
    if not defects:
        problems.append(f"{split}: no defective images; put at least one into test/<defect>")
    for folder in folders(truth):
        if folder.name not in defects | {GOOD}:
            problems.append(f"{folder}: no test folder of that name; add {split / folder.name} or remove it")
        elif folder.name != GOOD:
            left += find_images(folder, category)[1]
    told += ignored(sorted(left), category)
    return test


def _match_masks(images: list[Path], split: Path, folder: Path, problems: list[str]) -> dict[Path, Path]:
    """The mask of each image that has one: the file with the stem `<stem>_mask` or `<stem>` in the same
    sub-folder of `folder`, else in `folder` itself."""
    category = folder.parent.parent
    owners = {path: [] for path in (find_images(folder, category)[0] if os.path.isdir(folder) else [])}
    places: dict[tuple[Path, str], list[Path]] = {}
    for mask in owners:
        places.setdefault((mask.parent, mask.stem), []).append(mask)
    matched: dict[Path, Path] = {}
    for image in images:
        for place in dict.fromkeys((folder / image.parent.relative_to(split), folder)):
            fits = [m for stem in (f"{image.stem}_mask", image.stem) for m in places.get((place, stem), [])]
            if fits:
                break
        for mask in fits:
            owners[mask].append(image.name)
        if len(fits) > 1:
            names = " and ".join(mask.name for mask in fits)
            problems.append(f"{image}: ambiguous masks {names}; keep one of them in {folder}")
        elif fits:
            matched[image] = fits[0]
    for mask, names in owners.items():
        if not names:
            problems.append(f"{mask}: mask without its image; add the image or remove the mask")
        elif len(names) > 1:
            problems.append(f"{mask}: ambiguous, fits {' and '.join(names)}; give the images other stems")
    return matched
