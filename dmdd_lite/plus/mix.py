"""DMDD+: the fused map of DMDD and the PaDiM statistics of positions, in one map. All of it is ours [ours].

plus = sigmoid((1 - w) logit(fused) + w (GAIN p + BIAS)), where p is the calibrated mean of the position maps
over the scales and w the WEIGHT.

Legend: B images, H_k x W_k pixels of scale k, H x W the finest map.
"""

import torch
from torch import Tensor, nn

from ..losses import Features, stack_maps
from ..msn import BIAS, GAIN, logarithms

POSITION_FLOOR = 0.05  # added to squared Mahalanobis distances before their logarithm
WEIGHT = 0.2  # of the position maps, against DMDD's fused map


class Plus(nn.Module):
    """forward: fused map (B, H, W) in [0, 1], three position maps (B, H_k, W_k) >= 0 -> plus map (B, H, W) in
    [0, 1]."""

    def __init__(self, scales: int = 3):
        super().__init__()
        self.register_buffer("level", torch.zeros(scales))
        self.register_buffer("weight", torch.tensor(WEIGHT))

    def forward(self, fused: Tensor, position: Features) -> Tensor:
        return torch.lerp(*self.logits(fused, position), self.weight).sigmoid()

    def logits(self, fused: Tensor, position: Features) -> tuple[Tensor, Tensor]:
        """Both logits (B, H, W) that are mixed."""
        maps = stack_maps(logarithms(position, POSITION_FLOOR), fused.shape[1:])
        evidence = (maps - self.level[:, None, None]).mean(1)
        return fused.float().logit(eps=1e-6), GAIN * evidence + BIAS

    @torch.no_grad()
    def observe(self, position: Features, weight: float = 1.0):
        """Update the levels from maps of good images. weight: of these in the running means, at first 1."""
        self.level.lerp_(torch.stack([m.mean() for m in logarithms(position, POSITION_FLOOR)]), weight)
