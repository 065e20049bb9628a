"""What training sees: the good images and the textures, read and checked once and kept on the device."""

import dataclasses
import hashlib
import warnings

import torch
from torch import Tensor

from ..config import Config
from ..data.foreground import foreground_masks
from .folders import open_folder
from .images import bit_depth, load_images
from .layout import open_train, vanishing_defects
from .problems import DataError, DataWarning
from .textures import procedural_textures

TEXTURE_LIMIT = 1000  # maximum number of texture images held in memory


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """All on the device: images and held-out images uint8 (N, 3, S, S), foreground masks bool (N, S, S) or
    None, textures uint8 (T, 3, S, S); a fingerprint of the files; and depth, the bits of the training
    images."""

    images: Tensor
    held_out: Tensor
    foreground: Tensor | None
    textures: Tensor
    fingerprint: str
    depth: int = 8


def load_training_data(
    config: Config, data_root, category: str, texture_root="", device="cpu", progress=True
) -> TrainingData:
    """Read and check train/good and the textures, procedural ones without a folder; never opens the test
    split. Of ground_truth, if there is one, it only tells which defects vanish at this image size.
    Raises DataError."""
    paths = open_train(data_root, category)
    if len(paths) < 2:
        raise DataError(f"{data_root}/{category}/train/good has one image, two are needed: add good images")
    held = max(1, round(config.holdout * len(paths)))
    if config.plus is not None and len(paths) - held < 3:
        raise DataError(
            f"{data_root}/{category}/train/good has {len(paths)} images, {held} of them held out; DMDD+ "
            "needs three to train on: add good images, lower holdout, or set plus=None"
        )
    texture_paths = open_folder(texture_root) if texture_root else []
    for text in vanishing_defects(data_root, category, config.image_size):
        warnings.warn(text, DataWarning, stacklevel=3)
    depth = bit_depth(paths)
    images = load_images(paths, config.image_size, "reading images" if progress else None, depth)
    foreground = foreground_masks(images, category, config.foreground)
    rng = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(paths), generator=rng)
    kept, out = order[held:].sort().values, order[:held].sort().values
    if texture_paths:
        chosen = torch.randperm(len(texture_paths), generator=rng)[:TEXTURE_LIMIT].tolist()
        selected = [texture_paths[i] for i in sorted(chosen)]
        reading = "reading textures" if progress else None
        textures = load_images(selected, config.image_size, reading, bit_depth(selected))
    else:
        textures = procedural_textures(config.image_size, config.seed)
    names = "\n".join([category, *(path.name for path in paths), *(path.name for path in texture_paths)])
    return TrainingData(
        images[kept].to(device),
        images[out].to(device),
        None if foreground is None else foreground[kept].to(device),
        textures.to(device),
        hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        depth,
    )
