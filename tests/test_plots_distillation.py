"""Figures of the distillation: what is drawn is what was given, and nothing stays open in pyplot."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.quiver import Quiver

from dmdd_lite import figures, plots
from dmdd_lite.plots import distillation
from dmdd_lite.zones import split_zones

pytestmark = pytest.mark.usefixtures("no_trace")


def test_decoupling_names_every_step_within_the_page(tmp_path):
    fig = plots.plot_decoupling()
    fig.canvas.draw()
    texts = [text for text in fig.axes[0].texts if text.get_text()]
    for text in texts:
        box = text.get_window_extent()
        assert fig.bbox.contains(box.x0, box.y0)
        assert fig.bbox.contains(box.x1, box.y1)
    drawn = " ".join(text.get_text() for text in texts)
    for step in (
        "frozen teacher",
        "student",
        "$C_k$ to $2C_k$",
        "$N_k$",
        "$A_k$",
        "$T_k(x_n)$",
        "$T_k(x_a)$",
    ):
        assert step in drawn
    assert figures.save_figure(fig, tmp_path / "x.png").stat().st_size < 150_000


def test_arrows_are_the_fields():
    field = np.random.default_rng(0).normal(size=(3, 4, 2))
    fig = plots.plot_arrows({"a": field, "b": -field}, np.eye(3, 4), (1, 2))
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]
    for ax, sign in zip(fig.axes, (1, -1), strict=True):
        (arrows,) = [artist for artist in ax.collections if isinstance(artist, Quiver)]
        np.testing.assert_array_equal(arrows.U, sign * field[..., 0].ravel())
        np.testing.assert_array_equal(arrows.V, sign * field[..., 1].ravel())
        np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(3, 4))
        assert ax.patches[0].get_bbox().x0 == pytest.approx(1.58)


def test_zones_colour_only_their_pixels():
    images = np.full((2, 20, 20, 3), 100, np.uint8)
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 5:15, 5:15] = True
    fig = plots.plot_zones(images, split_zones(masks, 2))
    first, second = (ax.images[0].get_array() for ax in fig.axes)
    assert (second == 100 / 255).all()
    assert (first[:3] == 100 / 255).all()
    assert len({tuple(first[y, 10].round(6)) for y in (10, 5, 4, 0)}) == 4  # centre, edge, rim, background


def test_recall_by_depth_draws_every_map_in_its_own_colour():
    profile = pd.DataFrame({"plain": [0.1, 0.5], "sum": [0.2, 0.7], "new": [0.3, 0.9]}, index=[-1, 1])
    (ax,) = plots.plot_recall_by_depth(profile, 1).axes
    assert [line.get_label() for line in ax.lines] == list(profile)
    assert len({line.get_color() for line in ax.lines}) == 3
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), profile["sum"])
    assert ax.lines[0].get_color() == distillation.COLOURS["plain"]


def test_gap_has_a_panel_per_model():
    rows = pd.DataFrame(
        {
            "model": ["plain", "DMDD", "plain"],
            "iteration": [10, 10, 20],
            "seen inside": [0.1, 0.2, 0.3],
            "seen outside": [0.0, 0.1, 0.2],
            "restored inside": [0.4, 0.5, 0.6],
        }
    )
    plain, dmdd = plots.plot_gap(rows).axes
    assert (plain.get_title(), dmdd.get_title()) == ("plain", "DMDD")
    np.testing.assert_array_equal(plain.lines[0].get_ydata(), [0.1, 0.3])
    np.testing.assert_array_equal(dmdd.lines[2].get_ydata(), [0.5])


def test_answers_count_both_sides_of_the_diagonal():
    seen = {"copier": np.array([[0.1, 0.2, 0.3], [0.1, 1.0, 0.2]])}
    restored = {"copier": np.array([[0.9, 0.8, 0.7], [0.6, 0.1, 0.2]])}
    fig = plots.plot_answers(seen, restored)
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert texts == ["copies: 67%", "restores: 33%"]
