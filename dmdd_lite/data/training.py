"""What training sees: the good images and the textures, read and checked once and kept on the device."""

import dataclasses
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from .category import Category
from .fingerprints import Hashes, hash_files
from .folders import open_folder
from .foreground import foreground_masks
from .images import bit_depth, load_images
from .layout import open_folders, open_train, vanishing_defects
from .masks import vanishing
from .problems import DataError, DataWarning
from .textures import procedural_textures

TEXTURE_LIMIT = 1000  # maximum number of texture images held in memory


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """All on the device: images and held-out images uint8 (N, 3, H, W), foreground masks bool (N, H, W) or
    None, textures uint8 (T, 3, H, W); the hashes of the files of images and textures, as in `fingerprints`;
    and depth, the bits of the training images."""

    images: Tensor
    held_out: Tensor
    foreground: Tensor | None
    textures: Tensor
    files: dict[str, Hashes]
    depth: int = 8


def load_training_data(
    config: Config, data_root="", category="", texture_root="", device="cpu", progress=True, good=None
) -> TrainingData:
    """Read and check train/good and the textures, procedural ones without a folder; never opens the test
    split. Of ground_truth, if there is one, it only tells which defects vanish at this image size.

    good: instead of data_root and category, a Category, of which the training images are taken, or a folder,
    of which `open_folders` makes one with the seed. Raises DataError, and ValueError for neither or both."""
    if (good is None) == (not data_root and not category):
        raise ValueError("give either data_root and category, or good")
    if good is None:
        paths, where, roots = open_train(data_root, category), f"{data_root}/{category}/train/good", data_root
        told = vanishing_defects(data_root, category, config.image_size)
    else:
        found = good if isinstance(good, Category) else open_folders(good, seed=config.seed)
        paths, category, roots = found.train, found.name, dict(found.places) or found.root
        where, masks = f"the training set of {category}", [t.mask for t in found.test if t.mask is not None]
        told = vanishing(masks, config.image_size, found.mask_rule)
    if len(paths) < 2:
        raise DataError(f"{where} has one image, two are needed: add good images")
    held = max(1, round(config.holdout * len(paths)))
    if config.plus is not None and len(paths) - held < 3:
        raise DataError(
            f"{where} has {len(paths)} images, {held} of them held out; DMDD+ needs three to train on: add "
            "good images, lower holdout, or set plus=None"
        )
    order, chosen = draw_files(config, len(paths), texture_root)
    for text in told:
        warnings.warn(text, DataWarning, stacklevel=3)
    depth = bit_depth(paths)
    images = load_images(paths, config.image_size, "reading images" if progress else None, depth)
    foreground = foreground_masks(images, category, config.foreground)
    kept, out = order[held:].sort().values, order[:held].sort().values
    if chosen:
        reading = "reading textures" if progress else None
        textures = load_images(chosen, config.image_size, reading, bit_depth(chosen))
    else:
        textures = procedural_textures(config.image_size, config.seed)
    return TrainingData(
        images[kept].to(device),
        images[out].to(device),
        None if foreground is None else foreground[kept].to(device),
        textures.to(device),
        {"images": hash_files(paths, roots), "textures": hash_files(chosen, texture_root)},
        depth,
    )


def draw_files(config: Config, images: int, texture_root="") -> tuple[Tensor, list[Path]]:
    """What the seed draws for so many training images: their order (N,), of which the first are held out, and
    the TEXTURE_LIMIT textures at most that are read, none without a folder. Raises DataError."""
    found = open_folder(texture_root) if texture_root else ()
    rng = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(images, generator=rng)
    chosen = torch.randperm(len(found), generator=rng)[:TEXTURE_LIMIT].tolist()
    return order, [found[i] for i in sorted(chosen)]
