"""Features as colours."""

import numpy as np


def feature_colours(features: np.ndarray, clip: float = 2.0) -> np.ndarray:
    """The first three principal components of the pixels of features (N, C, H, W) as uint8 (N, H, W, 3).

    One colour means one thing in all N images: components and range are theirs together; `clip` percent at
    either end saturate. A component's sign, which is arbitrary, makes its largest weight positive.
    Raises ValueError for fewer than three channels.
    """
    count, channels, height, width = features.shape
    if channels < 3:
        raise ValueError(f"three components need three channels, not {channels}")
    pixels = features.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    _, vectors = np.linalg.eigh(pixels.T @ pixels)
    first = vectors[:, :-4:-1]  # the three of the largest variance, falling
    first = first * np.sign(first[np.abs(first).argmax(axis=0), range(3)])
    values = pixels @ first
    low, high = np.percentile(values, [clip, 100 - clip], axis=0)
    colours = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * colours).astype(np.uint8).reshape(count, height, width, 3)
