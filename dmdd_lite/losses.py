"""The losses of DMDD as pure functions: NGM and AIM on features, focal, Dice and L1 on the fused map.

Symbols: T teacher, N normality and A abnormality features; x_n the normal and x_a the anomalous image of a
pair; M the mask of the anomaly. Features are tuples over scales of (B, C_k, H_k, W_k).
"""

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


def ngm_loss(normality: Features, teacher_normal: Features, form: str = "flat") -> Tensor:
    """Normality Guidance Modeling: fit N of either view to T(x_n), the paired *normal* image. [paper]

    Sum over scales of 1 - cos, flattened per image ('flat') or per pixel ('pixel'); a scalar in [0, 2 K].
    """
    distance = flat_distance if form == "flat" else lambda n, t: cosine_distance(n, t).mean()
    return sum(distance(n, t) for n, t in zip(normality, teacher_normal, strict=True))


def aim_loss(
    abnormality: Features,
    teacher: Features,
    mask: Tensor,
    form: str = "absolute",
    balanced: bool = False,
) -> Tensor:
    """Abnormality Inverse Mimicking: A departs from T where M = 1 [paper] and keeps near it elsewhere
    [summary], both of the *same* view. Called with an empty mask for the normal view.

    mask (B, H, W) in [0, 1]. Sum over scales of the mean penalty: 'absolute' |d - M| [authors]; 'hinge'
    max(0, 1 - d) and 'inverse' 2 - d in the anomaly, d elsewhere. balanced: the mean of both `aim_parts`, so
    that the anomalous and the normal pixels of a batch weigh one half each.
    """
    if balanced:
        inside, outside = aim_parts(abnormality, teacher, mask, form)
        return (inside + outside) / 2
    return sum(penalty.mean() for penalty, _ in _aim_penalties(abnormality, teacher, mask, form))


def aim_parts(
    abnormality: Features, teacher: Features, mask: Tensor, form: str = "absolute"
) -> tuple[Tensor, Tensor]:
    """The penalty of `aim_loss` as a mean over the anomalous pixels and as one over the normal pixels of a
    batch, either summed over the scales; the first is 0 for an empty mask. [ours]

    Where A copies T the first is near 1 per scale, less for cells that M covers in part, and the second near
    0. The loss itself can fall while A learns to depart from nothing: most pixels are normal.
    """
    inside = outside = 0.0
    for penalty, share in _aim_penalties(abnormality, teacher, mask, form):
        inside = inside + (penalty * share).sum() / share.sum().clamp(min=1e-6)
        outside = outside + (penalty * (1 - share)).sum() / (1 - share).sum().clamp(min=1e-6)
    return inside, outside


def _aim_penalties(abnormality: Features, teacher: Features, mask: Tensor, form: str):
    """Per scale the penalty and the anomalous share of every cell, both (B, H_k, W_k)."""
    for a, t in zip(abnormality, teacher, strict=True):
        distance = cosine_distance(a, t)
        share = resize_mask(mask, distance.shape[1:])
        yield _aim_penalty(distance, share, form), share


def _aim_penalty(distance: Tensor, share: Tensor, form: str) -> Tensor:
    if form == "absolute":
        return (distance - share).abs()
    widened = F.relu(1 - distance) if form == "hinge" else 2 - distance
    return share * widened + (1 - share) * distance


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
