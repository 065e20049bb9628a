"""What is known of a category before an image is read: its files, and which of them are good."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .images import bit_depth

GOOD = "good"


@dataclass(frozen=True)
class TestImage:
    """One image of the test split; `defect` names its kind; `mask` is one file, or several that are united,
    and None for "good", or if missing."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    path: Path
    defect: str
    mask: Path | tuple[Path, ...] | None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != GOOD

    @property
    def mask_files(self) -> tuple[Path, ...]:
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)


@dataclass(frozen=True)
class Category:
    """One category, all of its files known; `train` is sorted by path, `test` by defect and path.

    mask_rule: how masks are read, one of `masks.RULES`; warnings: what was told when it was opened; layout:
    one of `layouts.LAYOUTS`, or "folders"; places: of plain folders, the folders by the names that stand for
    them in fingerprints, else empty, as all files are below `root`."""

    root: Path
    name: str
    train: tuple[Path, ...]
    test: tuple[TestImage, ...]
    mask_rule: str = "auto"
    warnings: tuple[str, ...] = ()
    layout: str = "mvtec"
    places: tuple[tuple[str, Path], ...] = ()

    @cached_property
    def depth(self) -> int:
        """Bits of the training images, as of `images.bit_depth`, which reads them."""
        return bit_depth(self.train)

    @property
    def labels(self) -> np.ndarray:
        """Bool (N,), True where the test image is anomalous."""
        return np.array([image.is_anomalous for image in self.test], dtype=bool)

    @property
    def outlined(self) -> np.ndarray:
        """Bool (N,), True where it is known which pixels are defective."""
        return np.array([not image.is_anomalous or image.mask is not None for image in self.test], dtype=bool)
