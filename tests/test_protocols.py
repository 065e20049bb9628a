"""Watched trainings, and the two protocols that report them: 'last' and 'best-on-test'."""

import copy
import json
from importlib import import_module
from itertools import pairwise

import pandas as pd
import pytest
import torch
from builders import networks_of, same_state, tiny_config, train_tiny

from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.training import finish

TINY = (
    "--teacher test_resnet --teacher-weights random --image-size 64 --iterations 5 --batch-size 2 --set "
    'precision="float32" --device cpu'
)


@pytest.fixture(scope="module")
def protocols(scripts):
    return import_module("protocols")


@pytest.fixture
def words(root, tmp_path) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(tmp_path)]


def curve_of(*values) -> list[dict]:
    """A made-up curve: pixel AUROC and AUPRO per image of iterations 10, 20, ...; the other metrics 0.5."""
    return [
        {**dict.fromkeys(METRICS, 0.5), "iteration": 10 * i, "pixel_auroc": auroc, "aupro_per_image": aupro}
        for i, (auroc, aupro) in enumerate(values, start=1)
    ]


# ---- watching a training ------------------------------------------------------------------------------


def test_a_watched_run_is_the_run_unwatched(root, tmp_path):
    """Detectors of the moment, from stage 1 on, change nothing; that of the last one is the result."""
    seen, maps = [], []

    def watch(trainer):
        assert len(trainer.history) == trainer.iteration  # losses are all read
        assert trainer.model.training == (trainer.iteration <= trainer.config.student_iterations)  # as it was
        seen.append((trainer.iteration, finish(copy.deepcopy(trainer.model), trainer.data)))
        maps.append(seen[-1][1].maps(trainer.data.images)[0]["fused"])  # predicting changes nothing either

    plain = train_tiny(root, iterations=4)
    watched = train_tiny(root, tmp_path, 1, watch, iterations=4)
    pd.testing.assert_frame_equal(plain.history, watched.history)
    assert [iteration for iteration, _ in seen] == [1, 2, 3, 4]
    for detector in (watched.detector, seen[-1][1]):
        assert same_state(networks_of(plain.detector), networks_of(detector))
        assert plain.detector.thresholds == detector.thresholds
    assert not any(torch.equal(a, b) for a, b in pairwise(maps))


# ---- two protocols ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, best",
    [
        ([(0.90, 0.80), (0.96, 0.84), (0.97, 0.82)], 20),  # neither metric alone
        ([(0.90, 0.80), (0.91, 0.82), (0.93, 0.85)], 30),  # the last itself
        ([(0.75, 0.50), (0.50, 0.75), (0.25, 0.25)], 10),  # the earliest of equals
    ],
)
def test_the_best_of_a_known_curve(protocols, values, best):
    curve = curve_of(*values)
    curve[0]["aupro"] = curve[0]["pixel_ap"] = curve[0]["image_auroc"] = 0.99  # these do not choose
    chosen = protocols.choose(curve)
    assert (chosen["last"]["iteration"], chosen["best-on-test"]["iteration"]) == (30, best)


def test_the_table_of_known_curves(protocols):
    curves = [
        ("one", (0.90, 0.80), (0.96, 0.84), (0.97, 0.82)),
        ("one", (0.90, 0.90), (0.80, 0.80), (0.81, 0.70)),
        ("two", (0.50, 0.40), (0.60, 0.50), (0.70, 0.60)),
    ]
    results = [{"data": data, "curve": curve_of(*curve)} for data, *curve in curves]
    found = protocols.table(results)
    assert found["pixel_auroc"].tolist() == ["89.00 / 93.00 (+4.00)", "70.00 / 70.00 (+0.00)"]
    assert found["aupro_per_image"]["one"] == "76.00 / 87.00 (+11.00)"
    assert found["seeds"].tolist() == [2, 1]
    assert found["best at"].tolist() == ["20, 10", "30"]


@pytest.mark.slow
def test_a_tiny_run_from_end_to_end(protocols, root, tmp_path, words, capsys, monkeypatch):
    assert protocols.main([*words, "--seeds", "3", "--every", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    found = json.loads((tmp_path / "bracket_seed3.json").read_text())
    assert [line["iteration"] for line in found["curve"]] == [2, 4, 5]
    last = protocols.choose(found["curve"])["last"]
    assert found["protocols"]["last"] == last
    assert protocols.Config.from_dict(found["config"]) == tiny_config(iterations=5, seed=3)
    detector = train_tiny(root, iterations=5, seed=3).detector
    expected = evaluate(detector, open_category(root, "lever"), progress=False).metrics["fused"]
    assert {key: last[key] for key in METRICS} == expected
    assert f"| {100 * expected['image_auroc']:.2f} / " in shown
    capsys.readouterr()
    monkeypatch.setattr(protocols, "train", None)  # what is there is not made again
    assert protocols.main([*words, "--seeds", "3", "--every", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == shown
    assert protocols.main([*words, "--seeds", "3", "--every", "1"]) == 2
    assert "bracket_seed3.json was made with other settings (every: 2 -> 1)" in capsys.readouterr().err
