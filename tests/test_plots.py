"""Figures: each shows the data it was given and leaves pyplot alone; their files are small and whole."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dmdd_lite.course import figures
from dmdd_lite.course.plots import ablation, distillation, msn, pairs, panels, problem, results, thresholds
from dmdd_lite.course.zones import split_zones

MODULES = (ablation, distillation, msn, pairs, panels, results, thresholds)
PLOTS = {name: function for module in MODULES for name, function in vars(module).items()}

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
MASKS = np.zeros((3, 32, 40), dtype=bool)
MASKS[:2, 8:20, 10:25] = True  # the last is empty
MAPS = {"normality": RNG.random((3, 32, 40)) + np.arange(3)[:, None, None], "fused": MASKS * 0.8}
FLAT = np.zeros((1, 32, 40))
CURVE = {"roc": ([0, 1], [0, 1]), "pro": ([0, 0.2, 1], [0, 0.9, 1]), "auroc": 0.5, "aupro": 0.1234}
LOSSES = pd.DataFrame(RNG.random((250, 5)), columns=["ngm", "aim", "msn", "aim_inside", "aim_outside"])
LOSSES["iteration"] = 4 * LOSSES.index
LOSSES.loc[:49, "msn"] = LOSSES.loc[50:, "aim"] = np.nan
ROWS = pd.DataFrame(
    [("full", "a", 0, 0.90), ("full", "a", 1, 0.94), ("full", "b", 0, 0.80), ("other", "a", 0, 0.91)],
    columns=["row", "data", "seed", "aupro"],
)
FIELD, ANGLES = RNG.normal(size=(3, 4, 2)), np.linspace(0, 3, 9).reshape(3, 3)
WEIGHTS = RNG.random((3, 2, 8, 10))
DISTANCES = {"real": {"hole": np.arange(21.0), "stain": np.full(3, 4.0)}}
SEPARABLE = ([0.1, 0.3, 0.6, 0.9], [False, False, True, True])

# a function, its arguments, arrays and texts that the figure shows; further lines of one have odd input
CASES = [
    ("panels", ({"x": IMAGES, "map": MAPS["fused"]},), [IMAGES[1], MAPS["fused"][0]], ["map", "0.80"]),
    ("examples", (IMAGES, MASKS, MAPS, [*"abc"]), [IMAGES[2], MAPS["normality"][1]], ["fused", "b"]),
    ("examples", (IMAGES[:1], MASKS[2:], {"flat": FLAT}, ["$a_{"]), [FLAT[0]], ["$a_{"]),
    ("score_histogram", (*SEPARABLE, 0.7), [[0.7, 0.7]],
     ["good (2)", "threshold 0.7: 0 false alarms, 1 missed"]),
    ("score_histogram", ([0.5], [1]), [], ["defective (1)"]),
    ("roc_and_pro", ({"sum": CURVE, "fused": CURVE},), [[0, 0.9, 1]], ["sum 50.00", "fused 12.34"]),
    ("losses", (LOSSES,), [LOSSES["ngm"], LOSSES["msn"][50:]], ["segmentation (MSN)"]),
    ("losses", (LOSSES[:2],), [LOSSES["ngm"][:2]], ["not trained in this run"]),
    ("row_differences", (ROWS, {"aupro": "AUPRO"}, "full"), [[-2, 2], [0], [-1]], ["full", "other", "b"]),
    ("arrows", ({"a": FIELD, "b": -FIELD}, np.eye(3, 4), (1, 2)), [-FIELD[..., 0].ravel(), np.eye(3, 4)],
     ["b"]),
    ("msn", (("channel", "self"),), [], ["six maps\n$d_1 \\ldots d_6$"]),
    ("weights", (IMAGES, WEIGHTS, ["a", "b"], [*"xyz"], MASKS), [WEIGHTS[2, 1]], ["a", "z"]),
    ("weights", (IMAGES[:1], np.ones((1, 1, 8, 9)), ["a"], ["x"], MASKS[:1]), [np.ones((8, 9))], []),
    ("dilations", (FLAT[0], (9, 9), (1, 4), "N /8"), [FLAT[0]], ["dilation 4", "N /8"]),
    ("threshold_choice", (*map(np.array, SEPARABLE), {"held out": 0.4}, 0.05, (1, 10)), [[0.4, 0.4]],
     ["held out"]),
    ("outlines", (IMAGES[:2], MASKS[1:], MAPS["fused"][:2], {"never": 9.0}, ["x", "y"]), [IMAGES[1]],
     ["never: 9.000", "y"]),
    ("gradients", (ANGLES, np.linspace(-1, 1, 64).reshape(8, 8)), [np.cos(ANGLES).ravel()], []),
    ("noise", ({"a": FLAT[0] + 0.25, "b": FLAT[0] - 0.75}, MASKS[:2], 0.2), [FLAT[0] + 0.25, MASKS[1]],
     ["-0.75", "0.75"]),
    ("strengths", (DISTANCES, 9.0), [[10], [4], [9, 9]], ["stain"]),
    ("zones", (IMAGES[2:], split_zones(MASKS[2:], 2)), [IMAGES[2] / 255], ["centre"]),
    ("mosaic", (IMAGES, 2), [IMAGES[2]], []),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_trace():
    """No figure stays open in pyplot, and the caller's settings stay as they were."""
    matplotlib.use("Agg")
    settings = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def shown(fig):
    """Whatever the figure draws: pictures, both coordinates of lines, arrows."""
    for ax in fig.axes:
        yield from (picture.get_array() for picture in ax.images)
        yield from (values for line in ax.lines for values in line.get_data())
        yield from (v for arrows in ax.collections if hasattr(arrows, "U") for v in (arrows.U, arrows.V))


