"""How the fusion learns: on the maps of a finished student, computed as it goes, or kept.

Kept maps are for comparing fusions: they are computed once, and a fusion trained on them takes seconds. The
masks are those of synthetic anomalies [paper], of other kinds than those that the branches are distilled on
[ours].
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alterations import altered_view
from .config import Config
from .losses import Features, msn_loss, resize_mask
from .model import DMDD
from .msn import build_msn
from .utils import Progress, autocast


class KeptMaps(NamedTuple):
    """Calibrated maps (S, 2 B, K, h, w) in half precision and masks (S, 2 B, h, w), the anomalous share of
    every cell, of S batches of B pairs: first the normal views (empty masks), then the anomalous ones."""

    maps: Tensor
    masks: Tensor


def loss_on_maps(network: nn.Module, maps: Tensor, mask: Tensor, config: Config) -> Tensor:
    """L_MSN of calibrated maps (2 B, K, h, w), of normal and then of damaged views, on their masks
    (2 B, H, W)."""
    return msn_loss(network(maps).logits, mask, config.msn_loss)


@torch.no_grad()
def keep_maps(model: DMDD, pairs, batches: int, progress: bool = True) -> KeptMaps:
    """What the fusion sees of `batches` of `pairs`, a PairSource, of a trained model in evaluation mode."""
    model.eval()
    maps, masks = [], []
    with Progress(batches, "keeping maps", enabled=progress) as bar:
        for number in range(batches):
            batch = pairs.batch(number)
            with autocast(batch.normal.device, model.config.precision):
                views = [batch.normal, altered_view(batch, model.config, number)]
                seen = msn_inputs(model, views, [model.teacher(view) for view in views])
            share = resize_mask(batch.mask, seen.shape[2:])
            maps.append(seen.half())
            masks.append(torch.cat((torch.zeros_like(share), share)))
            bar.update(number + 1)
    return KeptMaps(torch.stack(maps), torch.stack(masks))


@torch.no_grad()
def msn_inputs(model: DMDD, views: list[Tensor], features: list[Features]) -> Tensor:
    """Calibrated maps (2 B, K, h, w) of the normal and the damaged views (B, 3, H, W), whose teacher features
    these are."""
    branches = [model.branch_maps(*view) for view in zip(views, features, strict=True)]
    return torch.cat([model.calibration(sum(of_view, ())).maps for of_view in branches])


def train_msn(config: Config, kept: KeptMaps, passes: int = 1, progress: bool = True) -> nn.Module:
    """A new fusion, as `config` describes it, trained for so many passes over the kept maps, varied anew in
    each, at `msn_learning_rate`, decayed to zero. The same seed gives the same start to every fusion."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_msn(config, kept.maps.shape[2])
    network.to(kept.maps.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), config.msn_learning_rate, config.betas)
    steps = passes * len(kept.maps)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Progress(steps, "training the MSN", enabled=progress) as bar:
        for iteration in range(steps):
            maps, masks = (values[iteration % len(kept.maps)] for values in kept)
            maps = maps.float().contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            loss_on_maps(network, maps, masks, config).backward()
            optimizer.step()
            decay.step()
            bar.update(iteration + 1)
    return network.eval()
