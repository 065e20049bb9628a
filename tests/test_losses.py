"""Losses against naive loops over pixels, and known answers."""

import itertools
import math

import pytest
import torch

from dmdd_lite import losses


def features(seed: int, scales=((3, 4), (5, 2))):
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, c, s, s, generator=rng) for c, s in scales)


def cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.fixture
def mask():
    mask = torch.zeros(2, 8, 8)
    mask[0, 1:6, 2:7] = mask[1, 0, 0] = 1
    return mask


def distances(one, other, mask):
    """Of every cell (b, y, x), the cosine distance and the share of the cell that the mask covers."""
    images, _, height, width = one.shape
    side = mask.shape[1] // height
    for b, y, x in itertools.product(range(images), range(height), range(width)):
        share = mask[b, y * side : (y + 1) * side, x * side : (x + 1) * side].mean().item()
        yield 1 - cosine(one[b, :, y, x].tolist(), other[b, :, y, x].tolist()), share


def weighted(pairs) -> float:
    """Mean of values by weights; pairs of both."""
    pairs = list(pairs)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def test_ngm_equals_the_loop(mask):
    normality, teacher = features(0), features(1)
    expected = 0.0
    for n, t in zip(normality, teacher, strict=True):
        cells = list(distances(n, t, mask))
        expected += sum(1 - cosine(n[b].flatten().tolist(), t[b].flatten().tolist()) for b in (0, 1)) / 2
        expected += weighted(cells)
    assert losses.ngm_loss(normality, teacher, mask).item() == pytest.approx(expected, abs=1e-5)


def test_aim_equals_the_loop(mask):
    abnormality, teacher = features(2), features(3)
    inside = outside = 0.0
    for a, t in zip(abnormality, teacher, strict=True):
        costs = [(abs(d - share), share) for d, share in distances(a, t, mask)]
        inside += weighted(costs)
        outside += weighted((cost, 1 - share) for cost, share in costs)
    loss = losses.aim_loss(abnormality, teacher, mask)
    expected = torch.tensor([(inside + outside) / 2, inside, outside])
    torch.testing.assert_close(torch.stack(loss), expected, atol=1e-5, rtol=0)


def test_an_empty_mask_asks_for_no_anomaly():
    student, teacher, empty = features(4), features(5), torch.zeros(2, 8, 8)
    mean = sum(d.mean() for d in losses.distance_maps(student, teacher))
    loss = losses.aim_loss(student, teacher, empty)
    assert loss.inside == 0
    torch.testing.assert_close(loss.outside, mean)
    flat = sum(losses.flat_distance(s, t) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(losses.ngm_loss(student, teacher, empty), flat)


def test_zero_features_give_distance_one_and_finite_gradients():
    zeros = torch.zeros(1, 3, 2, 2, requires_grad=True)
    distance = losses.cosine_distance(zeros, torch.ones(1, 3, 2, 2))
    distance.sum().backward()
    assert torch.equal(distance, torch.ones(1, 2, 2))
    assert zeros.grad.isfinite().all()


def test_focal_and_l1_equal_their_formulas(mask):
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    p, m = logits.sigmoid().flatten().tolist(), mask.flatten().tolist()
    right = [q if one else 1 - q for q, one in zip(p, m, strict=True)]
    focal = sum(-((1 - q) ** 2) * math.log(q) for q in right) / len(right)
    l1 = sum(abs(q - one) for q, one in zip(p, m, strict=True)) / len(p)
    assert losses.focal_loss(logits, mask).item() == pytest.approx(focal, abs=1e-6)
    assert losses.msn_loss(logits, mask).item() == pytest.approx(focal + l1, abs=1e-5)


def test_empty_masks_have_a_finite_loss():
    logits = torch.full((2, 4, 4), -200.0, requires_grad=True)
    loss = losses.msn_loss(logits, torch.zeros(2, 4, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()
