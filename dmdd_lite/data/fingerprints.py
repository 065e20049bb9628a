"""What a run was made from: hashes of its files and of its teacher's weights, as plain values for JSON.

A fingerprint holds for each kind of KINDS either a hash for every file, under its name in the data folder, or
one hash of all. A data folder that was moved or copied has the same ones; dates do not count. The hashes
guard against mistakes: of a file 16 hexadecimal digits of its SHA-256 are kept.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from .category import Category
from .images import in_threads
from .problems import DataError, DataWarning

KINDS = {  # as messages call them
    "images": "the training images differ",
    "textures": "the textures differ",
    "teacher": "the teacher's weights differ",
    "test": "the test images differ",
    "masks": "the masks differ",
}
DIGITS = 16  # of a file's hash that are kept
Hashes = dict[str, str]  # of files, by their names in the data folder
Fingerprint = dict[str, Hashes | str]  # by kind


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError."""
    found = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()


def hash_files(paths: Sequence[Path], root: str | Path | Mapping[str, Path]) -> Hashes:
    """A hash for every file, by its name below `root`; of several folders by name, that name stands before.
    Raises DataError naming a file that cannot be read."""
    roots = root if isinstance(root, Mapping) else {"": root}
    names = [
        (Path(name) / path.relative_to(place)).as_posix()
        for path in paths
        for name, place in roots.items()
        if path.is_relative_to(place)
    ]
    return dict(zip(names, in_threads(_short, paths), strict=True))


def _short(path: Path) -> str:
    try:
        return sha256(path)[:DIGITS]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def hash_category(category: Category, trained: str | None = None) -> dict[str, Hashes]:
    """Hashes of the training images, the test images and the masks. Of plain folders, warns if `trained`, the
    hash of all images that a detector was trained on, is another. Raises DataError as `hash_files`."""
    files = {
        "images": category.train,
        "test": [image.path for image in category.test],
        "masks": [file for image in category.test for file in image.mask_files],
    }
    root = dict(category.places) or category.root
    found = {kind: hash_files(paths, root) for kind, paths in files.items()}
    if category.places and trained and trained != digest(found["images"]):
        told = "the training images are not those of the detector, which may have seen test images"
        warnings.warn(f"{told}; train it again, or open the folders with its seed", DataWarning, stacklevel=3)
    return found


def digest(hashes: Hashes | str) -> str:
    """One hash of all files, whose order does not matter; what is one already stays as it is."""
    if isinstance(hashes, str):
        return hashes
    lines = "\n".join(f"{value} {name}" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def digests(fingerprint: Mapping[str, Hashes | str]) -> dict[str, str]:
    """One hash a kind."""
    return {kind: digest(hashes) for kind, hashes in fingerprint.items()}


def changes(before: Mapping[str, Hashes | str], now: Mapping[str, Hashes | str]) -> list[str]:
    """What of `now` was not so before, for messages: 'the masks differ: 1 of 3 changed, the first <name>'."""
    kinds = [kind for kind in KINDS if kind in now and digest(before.get(kind, "")) != digest(now[kind])]
    return [": ".join([KINDS[kind], *_details(before.get(kind), now[kind])]) for kind in kinds]


def _details(before: Hashes | str | None, now: Hashes | str) -> list[str]:
    """How many files, and the first of them; nothing unless both are known file by file."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return []
    found = {
        f"of {len(before)} changed": [name for name in before if name in now and before[name] != now[name]],
        "new": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
    }
    told = [f"{len(names)} {what}, the first {min(names)}" for what, names in found.items() if names]
    return [", ".join(told).encode("utf-8", "backslashreplace").decode()]  # for names that are no text
