"""Any timm network as three features (B, C_k, H / s_k, W / s_k), s = 4, 8, 16: whatever its own strides, its
layout (NHWC or NCHW) and the size of its input. Nothing here is learned. [ours]

A network's own feature of a stride is taken where it has one. Else the one of the nearest stride is
resampled: bilinearly to more cells, by averages to fewer. A plain ViT, all of whose blocks give maps of one
stride, becomes a pyramid, after the idea of ViTDet's simple feature pyramid [field] but frozen and without
convolutions: the tokens after the first, second and third quarter of its blocks, without class and register
tokens, are the maps of stride 4, 8 and 16. The last quarter, the most specific to the task it was trained on,
is left out, as the last stage of a convolutional network is.

Strides that are no powers of two (14 of DINOv2, 7 and 14 of a Sequencer) become some by resizing the images:
at 14 / 16 of their size, a grid of patches of 14 is one of stride 16.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Format
from torch import Tensor, nn

from ..config import Size, height_width

STRIDES = (4, 8, 16)
PROBE = 64  # pixels a side of the image that shows what a network answers


class Cut(NamedTuple):
    """How the features of strides 4, 8, 16 come from a network's own.

    indices: timm's, ascending, of those that are computed; picks: for each stride, which of these; scale: of
    the images that the network sees, 1 = as they are.
    """

    indices: tuple[int, ...]
    picks: tuple[int, ...]
    scale: Fraction = Fraction(1)


def choose_cut(strides: Sequence[int]) -> Cut:
    """The cut of a network whose features have these strides. Raises ValueError if none is possible."""
    powers, scale = _powers_of_two(strides)
    if len(strides) > len(STRIDES) and len(set(powers)) == 1:
        chosen = [len(strides) * quarter // 4 - 1 for quarter in (1, 2, 3)]
    else:
        chosen = [powers.index(_nearest(powers, stride)) for stride in STRIDES]
    indices = sorted(set(chosen))
    return Cut(tuple(indices), tuple(indices.index(i) for i in chosen), scale)


def _nearest(powers: Sequence[int], stride: int) -> int:
    """Of equally near ones the finer, which has all that the coarser one has."""
    return min(powers, key=lambda power: (abs(math.log2(power / stride)), power))


def given_cut(indices: Sequence[int], strides: Sequence[int]) -> Cut:
    """The cut of three features that were chosen by hand, from fine to coarse: of strides 4, 8, 16, or all of
    one stride, which are resampled. Raises ValueError for others."""
    powers, scale = _powers_of_two(strides)
    if len(strides) != len(STRIDES) or (tuple(powers) != STRIDES and len(set(powers)) > 1):
        raise ValueError(f"out_indices give features of strides {tuple(strides)}, DMDD needs {STRIDES}")
    return Cut(tuple(indices), (0, 1, 2), scale)


def _powers_of_two(strides: Sequence[int]) -> tuple[list[int], Fraction]:
    """The nearest powers of two, and by what images must be scaled to have them as strides."""
    powers = [2 ** round(math.log2(stride)) for stride in strides]
    scales = {Fraction(stride, power) for stride, power in zip(strides, powers, strict=True)}
    if len(scales) != 1:
        raise ValueError(f"its features of strides {tuple(strides)} cannot become ones of {STRIDES}")
    return powers, scales.pop()


class Adapter(nn.Module):
    """A network of timm as images (B, 3, H, W), of any H and W that 16 divides -> three features (B, C_k,
    H / s_k, W / s_k), s = 4, 8, 16.

    side: (height, width) of the images that the network takes, to which others are resized; None = all,
    scaled by `cut.scale`.
    """

    def __init__(self, network: nn.Module, cut: Cut, side: tuple[int, int] | None = None):
        super().__init__()
        self.network = network
        self.picks, self.scale, self.side = cut.picks, float(cut.scale), side
        self.channels_last = getattr(network, "output_fmt", Format.NCHW) == Format.NHWC

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        side = self.side or (round(height * self.scale), round(width * self.scale))
        found = self.network(_resized(images, side))
        if self.channels_last:
            found = [feature.permute(0, 3, 1, 2) for feature in found]
        sizes = [(height // stride, width // stride) for stride in STRIDES]
        return [_resized(found[pick], size) for pick, size in zip(self.picks, sizes, strict=True)]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) of another size: bilinear, or averages where neither side grows and one halves."""
    sides = list(zip(maps.shape[-2:], size, strict=True))
    if all(old == new for old, new in sides):
        return maps
    if all(old >= new for old, new in sides) and any(old >= 2 * new for old, new in sides):
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def adapted(network: nn.Module, cut: Cut, side: tuple[int, int] | None, image_size: Size) -> nn.Module:
    """The network in an Adapter, or as it is where that would change nothing: most convolutional ones.

    One that takes no images of PROBE pixels, as where its windows would not fit, gets all of `image_size`.
    """
    sizes = None if side else _sizes(network, round(PROBE * cut.scale))
    if not (side or sizes):
        side = scaled(image_size, cut)
    adapter = Adapter(network, cut, side)
    exact = sizes == [(PROBE // stride,) * 2 for stride in STRIDES]
    same = exact and cut.scale == 1 and not adapter.channels_last and cut.picks == (0, 1, 2)
    return network if same else adapter


def scaled(image_size: Size, cut: Cut) -> tuple[int, int]:
    """(height, width) that the network sees of images of this size."""
    height, width = height_width(image_size)
    return round(height * cut.scale), round(width * cut.scale)


@torch.no_grad()
def _sizes(network: nn.Module, side: int) -> list[tuple[int, ...]] | None:
    """Of the features of an image of so many pixels a side; None if the network does not take it. They are
    smaller than the strides tell where convolutions leave out borders."""
    training, place = network.training, next(network.parameters()).device
    try:
        return [tuple(f.shape[-2:]) for f in network.eval()(torch.zeros(1, 3, side, side, device=place))]
    except Exception:  # a dozen types
        return None
    finally:
        network.train(training)


def named_by_timm(network: nn.Module) -> nn.Module:
    """That part of a network of features whose tensors have the names of timm's whole model."""
    inner = set(dict(network.named_children())) & {"model", "body"}  # of timm's getters and its hooks
    return getattr(network, inner.pop()) if isinstance(network, nn.ModuleDict) and inner else network


def without_chance(network: nn.Module) -> nn.Module:
    """No dropout and no stochastic depth, in place: a training can be repeated to the same weights."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return network
