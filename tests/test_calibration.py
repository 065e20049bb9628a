"""Maps made comparable before they are fused, and DMDD+: by hand, by brute force, and what is invariant."""

import math

import pytest
import torch
from builders import random_images, tiny_config, tiny_model

from dmdd_lite.msn import Calibration
from dmdd_lite.plus.fusion import Plus, fit_plus, plus_maps


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
        inputs = model(images.float() / 255).inputs
    torch.testing.assert_close(inputs.maps.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    assert inputs.plain.mean().item() == pytest.approx(-3, abs=1e-3)


def test_position_maps_of_held_out_images_are_at_zero():
    model, images = tiny_model(plus={"weight": 1.0}).eval(), random_images(24)
    plus = fit_plus(model, images[:8], images[8:])
    with torch.no_grad():
        features = model.teacher(images[8:].float() / 255)
        found = plus(torch.full((16, 16, 16), 0.5), features)
    assert found.plus.logit().mean().item() == pytest.approx(-3, abs=1e-2)
    torch.testing.assert_close(found.position, plus.statistics(features))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_plus_by_hand(weight, teacher):
    """Of flat position maps, at levels that were flat too."""
    config = tiny_config(plus={"weight": weight}, smoothing_sigma=0.0)
    plus, distances = Plus(config, teacher.info), (2.0, 3.0, 4.0)
    plus.level.fill_(0.6 * math.log(1.05))
    plus.statistics = torch.nn.Identity()
    found = plus(torch.full((1, 16, 16), 0.7), tuple(torch.full((1, 4, 4), d) for d in distances))
    above = [0.6 * math.log((d + 0.05) / 1.05) for d in distances]
    expected = (1 - weight) * math.log(0.7 / 0.3) + weight * (2 * sum(above) / 3 - 3)
    torch.testing.assert_close(found.plus.logit(), torch.full((1, 16, 16), expected))
    maps = plus_maps(found, config)
    torch.testing.assert_close(maps["plus"].logit(), torch.full((1, 64, 64), expected), rtol=1e-4, atol=1e-4)
    position = sum(math.log(1 + d / 0.05) for d in distances) / 3
    torch.testing.assert_close(maps["position"], torch.full((1, 64, 64), position))
