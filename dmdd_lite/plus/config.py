"""The choices of DMDD+, each with the label of its origin."""

from dataclasses import dataclass

from ..options import Options, option


@dataclass(frozen=True)
class PlusConfig(Options):
    """DMDD+ on top of DMDD. Raises ValueError for a value outside its range, TypeError for another type."""

    pool: tuple = option(
        (3, 3, 5),
        "ours",
        "cells per side over which features are averaged, per scale, fine to coarse; at most a third of the "
        "feature map",
        of=int,
        choices=(1, 3, 5, 7),
        length=3,
    )
    channels: int = option(
        100,
        "field",
        "maximum number of channels at the finest scale, half as many more at each coarser one; more are "
        "reduced by a random projection (PaDiM)",
        low=1,
    )
    context: int = option(
        8,
        "ours",
        "maximum number of components of an image's overall appearance, one per 80 training images, on which "
        "the expected features depend; 0 = the same mean for every image (PaDiM)",
        low=0,
        high=64,
    )
    weight: float = option(
        0.2,
        "ours",
        "weight of the position maps in the map plus, against DMDD's fused map",
        low=0.0,
        high=1.0,
    )
