"""Anomalies that the branches are not distilled on: where they lie, what they are, how many there are."""

import pytest
import torch

from dmdd_lite.pairs import alter, step_generator


def rng(number=0):
    return step_generator(0, "alterations", number)


def pictures(count, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_an_image_is_altered_within_its_mask_alone():
    normal, mask = pictures(64), torch.zeros(64, 64, 64)
    mask[:, 20:44, 16:40] = 1
    altered = alter(normal, mask, rng())
    assert altered.shape == normal.shape
    assert 0 <= altered.min() <= altered.max() <= 1
    far, inside = (torch.nn.functional.max_pool2d(m[:, None], 5, 1, 2) == 0 for m in (mask, 1 - mask))
    assert torch.equal(altered.where(far, 0), normal.where(far, 0))  # the borders are soft by two pixels
    change = ((altered - normal).abs() * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))
    assert change.min() > 0.005  # noise shows every way
    assert torch.equal(altered, alter(normal, mask, rng()))
    assert not torch.equal(altered, alter(normal, mask, rng(1)))


def test_half_of_the_ways_leave_an_even_picture_as_it_is():
    """Blurred, harsher or mirrored, grey stays grey; shifted, noisy or tinted it does not. Noise makes
    pixels differ, a tint colours, and nothing else does."""
    grey = torch.full((900, 3, 32, 32), 0.5)
    altered = alter(grey, torch.ones(900, 32, 32), rng())
    same = ((altered - grey).abs() < 1e-5).flatten(1).all(1)
    noisy = altered[:, 0].flatten(1).std(1) > 1e-3
    tinted = (altered.mean((2, 3)).std(1) > 1e-3) & ~noisy
    lighter, darker = ((sign * (altered - grey) > 0.03).flatten(1).all(1) for sign in (1, -1))
    shifted = (lighter | darker) & ~tinted & ~noisy
    assert same.float().mean() == pytest.approx(1 / 2, abs=0.06)
    for way in (noisy, tinted, shifted):
        assert way.float().mean() == pytest.approx(1 / 6, abs=0.05)
    assert (same | noisy | tinted | shifted).all()
    assert (lighter & shifted).sum() == pytest.approx(int((darker & shifted).sum()), rel=0.5)
