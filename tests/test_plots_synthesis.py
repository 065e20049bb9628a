"""Figures of the synthetic pairs: what is drawn where, and that pyplot keeps no trace."""

import numpy as np
import pandas as pd
import pytest

from dmdd_lite import figures, plots

pytestmark = pytest.mark.usefixtures("no_trace")


def test_gradients_point_from_the_lattice_points():
    angles = np.linspace(0, 3, 9).reshape(3, 3)
    ax = plots.plot_gradients(angles, np.linspace(-1, 1, 64).reshape(8, 8)).axes[0]
    (arrows,) = (artist for artist in ax.collections if hasattr(artist, "U"))
    np.testing.assert_allclose(arrows.U, np.cos(angles).ravel())
    np.testing.assert_allclose(arrows.V, np.sin(angles).ravel())
    assert ax.images[0].get_extent() == [0, 2, 2, 0]
    with pytest.raises(ValueError, match="square"):
        plots.plot_gradients(angles[:2], np.zeros((8, 8)))


def test_noise_shares_one_signed_range_and_leaves_nan_out():
    first, second = np.full((2, 8, 8), 0.25), np.full((2, 8, 8), -0.75)
    second[:, 0, 0] = np.nan
    drawn = [ax.images[0] for ax in plots.plot_noise({"a": first, "b": second}).axes if ax.images]
    assert len(drawn) == 4
    assert {image.get_clim() for image in drawn} == {(-0.75, 0.75)}


def test_noise_outlines_the_threshold():
    noise = np.zeros((1, 8, 8))
    noise[0, 2:5, 2:5] = 1
    outlined = plots.plot_noise({"a": noise}, threshold=0.5).axes[0]
    assert len(outlined.collections) == 1
    assert len(plots.plot_noise({"a": noise}).axes[0].collections) == 0


def test_thresholds_in_percent():
    curves = pd.DataFrame(
        {"share": [0.5, 0.1], "regions": [1, 3], "size": [0.5, 0.03], "empty": [0, 0.2]}, [0, 1]
    )
    lines = {
        ax.get_title(): ax.lines[0].get_ydata().tolist() for ax in plots.plot_thresholds(curves, 0.5).axes
    }
    assert lines["anomalous pixels (%)"] == [50, 10]
    assert lines["regions per mask"] == [1, 3]
    assert lines["empty masks (%)"] == [0, 20]


def test_mosaic_places_and_outlines_every_image():
    images = np.zeros((5, 10, 10, 3), np.uint8)
    images += np.arange(50, 100, 10, dtype=np.uint8)[:, None, None, None]
    masks = np.zeros((5, 10, 10), bool)
    masks[3, 4:7, 4:7] = True
    masks[4, 2:4, 2:6] = True  # eight pixels: a speck
    canvas = plots.plot_mosaic(images, masks, columns=3, side=10).axes[0].images[0].get_array()
    assert canvas.shape == (22, 34, 3)
    assert (canvas[5, 5] == 50).all()
    assert (canvas[20, 20] == 90).all()  # the fifth: second row, second column
    assert (canvas[:10, 10:12] == 255).all()  # the gap
    cyan = (canvas == np.array([0, 229, 255])).all(2)
    assert cyan[12:, :10].sum() == cyan.sum() == 12  # the neighbours of the four sides


def test_a_mosaic_of_hundreds_is_light(tmp_path):
    """192 views with outlines are one picture of few colours that fits the limit of every figure."""
    y, x = np.mgrid[:32, :32]
    tints = np.random.default_rng(0).uniform(0, 4, (192, 1, 1, 3))
    images = np.uint8(np.clip(tints * (x + y)[None, :, :, None], 0, 255))
    masks = np.broadcast_to(np.hypot(x - 12, y - 15) < 6, images.shape[:3])
    mosaic = plots.plot_mosaic(images, masks)
    canvas = mosaic.axes[0].images[0].get_array()
    assert canvas.shape == (12 * 38 - 2, 16 * 38 - 2, 3)
    assert len(np.unique(canvas.reshape(-1, 3), axis=0)) <= 24 + 1  # and the outlines' cyan
    assert figures.save_figure(mosaic, tmp_path / "mosaic.png").stat().st_size <= 150_000


def test_strengths_have_a_median_each():
    groups = {"good": {"all": np.arange(11.0)}, "real": {"hole": np.arange(21.0), "stain": np.full(3, 4.0)}}
    fig = plots.plot_strengths(groups, 9.0)
    dots = [line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert dots == [5, 10, 4]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["all", "hole", "stain"]
    with pytest.raises(ValueError, match="no distances"):
        plots.plot_strengths({"real": {"hole": np.array([])}}, 1.0)


def test_plane_gives_a_name_one_colour():
    points = np.random.default_rng(0).random((5, 2))
    fig = plots.plot_plane({"a": {"good": points, "real": points}, "b": {"real": points}})
    colours = [[line.get_color() for line in ax.lines] for ax in fig.axes]
    assert colours[0][1] == colours[1][0] != colours[0][0]
