"""The teacher's features of the training images: kept where they fit into memory. [ours]"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import Config
from ..losses import Features
from ..teacher import Teacher
from ..utils import autocast, precision_of


class TrainingFeatures:
    """T of images uint8 (N, 3, H, W) on the teacher's device. Kept unless they need more than
    `feature_memory`, or the run sees no image twice: then they are computed each time."""

    def __init__(self, config: Config, teacher: Teacher, images: Tensor):
        self.config, self.teacher, self.images = config, teacher, images
        self.low = precision_of(images.device, config.precision) is torch.bfloat16
        repeated = config.iterations * config.batch_size >= len(images)
        self.kept = self._all() if repeated and self._size() <= 1e9 * config.feature_memory else None

    def _size(self) -> int:
        """Bytes of the features of all images."""
        info, pixels = self.teacher.info, math.prod(self.config.size)
        cells = [c * pixels // s**2 for c, s in zip(info.channels, info.strides, strict=True)]
        return len(self.images) * sum(cells) * (2 if self.low else 4)

    @torch.no_grad()
    def _all(self) -> Features:
        """(N, C_k, H_k, W_k) per scale."""
        parts = [[f.bfloat16() if self.low else f for f in features] for features in self._computed()]
        return tuple(torch.cat(scale) for scale in zip(*parts, strict=True))

    def _computed(self) -> Iterator[Features]:
        for images in self.images.split(8):
            with autocast(images.device, self.config.precision):  # ends before the yield, or it would leak
                features = next(self.teacher.stream(images))
            yield features

    def __iter__(self) -> Iterator[Features]:
        """Of all images in their order, some at a time."""
        if self.kept is None:
            return self._computed()
        return zip(*(scale.split(8) for scale in self.kept), strict=True)

    def of(self, index: Tensor) -> Features | None:
        """Of the images with these numbers (B,), or None where they are not kept."""
        return None if self.kept is None else tuple(scale[index.to(scale.device)] for scale in self.kept)