@pytest.mark.parametrize("name, arguments, arrays, texts", CASES, ids=[case[0] for case in CASES])
def test_a_plot_shows_what_it_was_given(name, arguments, arrays, texts):
    fig = PLOTS[f"plot_{name}"](*arguments)
    assert isinstance(fig, Figure)
    fig.draw_without_rendering()
    drawn = [np.ma.filled(np.ma.asarray(values, float), np.nan).squeeze() for values in shown(fig)]
    for expected in arrays:
        wanted = np.asarray(expected, float).squeeze()
        assert any(d.shape == wanted.shape and np.allclose(d, wanted, equal_nan=True) for d in drawn), (
            expected
        )
    assert set(texts) <= {text.get_text() for text in fig.findobj(Text)}


def contours(ax):
    return [artist for artist in ax.collections if isinstance(artist, ContourSet)]


def test_ground_truth_is_outlined_where_it_is():
    pictures = [ax for ax in results.plot_examples(IMAGES, MASKS, MAPS, [*"abc"]).axes if ax.images]
    assert [ax.images[0].get_clim() for ax in pictures[3::4]] == [(0, 0.8)] * 3  # one range in all rows
    assert [len(contours(ax)) for ax in pictures[::4]] == [1, 1, 0]
    vertices = contours(pictures[0])[0].get_paths()[0].vertices
    assert (vertices.min(0).tolist(), vertices.max(0).tolist()) == ([9.5, 7.5], [24.5, 19.5])
    assert to_hex(contours(pictures[0])[0].get_edgecolor()[0]) == panels.TRUTH


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("examples", (IMAGES, MASKS, {"fused": FLAT}, [*"abc"]), r"fused have the shape \(1, 32, 40\)"),
        ("examples", (IMAGES, MASKS, MAPS, ["a", "b"]), "2 titles for 3 images"),
        ("panels", ({"a": IMAGES, "b": FLAT},), "'b' has 1 rows, the first 3"),
        ("score_histogram", (np.zeros(3), np.zeros(2, bool)), "labels"),
        ("strengths", ({"real": {"hole": np.array([])}}, 1.0), "no distances"),
        ("threshold_choice", (np.ones(2), np.ones(2, bool), {}, 0.1, (1,)), "good and anomalous"),
    ],
)
def test_input_that_does_not_fit_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        PLOTS[f"plot_{name}"](*arguments)


def noisy_figure():
    """One panel of noise, which no PNG compresses."""
    fig, grid, _ = figures.image_grid((1, 150, 150), ["noise"], width=1.5)
    grid[0, 0].imshow(RNG.integers(0, 256, (150, 150, 3), dtype=np.uint8))
    return fig


def test_save_figure_lowers_its_quality_until_it_fits(tmp_path, monkeypatch):
    fig = noisy_figure()
    large = figures.save_figure(fig, tmp_path / "deep" / "large.png")
    monkeypatch.setattr(figures, "LIMIT", 20_000)
    small = figures.save_figure(fig, tmp_path / "small.png")
    assert large.stat().st_size > 20_000 >= small.stat().st_size
    assert Image.open(large).mode == "RGB"
    assert Image.open(small).convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_figures_of_the_problem_are_drawn():
    regions = MASKS[0] * 1 + 2 * np.roll(MASKS[0], 15, 1) * ~MASKS[0]
    rising, cells = np.linspace(0, 1, 5), np.ones((3, 2, 2), int)
    drawn = [
        problem.plot_families(),
        problem.plot_kinds(IMAGES, MASKS, [*"abc"]),
        problem.plot_matches(IMAGES, 255 - IMAGES, cells, 8, [*"abc"]),
        problem.plot_scores({"x": np.array([0.1, 0.2, 0.6])}, np.array([False, True, True])),
        problem.plot_blobs(regions, MAPS["fused"][0], 0.5),
        problem.plot_pixel_metrics(rising, rising, 1 - rising / 2, np.stack([rising, rising**2], 1), 2),
    ]
    for fig in drawn:
        fig.draw_without_rendering()
    assert any(np.array_equal(values, rising**2) for values in shown(drawn[-1]))
