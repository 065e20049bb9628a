"""Fusions side by side: a model's maps are computed once, then every fusion is trained and scored on the same
maps. Nothing differs but the fusion, so the spread over seeds is that of its own training. [ours]
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.category import Category
from ..data.images import load_images
from ..data.masks import load_masks
from ..detector import Detector
from ..evaluation import METRICS, Evaluation
from ..losses import msn_loss, resize_mask
from ..metrics import evaluate_maps
from ..model import DMDD, ModelOutput, full_size_maps, image_scores
from ..msn import BIAS, GAIN, MSN, MSNOutput, fuse
from ..pairs import PairSource
from ..training import BETAS
from ..utils import Progress, autocast, map_tensors

MAX_ROWS = 64  # images whose maps are resized to full size at once


class KeptMaps(NamedTuple):
    """Calibrated maps (S, 2 B, K, h, w) in half precision and masks (S, 2 B, h, w), the anomalous fraction of
    every cell, of S batches of B pairs: first the normal views (empty masks), then the altered ones."""

    maps: Tensor
    masks: Tensor


class KeptSplit(NamedTuple):
    """A test split as a detector of `config` saw it: images uint8 (N, 3, H, W), masks bool (N, H, W), and the
    model's output of all N images on the CPU."""

    config: Config
    category: Category
    images: Tensor
    masks: np.ndarray
    output: ModelOutput


class WeightedSum(nn.Module):
    """The least that can learn to fuse, in place of the MSN: one weight per map and a bias. [ours]"""

    def __init__(self, maps: int = 6):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(maps)), nn.Parameter(torch.tensor(BIAS))

    def forward(self, maps: Tensor) -> MSNOutput:
        weights = self.weight[:, None, None].expand_as(maps)
        return MSNOutput(GAIN * (weights * maps).mean(1) + self.bias, weights)


@torch.no_grad()
def keep_maps(model: DMDD, pairs: PairSource, batches: int, progress: bool = True) -> KeptMaps:
    """What the MSN sees in `batches` steps of training, of a trained model in evaluation mode."""
    model.eval()
    maps, masks = [], []
    with Progress(batches, "keeping maps", enabled=progress) as bar:
        for number in range(batches):
            batch = pairs.batch(number)
            with autocast(batch.normal.device, model.config.precision):
                views = [batch.normal, pairs.altered(batch, number)]
                seen = torch.cat([model(view).inputs.maps for view in views])
            fraction = resize_mask(batch.mask, seen.shape[2:])
            maps.append(seen.half())
            masks.append(torch.cat((torch.zeros_like(fraction), fraction)))
            bar.update(number + 1)
    return KeptMaps(torch.stack(maps), torch.stack(masks))


def train_msn(
    kept: KeptMaps, seed: int = 0, attention=None, passes: int = 1, rate: float = 2e-3, progress: bool = True
) -> nn.Module:
    """A new MSN with these attentions, or a `WeightedSum` (attention = None), trained for so many passes over
    the kept maps at a learning rate that decays to zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        count = kept.maps.shape[2]
        network = WeightedSum(count) if attention is None else MSN(count, attention)
    network.to(kept.maps.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), rate, BETAS)
    steps = passes * len(kept.maps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Progress(steps, "training the MSN", enabled=progress) as bar:
        for step in range(steps):
            maps, masks = (values[step % len(kept.maps)] for values in kept)
            maps = maps.float().contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            msn_loss(network(maps).logits, masks).backward()
            optimizer.step()
            decay.step()
            bar.update(step + 1)
    return network.eval()


def train_msns(
    kept: KeptMaps, variants: dict[str, dict], seeds: Sequence[int], passes: int = 1, progress: bool = True
) -> dict[tuple[str, int], nn.Module]:
    """A network for every variant (its name and the arguments of `train_msn`) and seed."""
    wanted, trained = [(name, seed) for name in variants for seed in seeds], {}
    with Progress(len(wanted), "training fusions", enabled=progress) as bar:
        for name, seed in wanted:
            trained[name, seed] = train_msn(kept, seed, passes=passes, progress=False, **variants[name])
            bar.update(len(trained), name)
    return trained


@torch.no_grad()
def keep_output(
    detector: Detector, images: Tensor, batch_size: int = 8, progress: bool = True
) -> ModelOutput:
    """The model's output of uint8 images (N, 3, H, W), on the CPU in single precision."""
    outputs = []
    with Progress(len(images), "keeping maps", enabled=progress) as bar:
        for batch in images.split(batch_size):
            outputs.append(map_tensors(lambda m: m.float().cpu(), detector.output(batch)[0]))
            bar.update(bar.done + len(batch))

    def join(parts):
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        joined = [join(values) for values in zip(*parts, strict=True)]
        return type(parts[0])(*joined) if hasattr(parts[0], "_fields") else tuple(joined)

    return join(outputs)


