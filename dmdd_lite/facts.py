"""What training measured beside the weights of a detector: thresholds, bit depth, hashes of its data."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .data.images import DEPTHS
from .data.problems import counted


@dataclass(frozen=True)
class Facts:
    """thresholds of image scores and pixel_thresholds of anomaly maps, by map name; held_out: number of good
    images that gave them, 0 = none did; depth: bits of integers in images, but for uint8; made_from: a hash
    each of training images, textures and teacher, see `data.fingerprints`."""

    thresholds: dict[str, float] = field(default_factory=dict)
    pixel_thresholds: dict[str, float] = field(default_factory=dict)
    held_out: int = 0
    depth: int = 16
    made_from: dict[str, str] = field(default_factory=dict)

    @property
    def expectation(self) -> str:
        """The false alarms to expect at the thresholds, in one sentence."""
        return (
            f"threshold from {counted(range(self.held_out), 'held-out good image')}: expect about 1 false "
            f"alarm in {self.held_out + 1} good images; raise holdout or add good images for fewer"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], names: tuple[str, ...]) -> "Facts":
        """Back from `to_dict`, for a detector with the maps of these names. Raises KeyError for a value that
        is missing, ValueError for one that is wrong."""
        held_out, depth, made_from = values["held_out"], values["depth"], values["made_from"]
        if type(held_out) is not int or held_out < 0:
            raise ValueError(f"held_out must be a number of images, got {held_out!r}")
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {DEPTHS}, got {depth!r}")
        if not isinstance(made_from, dict) or not all(isinstance(v, str) for v in made_from.values()):
            raise ValueError(f"made_from must hold a hash by name, got {made_from!r}")
        thresholds = [_finite(values, kind, names) for kind in ("thresholds", "pixel_thresholds")]
        return cls(*thresholds, held_out, depth, made_from)


def _finite(values: dict[str, Any], kind: str, names: tuple[str, ...]) -> dict[str, float]:
    numbers = {name: values[kind][name] for name in names}
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers.values()):
        raise ValueError(f"{kind} must be finite numbers, got {values[kind]!r}")
    return {name: float(number) for name, number in numbers.items()}
