"""Which images there are to explore: those of a folder, a category or an evaluation, and uploaded ones."""

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..data.category import Category
from ..data.files import FORMATS, READABLE
from ..data.folders import open_folder
from ..data.images import read_image
from ..data.layout import open_category
from ..data.problems import DataError
from ..evaluation import Evaluation


@dataclass(frozen=True)
class Item:
    """One image to explore: a file, or the bytes of one; `defect` is its folder's name in a labelled set
    ("good" is free of defects) and None where nothing is known."""

    name: str
    source: Path | bytes
    defect: str | None = None
    mask: Path | tuple[Path, ...] | None = None
    mask_rule: str = "auto"


def find_items(source: str | Path | Category | Evaluation) -> list[Item]:
    """The images of an evaluation's or a category's test split, or of a folder with its sub-folders; a folder
    in the MVTec AD layout (train/good and test below it) is taken as a category.

    Raises DataError for a folder without images, TypeError for another kind of source.
    """
    if isinstance(source, Evaluation):
        source = source.category
    if isinstance(source, str | Path):
        folder = Path(source)
        if not ((folder / "train" / "good").is_dir() and (folder / "test").is_dir()):
            found = open_folder(folder)
            return [Item(shown(path.relative_to(folder).as_posix()), path) for path in found]
        folder = folder.resolve()
        source = open_category(folder.parent, folder.name, check_files=False)
    if not isinstance(source, Category):
        kind = type(source).__name__
        raise TypeError(f"explore a folder, a Category or an Evaluation, not {kind}")
    return [
        Item(shown(f"{t.defect}/{t.path.name}"), t.path, t.defect, t.mask, source.mask_rule)
        for t in source.test
    ]


def shown(name: str) -> str:
    """A file's name without what no screen can show or what would change the text around it: line breaks,
    control characters, marks of direction, bytes that are no text."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in hidden else c for c in name)


def read_bytes(data: bytes, name: str, depth: int = 16) -> torch.Tensor:
    """An image file's content as uint8 (3, H, W), depth as in `read_image`. Raises DataError, naming it, if
    it is none."""
    try:
        return read_image(Image.open(io.BytesIO(data), formats=FORMATS), depth=depth)
    except Exception as error:  # Pillow's decoders raise a dozen types for broken files
        raise DataError(f"{name}: not a readable {READABLE} image") from error
