"""Watched trainings, and the two protocols that report them: 'last' and 'best-on-test'."""

import json
import re
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from builders import tiny_config

from dmdd_lite import training
from dmdd_lite.data import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.trainer import Trainer
from dmdd_lite.training import snapshot, train

TINY = (
    "--teacher test_resnet --teacher-weights random --image-size 64 --iterations 5 --batch-size 2 --set "
    'student_blocks=[1,1,1] student_width=16 fusion_width=4 fusion_start=0.5 precision="float32" --device cpu'
)
LEAN = tiny_config(position_maps=False)  # trains faster still


@pytest.fixture(scope="module")
def protocols(scripts):
    return import_module("protocols")


def arguments(root, out, *more) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(out), *more]


def curve_of(*values) -> list[dict]:
    """A made-up curve: pixel AUROC and AUPRO per image of iterations 10, 20, ...; the other metrics 0.5."""
    return [
        {**dict.fromkeys(METRICS, 0.5), "iteration": 10 * i, "pixel_auroc": auroc, "aupro_per_image": aupro}
        for i, (auroc, aupro) in enumerate(values, start=1)
    ]


# ---- watching a training ------------------------------------------------------------------------------


def assert_same_run(one, other):
    pairs = one.detector.model.state_dict(), other.detector.model.state_dict()
    assert pairs[0].keys() == pairs[1].keys()
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
    assert one.detector.threshold == other.detector.threshold
    pd.testing.assert_frame_equal(one.history, other.history)


@pytest.mark.parametrize("holdout, saved", [(0.1, False), (0.0, True)])
def test_a_watched_run_is_the_run_unwatched(root, tmp_path, holdout, saved):
    """Detectors of the moment, from stage 1 on, change nothing; that of the last one is the result."""
    config, seen, maps = tiny_config(holdout=holdout, iterations=4), [], []

    def watch(trainer):
        assert len(trainer.history) == trainer.iteration  # losses are all read
        assert trainer.model.training == (trainer.iteration <= config.student_iterations)  # as it was
        detector = snapshot(trainer)
        maps.append(detector.maps(trainer.data.images))  # predicting changes nothing either
        seen.append((trainer.iteration, detector))

    plain = train(config, root, "lever", device="cpu", progress=False)
    folder = tmp_path if saved else None
    watched = train(config, root, "lever", "", folder, "cpu", 1, False, watch)
    assert_same_run(plain, watched)
    assert [iteration for iteration, _ in seen] == [1, 2, 3, 4]
    assert_same_run(watched, SimpleNamespace(detector=seen[-1][1], history=watched.history))
    fused = [found[0]["fused"] for found in maps]
    assert not any(torch.equal(a, b) for a, b in pairwise(fused))


@pytest.mark.parametrize("every, saved, expected", [(4, False, [4, 6]), (100, True, [6])])
def test_watched_every_so_often_and_at_the_end(root, tmp_path, every, saved, expected):
    seen, folder = [], tmp_path if saved else None
    options = {"checkpoint_every": every, "watch": lambda trainer: seen.append(trainer.iteration)}
    train(LEAN, root, "lever", "", folder, "cpu", progress=False, **options)
    assert seen == expected


def test_a_watch_that_was_stopped_is_met_again(root, tmp_path, capsys):
    seen = []

    def watch(trainer):
        seen.append(trainer.iteration)
        if seen == [2, 4]:
            raise KeyboardInterrupt

    again = {"checkpoint_every": 2, "progress": False, "watch": watch}
    with pytest.raises(KeyboardInterrupt):
        train(LEAN, root, "lever", "", tmp_path, "cpu", **again)
    assert "the same call goes on from iteration 2\n" in capsys.readouterr().out
    train(LEAN, root, "lever", "", tmp_path, "cpu", **again)
    train(LEAN, root, "lever", "", tmp_path, "cpu", **again)  # loaded
    told = capsys.readouterr().out
    assert "goes on from iteration 2\n" in told
    assert "loaded, trained before" in told
    assert seen == [2, 4, 4, 6]


