"""Categories whose folders tell what an image is: MVTec AD's, and others under other names.

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
from dataclasses import dataclass
from pathlib import Path

from .category import GOOD, TestImage
from .folders import children, find_images, folders, ignored
from .problems import DataError, counted, some

SPLITS = ("train", "test", "ground_truth")


@dataclass(frozen=True)
class Tree:
    """The names of a category's folders: good in train and in test, test, truth. several: an image may have
    several masks, in a folder of its stem."""

    good: str = GOOD
    test: str = "test"
    truth: str = "ground_truth"
    several: bool = False


def category_folder(root: Path, name: str, holds: str = "train") -> Path:
    """The category's own folder, known by a folder in it; DataError if it cannot be found, as nothing else
    can be checked then."""
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder; root is the folder that holds the category folders")
    is_name = isinstance(name, str) and name not in ("", "..") and Path(name).name == name
    folder = root / name if is_name else None
    if folder and os.path.isdir(folder / holds):
        return folder
    _check_level(root, folder, holds)
    if folder and os.path.isdir(folder):
        return folder
    others = ", ".join(found.name for found in folders(root)) or "none"
    raise DataError(f"{root}: no category named {name!r}; categories there: {others}")


def _check_level(root: Path, folder: Path | None, holds: str):
    """DataError if the root, or the folder of that name in it, is a level above or below its place."""
    here = Path(os.path.abspath(root))
    if os.path.isdir(here / holds):
        raise DataError(f"{root}: is a category itself; pass its parent as root and {here.name!r} as name")
    if here.name in SPLITS and os.path.isdir(here.parent / holds):
        above = here.parent
        raise DataError(f"{root}: lies in a category; pass {above.parent} as root and {above.name!r} as name")
    if folder is None:
        return
    inner = ", ".join(repr(found.name) for found in folders(folder) if os.path.isdir(found / holds))
    if inner:
        raise DataError(f"{folder}: holds categories itself; pass it as root and as name one of {inner}")
    for between in folders(root):
        if os.path.isdir(between / folder.name / holds):
            raise DataError(f"{root}: {folder.name!r} lies in {between}; pass that as root")


def train_images(category: Path, problems: list[str], told: list[str], good: str = GOOD) -> list[Path]:
    """The good images to train on; what is wrong is appended to `problems`, files left out to `told`."""
    folder = category / "train" / good
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


def tested_images(category: Path, problems: list[str], told: list[str], tree: Tree) -> list[TestImage]:
    """The test split with its masks; what is wrong with its structure is appended to `problems`."""
    split, truth = category / tree.test, category / tree.truth
    if not os.path.isdir(split):
        problems.append(f"{split}: no such folder; put test images into test/good and test/<defect>")
        return []
    test: list[TestImage] = []
    left, places = _files(split) + _files(truth), [place for place in folders(split) if place != truth]
    for folder in places:
        (images, others), masks = find_images(folder, category), {}
        left += others
        if images and folder.name != tree.good:
            masks = match_masks(images, folder, truth / folder.name, category, problems, tree.several)
            told += unmasked([path for path in images if path not in masks], split, truth / folder.name)
        elif not images and folder.name != tree.good:
            problems.append(f"{folder}: no images; put the defective images there or remove the folder")
        defect = GOOD if folder.name == tree.good else folder.name
        test += [TestImage(path, defect, masks.get(path)) for path in images]
    defects = {folder.name for folder in places} - {tree.good}
    if not test and not defects:
        problems.append(f"{split}: no images; put test images into {tree.good}, and into a folder a defect")
    for folder in folders(truth):
        if folder.name not in defects | {tree.good}:
            problems.append(f"{folder}: no test folder of that name; add {split / folder.name} or remove it")
        elif folder.name != tree.good:
            left += find_images(folder, category)[1]
    told += ignored(sorted(left), category)
    return test


def unmasked(images: list[Path], split: Path, masks: Path) -> list[str]:
    """A warning of defective images without a mask, if there are any, named below `split`."""
    if not images:
        return []
    names = [path.relative_to(split) for path in images]
    return [
        f"{counted(names, 'defective image')} without a mask: {some(names)}; counted for the metrics of "
        f"images only, unless you add {masks}/<image stem>_mask.png"
    ]


def match_masks(
    images: list[Path], split: Path, folder: Path, whole: Path, problems: list[str], several: bool = False
) -> dict[Path, Path | tuple[Path, ...]]:
    """The mask of each image that has one: the file with the stem `<stem>_mask` or `<stem>` in the same
    sub-folder of `folder`, else in `folder` itself; with `several`, all files in such a folder. Links that
    lead into `whole` do not count."""
    masks: dict[Path, list[Path]] = {}  # by the file or the folder whose name tells of which image
    for path in find_images(folder, whole)[0] if os.path.isdir(folder) else []:
        masks.setdefault(path.parent if several else path, []).append(path)
    owners, places = {mask: [] for mask in masks}, {}
    for mask in masks:
        places.setdefault((mask.parent, mask.name if several else mask.stem), []).append(mask)
    fits: dict[Path, list[Path]] = {image: [] for image in images}
    for same in (True, False):  # what is in the same sub-folder as its image is of no other image
        free = {mask for mask, names in owners.items() if not names}
        for image in [image for image, found in fits.items() if not found]:
            place = folder / image.parent.relative_to(split) if same else folder
            stems = [(place, stem) for stem in (f"{image.stem}_mask", image.stem)]
            fits[image] = [mask for key in stems for mask in places.get(key, []) if mask in free]
            for mask in fits[image]:
                owners[mask].append(image.name)
    matched: dict[Path, Path | tuple[Path, ...]] = {}
    for image, found in fits.items():
        if len(found) > 1:
            names = " and ".join(mask.name for mask in found)
            problems.append(f"{image}: ambiguous masks {names}; keep one of them in {folder}")
        elif found:
            matched[image] = tuple(masks[found[0]]) if several else found[0]
    for mask, names in owners.items():
        if not names:
            problems.append(f"{mask}: mask without its image; add the image or remove the mask")
        elif len(names) > 1:
            problems.append(f"{mask}: ambiguous, fits {' and '.join(names)}; give the images other stems")
    return matched
