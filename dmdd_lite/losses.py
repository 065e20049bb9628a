"""The losses of DMDD as pure functions: NGM and AIM on features, focal and L1 on the MSN's map.

Symbols: T teacher, N normality and A abnormality features; x_n the normal and x_a the anomalous image of a
pair; M the mask of the anomaly; d the cosine distance. Features are tuples over K
scales of (B, C_k, H_k, W_k).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Features = tuple[Tensor, ...]


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """d = 1 - cos at every pixel: two features (B, C, H, W) -> (B, H, W) in [0, 2]. [summary]"""
    return 1 - _cosine(a, b, 1)


def flat_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the flattened features, mean over the batch: (B, C, H, W) -> scalar in [0, 2]. [authors]"""
    return (1 - _cosine(a, b, (1, 2, 3))).mean()


def _cosine(a: Tensor, b: Tensor, dims) -> Tensor:
    """F.cosine_similarity over any dims; without flattening, gradients keep the channels-last layout."""
    a, b = a.float(), b.float()
    norms = (a * a).sum(dims) * (b * b).sum(dims)
    return (a * b).sum(dims) * norms.clamp(min=1e-16).rsqrt()


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The anomalous fraction of each cell: mask (B, H, W) in [0, 1] -> (B, h, w) in [0, 1].

    Always from the original mask [authors]; fractions instead of nearest values are ours.
    """
    return F.interpolate(mask[:, None].float(), size, mode="area")[:, 0]


def ngm_loss(normality: Features, teacher_normal: Features, mask: Tensor) -> Tensor:
    """Normality Guidance Modeling: fit N of either view to T(x_n), the paired *normal* image. [paper]

    Per scale 1 - cos of the flattened features [authors], plus the mean of d over the anomalous cells of the
    batch [ours]: they are few, and only there N must restore what it does not see. mask (B, H, W) in [0, 1],
    empty for the normal view -> scalar in [0, 4 K].
    """
    loss = 0.0
    for n, t in zip(normality, teacher_normal, strict=True):
        distance = cosine_distance(n, t)
        loss = loss + flat_distance(n, t) + _weighted_mean(distance, resize_mask(mask, distance.shape[1:]))
    return loss


class AimLoss(NamedTuple):
    """L_AIM and its parts, of which it is the mean: scalars in [0, 2 K] for K scales."""

    total: Tensor
    inside: Tensor
    outside: Tensor


def aim_loss(abnormality: Features, teacher: Features, mask: Tensor) -> AimLoss:
    """Abnormality Inverse Mimicking: A departs from T where M = 1 [paper] and stays near it elsewhere
    [summary], both of the *same* view.

    mask (B, H, W) in [0, 1], empty for the normal view. A cell of which M covers the fraction m costs |d - m|
    [authors]. `inside` is the mean cost of the anomalous cells of a batch, 0 where there are none, `outside`
    that of the normal cells, both summed over the scales. Their weights are equal [ours]: most cells are
    normal, and a single mean over all cells falls although A departs from nothing.
    """
    inside = outside = 0.0
    for a, t in zip(abnormality, teacher, strict=True):
        distance = cosine_distance(a, t)
        fraction = resize_mask(mask, distance.shape[1:])
        cost = (distance - fraction).abs()
        inside = inside + _weighted_mean(cost, fraction)
        outside = outside + _weighted_mean(cost, 1 - fraction)
    return AimLoss((inside + outside) / 2, inside, outside)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values with weights, both (B, H, W); 0 if all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p)^gamma log p over all pixels, p the probability of the correct class. [field]

    logits and mask (B, H, W), mask in [0, 1]: a soft pixel counts as a fraction of either class.
    """
    log_p1, log_p0 = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
    anomalous = mask * log_p0.exp() ** gamma * log_p1
    normal = (1 - mask) * log_p1.exp() ** gamma * log_p0
    return -(anomalous + normal).mean()


def msn_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """L_MSN: focal plus L1 loss of the MSN's map against the mask of the synthetic anomaly. [field: DeSTSeg]

    logits (B, h, w); mask (B, H, W) in [0, 1], resized here.
    """
    fraction = resize_mask(mask, logits.shape[1:])
    return focal_loss(logits, fraction) + (logits.float().sigmoid() - fraction).abs().mean()


def distance_maps(features: Features, teacher: Features) -> Features:
    """The anomaly maps of one branch: d per scale, (B, H_k, W_k) in [0, 2]. [authors]"""
    return tuple(cosine_distance(f, t) for f, t in zip(features, teacher, strict=False))


def stack_maps(maps: Features, size: tuple[int, int]) -> Tensor:
    """Maps of several scales, (B, H_k, W_k) each, resized bilinearly to one size: (B, K, H, W)."""
    scaled = [F.interpolate(m[:, None], size, mode="bilinear", align_corners=False) for m in maps]
    return torch.cat(scaled, dim=1)
