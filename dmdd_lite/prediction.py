"""The result of a detector for one image: anomaly maps, scores, the decision, regions and pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from .data.images import read_image

HEAT, OUTLINE, RIM = 0.6, (255, 255, 255), (0, 0, 0)  # opacity of the heat at most; colours of outlines


class Region(NamedTuple):
    """An 8-connected region above the pixel threshold: area in pixels, its box in pixels (x, y of the upper
    left corner), and the maximum of the anomaly map."""

    area: int
    x: int
    y: int
    width: int
    height: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    maps: smoothed anomaly maps by name, in the size of the network's input; scores, thresholds (of
    image scores) and pixel_thresholds by the same names; map_name: the map that decides; size: height and
    width of the image; path: None for images from memory; depth: bits of integers in images, but for uint8.
    """

    maps: dict[str, np.ndarray]
    scores: dict[str, float]
    thresholds: dict[str, float]
    pixel_thresholds: dict[str, float]
    map_name: str
    size: tuple[int, int]
    path: Path | None = None
    depth: int = 16

    @property
    def score(self) -> float:
        return self.scores[self.map_name]

    @property
    def threshold(self) -> float:
        return self.thresholds[self.map_name]

    @property
    def pixel_threshold(self) -> float:
        return self.pixel_thresholds[self.map_name]

    @property
    def is_anomalous(self) -> bool:
        return self.score > self.threshold

    @property
    def map(self) -> np.ndarray:
        """The map that decides, (H, W) in [0, 1], in the size of the image."""
        return self.full(self.map_name)

    @property
    def fused(self) -> np.ndarray:
        """DMDD's map, (H, W) in [0, 1]."""
        return self.full("fused")

    @property
    def normality(self) -> np.ndarray:
        """The map of the normality branch, (H, W)."""
        return self.full("normality")

    @property
    def abnormality(self) -> np.ndarray:
        """The map of the abnormality branch, (H, W)."""
        return self.full("abnormality")

    @property
    def plus(self) -> np.ndarray | None:
        """DMDD+'s map, (H, W) in [0, 1]; None for a detector without."""
        return self.full("plus") if "plus" in self.maps else None

    def full(self, name: str) -> np.ndarray:
        """A map in the size of the image, (H, W) float32, bilinear."""
        values = torch.from_numpy(self.maps[name])[None, None]
        return F.interpolate(values, self.size, mode="bilinear")[0, 0].numpy()

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """Bool (H, W): where the map that decides exceeds the threshold, by default the pixel threshold."""
        return self._above(self.map, threshold)

    def _above(self, values: np.ndarray, threshold: float | None = None) -> np.ndarray:
        return values > (self.pixel_threshold if threshold is None else threshold)

    def regions(self, threshold: float | None = None) -> list[Region]:
        """The regions of `mask`, the largest first."""
        values = self.map
        labels, count = ndimage.label(self._above(values, threshold), np.ones((3, 3)))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        peaks = ndimage.maximum(values, labels, np.arange(1, count + 1)) if count else []
        found = []
        for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True):
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            found.append(Region(int(area), *box, float(peak)))
        return sorted(found, reverse=True)

    def overlay(self, image=None) -> Image.Image:
        """The image with the map that decides as heat and the outline of `mask`, in the image's size.

        The heat is full at the maximum of the map, or at twice the pixel threshold where that is higher.
        image: whatever `Detector.predict` takes; None = the file at `path`. Raises ValueError without either.
        """
        if image is None and self.path is None:
            raise ValueError("the prediction is of an image from memory: pass that image to overlay")
        from matplotlib import colormaps

        pixels = read_image(self.path if image is None else image, depth=self.depth).permute(1, 2, 0).numpy()
        values = self.map
        mask = self._above(values)
        heat = values / (min(1, max(values.max(), 2 * self.pixel_threshold)) or 1)
        strength = HEAT * heat[..., None]
        blended = (1 - strength) * pixels + strength * colormaps["inferno"](heat, bytes=True)[..., :3]
        width = max(1, round(max(self.size) / 500))
        line = ndimage.binary_dilation(mask, iterations=width)
        blended[ndimage.binary_dilation(line, iterations=width) & ~line] = RIM
        blended[line & ~mask] = OUTLINE
        return Image.fromarray(blended.astype(np.uint8))
