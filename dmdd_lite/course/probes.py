"""How far the features of a student's branches are from the teacher's, on pairs of held-out images: whether
both branches do what their losses ask for. [ours]

Legend: x_n good images, x_a their damaged copies, M the masks; T teacher, N normality and A abnormality
features at scale k; d = 1 - cos per cell.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.textures import procedural_textures
from ..data.training import TrainingData
from ..losses import aim_loss, cosine_distance, resize_mask
from ..pairs import Pairs, PairSynthesizer, step_generator
from ..student import StudentOutput
from ..teacher import Teacher

INSIDE, OUTSIDE = 0.99, 0.01  # a cell is inside if M covers at least, outside if at most so much of it
PAIRS, TEXTURES = 32, 64
OPAQUE = 0.5, 1.0  # range of the opacity of damage that can be seen


def held_out_pairs(
    config: Config, data: TrainingData, count: int = PAIRS, opacity: tuple[float, float] = OPAQUE
) -> Pairs:
    """`count` pairs of held-out images, with textures of another seed than the training's and an opacity in
    the given range; always the same ones for the same images, seed and range."""
    images = data.held_out
    rng = step_generator(config.seed, "held out", 0, images.device)
    textures = procedural_textures(config.image_size, config.seed + 1, TEXTURES).to(images.device)
    return _pairs(config.replace(opacity=opacity), images, textures, rng, count)


def opaque_pairs(
    config: Config, images: Tensor, textures: Tensor, rng: torch.Generator, count: int = PAIRS
) -> Pairs:
    """`count` pairs of good images uint8 (N, 3, H, W), in turn, with an opacity of at least 0.5."""
    return _pairs(config.replace(opacity=OPAQUE), images, textures, rng, count)


def _pairs(config: Config, images: Tensor, textures: Tensor, rng: torch.Generator, count: int) -> Pairs:
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count].float() / 255
    return PairSynthesizer(config, textures)(images, None, rng)


@torch.no_grad()
def branches_of(student: nn.Module, teacher: Teacher, images: Tensor) -> StudentOutput:
    """N and A of images (B, 3, H, W) in [0, 1], per scale (B, C_k, H_k, W_k); () for a missing branch.

    student: called with images and teacher features; evaluated, and left in the mode it was in.
    """
    was = student.training
    student.eval()
    found = [StudentOutput(*student(part, teacher(part))) for part in images.split(8)]
    student.train(was)
    return StudentOutput(
        *(tuple(map(torch.cat, zip(*kind, strict=True))) for kind in zip(*found, strict=True))
    )


@torch.no_grad()
def features_of(teacher: Teacher, images: Tensor) -> tuple[Tensor, ...]:
    """T of images (B, 3, H, W) in [0, 1], per scale (B, C_k, H_k, W_k)."""
    return _joined([teacher(part) for part in images.split(8)])


def _joined(batches) -> tuple[Tensor, ...]:
    """Features of several batches, each a tuple over the scales, as those of one."""
    return tuple(torch.cat(scale) for scale in zip(*batches, strict=True))


def distance_table(student: nn.Module, teacher: Teacher, pairs: Pairs) -> pd.DataFrame:
    """Mean distances on the damaged copies, one row per stride, inside and outside the masks (`INSIDE`,
    `OUTSIDE`); NaN where a branch is missing or no cell lies inside.

    Columns: A to T(x_a) inside and outside, N to T(x_n) inside, A to N inside, T(x_a) to T(x_n) inside.
    """
    good, damaged = features_of(teacher, pairs.normal), features_of(teacher, pairs.anomalous)
    normality, abnormality = branches_of(student, teacher, pairs.anomalous)
    rows, absent = {}, [None] * len(good)
    scales = zip(teacher.info.strides, good, damaged, normality or absent, abnormality or absent, strict=True)
    for stride, t_n, t_a, n, a in scales:
        fraction = resize_mask(pairs.mask, t_a.shape[2:])
        inside, outside = fraction >= INSIDE, fraction <= OUTSIDE
        rows[stride] = {
            "A to T(x_a) inside": _mean(a, t_a, inside),
            "A to T(x_a) outside": _mean(a, t_a, outside),
            "N to T(x_n) inside": _mean(n, t_n, inside),
            "A to N inside": _mean(a, n, inside),
            "T(x_a) to T(x_n) inside": _mean(t_a, t_n, inside),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stride")


def _mean(a: Tensor | None, b: Tensor | None, where: Tensor) -> float:
    if a is None or b is None:
        return float("nan")
    return cosine_distance(a, b)[where].mean().item()


def trivial_branches(student: nn.Module, teacher: Teacher, pairs: Pairs) -> pd.DataFrame:
    """L_AIM on the damaged copies, of A and of three features that need no second branch, see `aim_table`."""
    good, damaged = features_of(teacher, pairs.normal), features_of(teacher, pairs.anomalous)
    normality, abnormality = branches_of(student, teacher, pairs.anomalous)
    features = {"A": abnormality, "A = T(x_a)": damaged, "A = N": normality, "A = T(x_n)": good}
    return aim_table(features, damaged, pairs.mask)


def aim_table(features: dict[str, tuple], teacher: tuple, mask: Tensor) -> pd.DataFrame:
    """L_AIM of features by name, per scale (B, C_k, H_k, W_k), to the teacher's; mask (B, H, W). One row
    each, columns one mean (|d - m| over all cells [authors], summed over the scales), total, inside,
    outside."""
    rows = {}
    for name, scales in features.items():
        costs = [
            (cosine_distance(a, t) - resize_mask(mask, a.shape[2:])).abs()
            for a, t in zip(scales, teacher, strict=True)
        ]
        parts = aim_loss(scales, teacher, mask)._asdict()
        rows[name] = {"one mean": sum(cost.mean() for cost in costs).item()}
        rows[name] |= {part: value.item() for part, value in parts.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
