"""Anomalies of other kinds than those that the branches are distilled on, for the fusion to learn from.

How the maps of the two branches differ can give away the anomalies that the student was distilled on, which
real defects need not be like. A fusion that learns from those alone may come to rely on it. What combines
should learn from what the combined have not seen, as in stacking (Wolpert, 1992). [ours]

Legend: B images, H x W pixels. Every random step takes a torch.Generator on the images' device.
"""

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from .config import Config
from .pairs import Pairs, step_generator


def altered_view(pairs: Pairs, config: Config, number: int) -> Tensor:
    """The defective views (B, 3, H, W) that the fusion learns from in batch `number`: the normal views,
    altered where the pair's mask is."""
    rng = step_generator(config.seed, "alterations", number, pairs.normal.device)
    return alter(pairs.normal, pairs.mask, rng).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def alter(normal: Tensor, mask: Tensor, rng: Generator) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], each altered within its mask (B, H, W) of 0 and 1, with soft borders, in
    one of six ways: lighter or darker, flatter or harsher, blurred, noisy, tinted, or showing another image
    of the batch, mirrored; -> (B, 3, H, W) in [0, 1]. H and W at least 16."""
    batch, device = len(normal), normal.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=rng, device=device)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, device=device)

    with torch.autocast(device.type, enabled=False):  # filters are convolutions
        soft = gaussian_blur(mask[:, None].to(normal.dtype), [5, 5], [1.0, 1.0])
        around = gaussian_blur(normal, [31, 31], [8.0, 8.0])
        blurred = gaussian_blur(normal, [11, 11], [2.5, 2.5])
    sign = (uniform(-1, 1) > 0).to(normal.dtype) * 2 - 1
    detail = torch.where(uniform(0, 1) < 0.5, uniform(0, 0.4), uniform(1.8, 3))
    ways = torch.stack(
        (
            normal + sign * uniform(0.04, 0.3),
            torch.lerp(around, normal, detail),
            blurred,
            normal + uniform(0.04, 0.15) * gaussian(1, *normal.shape[2:]),
            normal * (1 + sign * uniform(0.1, 0.4)) * torch.exp(0.2 * gaussian(3, 1, 1)),
            normal.roll(1, 0).flip(3),
        )
    )
    way = torch.randint(len(ways), (batch,), generator=rng, device=device)
    return torch.lerp(normal, ways[way, torch.arange(batch, device=device)], soft).clamp(0, 1)
