"""The losses of DMDD as pure functions: NGM and AIM on features, focal, Dice and L1 on the fused map.

Symbols: T teacher, N normality and A abnormality features; x_n the normal and x_a the anomalous image of a
pair; M the mask of the anomaly. Features are tuples over scales of (B, C_k, H_k, W_k).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Features = tuple[Tensor, ...]


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos at every pixel: two features (B, C, H, W) -> (B, H, W) in [0, 2]. [summary]"""
    return 1 - _cosine(student, teacher, 1)


def flat_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos of the flattened maps, meaned over the batch: (B, C, H, W) -> scalar in [0, 2]. [authors]"""
    return (1 - _cosine(student, teacher, (1, 2, 3))).mean()


def _cosine(a: Tensor, b: Tensor, dims) -> Tensor:
    """F.cosine_similarity over any dims; without flattening, gradients keep the channels-last layout."""
    a, b = a.float(), b.float()
    norms = (a * a).sum(dims) * (b * b).sum(dims)
    return (a * b).sum(dims) * norms.clamp(min=1e-16).rsqrt()


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The anomalous share of each cell: mask (B, H, W) in [0, 1] -> (B, h, w) in [0, 1].

    Always from the original mask; resized step by step, thin anomalies vanish. Shares rather than nearest
    values are ours.
    """
    return F.interpolate(mask[:, None].float(), size, mode="area")[:, 0]


def ngm_loss(normality: Features, teacher_normal: Features, mask: Tensor, form: str = "flat") -> Tensor:
    """Normality Guidance Modeling: fit N of either view to T(x_n), the paired *normal* image. [paper]

    Sum over scales of 1 - cos, flattened per image ('flat') [authors] or per pixel ('pixel'), plus the mean
    of 1 - cos over the anomalous pixels of the batch [ours]: they are few, and there alone N must restore
    what it does not see. mask (B, H, W) in [0, 1], empty for the normal view; a scalar in [0, 4 K].
    """
    loss = 0.0
    for n, t in zip(normality, teacher_normal, strict=True):
        distance = cosine_distance(n, t)
        whole = flat_distance(n, t) if form == "flat" else distance.mean()
        loss = loss + whole + _mean_where(distance, resize_mask(mask, distance.shape[1:]))
    return loss


class AimLoss(NamedTuple):
    """L_AIM and its parts, of which it is the mean: scalars in [0, 2 K] for K scales."""

    total: Tensor
    inside: Tensor
    outside: Tensor


def aim_loss(abnormality: Features, teacher: Features, mask: Tensor) -> AimLoss:
    """Abnormality Inverse Mimicking: A departs from T where M = 1 [paper] and keeps near it elsewhere
    [summary], both of the *same* view.

    mask (B, H, W) in [0, 1], empty for the normal view. A cell of which M covers the share m costs |d - m|
    [authors]. `inside` is the mean cost of the anomalous pixels of a batch, 0 where there are none, `outside`
    that of the normal ones, either summed over the scales; where A copies T they are near K and 0. Both
    weigh the same [ours]: most pixels are normal, and with one mean over all of them the loss falls while A
    departs from nothing.
    """
    inside = outside = 0.0
    for a, t in zip(abnormality, teacher, strict=True):
        distance = cosine_distance(a, t)
        share = resize_mask(mask, distance.shape[1:])
        cost = (distance - share).abs()
        inside, outside = inside + _mean_where(cost, share), outside + _mean_where(cost, 1 - share)
    return AimLoss((inside + outside) / 2, inside, outside)


def _mean_where(values: Tensor, share: Tensor) -> Tensor:
    """Mean of values weighted by shares, both (B, H, W); 0 where there are none."""
    return (values * share).sum() / share.sum().clamp(min=1e-6)


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p)^gamma log p over all pixels, p the probability of the right class. [field]

    logits and mask (B, H, W), mask in [0, 1]: soft pixels count as a share of either class.
    """
    log_p1, log_p0 = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
    anomalous = mask * log_p0.exp() ** gamma * log_p1
    normal = (1 - mask) * log_p1.exp() ** gamma * log_p0
    return -(anomalous + normal).mean()


def dice_loss(logits: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice of the whole batch, so that clean views count too: (B, H, W) -> scalar in [0, 1]. [field]"""
    p = logits.float().sigmoid()
    return 1 - (2 * (p * mask).sum() + smooth) / (p.sum() + mask.sum() + smooth)


def msn_loss(logits: Tensor, mask: Tensor, form: str = "focal+dice") -> Tensor:
    """Loss of the segmentation network against the synthetic anomaly's mask: focal plus Dice or L1. [field]

    logits (B, h, w); mask (B, H, W) in [0, 1], resized here.
    """
    share = resize_mask(mask, logits.shape[1:])
    if form == "focal+l1":
        return focal_loss(logits, share) + (logits.float().sigmoid() - share).abs().mean()
    return focal_loss(logits, share) + dice_loss(logits, share)


def distillation_maps(features: Features, teacher: Features) -> Features:
    """The anomaly maps of one branch: per scale 1 - cos at every pixel, (B, H_k, W_k) in [0, 2]; none for a
    branch that is not there. [authors]"""
    if not features:
        return ()
    return tuple(cosine_distance(f, t) for f, t in zip(features, teacher, strict=True))


def stack_maps(maps: Features, size: tuple[int, int]) -> Tensor:
    """Maps of several scales, (B, H_k, W_k) each, bilinearly on one size: (B, K, H, W)."""
    scaled = [F.interpolate(m[:, None], size, mode="bilinear", align_corners=False) for m in maps]
    return torch.cat(scaled, dim=1)
