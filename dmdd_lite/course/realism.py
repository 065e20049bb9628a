"""How like real defects synthetic anomalies are, seen with the frozen teacher: too easy, or too far? [ours]

Real defects are only looked at here, never trained on. Every distance is a cosine distance between single
pixels of the teacher's feature maps ("patches"), 1 - cos, in [0, 2]; how strongly an anomaly stands out is
its distance to the nearest good patch, which is defined for real and synthetic anomalies alike.

Legend: N images, C channels, h x w pixels of a feature map, P patches.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Generator, Tensor

from ..losses import resize_mask
from ..pairs import PairSynthesizer, step_generator
from ..teacher import Teacher


class Patches(NamedTuple):
    """Features (P, C) of unit length, the image (P,) that each comes from, and the distance (P,) to the same
    pixel of the paired normal image, NaN where there is no such image."""

    features: Tensor
    image: Tensor
    paired: Tensor


@dataclasses.dataclass(frozen=True)
class Reference:
    """What recipes are compared with: patches of good images (the bank), of real defects, and the nearest
    distances to the bank of the real patches and of good patches that are not in it."""

    bank: Tensor
    real: Patches
    real_distance: Tensor
    good_distance: Tensor

    @property
    def limit(self) -> float:
        """The distance that 99 % of the good patches keep below: what lies above is plainly visible."""
        return float(np.quantile(self.good_distance.cpu().numpy(), 0.99))


def patch_features(teacher: Teacher, images: Tensor, scale: int = 1, batch: int = 8) -> Tensor:
    """T(x) of unit length at every pixel: images (N, 3, H, W), uint8 or float in [0, 1] -> (N, C, h, w), on
    the teacher's device; scale 0, 1, 2 is stride 4, 8, 16."""
    found = []
    for part in images.split(batch):
        part = part.to(teacher.mean.device)
        part = part.float() / 255 if part.dtype == torch.uint8 else part
        found.append(F.normalize(teacher(part)[scale].float(), dim=1))
    return torch.cat(found)


def gather(features: Tensor, mask: Tensor | None = None, paired: Tensor | None = None) -> Patches:
    """The patches of features (N, C, h, w), in mask (N, H, W) or everywhere; `paired` (N, C, h, w) are the
    features of the paired normal images.

    A cell counts as anomalous when at least half of it is; in an image where none is, the most covered one
    does, so that no small defect is passed over.
    """
    count, _, *size = features.shape
    chosen = torch.ones(count, *size, dtype=torch.bool, device=features.device)
    if mask is not None:
        share = resize_mask(mask.to(features.device), size)
        chosen = (share > 0) & (share >= share.amax((1, 2), keepdim=True).clamp(max=0.5))
    distance = torch.full_like(features[:, 0], torch.nan)
    if paired is not None:
        distance = 1 - (features * paired).sum(1)
    return Patches(features.permute(0, 2, 3, 1)[chosen], chosen.nonzero()[:, 0], distance[chosen])


def nearest_distance(queries: Tensor, bank: Tensor, chunk: int = 2048) -> Tensor:
    """Cosine distance (P,) of each query (P, C) to the nearest of the bank (G, C), all of unit length."""
    return torch.cat([1 - (part @ bank.T).amax(1) for part in queries.split(chunk)])


def build_reference(
    teacher: Teacher,
    bank: Tensor,
    unseen: Tensor,
    test: Tensor,
    masks: Tensor,
    scale: int = 1,
    most: int = 20_000,
    batch: int = 8,
) -> Reference:
    """Two disjoint sets of good images and the defective test images (uint8 (N, 3, H, W)), their true masks
    bool (N, H, W); at most `most` patches of the bank are kept, drawn at random."""
    good = gather(patch_features(teacher, bank, scale, batch)).features
    good = good[_subset(len(good), most, good.device)]
    real = gather(patch_features(teacher, test, scale, batch), masks)
    others = gather(patch_features(teacher, unseen, scale, batch)).features
    return Reference(good, real, nearest_distance(real.features, good), nearest_distance(others, good))


