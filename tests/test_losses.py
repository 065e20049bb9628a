"""Losses against naive loops over pixels, and known answers."""

import math

import pytest
import torch

from dmdd_lite import losses


def features(seed: int, scales=((3, 4), (5, 2))):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, c, s, s, generator=rng) for c, s in scales)


def cosine(a, b) -> float:
    a, b = list(a), list(b)
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def loop_distance(a, t, b, y, x) -> float:
    return 1 - cosine(a[b, :, y, x].tolist(), t[b, :, y, x].tolist())


@pytest.fixture
def mask():
    mask = torch.zeros(2, 8, 8)
    mask[0, 1:6, 2:7] = 1
    mask[1, 0, 0] = 1
    return mask


@pytest.mark.parametrize("form", ["flat", "pixel"])
def test_ngm_equals_the_loop(form):
    normality, teacher = features(0), features(1)
    expected = 0.0
    for n, t in zip(normality, teacher, strict=True):
        images, _, height, width = n.shape
        if form == "flat":
            expected += (
                sum(1 - cosine(n[b].flatten().tolist(), t[b].flatten().tolist()) for b in range(2)) / 2
            )
        else:
            places = [(b, y, x) for b in range(images) for y in range(height) for x in range(width)]
            expected += sum(loop_distance(n, t, *p) for p in places) / len(places)
    assert losses.ngm_loss(normality, teacher, form).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", ["absolute", "hinge", "inverse"])
@pytest.mark.parametrize("balanced", [False, True])
def test_aim_equals_the_loop(form, balanced, mask):
    abnormality, teacher = features(2), features(3)
    expected = 0.0
    for a, t in zip(abnormality, teacher, strict=True):
        cell = 8 // a.shape[2]
        sums, weights = [0.0, 0.0], [0.0, 0.0]
        for b in range(2):
            for y in range(a.shape[2]):
                for x in range(a.shape[3]):
                    block = mask[b, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
                    share, d = block.mean().item(), loop_distance(a, t, b, y, x)
                    far = {"hinge": max(0, 1 - d), "inverse": 2 - d}.get(form)
                    penalty = abs(d - share) if far is None else share * far + (1 - share) * d
                    for side, weight in enumerate((1 - share, share)):
                        sums[side] += weight * penalty
                        weights[side] += weight
        if balanced:
            expected += (sums[0] / weights[0] + sums[1] / weights[1]) / 2
        else:
            expected += sum(sums) / sum(weights)
    found = losses.aim_loss(abnormality, teacher, mask, form, balanced).item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_parts_of_aim_for_trivial_branches(mask):
    """A copy of T misses the target by M in the anomaly alone, one that is orthogonal there by nothing."""
    (teacher,) = features(6, ((2, 8),))
    turned = torch.stack((-teacher[:, 1], teacher[:, 0]), dim=1)
    binary = (mask > 0).float()
    departed = torch.where(binary[:, None] > 0, turned, teacher)
    for abnormality, expected in ((teacher, (1, 0)), (turned, (0, 1)), (departed, (0, 0))):
        parts = losses.aim_parts((abnormality,), (teacher,), binary)
        torch.testing.assert_close(torch.stack(parts), torch.tensor(expected).float(), atol=1e-5, rtol=0)


def test_aim_of_an_empty_mask_is_the_mean_distance_in_every_form():
    abnormality, teacher = features(4), features(5)
    expected = sum(d.mean() for d in losses.distillation_maps(abnormality, teacher))
    empty = torch.zeros(2, 8, 8)
    for form in ("absolute", "hinge", "inverse"):
        torch.testing.assert_close(losses.aim_loss(abnormality, teacher, empty, form), expected)
    balanced = losses.aim_loss(abnormality, teacher, empty, balanced=True)
    torch.testing.assert_close(balanced, expected / 2)


def test_what_minimises_the_losses(mask):
    """NGM is 0 for a scaled copy; AIM 'absolute' is 0 where A is orthogonal to T in the anomaly alone."""
    (teacher,) = features(6, ((2, 8),))
    assert losses.ngm_loss((3 * teacher,), (teacher,)).abs() < 1e-6
    turned = torch.stack((-teacher[:, 1], teacher[:, 0]), dim=1)
    abnormality = torch.where(mask[:, None] > 0, turned, teacher)
    assert losses.aim_loss((abnormality,), (teacher,), mask).abs() < 1e-6


def test_zero_features_give_distance_one_and_finite_gradients():
    zeros = torch.zeros(1, 3, 2, 2, requires_grad=True)
    distance = losses.cosine_distance(zeros, torch.ones(1, 3, 2, 2))
    distance.sum().backward()
    assert torch.equal(distance, torch.ones(1, 2, 2))
    assert zeros.grad.isfinite().all()


def test_masks_are_shares_of_the_original_not_of_the_resized(mask):
    expected = mask.reshape(2, 2, 4, 2, 4).mean((2, 4))
    torch.testing.assert_close(losses.resize_mask(mask, (2, 2)), expected)
    assert losses.resize_mask(mask, (2, 2))[1, 0, 0] == 1 / 16  # one pixel is not lost


def test_focal_and_dice_equal_their_formulas(mask):
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    p, m = logits.sigmoid().flatten().tolist(), mask.flatten().tolist()
    right = [q if one else 1 - q for q, one in zip(p, m, strict=True)]
    focal = sum(-((1 - q) ** 2) * math.log(q) for q in right) / len(right)
    dice = 1 - (2 * sum(q * one for q, one in zip(p, m, strict=True)) + 1) / (sum(p) + sum(m) + 1)
    l1 = sum(abs(q - one) for q, one in zip(p, m, strict=True)) / len(p)
    assert losses.focal_loss(logits, mask).item() == pytest.approx(focal, abs=1e-6)
    assert losses.dice_loss(logits, mask).item() == pytest.approx(dice, abs=1e-6)
    assert losses.msn_loss(logits, mask).item() == pytest.approx(focal + dice, abs=1e-5)
    assert losses.msn_loss(logits, mask, "focal+l1").item() == pytest.approx(focal + l1, abs=1e-5)


def test_empty_masks_have_a_finite_loss():
    logits = torch.full((2, 4, 4), -200.0, requires_grad=True)
    loss = losses.msn_loss(logits, torch.zeros(2, 4, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()
