"""Thresholds: every rate, cost and overlap against a count by brute force."""

import numpy as np
import pytest

from dmdd_lite.thresholds import best_outline, error_rates, expected_cost, outline_quality, threshold_table


@pytest.fixture
def scored():
    """Scores with ties, and labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4


@pytest.fixture
def mapped():
    """Maps with ties over three images, the last of them good."""
    rng = np.random.default_rng(1)
    masks = rng.random((3, 8, 8)) < 0.3
    masks[2] = False
    return (rng.integers(0, 8, masks.shape) + 4 * masks).astype(np.float32) / 10, masks


def test_error_rates_equal_counting(scored):
    scores, labels = scored
    thresholds = np.array([-1, 0, 0.2, 0.5, 1, 2])
    alarms, misses = error_rates(scores, labels, thresholds)
    for threshold, alarm, miss in zip(thresholds, alarms, misses, strict=True):
        decided = scores > threshold
        assert alarm == pytest.approx(decided[~labels].mean())
        assert miss == pytest.approx((~decided)[labels].mean())


def test_error_rates_need_both_kinds(scored):
    with pytest.raises(ValueError, match="good and anomalous"):
        error_rates(scored[0], np.zeros(40, bool), np.array([0.5]))


def test_table_counts_images(scored):
    scores, labels = scored
    table = threshold_table(scores, labels, {"low": 0.2, "high": 0.8})
    for name, threshold in (("low", 0.2), ("high", 0.8)):
        assert table.loc[name, "false alarms"] == ((scores > threshold) & ~labels).sum()
        assert table.loc[name, "misses"] == ((scores <= threshold) & labels).sum()


def test_cost_is_the_mean_price_of_the_images():
    labels = np.array([True] * 2 + [False] * 8)
    decided = np.array([True, False] + [True] * 3 + [False] * 5)
    paid = np.where(labels & ~decided, 7.0, np.where(~labels & decided, 2.0, 0.0)).mean()
    assert expected_cost(3 / 8, 1 / 2, 0.2, 7.0, 2.0) == pytest.approx(paid)
    with pytest.raises(ValueError, match="prevalence"):
        expected_cost(0.1, 0.1, 1.2, 7.0)


def test_outline_quality_equals_counting(mapped):
    maps, masks = mapped
    row = outline_quality(maps, masks, {"t": 0.45}).loc["t"]
    above, truth = maps[:2] > 0.45, masks[:2]
    assert row["precision"] == pytest.approx(100 * truth[above].mean())
    assert row["recall"] == pytest.approx(100 * above[truth].mean())
    assert row["overlap"] == pytest.approx(100 * (above & truth).sum() / (above | truth).sum())
    assert row["good images marked"] == 100 * (maps[2] > 0.45).any()


def test_nothing_outlined_has_no_precision(mapped):
    row = outline_quality(*mapped, {"t": 9.0}).loc["t"]
    assert np.isnan(row["precision"])
    assert row["recall"] == row["overlap"] == row["good images marked"] == 0


def test_best_outline_beats_every_other_threshold(mapped):
    maps, masks = mapped

    def overlap(threshold):
        above = maps > threshold
        return (above & masks).sum() / (above | masks).sum()

    best = overlap(best_outline(maps, masks))
    assert best == pytest.approx(max(overlap(t) for t in np.linspace(-0.1, 1.2, 200)))
    with pytest.raises(ValueError, match="nothing to outline"):
        best_outline(maps, np.zeros_like(masks))
