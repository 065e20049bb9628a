"""Figures of the fusion: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest

from dmdd_lite import plots

pytestmark = pytest.mark.usefixtures("no_trace")


@pytest.fixture
def examples():
    """Two images 32 x 40, the second good."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 32, 40), dtype=bool)
    masks[0, 8:20, 10:25] = True
    return rng.integers(0, 256, (2, 32, 40, 3), dtype=np.uint8), masks, rng.random((2, 32, 40)) + masks


def test_the_network_is_drawn_with_its_attentions_and_boxes_apart():
    fig = plots.plot_msn(("channel", "self"))
    ax = fig.axes[0]
    texts = [text for text in ax.texts if text.get_text()]
    assert any("channel\nself" in text.get_text() for text in texts)
    fig.canvas.draw()
    boxes = [text.get_window_extent().padded(5) for text in texts if text.get_bbox_patch()]
    assert len(boxes) == 8
    for i, one in enumerate(boxes):
        assert min(one.x0, one.y0) >= 0
        assert one.x1 <= fig.bbox.x1
        assert one.y1 <= fig.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_weights_share_a_symmetric_range_around_one(examples):
    images, masks, _ = examples
    weights = np.ones((2, 3, 8, 10))
    weights[1, 2, 4, 4] = 0.4
    fig = plots.plot_weights(images, weights, ["a", "b", "c"], ["one", "two"], masks)
    drawn = [ax.images[0] for ax in fig.axes if ax.images]
    ranges = [picture.get_clim() for picture in drawn if picture.get_array().ndim == 2]
    np.testing.assert_allclose(ranges, [(0.4, 1.6)] * 6)
    with pytest.raises(ValueError, match="2 images and 2 maps"):
        plots.plot_weights(images, weights, ["a", "b"], ["one", "two"], masks)


def test_trust_has_a_point_for_each_map_and_place():
    means = pd.DataFrame({"defects": [0.5, 0.7], "good": [1.0, 1.1]}, index=["N /4", "N /8"])
    ax = plots.plot_trust(means).axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines[1:]}
    assert drawn == {"defects": [0.5, 0.7], "good": [1.0, 1.1]}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["N /4", "N /8"]


def test_ablation_shows_each_seed_and_the_mean():
    rows = [("sum", 0.0, 0, 0.5), ("sum", 0.0, 1, 0.7), ("msn", 0.0, 0, 0.9), ("msn", 0.5, 0, 0.1)]
    scores = pd.DataFrame(rows, columns=["fusion", "skip", "seed", "aupro"])
    ax = plots.plot_ablation(scores, 0.0, {"sum": {"aupro": 0.6}}, ("aupro",)).axes[0]
    baseline, first, mean, second, _ = ax.lines
    assert list(baseline.get_xdata()) == [60, 60]
    np.testing.assert_allclose(first.get_xdata(), [50, 70])
    np.testing.assert_allclose(mean.get_xdata(), [60])
    np.testing.assert_allclose(second.get_xdata(), [90])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sum", "msn"]
    with pytest.raises(ValueError, match="no row with skip"):
        plots.plot_ablation(scores, 0.3, {}, ("aupro",))


def test_groups_show_the_quartiles_of_each_group():
    groups = {"real": np.arange(101.0), "good": np.arange(11.0)}
    ax = plots.plot_groups(groups, "summed maps").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["real", "good"]
    dots = [np.asarray(points.get_offsets())[:, 0] for points in ax.collections]
    assert sorted(map(len, dots)) == [11, 101]
    across = [tuple(line.get_xdata()) for line in ax.lines]
    assert (50, 50) in across
    assert (5, 5) in across


def test_thresholds_draw_rates_and_the_least_cost():
    labels = np.repeat([False, True], 10)
    scores = np.concatenate((np.linspace(0.1, 0.3, 10), np.linspace(0.6, 0.9, 10)))
    fig = plots.plot_threshold_choice(scores, labels, {"held out": 0.4}, 0.05, (1, 10))
    left, right = fig.axes
    alarms, misses, marked = left.lines
    assert list(alarms.get_ydata()[[0, -1]]) == [1, 0]
    assert list(misses.get_ydata()[[0, -1]]) == [0, 1]
    assert list(marked.get_xdata()) == [0.4, 0.4]
    for dot in right.lines[1::2]:  # separable scores: the least cost is 0, halfway through the gap
        assert dot.get_xdata()[0] == pytest.approx(0.45, abs=0.01)
        assert dot.get_ydata()[0] == 0


def test_outlines_have_a_row_per_threshold(examples):
    images, masks, maps = examples
    fig = plots.plot_outlines(images, masks, maps, {"low": 0.5, "never": 9.0}, ["bad", "good"])
    assert [text.get_text() for text in fig.texts] == ["bad", "good", "low: 0.50", "never: 9.00"]
    contours = [len(ax.collections) for ax in fig.axes if ax.images]
    assert contours == [2, 1, 1, 0]  # bad: truth and decision, good: decision; then truth alone, nothing
