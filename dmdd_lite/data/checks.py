"""What decoding the files of a category brings to light: problems, which end the work, and warnings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import read_values
from .images import in_threads
from .masks import place, read_mask
from .problems import DataError, counted, some

LARGE = 0.6  # fraction of an image above which a mask is more likely inverted than meant


class Found(NamedTuple):
    """Of one image and its mask: problems; a digest of its values; whether all of them are equal; the
    fraction of the mask that is defective, or None."""

    problems: list[str]
    digest: bytes
    constant: bool
    marked: float | None


def examine(files: Sequence[tuple], train: int, rule: str) -> tuple[list[str], list[str]]:
    """Problems and warnings of images, each with its mask or None, as in `TestImage`, of which the first
    `train` are the training images."""
    found = list(in_threads(lambda file: _found(*file, rule), files))
    problems = [text for one in found for text in one.problems]
    if problems:
        return problems, []
    told, paths = [], [path for path, _ in files]
    if constant := [path for path, one in zip(paths, found, strict=True) if one.constant]:
        told.append(f"{counted(constant, 'image')} of one value: {some(constant)}; is the file whole?")
    good = {one.digest: path for path, one in zip(paths[:train], found[:train], strict=True)}
    tests = zip(paths[train:], found[train:], strict=True)
    if both := [f"{path} = {good[one.digest]}" for path, one in tests if one.digest in good]:
        told.append(
            f"{counted(both, 'test image')} also trained on: {some(both)}; the numbers will be too good, "
            "take them out of one of both"
        )
    masks = [
        (place(mask), one.marked) for (_, mask), one in zip(files, found, strict=True) if mask is not None
    ]
    if empty := [mask for mask, marked in masks if marked == 0]:
        told.append(
            f"{counted(empty, 'mask')} marking nothing: {some(empty)}; mark the defect (transparency is not "
            "read), or move the image to the good ones"
        )
    if large := [mask for mask, marked in masks if marked > LARGE]:
        told.append(
            f"{counted(large, 'mask')} covering over {LARGE:.0%} of the image: {some(large)}; are defects "
            "black there? They must be white"
        )
    return [], told


def _found(path: Path, mask: Path | tuple[Path, ...] | None, rule: str) -> Found:
    image, marked = _tried(read_values, path), None if mask is None else _tried(read_mask, mask, None, rule)
    problems = [found for found in (image, marked) if isinstance(found, str)]
    if problems:
        return Found(problems, b"", False, None)
    if mask is not None and _differ_in_proportions(image.shape[:2], marked.shape):
        (height, width), (rows, columns) = image.shape[:2], marked.shape
        problems.append(
            f"{place(mask)}: a mask of {columns} x {rows} pixels does not fit its image of {width} x "
            f"{height}; turn the mask as the image is turned, or draw it anew"
        )
    digest = hashlib.sha256(repr((image.shape, image.dtype)).encode())
    digest.update(np.ascontiguousarray(image))
    constant = bool(image.min() == image.max())
    return Found(problems, digest.digest(), constant, None if mask is None else marked.float().mean().item())


def _tried(read, *arguments):
    """What reading gives, or what is wrong."""
    try:
        return read(*arguments)
    except DataError as error:
        return str(error)


def _differ_in_proportions(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (H, W) are of proportions more than a tenth apart."""
    across, down = one[0] * other[1], one[1] * other[0]
    return max(across, down) > 1.1 * min(across, down)
