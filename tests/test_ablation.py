"""The ablation: grids that resume and repeat nothing, failures, refusals, the tables."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from reproductions import until

from dmdd_lite.config import Config
from dmdd_lite.evaluation import METRICS
from dmdd_lite.training import Trainer

ROOT = Path(__file__).parent.parent
TINY = (
    "--teacher test_resnet --teacher-weights random --image-size 64 --iterations 4 --batch-size 2 "
    '--set precision="float32" --device cpu'
)
ROWS = ("--rows", "full", "plain", "sigma_2", "--seeds", "0", "1")
ENDS = ("csv", "md", "png")


@pytest.fixture(scope="module")
def bench(scripts):
    """The modules of the ablation. Its command leaves Ctrl-C's answer to SIGTERM, and tells lines."""
    before, told = signal.getsignal(signal.SIGTERM), os.environ.get("DMDD_PROGRESS")
    names = ("ablation", "ablation_rows", "ablation_report")
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    signal.signal(signal.SIGTERM, before)
    if told is None:
        os.environ.pop("DMDD_PROGRESS", None)


def arguments(root, out, *more) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(out), *more]


@pytest.fixture
def here(bench, monkeypatch):
    """The names of the trainings that were started. The row `.broken` fails."""
    started, run_job = SimpleNamespace(names=[], broken=""), bench.ablation.run_job

    def noted(job):
        started.names.append(job.name)
        if job.row == started.broken:
            raise MemoryError("it broke")
        run_job(job)

    monkeypatch.setattr(bench.ablation, "run_job", noted)
    return started


def result(out, row, seed=0) -> dict:
    return json.loads((out / f"{row}_bracket_seed{seed}.json").read_text(encoding="utf-8"))


# ---- grids --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(bench, root, tmp_path_factory):
    """Two rows that train and one that does not, with two seeds."""
    out = tmp_path_factory.mktemp("grid") / "ablation"
    assert bench.ablation.main(arguments(root, out, *ROWS)) == 0
    return out


@pytest.mark.slow
def test_a_grid_is_not_repeated_and_a_later_scoring_row_trains_nothing(
    bench, root, grid, here, tmp_path, monkeypatch, capsys
):
    assert len(list(grid.glob("*.json"))) == 6
    assert bench.ablation.main(arguments(root, grid, *ROWS)) == 0
    assert here.names == []
    assert {path.name for path in grid.parent.iterdir()} == {"ablation", *(f"ablation.{end}" for end in ENDS)}
    assert sorted(path.name for path in (grid / "runs").iterdir()) == [f"full_bracket_seed{s}" for s in "01"]
    aupro = [100 * result(grid, "plain", seed)["metrics"]["fused"]["aupro"] for seed in (0, 1)]
    assert f"| {np.mean(aupro):.2f} ± {np.std(aupro, ddof=1):.2f} " in capsys.readouterr().out
    copied = shutil.copytree(grid, tmp_path / "copied")
    monkeypatch.setattr(Trainer, "step", None)
    assert bench.ablation.main(arguments(root, copied, "--rows", "full", "summed", "dmdd_alone")) == 0
    assert here.names == ["full_bracket_seed0"]
    full = result(grid, "full")
    assert result(copied, "full") == full
    assert result(copied, "summed")["config"] == {**full["config"], "plain_weight": 1.0}
    assert result(copied, "dmdd_alone")["config"] == {**full["config"], "plus": None}
    assert result(copied, "dmdd_alone")["metrics"]["fused"] == pytest.approx(full["metrics"]["fused"])


@pytest.mark.slow
def test_a_row_with_the_full_rows_student_trains_an_msn_alone(bench, root, grid, tmp_path, monkeypatch):
    copied, steps, step = shutil.copytree(grid, tmp_path / "copied"), [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: steps.append(self.iteration) or step(self))
    assert bench.ablation.main(arguments(root, copied, "--rows", "full", "no_attention")) == 0
    assert steps == [3]
    assert result(copied, "no_attention")["config"]["msn_attention"] == []


@pytest.mark.slow
def test_other_settings_are_refused_by_name(bench, root, grid, here, tmp_path, capsys):
    words = ("--rows", "full", "--iterations", "8", "--textures", str(tmp_path))
    assert bench.ablation.main(arguments(root, grid, *words)) == 2
    told = capsys.readouterr().err
    assert "full_bracket_seed0.json was made with other settings (" in told
    for part in ("iterations: 4 -> 8", "textures: ['folder', ''] -> ", "another --out"):
        assert part in told
    assert here.names == []


def test_all_problems_are_told_before_anything_starts(bench, root, tmp_path, capsys):
    words = arguments(root, tmp_path / "out", "--textures", "nowhere", "--teacher-weights", "none.pth")
    assert bench.ablation.main([*words, "--data", f"a={root}/cat", f"a={root}/lever"]) == 2
    told = capsys.readouterr().err
    for part in ("a name of its own", "nowhere: no such", "no category named 'cat'", "none.pth do not exist"):
        assert part in told


