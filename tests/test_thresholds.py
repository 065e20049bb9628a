"""Thresholds: every rate, cost and overlap against a count by brute force."""

import numpy as np
import pytest

from dmdd_lite.course.thresholds import (
    alarm_bound,
    error_rates,
    expected_cost,
    outline_quality,
    threshold_table,
)

RNG = np.random.default_rng(0)
scores, labels = RNG.integers(0, 6, 40) / 5, RNG.random(40) < 0.4  # with ties
masks = RNG.random((3, 8, 8)) < 0.3
masks[2] = False  # a good image
maps = (RNG.integers(0, 8, masks.shape) + 4 * masks).astype(np.float32) / 10  # with ties


def test_error_rates_equal_counting():
    thresholds = {"a": -1, "b": 0, "low": 0.2, "c": 0.5, "high": 0.8, "d": 2}
    table = threshold_table(scores, labels, thresholds)
    rates = zip(
        thresholds.items(), *error_rates(scores, labels, np.array([*thresholds.values()])), strict=True
    )
    for (name, threshold), alarm, miss in rates:
        alarms, misses = (scores > threshold) & ~labels, (scores <= threshold) & labels
        assert (alarm, miss) == pytest.approx((alarms.sum() / (~labels).sum(), misses.sum() / labels.sum()))
        assert table.loc[name, ["false alarms", "misses"]].tolist() == [alarms.sum(), misses.sum()]
    with pytest.raises(ValueError, match="good and anomalous"):
        error_rates(scores, np.zeros(40, bool), np.array([0.5]))


def test_the_bound_of_false_alarms_holds_as_often_as_it_promises():
    drawn = np.random.default_rng(1).random((20_000, 9))  # a rate of uniform scores is 1 - their maximum
    kept = (1 - drawn.max(1) <= alarm_bound(9, 0.8)).mean()
    assert kept == pytest.approx(0.8, abs=0.01)
    assert alarm_bound(59) == pytest.approx(0.05, abs=1e-3)  # Wilks: 59 samples for 95 % of 95 %
    with pytest.raises(ValueError, match="at least one image"):
        alarm_bound(0)


def test_cost_is_the_mean_price_of_the_images():
    labels = np.array([True] * 2 + [False] * 8)
    decided = np.array([True, False] + [True] * 3 + [False] * 5)
    paid = np.where(labels & ~decided, 7.0, np.where(~labels & decided, 2.0, 0.0)).mean()
    assert expected_cost(3 / 8, 1 / 2, 0.2, 7.0, 2.0) == pytest.approx(paid)
    with pytest.raises(ValueError, match="prevalence"):
        expected_cost(0.1, 0.1, 1.2, 7.0)


def test_outline_quality_equals_counting():
    table = outline_quality(maps, masks, {"t": 0.45, "never": 9.0})
    above, truth = maps[:2] > 0.45, masks[:2]
    expected = {
        "precision": truth[above].mean(),
        "recall": above[truth].mean(),
        "overlap": (above & truth).sum() / (above | truth).sum(),
        "good images marked": (maps[2] > 0.45).any(),
    }
    for name, value in expected.items():
        assert table.loc["t", name] == pytest.approx(100 * value)
        assert np.isnan(table.loc["never", name]) if name == "precision" else table.loc["never", name] == 0
