"""Where the object is: synthetic anomalies may lie there only. [ours, for the authors' idea]"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..config import NO_FOREGROUND


def foreground_mask(image: np.ndarray) -> np.ndarray | None:
    """Where the object is: uint8 (H, W, 3) -> bool (H, W), or None where no object stands out.

    Distance to the border's median colour, cut by Otsu's threshold, holes filled. None if the border itself
    is mixed, or the object is under 3 % of the image (small or flat objects). [ours, for the authors' idea]
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (2, 2, 0))
    rim = max(2, round(0.02 * min(image.shape[:2])))
    border = np.ones(image.shape[:2], bool)
    border[rim:-rim, rim:-rim] = False
    distance = np.linalg.norm(smooth - np.median(smooth[border], axis=0), axis=2)
    mask = ndimage.binary_fill_holes(distance > otsu_threshold(distance))
    mask = ndimage.binary_opening(mask, iterations=2)
    mask = ndimage.binary_dilation(mask, iterations=2)
    separated = distance[mask].mean() > 4 * distance[~mask].mean() if mask.any() and not mask.all() else False
    return mask if separated and mask[border].mean() < 0.3 and mask.mean() > 0.03 else None


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that separates the values into the two most distinct classes (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.argmax(np.nan_to_num(between, nan=-1.0))])


def foreground_masks(images: Tensor, category: str, mode: str = "auto") -> Tensor | None:
    """Masks bool (N, H, W) for training images uint8 (N, 3, H, W), or None where anomalies may lie anywhere:
    mode 'none', a texture of NO_FOREGROUND, or no object found in a fifth of the images or more."""
    if mode == "none" or category in NO_FOREGROUND:
        return None
    found = [foreground_mask(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
    if sum(mask is None for mask in found) * 5 >= len(found):
        return None
    everywhere = np.ones(images.shape[-2:], bool)
    return torch.from_numpy(np.stack([everywhere if mask is None else mask for mask in found]))
