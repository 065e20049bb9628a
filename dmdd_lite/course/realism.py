"""How strongly anomalies, synthetic and real ones, stand out from good images for a frozen teacher. [ours]

Real defects are only looked at here, never trained on. The strength of an anomalous cell is the cosine
distance 1 - cos, in [0, 2], of its feature vector to the nearest feature vector of good images (the bank).

Legend: N images, C channels, h x w cells of a feature map, P cells.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Generator, Tensor

from ..losses import resize_mask
from ..pairs import PairSynthesizer, step_generator
from ..teacher import Teacher


def unit_features(teacher: Teacher, images: Tensor, scale: int = 1) -> Tensor:
    """T(x), each feature vector of unit length: images (N, 3, H, W), uint8 or float in [0, 1] ->
    (N, C, h, w) on the teacher's device; scale 0, 1, 2 is stride 4, 8, 16."""
    found = []
    for part in images.split(8):
        part = part.to(teacher.mean.device)
        part = part.float() / 255 if part.dtype == torch.uint8 else part
        found.append(F.normalize(teacher(part)[scale].float(), dim=1))
    return torch.cat(found)


def anomalous_cells(mask: Tensor, size) -> Tensor:
    """Which cells of a feature map of `size` are anomalous, bool (N, h, w): those of which the mask (N, H, W)
    covers half or more, and the most covered one where there is no such cell."""
    covered = resize_mask(mask, size)
    return (covered > 0) & (covered >= covered.amax((1, 2), keepdim=True).clamp(max=0.5))


def nearest_distance(queries: Tensor, bank: Tensor, chunk: int = 2048) -> Tensor:
    """Cosine distance (P,) of each query (P, C) to the nearest of the bank (G, C), all of unit length."""
    return torch.cat([1 - (part @ bank.T).amax(1) for part in queries.split(chunk)])


def build_bank(teacher: Teacher, images: Tensor, scale: int = 1) -> Tensor:
    """Feature vectors (G, C) of good images (N, 3, H, W), at most 20,000, drawn at random."""
    vectors = unit_features(teacher, images, scale).permute(0, 2, 3, 1).flatten(0, 2)
    return vectors[torch.randperm(len(vectors), generator=Generator().manual_seed(0))[:20_000]]


def strengths(
    teacher: Teacher, bank: Tensor, images: Tensor, masks: Tensor | None = None, scale: int = 1
) -> tuple[Tensor, Tensor]:
    """Distance to the bank (P,) of the cells of images (N, 3, H, W) that masks (N, H, W) make anomalous, of
    every cell without masks, and the image (P,) of each cell."""
    features = unit_features(teacher, images, scale)
    if masks is None:
        masks = torch.ones(len(features), *images.shape[2:])
    cells = anomalous_cells(masks.float().to(features.device), features.shape[2:])
    return nearest_distance(features.permute(0, 2, 3, 1)[cells], bank), cells.nonzero()[:, 0]


def synthetic_strengths(
    teacher: Teacher,
    bank: Tensor,
    synthesizer: PairSynthesizer,
    images: Tensor,
    foreground: Tensor | None = None,
    rounds: int = 2,
    seed: int = 0,
    scale: int = 1,
) -> tuple[Tensor, Tensor]:
    """`strengths` (P,) of damaged copies, and their masks (rounds x N, H, W); every good image, uint8
    (N, 3, H, W), is damaged `rounds` times."""
    distances, masks = [], []
    for step in range(rounds):
        for index in torch.arange(len(images), device=images.device).split(8):
            rng = step_generator(seed, "realism", step * len(images) + int(index[0]), images.device)
            inside = None if foreground is None else foreground[index]
            pairs = synthesizer(images[index].float() / 255, inside, rng)
            distances.append(strengths(teacher, bank, pairs.anomalous, pairs.mask, scale)[0])
            masks.append(pairs.mask)
    return torch.cat(distances), torch.cat(masks)


def describe_masks(masks: Tensor) -> pd.DataFrame:
    """One row per mask (N, H, W): the fraction of anomalous pixels, and the number of 8-connected regions."""
    rows = []
    for mask in masks.bool().cpu().numpy():
        rows.append((mask.mean(), ndimage.label(mask, structure=np.ones((3, 3)))[1]))
    return pd.DataFrame(rows, columns=["fraction", "regions"])
