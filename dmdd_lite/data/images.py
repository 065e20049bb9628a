"""Reading images and masks from files, PIL images and arrays, with one clear error for whatever is wrong.

What a pixel becomes: grey is repeated to three channels; palettes and CMYK become RGB; alpha is dropped
(the colour below it stays); the EXIF orientation is applied. Of 16 bits the upper byte is kept (0..65535 to
0..255), never a stretch per image, so equal grey values stay equal in all images; 12-bit data stored in 16
bits therefore looks dark. Floating-point images must lie in [0, 1]. Of several pages or frames the first is
read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from ..utils import Progress

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # what Pillow may try, so that no other decoder meets unknown files
MAX_LISTED = 20
MAX_SCANS = 100  # of a JPEG, as in libtiff: each costs the time of all pixels and no more than some bytes


class DataError(ValueError):
    """All problems found in a data set, in one message; `problems` holds every one of them."""

    def __init__(self, problems: str | Sequence[str], where: str = ""):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.where = where
        super().__init__(self.problems, where)  # so that it survives pickling between processes

    def __str__(self) -> str:
        return self._told().encode("utf-8", "backslashreplace").decode()  # for names that are no text

    def _told(self) -> str:
        if len(self.problems) == 1 and not self.where:
            return self.problems[0]
        count = len(self.problems)
        lines = [f"{count} problem{'s' * (count > 1)} in {self.where or 'the data'}:"]
        lines += [f"  - {problem}" for problem in self.problems[:MAX_LISTED]]
        if count > MAX_LISTED:
            lines.append(f"  and {count - MAX_LISTED} more")
        return "\n".join(lines)


def read_image(source: str | Path | Image.Image | np.ndarray, size: int | None = None) -> torch.Tensor:
    """uint8 (3, H, W), or (3, size, size) after an antialiased bilinear resize.

    Arrays: uint8, uint16 or floating point in [0, 1], shaped (H, W), (H, W, 3) or (H, W, 4).
    Raises DataError naming an unreadable file, ValueError for any other array.
    """
    if isinstance(source, np.ndarray):
        pixels = _to_uint8(np.asarray(source))
    elif isinstance(source, (str, Path, Image.Image)):
        pixels = _decode(source, lambda image: _to_uint8(_values(image)))
    else:
        raise ValueError(f"expected a path, a PIL image or a NumPy array, not {type(source).__name__}")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    pixels = np.array(pixels[:, :, :3], order="C")  # torch's resize crashes at one column of other strides
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    if size is not None:
        image = tvf.resize(image, [size, size], antialias=True)
    return image.as_subclass(torch.Tensor).contiguous()


def read_mask(path: str | Path, size: int | None = None) -> torch.Tensor:
    """Bool (H, W), or (size, size) after a nearest-neighbour resize, in which thin defects can vanish.

    True where the brightest channel exceeds half of the mask's own maximum: right for 0/1, 0/255 and 16 bits,
    and for the ringing of JPEG. Palettes are exact and often hold labels, so there every colour but black is
    True; the colours count, not the indices, which optimisers permute. Raises DataError as `read_image`.
    """
    pixels, has_palette = _decode(path, lambda image: (_values(image), image.mode in ("P", "PA")))
    pixels = pixels.max(axis=2) if pixels.ndim == 3 else pixels
    anomalous = pixels > (0 if has_palette else pixels.max() / 2)
    mask = tv_tensors.Mask(torch.from_numpy(anomalous.astype(np.uint8)))
    if size is not None:
        mask = tvf.resize(mask, [size, size])
    return mask.as_subclass(torch.Tensor).bool()


def load_images(
    paths: Sequence[str | Path],
    size: int,
    progress: str | None = "reading",
    workers: int | None = None,
) -> torch.Tensor:
    """uint8 (N, 3, size, size) in the order of `paths`; `progress` names the bar, None silences it."""
    images = torch.zeros((len(paths), 3, size, size), dtype=torch.uint8)
    for index, image in enumerate(in_threads(lambda p: read_image(p, size), paths, progress, workers)):
        images[index] = image
    return images


def in_threads(
    function: Callable[[Any], Any], items: Sequence, progress: str | None = None, workers: int | None = None
) -> Iterator:
    """`map` in threads, in order: Pillow and NumPy work outside of Python's lock. `progress` as above."""
    bar = Progress(len(items), progress or "", enabled=bool(progress))
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool, bar:
        for done, result in enumerate(pool.map(function, items), start=1):
            yield result
            bar.update(done)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on the device; from the CPU to a GPU without waiting for its running computation."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def unit_range(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (B, 3, H, W) as float32 in [0, 1] on the device, channels last."""
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def _decode(source: str | Path | Image.Image, convert: Callable[[Image.Image], Any]) -> Any:
    """Opens an image, turns it upright and converts it; whatever goes wrong becomes a DataError naming it."""
    given = isinstance(source, Image.Image)
    try:
        with nullcontext(source) if given else _opened(source) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            return convert(ImageOps.exif_transpose(image))
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
    reason = "not a PNG, JPEG, BMP or TIFF" if isinstance(error, UnidentifiedImageError) else reason
    return f"unreadable image ({reason}); replace or remove it"


def _values(image: Image.Image) -> np.ndarray:
    """(H, W) of the file's own 16-bit or floating-point values, else uint8 (H, W, 3)."""
    if 0 in image.size:
        raise ValueError("it has no pixels")
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
    return np.asarray(image.convert("RGB"))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """uint8 of the same shape; ValueError unless it is an image as `read_image` describes."""
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ValueError(f"expected shape (H, W), (H, W, 3) or (H, W, 4), got {values.shape}")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"expected uint8, uint16 or floating point in [0, 1], got {values.dtype}")
    if not (values.min() >= 0 and values.max() <= 1):  # also true for NaN
        raise ValueError("floating-point pixels must lie in [0, 1] and not be NaN")
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
