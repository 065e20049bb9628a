"""What training measured beside the weights of a detector: thresholds, bit depth, hashes of its data."""

import math
from dataclasses import dataclass
from typing import Any

from .data.images import DEPTHS
from .data.problems import counted
from .options import Options, option


@dataclass(frozen=True)
class Facts(Options):
    """Checked as every configuration."""

    thresholds: dict = option({}, "ours", "of image scores, by map name")
    pixel_thresholds: dict = option({}, "ours", "of anomaly maps, by map name")
    held_out: int = option(0, "ours", "number of good images that gave the thresholds, 0 = none did", low=0)
    depth: int = option(16, "ours", "bits of integers in images, but for uint8", choices=DEPTHS)
    made_from: dict = option({}, "ours", "a hash each of images, textures, teacher, see `data.fingerprints`")

    @property
    def expectation(self) -> str:
        """The false alarms to expect at the thresholds, in one sentence."""
        return (
            f"threshold from {counted(range(self.held_out), 'held-out good image')}: expect about 1 false "
            f"alarm in {self.held_out + 1} good images; raise holdout or add good images for fewer"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any], names: tuple[str, ...]) -> "Facts":
        """Back from `to_dict`, for a detector with the maps of these names. Raises KeyError for a threshold
        that is missing, TypeError or ValueError for a value that is wrong."""
        facts = super().from_dict(values)
        for kind in ("thresholds", "pixel_thresholds"):
            found = getattr(facts, kind)
            if not all(type(found[name]) in (int, float) and math.isfinite(found[name]) for name in names):
                raise ValueError(f"{kind} must be finite numbers, got {found!r}")
        if not all(isinstance(digest, str) for digest in facts.made_from.values()):
            raise ValueError(f"made_from must hold a hash by name, got {facts.made_from!r}")
        return facts
