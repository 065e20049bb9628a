"""Chapter 03's figures draw what they are given; the animation keeps its frames and its size."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from dmdd_lite.course.plots import distillation

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
MAPS = RNG.random((2, 12, 12))


def test_losses_beside_those_of_trivial_branches():
    columns = ["iteration", "ngm", "aim", "aim_inside", "aim_outside"]
    history = pd.DataFrame([range(5), range(1, 6)], columns=columns)
    trivial = pd.DataFrame({"inside": [1.5], "outside": [0.25]}, index=["A = T"])
    fig = distillation.plot_student_losses(history, trivial)
    total, inside, outside = ([list(line.get_ydata()) for line in ax.lines] for ax in fig.axes)
    assert [3, 5] in total
    assert [3, 4] in inside
    assert [1.5, 1.5] in inside
    assert [0.25, 0.25] in outside


def test_recalls_of_maps_that_only_seeds_or_only_the_run_have():
    zones = ["centre", "edge", "rim"]
    seeds = pd.DataFrame([[0.5, 0.4, 0.1], [0.7, 0.6, 0.1]], index=["old", "old"], columns=zones)
    run = pd.DataFrame([[0.9, 0.8, 0.2]], index=["new"], columns=zones)
    fig = distillation.plot_zone_recalls(seeds, run)
    dots, means, here = (line.get_xdata() for line in fig.axes[0].lines)
    np.testing.assert_allclose(dots, [50, 70])
    np.testing.assert_allclose(means, [60, np.nan])
    np.testing.assert_allclose(here, [np.nan, 90])
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["old", "new"]


def test_an_animation_of_all_frames(tmp_path):
    frames = [
        distillation.plot_reconstruction({"damaged": PICTURES, "map": MAPS * k}, f"iteration {k}", (0.0, 2.0))
        for k in range(3)
    ]
    path = distillation.save_gif(frames, tmp_path / "deep" / "moving.gif")
    with Image.open(path) as found:
        assert (found.n_frames, found.info["loop"]) == (3, 0)
        width, height = frames[0].get_size_inches()
        assert found.size == (round(100 * width), round(100 * height))
        found.seek(2)
        assert found.info["duration"] == 3000
        last = np.asarray(found.convert("RGB"))
    drawn = np.asarray(distillation._pixels(frames[2]))
    assert np.abs(last.astype(int) - drawn).mean() < 12


@pytest.mark.parametrize("masks", [None, MAPS > 0.5])
def test_pictures_and_maps_in_one_colour_range(masks):
    fig = distillation.plot_reconstruction({"damaged": PICTURES, "map": MAPS}, limits=(0, 0.5), masks=masks)
    pictures = [ax.images[0] for ax in fig.axes]
    assert [picture.get_clim() for picture in pictures[1::2]] == [(0, 0.5)] * 2
    outlines = [c for ax in fig.axes[::2] for c in ax.collections]
    assert len(outlines) == (0 if masks is None else 2)
    assert all(tuple(c.get_edgecolor()[0][:3]) == to_rgb(distillation.TRUTH) for c in outlines)
