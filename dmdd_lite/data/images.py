"""Reading images from files, PIL images and arrays, with one clear error for whatever is wrong.

What a pixel becomes: grey is repeated to three channels; palettes and CMYK become RGB; alpha is dropped
(the colour below it stays); the EXIF orientation is applied. Of integers of more than 8 bits the upper 8 of
their bit depth are kept, which is one for all images of a category (`bit_depth`), never a stretch per image,
so that equal grey values stay equal. Floating-point images must lie in [0, 1]. Of several pages or frames the
first is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from ..config import Size, height_width
from ..utils import Progress
from .files import checked, highest_integer, read_values
from .problems import DataWarning, counted, some

DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras store in integers of 16


def read_image(
    source: str | Path | Image.Image | np.ndarray, size: Size | None = None, depth: int = 16
) -> torch.Tensor:
    """uint8 (3, H, W), after an antialiased bilinear resize if `size` is given.

    Arrays: integers, or floating point in [0, 1], shaped (H, W), (H, W, 3) or (H, W, 4). depth: bits of
    integers other than uint8; values above are clipped, with a DataWarning.
    Raises DataError naming an unreadable file, ValueError for any other array.
    """
    image, clipped = read_clipped(source, size, depth)
    if clipped:
        warn_clipped([source], depth)
    return image


def read_clipped(source, size: Size | None = None, depth: int = 16) -> tuple[torch.Tensor, bool]:
    """`read_image`, and whether values were clipped, which this does not warn of."""
    if not isinstance(source, (str, Path, Image.Image, np.ndarray)):
        raise ValueError(f"expected a path, a PIL image or a NumPy array, not {type(source).__name__}")
    values = checked(np.asarray(source)) if isinstance(source, np.ndarray) else read_values(source)
    pixels, clipped = _to_uint8(values, depth)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    pixels = np.array(pixels[:, :, :3], order="C")  # torch's resize crashes at one column of other strides
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    if size is not None:
        image = tvf.resize(image, list(height_width(size)), antialias=True)
    return image.as_subclass(torch.Tensor).contiguous(), clipped


def warn_clipped(sources: Sequence, depth: int):
    names = [str(s) if isinstance(s, str | Path) else "an image from memory" for s in sources]
    warnings.warn(
        f"{counted(names, 'image')} with values above {2**depth - 1}, the largest of {depth} bits, that "
        f"were clipped: {some(names)}; no training image has more bits, so save all images alike",
        DataWarning,
        stacklevel=3,
    )


def bit_depth(paths: Sequence[str | Path]) -> int:
    """The least of DEPTHS that holds all values of these images; 8 where none has more than 8 bits a channel.
    Raises DataError as `read_image`."""
    highest = max(in_threads(highest_integer, paths), default=0)
    return next(depth for depth in DEPTHS if highest < 2**depth)


def load_images(
    paths: Sequence[str | Path],
    size: Size,
    progress: str | None = "reading",
    depth: int = 16,
) -> torch.Tensor:
    """uint8 (N, 3, H, W) of this size in the order of `paths`; `progress` names the bar, None silences it;
    depth as in `read_image`."""
    images, clipped = torch.zeros((len(paths), 3, *height_width(size)), dtype=torch.uint8), []
    for index, found in enumerate(in_threads(lambda p: read_clipped(p, size, depth), paths, progress)):
        images[index] = found[0]
        clipped += [paths[index]] if found[1] else []
    if clipped:
        warn_clipped(clipped, depth)
    return images


def in_threads(function: Callable[[Any], Any], items: Sequence, progress: str | None = None) -> Iterator:
    """`map` in threads, in order: Pillow and NumPy work outside of Python's lock. `progress` as above."""
    bar = Progress(len(items), progress or "", enabled=bool(progress))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        for done, result in enumerate(pool.map(function, items), start=1):
            yield result
            bar.update(done)


def unit_range(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (B, 3, H, W) as float32 in [0, 1] on the device, channels last."""
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


def _to_uint8(values: np.ndarray, depth: int) -> tuple[np.ndarray, bool]:
    """uint8 of the same shape, and whether values were clipped."""
    if values.dtype == np.uint8:
        return values, False
    if values.dtype.kind == "f":
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8), False
    upper = values >> (depth - 8)  # exact for 8 bits that were shifted and for those that were multiplied
    return upper.clip(max=255).astype(np.uint8), bool(values.max() >= 2**depth)
