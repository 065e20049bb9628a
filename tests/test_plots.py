"""Figures: their panels, lines and colour ranges, that pyplot keeps no trace of them, and their files."""

import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.contour import ContourSet
from PIL import Image

from dmdd_lite import figures, metrics, plots

pytestmark = pytest.mark.usefixtures("no_trace")


@pytest.fixture
def examples():
    """Three images 32 x 40 with masks (the last is empty) and two maps; the first grows from row to row."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    masks = np.zeros((3, 32, 40), dtype=bool)
    masks[:2, 8:20, 10:25] = True
    first = rng.random((3, 32, 40)) + np.arange(3)[:, None, None]
    return images, masks, {"normality": first, "fused": masks * 0.8}


def contours(ax):
    return [artist for artist in ax.collections if isinstance(artist, ContourSet)]


def panels(fig):
    """Axes by rows, as (rows, columns), without the colour bars."""
    images = [ax for ax in fig.axes if ax.images]
    tops = sorted({round(ax.get_position().y1, 4) for ax in images}, reverse=True)
    rows = [[ax for ax in images if round(ax.get_position().y1, 4) == top] for top in tops]
    return [sorted(row, key=lambda ax: ax.get_position().x0) for row in rows]


def test_examples_has_a_row_per_image_and_one_colour_range_per_map(examples):
    images, masks, maps = examples
    fig = plots.plot_examples(images, masks, maps, ["best", "median", "worst"], {"fused": (0.0, 1.0)})
    rows = panels(fig)
    assert [len(row) for row in rows] == [4, 4, 4]
    assert [text.get_text() for text in fig.texts] == [
        *("image", "ground truth", "normality", "fused"),
        *("best", "median", "worst"),
    ]
    expected = (maps["normality"].min(), maps["normality"].max())
    assert [row[2].images[0].get_clim() for row in rows] == [expected] * 3
    assert [row[3].images[0].get_clim() for row in rows] == [(0.0, 1.0)] * 3
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row[0].images[0].get_array(), images[i])
        np.testing.assert_array_equal(row[2].images[0].get_array(), maps["normality"][i])
    bars = [ax for ax in fig.axes if not ax.images]
    ends = [[label.get_text() for label in bar.get_xticklabels()] for bar in bars]
    assert ends == [[f"{expected[0]:.2f}", f"{expected[1]:.2f}"], ["0.00", "1.00"]]


def test_examples_outlines_the_ground_truth_where_there_is_one(examples):
    images, masks, maps = examples
    rows = panels(plots.plot_examples(images, masks, maps, ["a", "b", "c"]))
    assert [len(contours(row[0])) for row in rows] == [1, 1, 0]
    vertices = contours(rows[0][0])[0].get_paths()[0].vertices
    assert vertices.min(axis=0) == pytest.approx([9.5, 7.5])  # x, y just outside the mask's first pixel
    assert vertices.max(axis=0) == pytest.approx([24.5, 19.5])


def test_examples_text_stays_within_the_figure_and_apart(examples):
    images, masks, maps = examples
    titles = [f"worst · crack_{i:03} · score 0.41" for i in range(3)]
    fig = plots.plot_examples(images, masks, maps, titles)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.texts]
    for i, box in enumerate(boxes):
        assert fig.bbox.containsx(box.x0)
        assert fig.bbox.containsx(box.x1)
        assert fig.bbox.containsy(box.y1)
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.overlaps(ax.get_window_extent()) for ax in fig.axes)


def test_pairs_shows_both_images_and_the_mask(examples):
    images, masks, _ = examples
    rows = panels(plots.plot_pairs(images, 255 - images, masks))
    assert [len(row) for row in rows] == [3, 3, 3]
    np.testing.assert_array_equal(rows[1][1].images[0].get_array(), 255 - images[1])
    assert [[len(contours(ax)) for ax in row] for row in rows] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_overlay_outlines_decision_and_ground_truth(examples):
    images, masks, maps = examples
    image, anomaly_map, mask = images[0], maps["normality"][0], masks[0]
    both = plots.plot_overlay(image, anomaly_map, 0.5, mask, limits=(0, 2))
    colours = [tuple(c.get_edgecolor()[0]) for c in contours(both.axes[0])]
    assert colours == [matplotlib.colors.to_rgba(c) for c in (plots.TRUTH, plots.DECISION)]
    assert [c.levels.tolist() for c in contours(both.axes[0])] == [[0.5], [0.5]]
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["ground truth", "above 0.5"]
    assert both.axes[0].images[1].get_clim() == (0, 2)
    opacity = both.axes[0].images[1].get_alpha()
    assert opacity.ravel()[anomaly_map.argmax()] == opacity.max() > opacity.min() >= 0

    bare = plots.plot_overlay(image, anomaly_map)
    assert contours(bare.axes[0]) == bare.legends == []
    assert bare.axes[0].images[1].get_clim() == (anomaly_map.min(), anomaly_map.max())
    assert contours(plots.plot_overlay(image, anomaly_map, threshold=9.0).axes[0]) == []


def test_histogram_counts_every_image_and_the_errors_of_the_threshold():
    labels = np.arange(30) >= 10
    scores = np.linspace(0, 1, 30)
    fig = plots.plot_score_histogram(scores, labels, threshold=0.5)
    (ax,) = fig.axes
    assert [sum(bar.get_height() for bar in bars) for bars in ax.containers] == [10, 20]
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0.5, 0.5]
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["good (10)", "anomalous (20)", "threshold 0.5: 0 false alarms, 5 missed"]
    assert plots.plot_score_histogram(scores, labels).axes[0].lines[:] == []


def test_roc_and_pro_draw_every_map_and_shade_the_limit():
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 80, 80), dtype=bool)
    masks[:, 10:70, 20:60] = True
    fpr, pro = metrics.pro_curve(rng.random(masks.shape), masks)
    curve = {"roc": (fpr, fpr), "pro": (fpr, pro), "auroc": 0.5, "aupro": 0.15}
    left, right = plots.plot_roc_and_pro({"normality": curve, "fused": {**curve, "aupro": 0.1234}}).axes
    drawn = [line for line in right.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == 2
    assert len({line.get_color() for line in drawn}) == 2
    assert all(len(line.get_xdata()) <= 2000 < len(fpr) for line in drawn)
    texts = [text.get_text() for ax in (left, right) for text in ax.get_legend().get_texts()]
    assert texts == ["normality 50.00", "fused 50.00", "normality 15.00", "fused 12.34"]
    (shade,) = right.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (0, 0.3)
    assert not left.patches


def test_losses_are_smoothed_and_mark_the_start_of_the_msn():
    iteration = np.arange(0, 1000, 4)
    rng = np.random.default_rng(0)
    columns = ("ngm", "aim", "msn", "aim_inside", "aim_outside")
    history = pd.DataFrame({"iteration": iteration} | {k: rng.random(250) for k in columns})
    history.loc[history["iteration"] < 200, "msn"] = np.nan
    history.loc[history["iteration"] > 199, "aim"] = np.nan
    ngm, aim, msn = plots.plot_losses(history).axes
    raw, smooth = ngm.lines
    np.testing.assert_array_equal(raw.get_ydata(), history["ngm"])
    assert smooth.get_ydata()[100] == pytest.approx(history["ngm"][95:105].mean())
    assert np.std(smooth.get_ydata()) < np.std(raw.get_ydata()) / 2
    assert len(ngm.texts) == 0
    assert list(msn.lines[-1].get_xdata()) == [200, 200]
    assert [text.get_text().strip() for text in msn.texts] == ["starts"]
    last = history.loc[history["aim"].notna(), "iteration"].iloc[-1]
    _, _, border, inside, _ = aim.lines
    assert list(border.get_xdata()) == [last, last]
    assert inside.get_ydata()[20] == pytest.approx(history["aim_inside"][15:25].mean())
    assert [text.get_text() for text in aim.get_legend().get_texts()] == [
        "inside the mask",
        "outside the mask",
    ]
    assert [text.get_text().strip() for text in aim.texts] == ["ends"]
    without = plots.plot_losses(history.assign(msn=np.nan)).axes[2]
    assert [text.get_text() for text in without.texts] == ["not trained in this run"]


def test_wrong_shapes_are_refused(examples):
    images, masks, maps = examples
    with pytest.raises(ValueError, match=r"fused have the shape \(2, 32, 40\)"):
        plots.plot_examples(images, masks, {"fused": maps["fused"][:2]}, ["a", "b", "c"])
    with pytest.raises(ValueError, match="2 titles for 3 images"):
        plots.plot_examples(images, masks, maps, ["a", "b"])
    with pytest.raises(ValueError, match="uint8"):
        plots.plot_examples(images / 255, masks, maps, ["a", "b", "c"])
    with pytest.raises(ValueError, match="mask have the shape"):
        plots.plot_overlay(images[0], maps["fused"][0], mask=masks[0].T)
    with pytest.raises(ValueError, match="labels"):
        plots.plot_score_histogram(np.zeros(3), np.zeros(2, dtype=bool))


def noisy_figure():
    """One panel of noise, which no PNG compresses."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 150, 150, 3), dtype=np.uint8)
    fig, grid, _ = figures.image_grid((1, 150, 150), ["noise"], width=1.5)
    grid[0, 0].imshow(image[0])
    return fig


def test_save_figure_lowers_its_quality_until_it_fits(tmp_path):
    fig = noisy_figure()
    large = figures.save_figure(fig, tmp_path / "deep" / "large.png", max_kb=2000)
    small = figures.save_figure(fig, tmp_path / "small.png", max_kb=20)
    assert large.stat().st_size > 20_000 >= small.stat().st_size
    with Image.open(large) as full, Image.open(small) as reduced:
        assert (full.mode, full.width) == ("RGB", 180)
        assert reduced.mode == "P"
        assert 90 <= reduced.width < 180
        assert reduced.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert fig.dpi == 100


@pytest.mark.parametrize("failure", ["too large", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    if failure == "replace":

        def refuse(source, target):
            assert os.path.getsize(source) > 1000
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError if failure == "replace" else ValueError):
        figures.save_figure(noisy_figure(), path, max_kb=2000 if failure == "replace" else 1)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["figure.png"]
