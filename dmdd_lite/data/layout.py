"""A category opened and checked: in the layout of a public data set, or as plain folders."""

from __future__ import annotations

import os
import warnings
from itertools import permutations
from pathlib import Path

import numpy as np

from ..config import Size
from .category import GOOD, Category, TestImage
from .checks import examine
from .folders import children, find_images, folders, ignored
from .layouts import BAD, LAYOUTS
from .masks import check_rule, vanishing
from .problems import DataError, DataWarning, counted
from .trees import category_folder, match_masks, train_images, unmasked

TEST_SHARE = 0.2  # of good images that are held out to test on where no others are given


def open_train(root: str | Path, name: str) -> tuple[Path, ...]:
    """The images to train on, in the layout of MVTec AD, all decoded; the test split is not even listed.

    Warns of files that are ignored and of constant images. Raises one DataError that lists all problems."""
    folder, problems, told = category_folder(Path(root), name), [], []
    train = train_images(folder, problems, told)
    _finish(folder, problems, told, train, [], True, "auto")
    return tuple(train)


def open_category(
    root: str | Path, name: str, check_files: bool = True, mask_rule: str = "auto", layout: str = "mvtec"
) -> Category:
    """Both splits of a category, after everything about them has been checked.

    layout: one of `layouts.LAYOUTS`. With `check_files` all images and masks are decoded. Warns of what
    falsifies numbers unless it is meant: files that are ignored, defective images without a mask, test images
    that are also trained on, constant images, masks that mark nothing or nearly everything; and of what
    leaves metrics undefined: a test split without good or without defective images. Raises one DataError that
    lists all problems, each with its remedy; ValueError for an unknown mask_rule or layout."""
    check_rule(mask_rule)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    root, problems, told = Path(root), [], []
    train, test = LAYOUTS[layout].find(root, name, problems, told)
    told += LAYOUTS[layout].warnings + _lacking(test)
    _finish(root / name, problems, told, train, test, check_files, mask_rule)
    return Category(root, name, tuple(train), tuple(test), mask_rule, tuple(told), layout)


def open_folders(
    good: str | Path,
    bad: str | Path | None = None,
    masks: str | Path | None = None,
    test_good: str | Path | None = None,
    check_files: bool = True,
    mask_rule: str = "auto",
    seed: int = 0,
    name: str = "",
) -> Category:
    """A category of plain folders: of good images, and, for numbers, of defective ones and their masks.

    Without `test_good`, a fifth of the good images, drawn with the seed, is held out to test on, which a
    warning says: train on `Category.train` alone, as `train(config, good=...)` does. The folders in `bad`
    name the defects, images beside them are of the defect "bad". In `masks` lie files of the same relative
    path, or directly in it, with the stem of the image or <stem>_mask. name: default, that of `good`.

    Checks, warns and raises as `open_category`; DataError also for a folder that lies in another one."""
    check_rule(mask_rule)
    given = {"good": good, "bad": bad, "masks": masks, "test_good": test_good}
    places = {kind: Path(place) for kind, place in given.items() if place is not None}
    _check_apart(places)
    if all((places["good"] / split).is_dir() for split in ("train", "test")):
        told = f"{good}: a category in the layout of MVTec AD; give its train/good"
        raise DataError(f"{told}, or open it by `open_category`, its parent as root")
    problems, told, found = [], [], {}
    for kind, folder in places.items():
        found[kind], others = find_images(folder)
        told += ignored(others, folder)
        if not found[kind]:
            problems.append(f"{folder}: no images; put the {kind.replace('_', ' ')} ones there")
    train, test = found["good"], [TestImage(path, GOOD, None) for path in found.get("test_good", [])]
    if test_good is None and train:
        train, test = _split(train, seed, problems, told)
    if bad is not None:
        test += _defective(places, found["bad"], problems, told)
        test.sort(key=lambda image: (image.defect, image.path))
    elif masks is not None:
        problems.append(f"{masks}: masks without defective images; give bad, the folder of those")
    if bad is not None or test_good is not None:
        told += _lacking(test)
    _finish(places["good"], problems, told, train, test, check_files, mask_rule)
    name = name or Path(os.path.abspath(good)).name
    parts = (tuple(train), tuple(test), mask_rule, tuple(told), "folders", tuple(places.items()))
    return Category(places["good"].parent, name, *parts)


