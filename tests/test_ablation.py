"""The ablation: what a row is, grids that resume and repeat nothing, scored rows, failures, the tables."""

import json
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from builders import some_samples

from dmdd_lite.config import Config, differences
from dmdd_lite.course.zones import zone_table
from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.trainer import Trainer
from dmdd_lite.training import train

ROOT = Path(__file__).parent.parent
TINY = (
    "--teacher test_resnet --teacher-weights random --image-size 64 --iterations 3 --batch-size 2 --set "
    'student_blocks=[1,1,1] student_width=16 msn_width=4 msn_start=0.3 precision="float32" --device cpu'
)
ROWS = ("--rows", "full", "plain", "sigma_2", "--seeds", "0", "1")
ENDS = ("csv", "md", "png")


@pytest.fixture(scope="module")
def bench(scripts):
    """The modules of the ablation."""
    names = ("ablation", "ablation_rows", "ablation_report")
    return SimpleNamespace(**{name: import_module(name) for name in names})


def arguments(root, out, *more) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(out), *more]


@pytest.fixture
def here(bench, monkeypatch):
    """Trainings in this process; the names of those that were started. The row `.broken` fails."""
    started = SimpleNamespace(names=[], broken="")

    def run_child(job):
        started.names.append(job.name)
        return "it broke" if job.row == started.broken else bench.ablation.run_job(job) or ""

    monkeypatch.setattr(bench.ablation, "run_child", run_child)
    return started


def result(out, row, seed=0) -> dict:
    return json.loads((out / f"{row}_bracket_seed{seed}.json").read_text(encoding="utf-8"))


def planned(bench, root, out, *more) -> list:
    with pytest.MonkeyPatch.context() as patch:
        jobs = []
        patch.setattr(bench.ablation, "check", lambda options, base, found: jobs.extend(found))
        patch.setattr(bench.ablation, "open_rows", lambda job: [])
        bench.ablation.main(arguments(root, out, *more))
    return jobs


# ---- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Config(), Config(iterations=300, batch_size=8, learning_rate=1e-3)])
def test_rows_change_the_base_by_what_they_name(bench, base):
    rows = bench.ablation_rows
    assert len(rows.BY_NAME) == len(rows.ROWS)
    same = {row.name for row in rows.ROWS if row.same_as_full(base)}
    assert same == {"full"}
    for row in rows.ROWS:
        changed = {text.split(":")[0] for text in differences(base, row.config(base, 7))} - {"seed"}
        assert changed == (set() if row.name in same else set(row.changes)), row.name
        assert row.config(base, 7).seed == 7
    doubled = rows.BY_NAME["iterations_double"].config(base, 0).iterations
    assert (doubled, type(doubled)) == (2 * base.iterations, int)
    assert rows.BY_NAME["rate_half"].config(base, 0).learning_rate == base.learning_rate / 2


def test_rows_of_the_fusion_alone_have_the_full_rows_student(bench):
    rows, base = bench.ablation_rows, Config()
    own = {
        *("plain", "good", "pairs", "ngm", "aim", "decoder"),
        *("standardise_always", "standardise_never", "no_prior"),
        *("ngm_pixel", "illumination"),
        *("textures_procedural", "textures_own", "textures_mixed", "foreground_none"),
        *("constant", "iterations_double", "rate_half", "rate_double"),
    }
    assert {row.name for row in rows.ROWS if not row.is_refit(base)} == {*own, "full"}
    assert rows.BY_NAME["plain"].config(base, 0).student_iterations == base.student_iterations


def test_the_plan_groups_rows_by_training(bench, root, tmp_path, capsys):
    rows = ("--rows", "aim", "sigma_2", "sigma_4", "channel", "textures_procedural", "--seeds", "0", "1")
    more = (*rows, "--set", "smoothing_sigma=4.0")
    jobs = planned(bench, root, tmp_path, *more)
    found = [(job.row, job.seed, list(job.rows)) for job in jobs]
    one = [("full", 0, ["sigma_2", "channel"]), ("aim", 0, ["aim"])]
    assert found == [*one, *((row, 1, rows) for row, _, rows in one)]
    assert "left out: sigma_4, textures_procedural" in capsys.readouterr().out
    assert jobs[0].rows["sigma_2"].smoothing_sigma == 2
    assert jobs[0].base.smoothing_sigma == 4


