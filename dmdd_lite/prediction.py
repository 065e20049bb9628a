"""What a detector tells of one image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Prediction:
    """The result for one image.

    maps: by name the smoothed anomaly map (S, S), S = image_size of the configuration; scores and thresholds:
    by the same names; map_name: the map that decides; size: height and width of the image; path: None for
    images from memory; depth: the detector's, bits of integers in images.
    """

    maps: dict[str, np.ndarray]
    scores: dict[str, float]
    thresholds: dict[str, float]
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
