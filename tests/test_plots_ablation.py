"""The ablation's figure: a dot a seed at its distance to the full row, in the data set's colour."""

import numpy as np
import pandas as pd
import pytest

from dmdd_lite.plots import plot_row_differences

pytestmark = pytest.mark.usefixtures("no_trace")

METRICS = {"aupro": "AUPRO", "edge": "edge recall"}


@pytest.fixture
def results():
    """Rows full and other, data sets a (two seeds) and b (one), in fractions of 1."""
    lines = [
        ("full", "a", 0, 0.90, 0.5),
        ("full", "a", 1, 0.94, 0.5),
        ("full", "b", 0, 0.80, 0.2),
        ("other", "a", 0, 0.91, 0.6),
        ("other", "a", 1, 0.95, 0.4),
    ]
    return pd.DataFrame(lines, columns=["row", "data", "seed", *METRICS])


def dots(ax, marker) -> list[list[float]]:
    """x of every line of that marker, by y from the top."""
    lines = [line for line in ax.lines if line.get_marker() == marker and len(line.get_xdata())]
    lines.sort(key=lambda line: (line.get_ydata()[0], line.get_color()))
    return [np.round(line.get_xdata(), 6).tolist() for line in lines]


def test_dots_are_points_above_the_full_rows_mean(results):
    fig = plot_row_differences(results, METRICS, "full")
    left, right = fig.axes
    assert dots(left, ".") == [[-2, 2], [0], [-1, 3]]
    assert dots(left, "o") == [[0], [0], [1]]
    assert dots(right, ".") == [[0, 0], [0], [10, -10]]
    assert [ax.get_title() for ax in fig.axes] == ["AUPRO", "edge recall"]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["full", "other"]
    assert left.get_ylim() == (1.5, -0.5)
    band = left.patches[0].get_extents().transformed(left.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-2, 2))


def test_a_colour_a_data_set(results):
    fig = plot_row_differences(results, METRICS, "full")
    colours = {line.get_color() for line in fig.axes[0].lines if line.get_marker() in "o."}
    assert len(colours) == 2
    legend = fig.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert {line.get_color() for line in legend.get_lines()} == colours


def test_a_data_set_without_the_full_row_is_refused(results):
    with pytest.raises(ValueError, match="no row 'full' to compare with for b"):
        plot_row_differences(results.drop(index=2).assign(data=["a", "a", "b", "b"]), METRICS, "full")
