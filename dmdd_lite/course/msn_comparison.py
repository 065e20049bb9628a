"""Fusions side by side: a model's maps are computed once, then every fusion is scored on the same ones.

In such a table nothing differs but the fusion: teacher, student, pairs and test images are shared. Its spread
over seeds is therefore that of the fusion's own training and smaller than that of whole runs. [ours]
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.images import load_images
from ..data.layout import Category, load_masks
from ..detector import Detector
from ..evaluation import METRICS, Evaluation
from ..metrics import evaluate_maps
from ..model import ModelOutput, full_size_maps, image_scores
from ..msn import build_msn, fuse
from ..msn_training import KeptMaps, train_msn
from ..utils import Progress

MAX_ROWS = 64  # images whose maps are brought to full size at once


class KeptSplit(NamedTuple):
    """A test split as a detector of `config` saw it: images uint8 (N, 3, S, S), masks bool (N, S, S), and the
    model's output of all N images on the CPU."""

    config: Config
    category: Category
    images: Tensor
    masks: np.ndarray
    output: ModelOutput


@torch.no_grad()
def keep_output(
    detector: Detector, images: Tensor, batch_size: int = 8, progress: bool = True
) -> ModelOutput:
    """The model's output of uint8 images (N, 3, S, S), on the CPU in single precision."""
    outputs = []
    with Progress(len(images), "keeping maps", enabled=progress) as bar:
        for batch in images.split(batch_size):
            outputs.append(detector.output(batch))
            bar.update(bar.done + len(batch))

    def join(parts) -> Tensor:
        return torch.cat([part.float().cpu() for part in parts])

    def join_field(parts):
        if isinstance(parts[0], tuple):
            return tuple(join(scale) for scale in zip(*parts, strict=True))
        return None if parts[0] is None else join(parts)

    return ModelOutput(*(join_field(parts) for parts in zip(*outputs, strict=True)))


def keep_split(detector: Detector, category: Category, progress: bool = True) -> KeptSplit:
    """Read the test split and keep its maps. Raises DataError for unreadable files."""
    size = detector.config.image_size
    paths = [image.path for image in category.test]
    images = load_images(paths, size, "reading test images" if progress else None)
    masks = load_masks(category.test, size, None).numpy()
    return KeptSplit(
        detector.config, category, images, masks, keep_output(detector, images, progress=progress)
    )


@torch.no_grad()
def fuse_again(output: ModelOutput, network: nn.Module, skip: float) -> ModelOutput:
    """The output that the same model would give with another fusion, any module from calibrated maps
    (N, K, h, w) to a MSNOutput, and another `msn_skip`; its plus map stays."""
    found = network(output.maps.to(next(network.parameters(), output.maps).device))
    return output._replace(fused=fuse(found.logits.cpu(), output.plain, skip), weights=found.weights.cpu())


def evaluate_msn(
    kept: KeptSplit, network: nn.Module, of: Sequence[str] = ("fused",), skip: float | None = None
) -> Evaluation:
    """`evaluation.evaluate` of the kept maps under another fusion, for the maps named in `of`. skip: instead
    of the configuration's `msn_skip`.

    Its images_per_second is NaN: the images were predicted before.
    """
    skip = kept.config.msn_skip if skip is None else skip
    output, parts = fuse_again(kept.output, network, skip), []
    for start in range(0, len(kept.images), MAX_ROWS):
        rows = slice(start, start + MAX_ROWS)
        part = output.apply(lambda m, rows=rows: m[rows])
        full = full_size_maps(part, kept.config)
        parts.append({name: full[name] for name in of})
    joined = {name: torch.cat([part[name] for part in parts]) for name in of}
    scores = {name: image_scores(values, kept.config).numpy() for name, values in joined.items()}
    maps, labels = {name: values.numpy() for name, values in joined.items()}, np.asarray(kept.category.labels)
    metrics = {name: evaluate_maps(maps[name], kept.masks, scores[name], labels) for name in of}
    return Evaluation(
        kept.category, kept.images.numpy(), kept.masks, labels, maps, scores, metrics, float("nan")
    )


def train_msns(
    config: Config,
    pairs: KeptMaps,
    variants: dict[str, dict],
    seeds: Sequence[int],
    passes: int = 1,
    progress: bool = True,
) -> dict[tuple[str, int], nn.Module]:
    """A fusion for every variant (its name and the fields of `config` that it changes) and seed."""
    wanted = [(name, seed) for name in variants for seed in seeds]
    trained = {}
    with Progress(len(wanted), "training fusions", enabled=progress) as bar:
        for name, seed in wanted:
            changed = config.replace(**{**variants[name], "seed": seed})
            trained[name, seed] = train_msn(changed, pairs, passes, progress=False)
            bar.update(len(trained), name)
    return trained


def score_msns(
    split: KeptSplit,
    fusions: dict[tuple[str, int], nn.Module],
    skips: Sequence[float],
    progress: bool = True,
) -> pd.DataFrame:
    """Metrics (fractions of 1) of every fusion with every weight `skip` of the plain mean in its fused map;
    one row per variant, skip and seed. The skip is no part of what is trained: one training serves all."""
    rows, total = [], len(fusions) * len(skips)
    with Progress(total, "scoring fusions", enabled=progress) as bar:
        for (name, seed), network in fusions.items():
            for skip in skips:
                metrics = evaluate_msn(split, network, skip=skip).metrics["fused"]
                rows.append({"fusion": name, "skip": skip, "seed": seed, **metrics})
                bar.update(len(rows))
    return pd.DataFrame(rows, columns=["fusion", "skip", "seed", *METRICS])


def summarise(scores: pd.DataFrame, metrics: Sequence[str] = METRICS[:4]) -> pd.DataFrame:
    """Percent, mean ± standard deviation over the seeds: a row a fusion and skip, in order of appearance."""
    grouped = scores.groupby(["fusion", "skip"], sort=False)[list(metrics)]
    mean, std = 100 * grouped.mean(), 100 * grouped.std().fillna(0)
    text = {m: [f"{a:.1f} ± {s:.1f}" for a, s in zip(mean[m], std[m], strict=True)] for m in metrics}
    return pd.DataFrame(text, index=mean.index)


def with_msn(detector: Detector, network: nn.Module, config: Config, held_out: Tensor) -> Detector:
    """A copy of the detector with another fusion, the one that `config` describes, and the threshold that
    held-out good images, uint8 (N, 3, S, S), give it.

    Raises ValueError when `config` describes another fusion: the detector could be saved but not loaded.
    """
    maps = len(config.branches) * len(detector.model.teacher.info.channels)
    shapes = [{k: v.shape for k, v in f.state_dict().items()} for f in (network, build_msn(config, maps))]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "config describes another fusion than the one given; pass the one it was trained with"
        )
    model = copy.deepcopy(detector.model)
    model.msn, model.config = copy.deepcopy(network), config
    return Detector.calibrated(model.to(detector.device), held_out)