def synthetic_patches(
    teacher: Teacher,
    synthesizer: PairSynthesizer,
    images: Tensor,
    foreground: Tensor | None = None,
    rounds: int = 4,
    scale: int = 1,
    batch: int = 8,
    seed: int = 0,
) -> Patches:
    """The anomalous patches of pairs made from images uint8 (N, 3, H, W), each used `rounds` times; patches
    of one normal image carry its index, whatever the round."""
    found = []
    for step, index in enumerate(torch.arange(rounds * len(images)).remainder(len(images)).split(batch)):
        index = index.to(images.device)
        rng = step_generator(seed, "realism", step, images.device)
        inside = None if foreground is None else foreground[index]
        pairs = synthesizer(images[index].float() / 255, inside, rng)
        normal, anomalous = (patch_features(teacher, view, scale, batch) for view in pairs[:2])
        patches = gather(anomalous, pairs.mask, normal)
        found.append(patches._replace(image=index.to(patches.image.device)[patches.image]))
    return Patches(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def measure(reference: Reference, synthetic: Patches, seed: int = 0) -> dict[str, float]:
    """One row of the comparison of recipes.

    change: median distance to the same pixel of the paired normal image; strength: median distance to the
    nearest good patch; relative: strength over that of real defects; visible: share of patches farther from
    the good ones than `reference.limit`; coverage: see `covered`; auroc: see `two_sample_auroc`.
    """
    distance = nearest_distance(synthetic.features, reference.bank)
    strength = distance.median()
    return {
        "change": float(synthetic.paired.median()),
        "strength": float(strength),
        "relative": float(strength / reference.real_distance.median()),
        "visible": float((distance > reference.limit).float().mean()),
        "coverage": float(covered(reference, synthetic.features, seed=seed).mean()),
        "auroc": two_sample_auroc(reference.real, synthetic, seed=seed),
        "patches": len(distance),
    }


def covered(
    reference: Reference, features: Tensor, count: int = 500, draws: int = 20, seed: int = 0
) -> Tensor:
    """How often the nearest patch of each real one is among `features` (P, C) rather than good: in [0, 1],
    (number of real patches,). Its mean is the coverage.

    Of both sides the same number is drawn, at most `count`, for the nearest of many is nearer than that of
    few; mean over `draws`, a tie counts one half. Features that are good patches themselves are nearest half
    of the time: read it beside `strength`.
    """
    count = min(count, len(features), len(reference.bank))
    real, share = reference.real.features, 0.0
    for draw in range(seed, seed + draws):
        ours, good = (
            nearest_distance(real, side[_subset(len(side), count, side.device, draw)])
            for side in (features, reference.bank)
        )
        share = share + ((ours < good).float() + (ours <= good).float()) / 2
    return share / draws


def two_sample_auroc(
    first: Patches, second: Patches, folds: int = 5, most: int = 1000, seed: int = 0
) -> float:
    """How well a logistic regression tells two sets of patches apart: 0.5 = not at all, 1 = without error.

    Classifier two-sample test (Lopez-Paz and Oquab, 2017): AUROC on images that the classifier has not seen,
    mean over the folds; at most `most` patches of either. Raises ValueError if either is of one image only.
    """
    sides = [_thinned(patches, most, seed) for patches in (first, second)]
    folds = min(folds, *(len(np.unique(image)) for _, image in sides))
    if folds < 2:
        raise ValueError("two_sample_auroc needs patches of two images or more on either side")
    fold = np.concatenate([_folds(image, folds, seed) for _, image in sides])
    truth = np.repeat([0, 1], [len(image) for _, image in sides])
    classifier = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced")
    model = make_pipeline(StandardScaler(), classifier)
    features = np.concatenate([features for features, _ in sides])
    return float(cross_val_score(model, features, truth, cv=PredefinedSplit(fold), scoring="roc_auc").mean())


def split_half_auroc(patches: Patches, splits: int = 8, seed: int = 0) -> float:
    """`two_sample_auroc` of one half of the images against the other, mean over random halves: what sets that
    do not differ score. Raises ValueError for fewer than four images."""
    names, scores = patches.image.unique().cpu(), []
    for split in range(seed, seed + splits):
        left = torch.isin(
            patches.image, names[_subset(len(names), len(names) // 2, "cpu", split)].to(patches.image)
        )
        halves = (Patches(*(part[side] for part in patches)) for side in (left, ~left))
        scores.append(two_sample_auroc(*halves, seed=split))
    return float(np.mean(scores))


def _thinned(patches: Patches, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` patches as arrays: features and image."""
    kept = _subset(len(patches.features), most, patches.features.device, seed)
    return patches.features[kept].cpu().numpy(), patches.image[kept].cpu().numpy()


def _folds(image: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of every patch: images are dealt out in random order, so that each fold has some."""
    names, position = np.unique(image, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[position] % folds


def _subset(count: int, most: int, device, seed: int = 0) -> Tensor:
    """At most `most` of `count` indices, drawn without repetition; the same on every device."""
    return torch.randperm(count, generator=Generator().manual_seed(seed))[:most].to(device)


def shuffled_blocks(images: Tensor, block: int, rng: Generator) -> Tensor:
    """Textures made of good images (N, 3, H, W): each cut into blocks of `block` pixels, put together in
    random order. Raises ValueError if the blocks do not fill the image."""
    count, channels, height, width = images.shape
    if height % block or width % block:
        raise ValueError(f"blocks of {block} pixels do not fill an image of {height} x {width}")
    down, across = height // block, width // block
    blocks = images.view(count, channels, down, block, across, block).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(count, down * across, generator=rng, device=images.device).argsort(1)
    blocks = blocks[torch.arange(count, device=images.device)[:, None], order]
    blocks = blocks.view(count, down, across, channels, block, block)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def describe_masks(masks: Tensor) -> pd.DataFrame:
    """One row per mask (N, H, W): share of anomalous pixels, number of 8-connected regions, and the mean
    share of the image that a region covers (0 where there is none)."""
    rows = []
    for mask in masks.bool().cpu().numpy():
        regions = ndimage.label(mask, structure=np.ones((3, 3)))[1]
        rows.append((mask.mean(), regions, mask.mean() / max(regions, 1)))
    return pd.DataFrame(rows, columns=["share", "regions", "size"])
