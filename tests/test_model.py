"""Student, fusion and the whole: shapes from any teacher, the frozen teacher, maps by their formulas."""

import math

import numpy as np
import pytest
import torch
from builders import random_images, same_state, state_of, tiny_config, tiny_detector, tiny_model
from scipy import ndimage

from dmdd_lite.detector import MAP_NAMES, map_names
from dmdd_lite.losses import aim_loss, ngm_loss
from dmdd_lite.model import full_size_maps, smooth
from dmdd_lite.msn import ATTENTIONS, MSN, Calibration
from dmdd_lite.plus.fusion import Plus, fit_plus, plus_maps
from dmdd_lite.student import Decoupling

STUDENTS = pytest.mark.parametrize("student", ["encoder", "decoder"])


@pytest.mark.parametrize("plus", [None, {}])
@STUDENTS
def test_a_student_of_one_branch_has_maps_of_it_alone(student, plus):
    detector = tiny_detector(student=student, branches=("abnormality",), plus=plus)
    maps, _, (output, of_plus) = detector.maps(random_images(1))
    assert output.normality == ()
    assert (of_plus is None) == (plus is None)
    assert output.weights.shape == output.inputs.maps.shape == (1, 3, 16, 16)
    expected = ("fused", "abnormality", "sum", *["plus", "position"] * (plus is not None))
    assert tuple(maps) == map_names(detector.config) == expected
    torch.testing.assert_close(maps["sum"], maps["abnormality"])


def test_decoupling_sees_one_pixel_at_a_time_in_independent_halves():
    split = Decoupling(8, 5, rectified=False).eval()
    x = torch.rand(1, 8, 4, 4)
    both = split(x)
    assert [half.shape for half in both] == [(1, 5, 4, 4)] * 2
    for whole, alone in zip(both, split(x[:, :, 1:2, 2:3]), strict=True):
        torch.testing.assert_close(whole[:, :, 1:2, 2:3], alone)
    last = [m for m in split.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    torch.nn.init.zeros_(last.weight[:5].data)  # of the first half alone
    normality, abnormality = split(x)
    assert normality.abs().max() < 1e-6
    assert torch.equal(abnormality, both[1])


@STUDENTS
def test_losses_train_all_of_the_student_and_never_the_teacher(student):
    """Two steps: residual blocks of the encoder end in a norm that begins at zero, which the first moves."""
    model = tiny_model(student=student).train()
    before, optimizer = state_of(model.teacher), torch.optim.SGD(model.parameters(), 0.1)
    images, mask = torch.rand(2, 3, 64, 64), torch.ones(2, 64, 64)
    features = model.teacher(images)
    for _ in range(2):
        optimizer.zero_grad()
        output = model.student(images, features)
        loss = ngm_loss(output.normality, features, mask) + aim_loss(output.abnormality, features, mask).total
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())
    assert same_state(before, model.teacher)


@pytest.mark.parametrize("attention", [(), *((name,) for name in ATTENTIONS), tuple(ATTENTIONS)])
def test_an_untrained_msn_is_an_increasing_function_of_the_mean_and_learns(attention):
    network, maps = MSN(attentions=attention), torch.rand(3, 6, 16, 16) * 2
    output = network(maps)
    torch.testing.assert_close(output.weights, torch.ones_like(maps))
    assert network.gain > 0
    torch.testing.assert_close(output.logits, network.gain * maps.sum(1) / 6 + network.bias)
    torch.nn.init.normal_(network.reweight.weight)
    network(maps).weights.square().sum().backward()
    for one in network.attentions.values():
        grads = [p.grad for p in one.parameters()]
        assert all(g is not None and g.isfinite().all() for g in grads)
        assert sum(g.abs().sum() for g in grads) > 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_fused_map_mixes_the_msn_and_the_plain_mean_of_distances(weight):
    model = tiny_model(plain_weight=weight).eval()
    torch.nn.init.normal_(model.msn.reweight.weight)
    model.calibrate(random_images(5))
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 64))
        logits = model.msn(output.inputs.maps).logits
    maps = [*output.normality, *output.abnormality]
    mean = sum(enlarged(m, 16) for m in maps) / 6
    plain = 10 * (mean - model.calibration.distance) - 3
    torch.testing.assert_close(output.inputs.plain, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.fused, ((1 - weight) * logits + weight * plain).sigmoid())


def enlarged(values, side=64):
    return torch.nn.functional.interpolate(values[:, None], (side, side), mode="bilinear")[:, 0]


def test_full_size_maps_are_what_they_say():
    detector = tiny_detector(smoothing_sigma=0.0)
    maps, scores, (output, plus) = detector.maps(random_images(2))
    assert tuple(maps) == tuple(scores) == MAP_NAMES
    torch.testing.assert_close(maps["normality"], sum(enlarged(m) for m in output.normality))
    torch.testing.assert_close(maps["sum"], maps["normality"] + maps["abnormality"])
    logs = [enlarged((1 + m / 0.05).log()) for m in plus.position]
    torch.testing.assert_close(maps["position"], sum(logs) / 3)
    odds = enlarged(output.fused.logit())
    torch.testing.assert_close(maps["fused"], odds.sigmoid())
    torch.testing.assert_close(maps["plus"], enlarged(plus.plus.logit()).sigmoid())
    smoothed = full_size_maps(output, detector.config.replace(smoothing_sigma=8.0))
    torch.testing.assert_close(smoothed["fused"], smooth(odds, 2.0).sigmoid())
    torch.testing.assert_close(smoothed["sum"], smooth(maps["sum"], 2.0))


def test_smoothing_equals_scipy():
    maps = torch.rand(2, 64, 64)
    expected = np.stack([ndimage.gaussian_filter(m, 4, mode="mirror", truncate=4) for m in maps.numpy()])
    np.testing.assert_allclose(smooth(maps, 4.0).numpy(), expected, atol=1e-5)
    assert smooth(maps, 0) is maps


# ---- maps made comparable before they are fused, and DMDD+ --------------------------------------------


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
