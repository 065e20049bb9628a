"""Fusions of one finished student side by side: its maps kept, a fused map scored, an MSN trained. [ours]"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.category import Category
from ..data.training import TrainingData
from ..detector import Detector
from ..losses import Features, msn_loss, stack_maps
from ..metrics import evaluate_maps
from ..model import DMDD, image_scores, sigma_of, smooth
from ..pairs import PairSource
from ..training import BETAS, learning_rate_factor
from ..utils import autocast


def keep_distances(detector: Detector, images: Tensor, batch: int = 8) -> Features:
    """The maps of both branches, fine to coarse, N before A: uint8 (N, 3, H, W) -> (N, H_k, W_k) each, on the
    CPU."""
    outputs = [detector.output(part)[0] for part in images.split(batch)]
    maps = zip(*([*output.normality, *output.abnormality] for output in outputs), strict=True)
    return tuple(torch.cat(parts).float().cpu() for parts in maps)


def score_map(values: Tensor, category: Category, masks: np.ndarray, config: Config) -> dict[str, float]:
    """Metrics, as fractions of 1, of distances or logits (N, h, w): enlarged and smoothed as the package does
    it with logits, masks bool (N, H, W). A sigmoid afterwards would change none of them."""
    full = smooth(stack_maps([values.float()], config.size)[:, 0], sigma_of(config))
    labels, scores = np.asarray(category.labels), image_scores(full).numpy()
    return evaluate_maps(full.numpy(), masks, scores, labels, None, category.outlined)


def train_msns(
    model: DMDD, networks: Sequence[nn.Module], data: TrainingData, textures: bool = False
) -> list[list[float]]:
    """Stage 2 of `train` for other MSNs, all on the same maps of the model's finished student; returns the
    losses of each step. textures: learn from the textured copies of the pairs instead of the alterations."""
    config, device, losses = model.config, data.images.device, []
    pairs = PairSource(config, data.images, data.foreground, data.textures)
    networks = [network.to(device, memory_format=torch.channels_last) for network in networks]
    optimizers = [torch.optim.Adam(network.parameters(), betas=BETAS) for network in networks]
    for step in range(config.student_iterations, config.iterations):
        pair = pairs.batch(step)
        views = pair.normal, pair.anomalous if textures else pairs.altered(pair, step)
        masks = torch.cat((torch.zeros_like(pair.mask), pair.mask))
        with torch.no_grad(), autocast(device, config.precision):
            maps = torch.cat([model(view).inputs.maps for view in views])
        rate = config.msn_learning_rate * learning_rate_factor(config, step)
        both = zip(networks, optimizers, strict=True)
        losses.append(
            [_step(network, optimizer, rate, maps, masks, config.precision) for network, optimizer in both]
        )
    return losses


def _step(network, optimizer, rate: float, maps: Tensor, masks: Tensor, precision: str) -> float:
    optimizer.param_groups[0]["lr"] = rate
    with autocast(maps.device, precision):
        logits = network(maps).logits
    loss = msn_loss(logits, masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
