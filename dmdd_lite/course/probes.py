"""Looking into a student: the shape after every step, how far its features are from the teacher's on pairs,
and how deep inside a defect a map finds it. For the course and for experiments; all of it is ours [ours]."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn

from ..losses import cosine_distance, resize_mask
from ..model import DMDD
from ..pairs import Pairs
from ..training import Trainer
from .zones import split_zones, zone_recall

#: the modules whose outputs `trace_shapes` lists, and what they give
STEPS = {
    r"teacher": "teacher's features T",
    r"student\.bottleneck\.down\.\d": "brought to the coarsest size",
    r"student\.bottleneck\.embed": "fused and squeezed: the bottleneck",
    r"student\.stages\.\d": "decoder stage, unsplit",
    r"student\.network": "encoder, unsplit",
    r"student\.decouple\.\d\.expand": "1x1 convolution, C to 2C",
    r"student\.decouple\.\d": "split",
}


def trace_shapes(model: DMDD, images: Tensor) -> pd.DataFrame:
    """What each step of teacher and student gives for images (B, 3, H, W) in [0, 1], in the order they run.

    A row a tensor, columns module, gives, channels, height, width.
    """
    rows, hooks = [], []

    def listen(name: str, module: nn.Module, text: str):
        hooks.append(module.register_forward_hook(lambda *call: note(name, text, call[-1])))

    def note(name: str, text: str, out):
        parts = [("", out)] if isinstance(out, Tensor) else [(f"[{k}]", part) for k, part in enumerate(out)]
        if text == "split":
            texts = [f"{branch}, scale {int(name[-1]) + 1}" for branch in model.config.branches]
        else:
            texts = [text] * len(parts)
        rows.extend((name + k, t, *part.shape[1:]) for (k, part), t in zip(parts, texts, strict=True))

    for name, module in model.named_modules():
        text = next((text for pattern, text in STEPS.items() if re.fullmatch(pattern, name)), "")
        if text:
            listen(name, module, text)
    try:
        _evaluated(model, lambda: model(images))
    finally:
        for hook in hooks:
            hook.remove()
    return pd.DataFrame(rows, columns=["module", "gives", "channels", "height", "width"])


class PairDistances(NamedTuple):
    """Cosine distances of one scale on the anomalous views of B pairs, (B, H_k, W_k) each in [0, 2]:
    `seen` of the student to T(x_a), the anomaly map; `restored` of the student to T(x_n), what NGM makes
    small; `change` of T(x_a) to T(x_n), what the anomaly does to the teacher. mask: its share, in [0, 1]."""

    seen: Tensor
    restored: Tensor
    change: Tensor
    mask: Tensor


def pair_distances(model: DMDD, pairs: Pairs, branch: str = "normality") -> list[PairDistances]:
    """Where one branch's features of the anomalous views lie between T(x_a) and T(x_n), per scale.

    The model is evaluated and left in the mode it was in. Raises ValueError for a branch it does not have.
    """
    if branch not in model.config.branches:
        raise ValueError(f"the student has no branch {branch!r}, only {', '.join(model.config.branches)}")

    def measure():
        normal, anomalous = model.teacher(pairs.normal), model.teacher(pairs.anomalous)
        student = getattr(model.student(pairs.anomalous, anomalous), branch)
        scales = zip(student, normal, anomalous, strict=True)
        return [_distances(s, n, a, pairs.mask) for s, n, a in scales]

    return _evaluated(model, measure)


def _distances(student: Tensor, normal: Tensor, anomalous: Tensor, mask: Tensor) -> PairDistances:
    change = cosine_distance(anomalous, normal)
    share = resize_mask(mask, change.shape[1:])
    return PairDistances(cosine_distance(student, anomalous), cosine_distance(student, normal), change, share)


@torch.no_grad()
def _evaluated(model: nn.Module, function):
    was = model.training
    try:
        model.eval()
        return function()
    finally:
        model.train(was)


def gap_table(distances: list[PairDistances]) -> pd.DataFrame:
    """Means over all pixels in the anomaly (share above 1/2) and outside it (share 0).

    Rows the scales, fine to coarse; columns seen inside, seen outside, restored inside, change inside.
    """
    rows = []
    for d in distances:
        inside, outside = d.mask > 0.5, d.mask == 0
        values = (d.seen[inside], d.seen[outside], d.restored[inside], d.change[inside])
        rows.append([v.mean().item() for v in values])
    columns = ["seen inside", "seen outside", "restored inside", "change inside"]
    return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(1, len(rows) + 1, name="scale"))


def watch(trainers: dict[str, Trainer], pairs: Pairs, every: int = 10) -> Iterator[pd.DataFrame]:
    """Train several students side by side and probe their normality features every `every` iterations.

    Yields a growing table: columns model, iteration, and those of `gap_table` meaned over the scales.
    """
    rows = []
    for done in range(1, max(trainer.config.iterations for trainer in trainers.values()) + 1):
        running = {name: t for name, t in trainers.items() if t.iteration < t.config.iterations}
        for name, trainer in running.items():
            trainer.step()
            if done % every == 0 or done == trainer.config.iterations:
                means = gap_table(pair_distances(trainer.model, pairs)).mean()
                rows.append({"model": name, "iteration": done, **means})
        if rows and rows[-1]["iteration"] == done:
            yield pd.DataFrame(rows)


def depth(masks: np.ndarray) -> np.ndarray:
    """How many pixels deep inside a defect each pixel lies, int (N, H, W) of masks bool (N, H, W): 1 at its
    edge, 2 next to that, ...; -1, -2, ... outside it, from the nearest defect of the same image.

    In chessboard steps, as `split_zones` counts. Images without a defect, or full of it, give
    the least or greatest int32.
    """
    far = np.iinfo(np.int32).max
    found = np.empty(masks.shape, np.int32)
    for row, mask in zip(found, np.asarray(masks, dtype=bool), strict=True):
        if mask.all() or not mask.any():
            row[:] = far if mask.all() else -far
            continue
        inside, outside = (ndimage.distance_transform_cdt(m, "chessboard") for m in (mask, ~mask))
        row[:] = np.where(mask, inside, -outside)
    return found


def recall_by_depth(
    maps: dict[str, np.ndarray], masks: np.ndarray, width: int, reach: int, fpr: float = 0.01
) -> pd.DataFrame:
    """The share of pixels above the threshold of `zone_recall`, by depth: columns the maps, rows the depths.

    Rows from -reach to reach, 0 left out; NaN where no pixel is so deep. Over the depths 1 .. width the
    pixels average to the edge's recall.
    """
    deep, zones = depth(masks), split_zones(masks, width)
    steps = [d for d in range(-reach, reach + 1) if d]
    columns = {}
    for name, values in maps.items():
        above = values > zone_recall(values, zones, fpr)["threshold"]
        columns[name] = [above[deep == d].mean() if (deep == d).any() else np.nan for d in steps]
    return pd.DataFrame(columns, index=pd.Index(steps, name="depth"))
