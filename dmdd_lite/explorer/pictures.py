"""Pictures drawn pixel by pixel, for the explorer's static figure and thumbnails.

Pictures are uint8 (H, W, 3). The colours are those of `plots`: cyan is ground truth, white a decision.
"""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from ..course.plots import panels
from .model import Explorer

TRUTH, DECISION = (ImageColor.getrgb(colour) for colour in (panels.TRUTH, panels.DECISION))
PICKED = (140, 255, 60)


@cache
def palette() -> np.ndarray:
    """The maps' colours, (256, 3) from 0 to 255."""
    from matplotlib import colormaps

    return (255 * colormaps[panels.COLOUR_MAP](np.linspace(0, 1, 256))[:, :3]).astype(np.float32)


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) bilinearly, or a mask by nearest neighbour, at another (width, height)."""
    if values.dtype == bool:
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def blend(picture: np.ndarray, heat: np.ndarray, share: float) -> np.ndarray:
    """The picture under a map (H, W) in [0, 1]; share 0 is the picture alone, 1 the map alone.

    Between, the map is more opaque where it is higher, so that sound parts stay visible.
    """
    heat = np.clip(heat, 0, 1)
    opacity = (share ** (2 - 1.5 * heat))[..., None]
    coloured = palette()[np.rint(255 * heat).astype(np.uint8)]
    return np.uint8(np.rint((1 - opacity) * picture + opacity * coloured))


def outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The border of a mask (H, W) as a smooth thin line with a dark rim, which shows on any picture."""
    if mask.all() or not mask.any():
        return picture
    for width, ink in ((2.2, (0, 0, 0)), (1.1, colour)):
        soft = ndimage.gaussian_filter(mask.astype(np.float32), width)  # one half on the border itself
        opacity = np.clip(1.8 * (1 - np.abs(2 * soft - 1)), 0, 1)[..., None]
        picture = (1 - opacity) * picture + opacity * np.float32(ink)
    return np.uint8(np.rint(picture))


def to_png(picture: np.ndarray) -> bytes:
    """PNG, quickly rather than small."""
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "PNG", compress_level=1)
    return written.getvalue()


def blended(
    explorer: Explorer, index: int, name: str, scale: int, threshold: float, share: float
) -> np.ndarray:
    """The picture under its map, uint8 (h, w, 3): ground truth outlined in cyan, the decision in white."""
    seen, (low, high) = explorer.see(index), explorer.limits(name, scale)
    size = seen.picture.shape[1::-1]
    values = resize(seen.maps[name, scale], size)
    drawn = blend(seen.picture, (values - low) / (high - low), share)
    if seen.truth is not None:
        drawn = outline(drawn, resize(seen.truth, size), TRUTH)
    return outline(drawn, values > threshold, DECISION)