# ---- grids --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(bench, root, tmp_path_factory):
    """Two rows that train, in this process, and one that does not, with two seeds."""
    out = tmp_path_factory.mktemp("grid") / "ablation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.ablation, "run_child", lambda job: bench.ablation.run_job(job) or "")
        assert bench.ablation.main(arguments(root, out, *ROWS)) == 0
    return out


@pytest.fixture
def copied(grid, tmp_path):
    return Path(shutil.copytree(grid, tmp_path / "copied"))


@pytest.mark.slow
def test_a_grid_runs_and_a_second_call_runs_nothing(bench, root, grid, here, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in grid.glob("*.json")}
    assert len(before) == 6
    assert bench.ablation.main(arguments(root, grid, *ROWS)) == 0
    assert here.names == []
    assert {path.name: path.stat().st_mtime_ns for path in grid.glob("*.json")} == before
    kept = sorted(path.name for path in (grid / "runs").iterdir())
    assert kept == ["full_bracket_seed0", "full_bracket_seed1"]
    assert {path.name for path in grid.parent.iterdir()} == {"ablation", *(f"ablation.{end}" for end in ENDS)}
    aupro = [100 * result(grid, "plain", seed)["metrics"]["fused"]["aupro"] for seed in (0, 1)]
    assert f"| {np.mean(aupro):.2f} ± {np.std(aupro, ddof=1):.2f} " in capsys.readouterr().out


