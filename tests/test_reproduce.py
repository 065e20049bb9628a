"""The whole table: planned and checked before anything runs, each run once, resumed, its failures told."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from reproductions import arguments, planned, until, write_result_of, written

from dmdd_lite import reproduce
from dmdd_lite.config import Config
from dmdd_lite.reproduction.jobs import ResultError, finished, holder

# ---- planning and checking ----------------------------------------------------------------------------


def test_a_job_a_category_and_seed_the_longest_first():
    options = reproduce.parse(["data", "--seeds", "0", "1", "1"])
    found = reproduce.plan(options)
    assert len(found) == 30
    assert {job.parameters["category"] for job in found[:4]} == {"cable", "transistor"}
    assert [job.parameters["iterations"] for job in found] == [10_000] * 4 + [5_000] * 26
    assert found[0].config() == Config(iterations=10_000)
    assert Path(found[0].parameters["data_root"]).is_absolute()


def test_other_parameters_are_set_by_name(nuts, tmp_path):
    first = planned(nuts, tmp_path, "--set", "teacher_options={'in_chans': 3}")[0]
    assert first.config().teacher_options == {"in_chans": 3}


def test_all_wrong_parameters_in_one_message(nuts, tmp_path, capsys):
    wrong = ["--jobs", "0", "--set", "epochs=3", "seed=4", "teacher_options", "--iterations", "0"]
    assert reproduce.main(arguments(nuts, tmp_path / "out", *wrong)) == 2
    told = capsys.readouterr().err
    for part in (
        "--jobs must be at least 1, got 0",
        "no parameter epochs; it has data_root, category",
        "--set seed=4: seed has an option of its own",
        "--set teacher_options: must be NAME=VALUE",
    ):
        assert part in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, message", [("-3", "iterations must be at least 1"), ("0", "iterations")])
def test_values_out_of_range_are_refused(nuts, tmp_path, text, message):
    with pytest.raises(reproduce.CannotStart, match=message):
        planned(nuts, tmp_path, "--iterations", text)


def test_all_that_is_missing_in_one_message(nuts, tmp_path, capsys):
    (nuts / "nut/ground_truth/hole/000_mask.png").unlink()
    (nuts / "bolt/train/good/001.png").write_bytes(b"no image")
    wrong = ["--textures", str(tmp_path / "none"), "--teacher-weights", "none.pth", "--device", "cuda:99"]
    given = arguments(nuts, tmp_path / "out", *wrong, categories=("nut", "bolt", "screw"))
    assert reproduce.main(given) == 2
    told = capsys.readouterr().err
    for part in (
        "hole/000.png: no mask",
        "bolt/train/good/001.png",
        "no category named 'screw'",
        f"{tmp_path / 'none'}: no such folder",
        "teacher weights none.pth do not exist",
        "device 'cuda:99' is not usable",
    ):
        assert part in told
    assert not (tmp_path / "out").exists()


# ---- what is finished ---------------------------------------------------------------------------------


def test_finished_is_what_has_the_same_configuration(nuts, tmp_path):
    job = planned(nuts, tmp_path)[0]
    assert finished(job) is None
    write_result_of(job)
    assert finished(job)["seconds"] == 90


def test_a_result_of_other_settings_is_refused_before_anything_runs(nuts, tmp_path, capsys):
    job, other = planned(nuts, tmp_path)
    write_result_of(job, iterations=7, image_size=96)
    write_result_of(other)
    assert reproduce.main(arguments(nuts, tmp_path / "out", categories=("nut", "bolt"))) == 2
    told = capsys.readouterr().err
    assert f"{job.result} was made with other settings (image_size: 96 -> 64; iterations: 7 -> 6)" in told
    assert "choose another --results folder" in told
    assert other.result.name not in told


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', '{"config": {"epochs": 3}}'])
def test_what_is_no_result_is_named(nuts, tmp_path, text):
    job = planned(nuts, tmp_path)[0]
    job.result.parent.mkdir()
    job.result.write_text(text)
    with pytest.raises(ResultError, match=f"{job.result.name} is not a result file"):
        finished(job)


def test_a_strange_file_among_the_results_is_told_before_anything_runs(nuts, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/screw_seed3.json").write_text("{}")
    assert reproduce.main(arguments(nuts, tmp_path / "out", categories=("nut",))) == 2
    assert "screw_seed3.json is not a result file" in capsys.readouterr().err


def test_runs_with_and_without_textures_are_not_mixed(nuts, tmp_path):
    job = planned(nuts, tmp_path)[0]
    write_result_of(job)
    job.executed.parent.mkdir()
    ran = nbformat.v4.new_notebook(metadata={"papermill": {"parameters": {"texture_root": "/data/dtd"}}})
    nbformat.write(ran, job.executed)
    with pytest.raises(ResultError, match="texture_root: '/data/dtd' -> ''"):
        finished(job)


# ---- whole runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_is_tried_again_alone(data, notebook, tmp_path, capsys):
    given = arguments(data, tmp_path, "--jobs", "2", notebook=notebook)
    (tmp_path / "break_pcb_seed0").touch()
    assert reproduce.main(given) == 1
    told = capsys.readouterr().out
    assert f"pcb_seed0: RuntimeError: broken on purpose\n  log: {tmp_path / 'logs/pcb_seed0.log'}" in told
    assert written(tmp_path) == ["fabric_seed0"]

    (tmp_path / "break_pcb_seed0").unlink()
    assert reproduce.main(given) == 0
    assert written(tmp_path) == ["fabric_seed0", "pcb_seed0"]
    rows = pd.read_csv(tmp_path / "results.csv")
    assert sorted(rows["category"].unique()) == ["fabric", "pcb"]
    result = json.loads((tmp_path / "pcb_seed0.json").read_text())
    fused = rows.query("category == 'pcb' and map == 'fused'").iloc[0]
    assert fused["aupro"] == pytest.approx(result["metrics"]["fused"]["aupro"])
    assert f"| {100 * fused['aupro']:.2f} " in (tmp_path / "results.md").read_text()
    assert (tmp_path / "figures/05_peers.png").stat().st_size <= 150_000

    capsys.readouterr()
    assert reproduce.main(given) == 0  # nothing is left to do
    assert written(tmp_path) == ["fabric_seed0", "pcb_seed0"]
    assert "2 runs: 2 done" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sign, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_command_leaves_nothing_behind_and_the_next_goes_on(data, notebook, tmp_path, sign, status):
    given = arguments(data, tmp_path, categories=("pcb",), notebook=notebook)
    (tmp_path / "hold_pcb_seed0").touch()  # waits there when its first checkpoint is written
    command = [sys.executable, "-m", "dmdd_lite.reproduce", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        until((tmp_path / "pcb_seed0/checkpoint.pt").exists)
        job = reproduce.plan(reproduce.parse(given))[0]
        assert "process" in holder(job)
        process.send_signal(sign)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("the same command goes on" in told) == (sign == signal.SIGINT)
    until(lambda: holder(job) == "", 20)
    assert not job.result.exists()

    (tmp_path / "hold_pcb_seed0").unlink()
    assert reproduce.main(given) == 0
    assert "goes on from iteration 2" in job.log.read_text()
    assert written(tmp_path) == ["pcb_seed0"]


@pytest.mark.slow
def test_notebook_05_itself(data, tmp_path):
    given = arguments(data, tmp_path, "--iterations", "12", categories=("fabric",))
    assert reproduce.main(given) == 0
    assert json.loads((tmp_path / "fabric_seed0.json").read_text())["config"]["iterations"] == 12
    assert (tmp_path / "notebooks/05_fabric_seed0.ipynb").exists()