@pytest.mark.slow
def test_a_failed_row_is_named_and_the_others_go_on(bench, root, tmp_path, here, capsys):
    words = arguments(root, tmp_path / "out", "--rows", "aim", "plain")
    here.broken = "aim"
    assert bench.ablation.main(words) == 1
    assert "aim_bracket_seed0: failed: MemoryError: it broke" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["plain_bracket_seed0.json"]
    here.broken = ""
    assert bench.ablation.main(words) == 0
    assert sorted(here.names) == ["aim_bracket_seed0", "aim_bracket_seed0", "plain_bracket_seed0"]


def test_every_row_is_a_configuration_and_says_why(bench):
    base = Config(iterations=300)
    for row in bench.ablation_rows.ROWS:
        assert row.config(base, 3).seed == 3
        assert row.why
        assert row.same_as_full(base) == (row.name == "full")
    scored = {row.name for row in bench.ablation_rows.ROWS if row.trained(base) == "full"}
    assert {"summed", "dmdd_alone", "sigma_4", "no_attention", "self"} <= scored
    assert scored.isdisjoint({"plain", "ngm", "decoder", "opaque", "iterations_double"})


@pytest.mark.slow
def test_a_training_that_fails_and_a_call_that_is_killed(root, tmp_path):
    """The real thing; the next call resumes the killed one's training."""

    def command(out, *more):
        words = arguments(root, tmp_path / out, "--rows", "full", *more)
        return [sys.executable, ROOT / "benchmarks" / "ablation.py", *words]

    fails = command("fails", "--set", "learning_rate=1e30", "msn_iterations=0")
    done = subprocess.run(fails, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "full_bracket_seed0: failed: TrainingError: " in done.stdout
    killed, out = command("killed", "--iterations", "60"), tmp_path / "killed"
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL) as process:
        until((out / "runs/full_bracket_seed0/checkpoint.pt").exists)
        process.kill()
    done = subprocess.run(killed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full_bracket_seed0: resumes from iteration" in done.stdout


# ---- tables -------------------------------------------------------------------------------------------


def made_up(folder):
    """Result files of random numbers: 2 rows x 2 data sets x 3 seeds; returns the values by name."""
    rng, values = np.random.default_rng(0), {}
    folder.mkdir()
    for row, data, seed in itertools.product(("plain", "full"), ("one", "two"), range(3)):
        maps = ("fused", "normality", "sum", *(("abnormality",) if row == "full" else ()))
        values[row, data, seed] = found = {
            "row": row,
            "data": data,
            "seed": seed,
            "metrics": {of: dict(zip(METRICS, rng.random(5), strict=True)) for of in maps},
            "zones": {of: {"centre": None, "edge": rng.random(), "rim": 0.5} for of in maps},
            "seconds": 10.0 + seed,
            "base": Config().to_dict(),
        }
        (folder / f"{row}_{data}_seed{seed}.json").write_text(json.dumps(found))
    return values


def test_tables_hold_the_numbers_of_the_files(bench, tmp_path):
    report, values = bench.ablation_report, made_up(tmp_path / "made")
    (tmp_path / "made" / ".full_one_seed0-x1.json").write_text("")  # killed while it was written
    text = report.write_report(tmp_path / "made")
    results = report.collect(tmp_path / "made")

    def metric(row, data, of, name):
        return np.array([100 * values[row, data, s]["metrics"][of][name] for s in range(3)])

    def told(numbers):
        return f"{np.mean(numbers):.2f} ± {np.std(numbers, ddof=1):.2f}"

    table = report.quality_table(results, "two")
    assert table.loc["full", "AUPRO"] == told(metric("full", "two", "fused", "aupro"))
    assert list(table.index) == ["plain", "full"]
    assert table.loc["plain", ["seeds", "centre recall", "seconds"]].tolist() == [3, "-", "11 ± 1"]
    assert table.loc["full", "AUPRO"] in text.partition("## two: fused map")[2]
    beside = report.msn_table(results, "one").loc["plain"]
    behind = metric("plain", "one", "normality", "pixel_ap") - metric("plain", "one", "fused", "pixel_ap")
    assert beside["behind: pixel AP"] == told(behind)
    assert beside["sum: image AUROC"] == told(metric("plain", "one", "sum", "image_auroc"))
    assert report.mean_and_std(pd.Series([98.765])) == "98.77"  # one seed has no spread

    tidy = pd.read_csv(tmp_path / "made.csv").set_index(["row", "data", "seed", "map"])
    assert len(tidy) == 2 * 3 * (3 + 4)
    found, expected = tidy.loc[("full", "one", 1, "sum")], values["full", "one", 1]
    assert dict(found[list(METRICS)]) == pytest.approx(expected["metrics"]["sum"], abs=1e-6)
    assert found["edge"] == pytest.approx(expected["zones"]["sum"]["edge"], abs=1e-6)


def test_seeds_that_differ_in_more_than_the_seed_are_not_averaged(bench, tmp_path):
    made_up(tmp_path / "made")
    for seed in range(3):
        path = tmp_path / f"made/full_one_seed{seed}.json"
        config = Config(seed=seed, aim_weight=3.0 if seed == 2 else 1.0).to_dict()
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    told = r"full_one_seed2\.json is of other settings than full_one_seed0\.json: aim_weight: 1\.0 -> 3\.0$"
    with pytest.raises(ValueError, match=told):
        bench.ablation_report.collect(tmp_path / "made")
