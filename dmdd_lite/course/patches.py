"""Features turned back into pictures: every cell is painted with the good image patch whose teacher feature
is nearest to it. A look at what a branch expects, not a part of the method. [ours]

Legend: B images, C channels, h x w cells of one scale, S the side of the pictures, in pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.category import Category
from ..data.foreground import foreground_masks
from ..data.images import load_images
from ..data.masks import load_masks
from ..data.samples import undamaged
from ..data.textures import procedural_textures
from ..pairs import PairSynthesizer, step_generator

DRAWS, COVERED = 16, 0.06  # synthetic damage: of so many draws the one that covers nearest to this fraction


class PatchBank:
    """Patches of good pictures and the teacher's features of their cells.

    pictures: uint8 (N, 3, S, S), in any resolution; features: T of the same images at one scale,
    (N, C, h, w), of which S is a multiple. A patch is three cells wide, so that neighbours overlap.
    """

    def __init__(self, pictures: Tensor, features: Tensor):
        self.cells = tuple(features.shape[2:])
        self.block = pictures.shape[2] // self.cells[0]  # pixels of a cell
        self.keys = F.normalize(features.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # N h w, C
        padded = F.pad(pictures.cpu().float(), [self.block] * 4, mode="reflect").byte()
        side = 3 * self.block
        rows = padded.unfold(2, side, self.block)
        self.patches = rows.unfold(3, side, self.block)  # N, 3, h, w, side, side: views of the pictures

    def nearest(self, features: Tensor) -> Tensor:
        """Which patch is nearest to every cell by cosine: (B, C, h, w) -> (B, h w), rows of the bank."""
        queries = F.normalize(features.float(), dim=1).flatten(2).transpose(1, 2)
        return torch.stack([(query @ self.keys.T).argmax(1) for query in queries]).cpu()

    def paint(self, features: Tensor) -> Tensor:
        """The picture of features (B, C, h, w): uint8 (B, 3, S, S). Overlapping patches are averaged, with
        weights that fall from the middle of a patch to its border."""
        side, size = 3 * self.block, [(n + 2) * self.block for n in self.cells]
        ramp = torch.hann_window(side + 2, periodic=False)[1:-1]
        weights = (ramp[:, None] * ramp).flatten().repeat(3)[None, :, None]
        rows, columns = self.cells
        index = self.nearest(features)
        image, cell = index // (rows * columns), index % (rows * columns)
        found = self.patches[image, :, cell // columns, cell % columns]  # B, h w, 3, side, side
        found = found.flatten(2).transpose(1, 2) * weights
        total = F.fold(weights.expand_as(found[:1]), size, side, stride=self.block)
        painted = F.fold(found, size, side, stride=self.block) / total
        inner = slice(self.block, -self.block)
        return painted[..., inner, inner].round().clamp(0, 255).byte()


class Examples(NamedTuple):
    """Damaged images and their good originals, uint8 (B, 3, S, S); masks bool (B, S, S); their names."""

    damaged: Tensor
    good: Tensor
    masks: Tensor
    names: list[str]


def choose_examples(category: Category, config: Config, size: int, count: int = 4) -> Examples:
    """`count` damaged images of `size` pixels: the largest defect of each kind of which an undamaged picture
    is shipped, the largest kinds first, and good test images with a synthetic anomaly, at least one."""
    found: dict[str, list] = {}
    for test in category.test:
        if test.is_anomalous and test.mask is not None and _original(test.path):
            found.setdefault(test.defect, []).append(test)
    known = [test for tests in found.values() for test in tests]
    area = dict(zip(known, load_masks(known, size, None, category.mask_rule).sum((1, 2)), strict=True))
    largest = sorted((max(tests, key=area.get) for tests in found.values()), key=area.get, reverse=True)
    largest = largest[: count - 1]
    paths = [test.path for test in largest]
    parts = [load_images(paths, size, None), load_images([_original(p) for p in paths], size, None)]
    parts.append(load_masks(largest, size, None, category.mask_rule).bool())
    names = [test.defect.replace("_", " ") for test in largest]
    made = [_synthetic(category, config, size, k) for k in range(count - len(largest))]
    joined = (torch.cat([real, *new]) for real, *new in zip(parts, *made, strict=True))
    return Examples(*joined, names + ["synthetic"] * len(made))


def _original(path):
    try:
        return undamaged(path)
    except ValueError:
        return None


def _synthetic(category: Category, config: Config, size: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """A good test image with an opaque synthetic anomaly: damaged, good and mask, one row each."""
    paths = [test.path for test in category.test if not test.is_anomalous]
    good = load_images([paths[number % len(paths)]], size, None).expand(DRAWS, -1, -1, -1)
    config = config.replace(opacity=(0.95, 1.0), perlin_scales=(1, 4))
    rng = step_generator(config.seed, "picture", number)
    textures = procedural_textures(size, config.seed + 1, DRAWS)
    foreground = foreground_masks(good, category.name, config.foreground)
    pairs = PairSynthesizer(config, textures)(good.float() / 255, foreground, rng)
    best = (pairs.mask.mean((1, 2)) - COVERED).abs().argmin().item()
    chosen = slice(best, best + 1)
    return (255 * pairs.anomalous[chosen]).round().byte(), good[chosen], pairs.mask[chosen] > 0


def shrunk(pictures: Tensor, size: int) -> Tensor:
    """Pictures uint8 (B, 3, S, S) as the networks receive them: float (B, 3, size, size) in [0, 1]."""
    return F.interpolate(pictures.float() / 255, (size, size), mode="area")
