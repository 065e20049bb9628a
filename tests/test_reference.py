"""The published numbers are those of their sources, and stand beside ours only where they are comparable."""

import numpy as np
import pandas as pd
import pytest

from dmdd_lite import evaluation
from dmdd_lite.config import MVTEC_CATEGORIES
from dmdd_lite.evaluation import METRICS
from dmdd_lite.figures import save_figure
from dmdd_lite.plots.peers import plot_peers
from dmdd_lite.reproduce.reference import by_category, category_table, load_reference, means_table, settings


def results_of(categories, seeds=(0, 1)) -> pd.DataFrame:
    """Ours: 0.9 + 0.01 seed everywhere."""
    rows = [
        {"category": c, "seed": s, "map": "fused", **dict.fromkeys(METRICS, 0.9 + 0.01 * s)}
        for c in categories
        for s in seeds
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "method, category, expected",
    [
        ("DMDD", "mean", (None, 98.85, 96.13)),
        ("STPM", "transistor", (None, 82.5, None)),
        ("PatchCore-10 %", "screw", (97.0, 99.4, None)),
        ("RD4AD re-run", "transistor", (96.2, 92.3, 78.3)),
        ("CDO", "toothbrush", (96.67, 98.99, 91.37)),
        ("RD++", "mean", (99.44, 98.25, 94.99)),
        ("MemKD", "mean", (99.6, 98.2, None)),
        ("DRAEM (BaoIAD)", "mean", (96.77, 92.59, 85.36)),
    ],
)
def test_numbers_as_published(method, category, expected):
    row = load_reference().query("method == @method and category == @category")
    found = row[["image_auroc", "pixel_auroc", "aupro"]].to_numpy(float).squeeze()
    np.testing.assert_array_equal(found, np.array(expected, float))


@pytest.mark.parametrize(
    "method, metric, mean",  # a slip in a column of fifteen would show in what is known of its mean
    [
        ("STPM", "pixel_auroc", 97.0),
        ("PatchCore-10 %", "pixel_auroc", 98.1),
        ("CDO", "image_auroc", 99.13),
        ("RD4AD re-run", "aupro", 93.9),
    ],
)
def test_columns_agree_with_their_stated_means(method, metric, mean):
    column = by_category(metric)[method]
    assert sorted(column.index) == sorted(MVTEC_CATEGORIES)
    assert column.mean() == pytest.approx(mean, abs=0.11)


def test_every_method_tells_its_protocol_and_the_paper_has_no_more_than_its_abstract():
    reference = load_reference()
    assert reference.groupby("method")["protocol"].first().notna().all()
    paper = reference.query("method == 'DMDD'")
    assert len(paper) == 1
    for metric, value in evaluation.PAPER.items():
        assert paper[metric].item() == pytest.approx(100 * value)


def test_peers_are_averaged_over_our_categories_and_the_paper_waits_for_all_fifteen():
    part = category_table(results_of(("cable", "toothbrush")))
    assert part.loc["toothbrush", "CDO image/pixel/PRO"] == "96.67/98.99/91.37"
    assert part.loc["mean of 2", "CDO image/pixel/PRO"] == "98.12/98.25/91.71"
    assert part.loc["mean of 2", "PatchCore-10 % image/pixel"] == "99.55/98.60"
    assert set(part["DMDD (paper) pixel/PRO"]) == {"-"}
    whole = category_table(results_of(MVTEC_CATEGORIES))
    assert whole.loc["mean of 15", "DMDD (paper) pixel/PRO"] == "98.85/96.13"
    assert whole.loc["pill", "ours image_auroc"] == "90.50 ± 0.71"


def test_no_peer_number_for_a_category_that_is_not_theirs():
    table = category_table(results_of(("cable", "pcb")))
    assert set(table.loc["pcb"].filter(like="CDO")) == {"-"}
    assert set(table.loc["mean of 2"].filter(like="CDO")) == {"-"}


def test_means_tell_what_ours_cover():
    table = means_table(results_of(("cable", "screw", "pcb")))
    assert table.loc["**ours**", "image"] == "90.50"
    assert "2 of 15 MVTec AD categories, 1 other" in table.loc["**ours**", "protocol"]
    assert list(table.loc["DMDD"])[:3] == ["-", "98.85", "96.13"]


def test_settings_show_a_mixture(tmp_path):
    for seed, size in ((0, 64), (1, 128)):
        config = {"teacher": "t", "teacher_weights": "/far/w.pth", "iterations": 6, "batch_size": 2}
        text = pd.Series({"config": config | {"image_size": size}, "device": "cpu: x"}).to_json()
        (tmp_path / f"nut_seed{seed}.json").write_text(text)
    assert settings(tmp_path)[1:3] == ["- teacher_weights: w.pth", "- image_size: 64, 128"]


def test_figure_shows_each_category_once_and_is_light(tmp_path):
    figure = plot_peers(results_of([*MVTEC_CATEGORIES, "pcb"]))
    left, *_ = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == [*MVTEC_CATEGORIES, "pcb"]
    values = {line.get_label(): line.get_xdata() for line in left.lines}
    assert any(np.allclose(x, 90.5) for x in values.values() if len(x) == 16)
    assert save_figure(figure, tmp_path / "peers.png").stat().st_size <= 150_000
