"""Maps made comparable before they are fused, and DMDD+: by hand, by brute force, and what is invariant."""

import math

import pytest
import torch
from builders import random_images, tiny_model

from dmdd_lite.msn import Calibration
from dmdd_lite.plus.mix import Plus


def flat(*values: float) -> tuple[torch.Tensor, ...]:
    """Maps of one image that are the same everywhere, 4 x 4, 2 x 2, 4 x 4, ..."""
    return tuple(torch.full((1, 4 >> k % 2, 4 >> k % 2), v) for k, v in enumerate(values))


def test_levels_by_hand():
    """Of flat maps the lower quartile is the map itself."""
    calibration, values = Calibration(4), (0.18, 0.48, 0.95, 1.95)
    calibration.observe(flat(*values))
    logs = [0.6 * math.log(d + 0.02) for d in (*values, 0.58)]
    torch.testing.assert_close(calibration.level, torch.tensor(logs[:4]))
    assert calibration.distance.item() == pytest.approx(0.89)
    calibration.observe(flat(0.58, *values[1:]), weight=0.1)
    assert calibration.level[0].item() == pytest.approx(0.9 * logs[0] + 0.1 * logs[4])
    assert calibration.distance.item() == pytest.approx(0.89 + 0.1 * 0.1)


def test_calibrated_maps_by_brute_force():
    rng = torch.Generator().manual_seed(0)
    maps = tuple(torch.rand(2, side, side, generator=rng) for _ in range(2) for side in (8, 4))
    calibration, mean = Calibration(4), 0
    calibration.observe(maps)
    new = tuple((2 * m + 0.1).requires_grad_() for m in maps)
    found = calibration(new)
    assert found.maps.shape == (2, 4, 8, 8)
    assert not found.maps.requires_grad
    for k, m in enumerate(new):
        logarithms = (m + 0.02).log()
        own = [sorted(one.flatten().tolist())[one.numel() // 4 - 1] for one in logarithms]
        values = torch.stack((logarithms - 0.4 * torch.tensor(own)[:, None, None], m)).detach()
        enlarged = torch.nn.functional.interpolate(values, (8, 8), mode="bilinear")
        torch.testing.assert_close(found.maps[:, k], enlarged[0] - calibration.level[k])
        mean = mean + enlarged[1] / 4
    torch.testing.assert_close(found.plain, 10 * (mean - calibration.distance) - 3)


def test_good_images_are_at_zero():
    model, images = tiny_model().eval(), random_images(16)
    model.calibrate(images)
    with torch.no_grad():
        output = model(images.float() / 255)
        _, position = model.plus.logits(output.fused, output.position)
    torch.testing.assert_close(output.maps.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    assert output.plain.mean().item() == pytest.approx(-3, abs=1e-3)
    assert position.mean().item() == pytest.approx(-3, abs=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_plus_by_hand(weight):
    plus = Plus(2)
    plus.weight.fill_(weight)
    plus.observe(flat(1.0, 1.0))
    found = plus(torch.full((1, 4, 4), 0.7), flat(2.0, 3.0))
    above = [0.6 * math.log((d + 0.05) / 1.05) for d in (2.0, 3.0)]
    expected = (1 - weight) * math.log(0.7 / 0.3) + weight * (sum(above) - 3)
    torch.testing.assert_close(found.logit(), torch.full((1, 4, 4), expected))
