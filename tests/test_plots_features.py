"""Figures of chapter 01: what is drawn, in which colours, and that pyplot keeps no trace of it."""

import numpy as np
import pytest

from dmdd_lite import plots

pytestmark = pytest.mark.usefixtures("no_trace")


def test_colours_show_the_largest_components_whatever_the_rotation():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2 * 6 * 7, 8)) * (9, 6, 4, 0.1, 0.1, 0.1, 0.1, 0.1)
    turned = scores @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + rng.normal(size=8)
    colours = plots.feature_colours(turned.reshape(2, 6, 7, 8).transpose(0, 3, 1, 2))
    assert colours.shape == (2, 6, 7, 3)
    assert colours.dtype == np.uint8
    for i in range(3):
        assert abs(np.corrcoef(colours[..., i].ravel(), scores[:, i])[0, 1]) > 0.95


def test_equal_features_have_equal_colours_in_all_images():
    features = np.random.default_rng(0).normal(size=(1, 5, 8, 8))
    colours = plots.feature_colours(np.concatenate([features, features[..., ::-1]]))
    np.testing.assert_array_equal(colours[0], colours[1][:, ::-1])


def test_two_channels_have_no_three_components():
    with pytest.raises(ValueError, match="three channels"):
        plots.feature_colours(np.zeros((1, 2, 4, 4)))


def test_channels_are_those_that_vary_most():
    features = np.random.default_rng(0).normal(size=(4, 4)) * np.array([1, 9, 3, 7, 2, 5])[:, None, None]
    image = np.zeros((16, 16, 3), np.uint8)
    fig = plots.plot_channels(image, {"stride 4": features, "stride 8": features[:, :2, :2]}, 3)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles[:3] == ["channel 1", "channel 3", "channel 5"]
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), features[1])
    assert len([ax for ax in fig.axes if ax.images]) == 8


def test_distributions_share_their_bins():
    sets = {"raw": np.linspace(0, 1, 50), "standardised": np.linspace(1, 2, 50).reshape(5, 10)}
    fig = plots.plot_distributions({"stride 4": sets, "stride 8": sets}, "distance")
    assert [ax.get_title() for ax in fig.axes] == ["stride 4", "stride 8"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["raw", "standardised"]
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()


def test_capacity_draws_every_value_and_mark():
    shares = np.array([0, 0.5, 1])
    fig = plots.plot_capacity(
        shares, {"AUPRO": np.array([1, 60, 15])}, {"good": np.array([1.0, 0.1, 0.0])}, marks=[0.5]
    )
    left, right = fig.axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [1, 60, 15])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [1.0, 0.1, 1e-6])
    assert right.get_yscale() == "log"
    assert list(right.lines[1].get_xdata()) == [0.5, 0.5]
