"""Decoding image files: their values as they are, or one clear error that names the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .problems import DataError

#: what Pillow may try, so that no other decoder meets unknown files; none of these starts another program
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
READABLE = "PNG, JPEG, BMP, TIFF, WebP or GIF"
ORIENTATION = 0x0112  # the EXIF tag
MAX_SCANS = 100  # of a JPEG, as in libtiff: each costs the time of all pixels and no more than some bytes


def read_values(source: str | Path | Image.Image) -> np.ndarray:
    """The values of an image file, upright, as they are: uint8 (H, W, 3), or of other files uint16 (H, W) or
    (H, W, 3) or floating point (H, W). Raises DataError."""
    return _decode(source, lambda image: checked(_values(image)))


def read_mask_values(path: str | Path) -> tuple[np.ndarray, bool]:
    """(H, W), the brightest channel of a file, and whether its compression changes values (JPEG, WebP)."""
    values, lossy = _decode(path, lambda image: (_values(image), _is_lossy(image, path)))
    return (values.max(axis=2) if values.ndim == 3 else values), lossy


def _is_lossy(image: Image.Image, path: str | Path) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in Path(path).read_bytes()  # the name of the lossless part
    return image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"  # in a TIFF


def _decode(source: str | Path | Image.Image, convert: Callable[[Image.Image], Any]) -> Any:
    """Opens an image, turns it upright and converts it; whatever goes wrong becomes a DataError naming it."""
    given = isinstance(source, Image.Image)
    try:
        with nullcontext(source) if given else _opened(source) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            return convert(image)
    except Exception as error:  # Pillow's decoders raise a dozen types for broken files
        named = "the given image" if given else str(source) or "''"
        raise DataError(f"{named}: {_remedy(error)}") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The image in a file, not yet decoded.

    Pillow is given the open file. Given a path it maps the file into memory: then one that shrinks meanwhile
    ends the process, and Pillow 13 garbles a TIFF that is stored lying on its side.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise OSError("it is not a file")
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO") and _scans(path) > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans, which takes very long")
        if image.format == "PNG":
            _check_sums(path)
        yield image


def _check_sums(path: str | Path):
    """Of all parts of a PNG: Pillow skips those of the pixels when it decodes them."""
    with open(path, "rb") as file, Image.open(file, formats=("PNG",)) as image:
        image.verify()


def _scans(path: str | Path) -> int:
    """The scans of a JPEG; within their data no byte 0xFF is followed by 0xDA."""
    with open(path, "rb") as file:
        return sum(part.count(b"\xff\xda") for part in iter(lambda: file.read(2**20), b""))


def _remedy(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large ({error}); shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    if isinstance(error, MemoryError):
        return "too large for the memory that is free; shrink it"
    if isinstance(error, FileNotFoundError):
        if os.path.islink(error.filename):
            return "a link to a file that is not there; restore that file or remove the link"
        return "no such file; check the path"
    if isinstance(error, PermissionError):
        return "may not be read; check its permissions"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = f"not a {READABLE}" if isinstance(error, UnidentifiedImageError) else reason
    return f"unreadable image ({reason}); replace or remove it"


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether Pillow would keep only the upper byte of 16-bit colours; told by a file not decoded yet. (16
    bits of a BMP are those of all three colours.)"""
    raw = str([tile[3] for tile in getattr(image, "tile", [])])
    return image.format in ("PNG", "TIFF") and not image.mode.startswith(("I", "F")) and ";16" in raw


def _deep_colours(image: Image.Image) -> np.ndarray:
    """uint16 (H, W, 3) of a PNG; of a TIFF, whose lower bytes Pillow drops, only if the upper ones tell
    all."""
    if image.format == "PNG":
        from torchvision.io import ImageReadMode, decode_image  # deprecated there: nothing else needs it

        image.fp.seek(0)
        data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()
    upper = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if upper.max() < 128:
        raise ValueError("dark 16-bit colours, of which 8 bits would be lost; save it as PNG or with 8 bits")
    return upper.astype(np.uint16) * 257


def _values(image: Image.Image) -> np.ndarray:
    """(H, W) of the file's own 16-bit or floating-point values, (H, W, 3) of 16-bit colours, else uint8
    (H, W, 3)."""
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if _has_deep_colours(image):
        return _deep_colours(image)
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("floating-point pixels must not be NaN or infinite")
        return values
    if image.mode.startswith("I"):  # 16-bit files; some Pillow versions open them as 32-bit "I"
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers outside 0..65535, save it with 8 or 16 bits")
        return values.astype(np.uint16)
    if image.mode in ("P", "PA"):  # through RGBA: Pillow warns of the direct way for transparent palettes
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def checked(values: np.ndarray) -> np.ndarray:
    """The values, if they are an image as `read_image` describes. Raises ValueError."""
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ValueError(f"expected shape (H, W), (H, W, 3) or (H, W, 4), got {values.shape}")
    if values.dtype.kind not in "uif":
        raise ValueError(f"expected integers or floating point in [0, 1], got {values.dtype}")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 1):  # also true for NaN
        raise ValueError("floating-point pixels must lie in [0, 1] and not be NaN")
    if values.dtype.kind != "f" and (values.min() < 0 or values.max() > 65535):
        raise ValueError("integers outside 0..65535, give 8 or 16 bits")
    return values


def highest_integer(path: str | Path) -> int:
    """Of a file of 16-bit values; else 0, by its header alone."""

    def highest(image: Image.Image) -> int:
        deep = image.mode.startswith("I") or _has_deep_colours(image)
        return int(_values(image).max()) if deep else 0

    return _decode(path, highest)
