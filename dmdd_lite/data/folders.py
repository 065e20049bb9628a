"""Finding the images of a folder, and what lies beside them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from .files import READABLE, SUFFIXES
from .problems import DataError, DataWarning, counted, some

OF_SYSTEM = ("thumbs.db", "desktop.ini")  # files that Windows leaves, not worth a word


def children(folder: Path) -> list[Path]:
    """Everything in a folder but what is hidden, sorted. Raises DataError if it cannot be listed."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; check the path")
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def folders(parent: Path) -> list[Path]:
    """The folders in a folder, which need not exist."""
    return [path for path in children(parent) if os.path.isdir(path)] if os.path.isdir(parent) else []


def find_images(folder: str | Path, whole: str | Path | None = None) -> tuple[list[Path], list[Path]]:
    """The images in a folder and its sub-folders, by suffix (in any case), sorted; and the other files.

    Hidden ones do not count. Links to folders are followed, each folder once, unless they lead into `whole`,
    the folder itself if None, or to a folder above: such repeat what is there, and count as other files.
    Links to files that are not there count as images, so that none is left out in silence. Raises DataError
    if there is no such folder.
    """
    images, others, waiting, seen = [], [], [Path(folder)], set()
    own = [Path(os.path.realpath(place)) for place in (folder, whole or folder)]
    while waiting:
        below = waiting.pop(0)
        if (place := os.path.realpath(below)) in seen:
            continue
        seen.add(place)
        for path in children(below):
            if os.path.isdir(path) and not (os.path.islink(path) and _leads_back(path, own)):
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path)):
                images.append(path)
            elif path.name.lower() not in OF_SYSTEM:
                others.append(path)
    return sorted(images), sorted(others)


def _leads_back(link: Path, places: list[Path]) -> bool:
    """Whether it leads to, above or into one of the real paths."""
    target = Path(os.path.realpath(link))
    return any(target.is_relative_to(place) or place.is_relative_to(target) for place in places)


def ignored(paths: Sequence[Path], root: Path) -> list[str]:
    """A warning of the files that nobody reads, if there are any."""
    if not paths:
        return []
    names = [path.relative_to(root) for path in paths]
    return [
        f"{counted(names, 'file')} ignored in {root}: {some(names)}; images are {READABLE} files in place"
    ]


def open_folder(folder: str | Path) -> tuple[Path, ...]:
    """The images of a folder and its sub-folders, sorted, listed but not decoded. Warns of other files.
    Raises DataError if there is no folder, or no image in it."""
    images, others = find_images(folder)
    if not images:
        raise DataError(f"{folder}: no images; put {READABLE} files there")
    for text in ignored(others, Path(folder)):
        warnings.warn(text, DataWarning, stacklevel=2)
    return tuple(images)