def keep_split(detector: Detector, category: Category, progress: bool = True) -> KeptSplit:
    """Read the test split and keep its maps. Raises DataError for unreadable files."""
    size = detector.config.image_size
    paths = [image.path for image in category.test]
    images = load_images(paths, size, "reading test images" if progress else None, detector.depth)
    masks = load_masks(category.test, size, None, category.mask_rule).numpy()
    return KeptSplit(
        detector.config, category, images, masks, keep_output(detector, images, progress=progress)
    )


@torch.no_grad()
def fuse_again(output: ModelOutput, network: nn.Module, plain_weight: float) -> ModelOutput:
    """The output that the same model would give with another fusion, any module from calibrated maps
    (N, K, h, w) to an MSNOutput, and another `plain_weight`."""
    found = network(output.inputs.maps.to(next(network.parameters(), output.fused).device))
    fused = fuse(found.logits.cpu(), output.inputs.plain, plain_weight)
    return output._replace(fused=fused, weights=found.weights.cpu())


def evaluate_msn(
    kept: KeptSplit,
    network: nn.Module,
    of: Sequence[str] = ("fused",),
    plain_weight: float | None = None,
) -> Evaluation:
    """`evaluation.evaluate` of the kept maps under another fusion, for the maps named in `of`. plain_weight:
    instead of the configuration's. Its images_per_second is NaN: the images were predicted before."""
    weight = kept.config.plain_weight if plain_weight is None else plain_weight
    output, parts = fuse_again(kept.output, network, weight), []
    for start in range(0, len(kept.images), MAX_ROWS):
        rows = slice(start, start + MAX_ROWS)
        full = full_size_maps(map_tensors(lambda m, rows=rows: m[rows], output), kept.config)
        parts.append({name: full[name] for name in of})
    maps = {name: torch.cat([part[name] for part in parts]) for name in of}
    scores = {name: image_scores(values).numpy() for name, values in maps.items()}
    maps, labels = {name: values.numpy() for name, values in maps.items()}, np.asarray(kept.category.labels)
    known = kept.category.outlined
    metrics = {name: evaluate_maps(maps[name], kept.masks, scores[name], labels, None, known) for name in of}
    return Evaluation(
        kept.category, kept.images.numpy(), kept.masks, labels, maps, scores, metrics, float("nan")
    )


def score_msns(
    split: KeptSplit,
    networks: dict[tuple[str, int], nn.Module],
    plain_weights: Sequence[float],
    progress: bool = True,
) -> pd.DataFrame:
    """Metrics (fractions of 1) of every fusion with every weight of the plain mean; one row per variant,
    weight and seed."""
    rows, total = [], len(networks) * len(plain_weights)
    with Progress(total, "scoring fusions", enabled=progress) as bar:
        for (name, seed), network in networks.items():
            for weight in plain_weights:
                metrics = evaluate_msn(split, network, plain_weight=weight).metrics["fused"]
                rows.append({"fusion": name, "plain_weight": weight, "seed": seed, **metrics})
                bar.update(len(rows))
    return pd.DataFrame(rows, columns=["fusion", "plain_weight", "seed", *METRICS])


def summarise(scores: pd.DataFrame, metrics: Sequence[str] = METRICS[:4]) -> pd.DataFrame:
    """Percent, mean ± standard deviation over the seeds: one row per fusion and weight, in order of
    appearance."""
    grouped = scores.groupby(["fusion", "plain_weight"], sort=False)[list(metrics)]
    mean, std = 100 * grouped.mean(), 100 * grouped.std().fillna(0)
    text = {m: [f"{a:.1f} ± {s:.1f}" for a, s in zip(mean[m], std[m], strict=True)] for m in metrics}
    return pd.DataFrame(text, index=mean.index)


def with_msn(detector: Detector, msn: MSN, held_out: Tensor) -> Detector:
    """A copy of the detector with another MSN of the same attentions, and the thresholds that held-out good
    images, uint8 (N, 3, H, W), give it."""
    model = copy.deepcopy(detector.model)
    model.msn.load_state_dict(msn.state_dict())
    return Detector.calibrated(model, detector.plus, held_out, detector.facts)
