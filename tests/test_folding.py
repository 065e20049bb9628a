"""Folded batch norms: the same answer, and nothing touched that is fed by anything else."""

import copy

import pytest
import timm
import torch
from torch import nn

from dmdd_lite.backbones.folding import fold_batch_norms

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def lived_in(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights of their own, so that leaving one out shows."""
    rng = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias.data):
            values.copy_(0.1 * torch.randn(values.shape, generator=rng))
        for values in (norm.running_var, norm.weight.data):
            values.copy_(0.5 + torch.rand(values.shape, generator=rng))
    return network.eval().requires_grad_(False)


def norms(network) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name, left", [("resnet18", 0), ("mobilenetv2_050", 0), ("resnetv2_50", 16)])
def test_folded_network_gives_the_same_features(name, left):
    torch.manual_seed(0)
    network = lived_in(timm.create_model(name, features_only=True))
    expected = network(IMAGES)
    folded = fold_batch_norms(copy.deepcopy(network), IMAGES)
    assert (norms(folded), norms(network) > left) == (left, True)
    assert not any(p.requires_grad for p in folded.parameters())
    for one, other in zip(folded(IMAGES), expected, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()  # deep features: no bound for each value


class Odd(nn.Module):
    """A convolution whose output two layers see, or that is used twice."""

    def __init__(self, twice: bool):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), twice

    def forward(self, x):
        y = self.conv(x)
        return (self.norm(self.conv(y)) if self.twice else self.norm(y) + y,)


@pytest.mark.parametrize("twice", [False, True])
def test_a_norm_that_cannot_be_folded_stays(twice):
    network = lived_in(Odd(twice))
    expected, state = network(IMAGES)[0], {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold_batch_norms(network, IMAGES)
    assert norms(folded) == 1
    assert torch.equal(folded(IMAGES)[0], expected)
    assert all(torch.equal(v, state[k]) for k, v in folded.state_dict().items())