def test_a_watch_takes_no_time_of_the_training(root, monkeypatch):
    """By a clock on which an iteration takes 1 second and a watch 100."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    step = Trainer.step

    def slow_step(trainer):
        clock.now += 1
        return step(trainer)

    def slow_watch(trainer):
        assert trainer.seconds == trainer.iteration
        clock.now += 100

    monkeypatch.setattr(Trainer, "step", slow_step)
    options = {"checkpoint_every": 2, "progress": False, "watch": slow_watch}
    assert train(LEAN, root, "lever", device="cpu", **options).seconds == 6
    assert clock.now == 306


# ---- two protocols ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, best",
    [
        ([(0.90, 0.80), (0.96, 0.84), (0.97, 0.82)], 20),  # neither metric alone
        ([(0.90, 0.80), (0.80, 0.95), (0.97, 0.70)], 20),
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
    curves = {
        ("one", 0): curve_of((0.90, 0.80), (0.96, 0.84), (0.97, 0.82)),
        ("one", 1): curve_of((0.90, 0.90), (0.80, 0.80), (0.81, 0.70)),
        ("two", 0): curve_of((0.50, 0.40), (0.60, 0.50), (0.70, 0.60)),
    }
    results = [{"data": data, "curve": curve} for (data, _), curve in curves.items()]
    found = protocols.table(results)
    assert found["pixel AUROC"].tolist() == [
        "89.00 / 93.00 (+4.00)",
        "70.00 / 70.00 (+0.00)",
        "79.50 / 81.50 (+2.00)",
    ]
    assert found["AUPRO per image"]["one"] == "76.00 / 87.00 (+11.00)"
    assert found["AUPRO pooled"]["one"] == "50.00 / 50.00 (+0.00)"
    assert found["seeds"].tolist() == [2, 1, ""]
    assert found["best at"].tolist() == ["20, 10", "30", ""]
    text = protocols.report(results)
    assert text.count("it looks at the test labels and is for comparison only") == 1
    assert text.count("\n| mean of 2 ") == 1
    assert "| mean of" not in protocols.report(results[:2])


@pytest.mark.slow
def test_a_tiny_run_from_end_to_end(protocols, root, tmp_path, capsys):
    assert protocols.main(arguments(root, tmp_path, "--seeds", "3", "--every", "2")) == 0
    found = json.loads((tmp_path / "bracket_seed3.json").read_text())
    assert [line["iteration"] for line in found["curve"]] == [2, 4, 5]
    chosen = protocols.choose(found["curve"])
    for name, line in chosen.items():
        assert found["protocols"][name] == {"protocol": protocols.PROTOCOLS[name], **line}

    config = tiny_config(iterations=5, seed=3)
    assert protocols.Config.from_dict(found["config"]) == config
    detector = train(config, root, "lever", device="cpu", progress=False).detector
    expected = evaluate(detector, open_category(root, "lever"), progress=False).metrics["fused"]
    assert {key: chosen["last"][key] for key in METRICS} == expected

    told = capsys.readouterr().out
    row = [cell.strip() for cell in told.splitlines()[-1].split("|")[1:-1]]
    assert row[:2] == ["bracket", "1"]
    assert row[2].startswith(f"{100 * expected['image_auroc']:.2f} / ")
    assert row[-1] == str(chosen["best-on-test"]["iteration"])
    assert len(re.findall(r"^bracket_seed3: iteration \d: image AUROC", told, re.MULTILINE)) == 3


def write_finished(protocols, words):
    """A result of other hands, with numbers that a new run would not have."""
    (run,) = protocols.plan(protocols.parse(words))
    values = {"curve": curve_of((0.9, 0.8), (0.6, 0.7)), "config": run.config.to_dict(), **run.settings}
    run.path.parent.mkdir(exist_ok=True)
    run.path.write_text(json.dumps(values))


def test_what_is_there_is_kept(protocols, root, tmp_path, monkeypatch, capsys):
    words = arguments(root, tmp_path)
    write_finished(protocols, words)
    monkeypatch.setattr(protocols, "train", None)
    assert protocols.main(words) == 0
    assert "60.00 / 90.00 (+30.00)" in capsys.readouterr().out
    trained = []
    monkeypatch.setattr(protocols, "execute", lambda run: trained.append(run.name) or {"half": "a result"})
    assert protocols.main([*words, "--seeds", "0", "1"]) == 2
    assert trained == ["bracket_seed1"]
    assert "bracket_seed1.json is not a result file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        (("--iterations", "9"), r"iterations: 5 -> 9"),
        (("--every", "3"), r"every: 1 -> 3"),
        (("--set", "aim_weight=3.0"), r"aim_weight: 1\.0 -> 3\.0"),
        (("--textures", "TEXTURES"), r"textures: '' -> 'lever'"),
    ],
)
def test_other_settings_are_refused_by_name(protocols, root, tmp_path, capsys, changes, message):
    words = arguments(root, tmp_path)
    write_finished(protocols, words)
    changes = [str(root / "lever") if word == "TEXTURES" else word for word in changes]
    assert protocols.main([*words, *changes]) == 2
    told = capsys.readouterr().err
    assert re.search(rf"bracket_seed0\.json was made with other settings \({message}\); delete it", told)


def test_problems_are_told_before_anything_starts(protocols, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocols, "execute", None)
    words = arguments(root, tmp_path, "--teacher-weights", "none.pth", "--textures", "nowhere")
    assert protocols.main([*words, "--data", f"a={root}/cat", f"a={root}/lever"]) == 2
    told = capsys.readouterr().err
    for part in ("a name of its own", "nowhere: no such", "no category named 'cat'", "none.pth do not exist"):
        assert part in told
    assert protocols.main(arguments(root, tmp_path, "--every", "0")) == 2
    assert "--every 0: at least 1" in capsys.readouterr().err


def test_a_failed_training_is_named_and_the_others_go_on(protocols, root, tmp_path, monkeypatch, capsys):
    def execute(run):
        if run.config.seed == 0:
            raise protocols.TrainingError("L_NGM is nan")
        return {**run.settings, "config": run.config.to_dict(), "curve": curve_of((0.9, 0.8))}

    monkeypatch.setattr(protocols, "execute", execute)
    assert protocols.main(arguments(root, tmp_path, "--seeds", "0", "1")) == 1
    told = capsys.readouterr().out
    assert "bracket_seed0: failed: L_NGM is nan" in told
    assert [path.name for path in tmp_path.iterdir()] == ["bracket_seed1.json"]
    assert "90.00 / 90.00 (+0.00)" in told.splitlines()[-1]