@pytest.mark.slow
def test_a_later_scoring_row_trains_nothing(bench, root, copied, here, monkeypatch):
    before = result(copied, "full")
    monkeypatch.setattr(Trainer, "step", None)
    assert bench.ablation.main(arguments(root, copied, "--rows", "full", "skip_0")) == 0
    assert here.names == ["full_bracket_seed0"]
    assert result(copied, "full") == before
    assert result(copied, "skip_0")["config"] == {**before["config"], "msn_skip": 0.0}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_checkpoint(bench, root, grid, tmp_path, monkeypatch, capsys):
    (job,) = planned(bench, root, tmp_path, "--rows", "full")
    steps = Trainer.step

    def interrupted(self):
        if self.iteration == 2:
            raise KeyboardInterrupt
        return steps(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.ablation.run_job(job)
    assert not job.result("full").exists()
    monkeypatch.setattr(Trainer, "step", steps)
    bench.ablation.run_job(job)
    assert "goes on from iteration 2" in capsys.readouterr().out
    assert result(tmp_path, "full")["metrics"] == result(grid, "full")["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "row, trained",
    [
        ("sigma_2", {"smoothing_sigma": 2.0}),
        ("score_top", {"score_rule": "top"}),
        ("skip_0", {"msn_skip": 0.0}),
        ("summed", {"msn_skip": 1.0}),
        ("no_attention", {"msn_attention": ()}),
        ("no_position", {"position_maps": False}),
    ],
)
def test_scored_rows_equal_a_training_with_that_configuration(bench, root, copied, row, trained):
    (job,) = planned(bench, root, copied, "--rows", row)
    bench.ablation.run_job(job)
    config = job.base.replace(**trained)
    detector = train(config, root, "lever", device="cpu", progress=False).detector
    expected = evaluate(detector, open_category(root, "lever"), progress=False)
    found = result(copied, row)
    zones = zone_table(expected.maps, expected.masks, 1, 0.01)  # a fiftieth of 64 pixels
    for of, metrics in expected.metrics.items():
        assert found["metrics"][of] == pytest.approx(metrics), of
        assert found["zones"][of] == pytest.approx(dict(zones.loc[of])), of
    if row != "score_top":  # so few images rank the same
        assert found["metrics"] != result(copied, "full")["metrics"]


@pytest.mark.slow
def test_other_settings_are_refused_by_name(bench, root, grid, here, tmp_path, capsys):
    words = ("--rows", "full", "--iterations", "8", "--textures", str(tmp_path), "--set", "aim_weight=2.0")
    assert bench.ablation.main(arguments(root, grid, *words)) == 2
    told = capsys.readouterr().err
    assert "full_bracket_seed0.json was made with other settings (" in told
    for part in (
        "aim_weight: 1.0 -> 2.0",
        "iterations: 3 -> 8",
        "textures: ['folder', ''] -> ",
        "another --out",
    ):
        assert part in told
    assert here.names == []


def test_all_problems_are_told_before_anything_starts(bench, root, tmp_path, here, capsys):
    words = arguments(root, tmp_path / "out", "--textures", "nowhere", "--teacher-weights", "none.pth")
    assert bench.ablation.main([*words, "--data", f"a={root}/cat", f"a={root}/lever"]) == 2
    told = capsys.readouterr().err
    for part in ("a name of its own", "nowhere: no such", "no category named 'cat'", "none.pth do not exist"):
        assert part in told
    with pytest.raises(SystemExit):
        bench.ablation.main(arguments(root, tmp_path, "--data", "bottle"))
    assert "'bottle' is not NAME=ROOT/CATEGORY" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_row_is_named_and_the_others_go_on(bench, root, tmp_path, here, capsys):
    words = arguments(root, tmp_path / "out", "--rows", "aim", "plain")
    here.broken = "aim"
    assert bench.ablation.main(words) == 1
    assert "aim_bracket_seed0: failed: it broke (log: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["plain_bracket_seed0.json"]
    here.broken = ""
    assert bench.ablation.main(words) == 0
    assert here.names == ["aim_bracket_seed0", "plain_bracket_seed0", "aim_bracket_seed0"]


@pytest.mark.slow
def test_mixed_textures_are_the_folders_and_its_own(bench, root, tmp_path):
    some_samples(tmp_path, "fabric", train=3, good=1)
    more = ("--rows", "textures_mixed", "textures_own", "--textures", str(tmp_path / "fabric/train"))
    mixed, own = planned(bench, root, tmp_path / "out", *more)
    folder = Path(bench.ablation.textures_of(mixed))
    both = [*(root / "lever/train/good").iterdir(), *(tmp_path / "fabric/train/good").iterdir()]
    assert {path.resolve() for path in folder.iterdir()} == {path.resolve() for path in both}
    assert len(list(folder.iterdir())) == len(both) == 10
    assert Path(bench.ablation.textures_of(own)) == root / "lever/train/good"
    bench.ablation.run_job(mixed)
    assert result(tmp_path / "out", "textures_mixed")["textures"] == ["mixed", "train"]


@pytest.mark.slow
def test_a_training_that_fails_and_a_call_that_is_killed(root, tmp_path):
    """The real thing; the killed call's training ends with it, and the next call resumes it."""
    words = arguments(
        root, tmp_path / "fails", "--rows", "full", "--set", "learning_rate=1e30", "msn_start=1.0"
    )
    command = [sys.executable, ROOT / "benchmarks" / "ablation.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "full_bracket_seed0: failed: TrainingError: " in done.stdout

    out = tmp_path / "killed"
    more = ("--rows", "full", "sigma_2", "--iterations", "60")
    command = [sys.executable, ROOT / "benchmarks" / "ablation.py", *arguments(root, out, *more)]
    folder, deadline = out / "runs" / "full_bracket_seed0", time.monotonic() + 200
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from iteration" in (out / "logs" / "full_bracket_seed0.log").read_text()
    assert len(list(out.glob("*.json"))) == 2


# ---- tables -------------------------------------------------------------------------------------------


def made_up(folder, bases=None):
    """Result files of random numbers: 2 rows x 2 data sets x 3 seeds; returns the values by name."""
    rng, values = np.random.default_rng(0), {}
    base = Config().to_dict()
    folder.mkdir()
    for row in ("plain", "full"):
        maps = ("fused", "normality", "sum", *(("abnormality",) if row == "full" else ()))
        for data in ("one", "two"):
            for seed in range(3):
                found = {
                    "row": row,
                    "data": data,
                    "seed": seed,
                    "metrics": {of: dict(zip(METRICS, rng.random(5), strict=True)) for of in maps},
                    "zones": {of: {"centre": None, "edge": rng.random(), "rim": 0.5} for of in maps},
                    "seconds": 10.0 + seed,
                    "base": {**base, **(bases or {}).get((row, data, seed), {})},
                }
                values[row, data, seed] = found
                (folder / f"{row}_{data}_seed{seed}.json").write_text(json.dumps(found))
    return values


def test_tables_hold_the_numbers_of_the_files(bench, tmp_path):
    values = made_up(tmp_path / "made")
    text = bench.ablation_report.write_report(tmp_path / "made")
    results = bench.ablation_report.collect(tmp_path / "made")

    aupro = [100 * values["full", "two", s]["metrics"]["fused"]["aupro"] for s in range(3)]
    table = bench.ablation_report.quality_table(results, "two")
    assert table.loc["full", "AUPRO"] == f"{np.mean(aupro):.2f} ± {np.std(aupro, ddof=1):.2f}"
    assert list(table.index) == ["plain", "full"]
    assert table.loc["plain", ["seeds", "centre recall", "seconds"]].tolist() == [3, "-", "11 ± 1"]
    assert table.loc["full", "AUPRO"] in text.partition("## two: fused map")[2]

    behind = []
    for seed in range(3):
        maps = {of: m["pixel_ap"] for of, m in values["plain", "one", seed]["metrics"].items()}
        behind.append(100 * (maps["normality"] - maps["fused"]))
    cell = bench.ablation_report.msn_table(results, "one").loc["plain", "behind: pixel AP"]
    assert cell == f"{np.mean(behind):.2f} ± {np.std(behind, ddof=1):.2f}"
    summed = np.mean([100 * values["plain", "one", s]["metrics"]["sum"]["image_auroc"] for s in range(3)])
    cell = bench.ablation_report.msn_table(results, "one").loc["plain", "sum: image AUROC"]
    assert cell.startswith(f"{summed:.2f} ± ")

    tidy = pd.read_csv(tmp_path / "made.csv")
    assert len(tidy) == 2 * 3 * (3 + 4)
    key = (tidy["row"] == "full") & (tidy["data"] == "one") & (tidy["seed"] == 1) & (tidy["map"] == "sum")
    for metric, value in values["full", "one", 1]["metrics"]["sum"].items():
        assert tidy.loc[key, metric].item() == pytest.approx(value, abs=1e-6)
    assert tidy.loc[key, "edge"].item() == pytest.approx(
        values["full", "one", 1]["zones"]["sum"]["edge"], abs=1e-6
    )


def test_one_seed_has_no_spread(bench):
    report = bench.ablation_report
    assert report.mean_and_std(pd.Series([98.765])) == "98.77"
    assert report.mean_and_std(pd.Series([1.0, 3.0, np.nan])) == "2.00 ± 1.41"
    assert report.mean_and_std(pd.Series([np.nan])) == "-"


def test_results_of_different_bases_and_foreign_files_are_refused(bench, tmp_path):
    made_up(tmp_path / "made", {("full", "two", 1): {"iterations": 7}})
    with pytest.raises(ValueError, match=r"different base settings: iterations: (5000 -> 7|7 -> 5000)"):
        bench.ablation_report.collect(tmp_path / "made")
    (tmp_path / "made" / "full_two_seed1.json").write_text("{}")
    with pytest.raises(ValueError, match=r"full_two_seed1\.json is not a result file"):
        bench.ablation_report.collect(tmp_path / "made")


def test_half_of_the_grid_can_be_reported(bench, tmp_path):
    made_up(tmp_path / "made")
    for path in (tmp_path / "made").glob("full_*.json"):
        path.unlink()
    (tmp_path / "made" / ".full_one_seed0-x1.json").write_text("")  # killed while it was written
    assert "| plain |" in " ".join(bench.ablation_report.write_report(tmp_path / "made").split())
    assert not (tmp_path / "made.png").exists()