def _check_apart(places: dict[str, Path]):
    """DataError for a folder that is not there, or is in another one, whose images it would be part of."""
    for folder in places.values():
        children(folder)
    real = {kind: Path(os.path.realpath(folder)) for kind, folder in places.items()}
    for one, other in permutations(real, 2):
        if real[one].is_relative_to(real[other]):
            told = f"{places[one]} ({one}) lies in {places[other]} ({other})"
            raise DataError(f"{told}; its images would be part of both, give folders apart from each other")


def _split(images: list[Path], seed: int, problems: list[str], told: list[str]):
    """The images to train on, and those held out as good test images."""
    if len(images) < 2:
        problems.append(f"{images[0]}: the only good image; add others, some are held out to test on")
        return images, []
    held = max(1, round(TEST_SHARE * len(images)))
    chosen = set(np.random.default_rng(seed).permutation(len(images))[:held].tolist())
    told.append(
        f"{held} of {counted(images, 'good image')} held out to test on, drawn with seed {seed}; give "
        "test_good, a folder of others, to train on all of them"
    )
    test = [TestImage(images[i], GOOD, None) for i in sorted(chosen)]
    return [path for i, path in enumerate(images) if i not in chosen], test


def _defective(places: dict, images: list[Path], problems: list[str], told: list[str]) -> list[TestImage]:
    """The defective images with their masks, by defect."""
    bad, truth, matched = places["bad"], places.get("masks"), {}
    if (bad / GOOD).is_dir():
        problems.append(f"{bad / GOOD}: good images among the defective; move them, and give test_good")
    for folder in folders(bad):
        if folder.name != GOOD and not find_images(folder, bad)[0]:
            problems.append(f"{folder}: no images; put the defective images there or remove the folder")
    if truth is not None:
        matched = match_masks(images, bad, truth, truth, problems)
    told += unmasked([path for path in images if path not in matched], bad, truth or Path("MASKS"))
    parts = [path.relative_to(bad).parts for path in images]
    defects = [part[0] if len(part) > 1 else BAD for part in parts]
    return [TestImage(path, kind, matched.get(path)) for path, kind in zip(images, defects, strict=True)]


def vanishing_defects(root: str | Path, name: str, size: Size) -> list[str]:
    """A warning if defects of the masks of a category in the layout of MVTec AD vanish at this image size,
    else none; no image is read."""
    category = Path(root) / name
    defects = [folder for folder in folders(category / "ground_truth") if folder.name != GOOD]
    return vanishing([path for folder in defects for path in find_images(folder, category)[0]], size)


def _finish(folder: Path, problems: list[str], told: list[str], train, test, check_files: bool, rule: str):
    """Decode the files, then raise DataError with all problems, or warn of what was told."""
    files = [(path, None) for path in train] + [(image.path, image.mask) for image in test]
    found = examine(files if check_files else [], len(train), rule)
    problems += found[0]
    told += found[1]
    if problems:
        raise DataError(problems, str(folder))
    for text in told:
        warnings.warn(text, DataWarning, stacklevel=3)


def _lacking(test: list[TestImage]) -> list[str]:
    """A warning of what cannot be told without images of either kind."""
    if test and not any(image.is_anomalous for image in test):
        return ["no defective test images: of all metrics there is only the false_alarm_rate"]
    if test and all(image.is_anomalous for image in test):
        return [
            "no good test images: no image_auroc, image_precision, image_f1 and false_alarm_rate, and pixels "
            "are those of defective images only"
        ]
    return []
