"""How the fusion learns: on the maps of a finished student, computed as it goes, or kept.

Kept maps are for comparing fusions: they are computed once, and a fusion trained on them takes seconds. The
masks are those of synthetic anomalies [paper]; varied maps and anomalies that the branches are not distilled
on are ours [ours].
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alterations import fusion_view
from .config import Config
from .device import autocast
from .files import Progress
from .fusion import build_fusion, fade_maps, jitter_maps, map_kinds, zoom_maps
from .losses import Features, msn_loss, resize_mask
from .model import DMDD
from .synthesis import step_generator


class KeptMaps(NamedTuple):
    """Calibrated maps (S, 2 B, K, h, w) in half precision and masks (S, 2 B, h, w), the anomalous share of
    every cell, of S batches of B pairs: first the normal views (empty masks), then the anomalous ones."""

    maps: Tensor
    masks: Tensor


def fusion_loss(fusion: nn.Module, maps: Tensor, mask: Tensor, config: Config, step: int) -> Tensor:
    """L_MSN of calibrated maps (2 B, K, h, w), of normal and then of damaged views, varied in strength and
    size, on their masks (2 B, H, W)."""
    rng = step_generator(config.seed, "fusion", step)
    varied = fade_maps(maps, fading_maps(config, maps.shape[1]), config.fusion_fade, rng)
    varied = jitter_maps(varied, config.fusion_jitter, rng)
    varied, share = zoom_maps(varied, resize_mask(mask, maps.shape[2:]), config.fusion_zoom, rng)
    return msn_loss(fusion(varied).logits, share, config.fusion_loss)


def fading_maps(config: Config, count: int) -> int:
    """How many of `count` fused maps may fade: the branches', which come first, if those of positions are
    there to tell."""
    kinds = map_kinds(config)
    return count * len(config.branches) // len(kinds) if config.position_maps else 0


@torch.no_grad()
def keep_maps(model: DMDD, pairs, batches: int, progress: bool = True) -> KeptMaps:
    """What the fusion sees of `batches` of `pairs`, a PairSource, of a trained model in evaluation mode."""
    model.eval()
    maps, masks, fitted = [], [], model.position is not None and bool(model.position.count)
    with Progress(batches, "keeping maps", enabled=progress) as bar:
        for number in range(batches):
            batch = pairs.batch(number)
            with autocast(batch.normal.device, model.config.precision):
                views = [batch.normal, fusion_view(batch, model.config, number)]
                seen = fusion_inputs(model, views, [model.teacher(view) for view in views], fitted)
            share = resize_mask(batch.mask, seen.shape[2:])
            maps.append(seen.half())
            masks.append(torch.cat((torch.zeros_like(share), share)))
            bar.update(number + 1)
    return KeptMaps(torch.stack(maps), torch.stack(masks))


@torch.no_grad()
def fusion_inputs(
    model: DMDD, views: list[Tensor], features: list[Features], left_out: bool = True
) -> Tensor:
    """Calibrated maps (2 B, K, h, w) of the normal and the damaged views (B, 3, H, W), whose teacher features
    these are, of *training* images. left_out: the statistics of positions leave out each image itself, as if
    it were a new one; they must have been fitted."""
    kinds = [model.branch_maps(*view) for view in zip(views, features, strict=True)]
    if model.position is not None:
        same = left_out and not model.config.varies  # else it is another image
        positions = model.position.of_views(features, features[0] if same else None)
        kinds = [[*of_view, maps] for of_view, maps in zip(kinds, positions, strict=True)]
    return torch.cat([model.calibration(sum(of_view, ())) for of_view in kinds])


def train_fusion(config: Config, kept: KeptMaps, passes: int = 1, progress: bool = True) -> nn.Module:
    """A new fusion, as `config` describes it, trained for so many passes over the kept maps, varied anew in
    each, at `fusion_learning_rate`, decayed to zero. The same seed gives the same start to every fusion."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        fusion = build_fusion(config, kept.maps.shape[2])
    fusion.to(kept.maps.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(fusion.parameters(), config.fusion_learning_rate, config.betas)
    steps = passes * len(kept.maps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Progress(steps, "training the fusion", enabled=progress) as bar:
        for iteration in range(steps):
            maps, masks = (values[iteration % len(kept.maps)] for values in kept)
            maps = maps.float().contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            fusion_loss(fusion, maps, masks, config, iteration).backward()
            optimizer.step()
            decay.step()
            bar.update(iteration + 1)
    return fusion.eval()
