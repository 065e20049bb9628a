"""The whole table: checked before anything runs; each run once, whatever is killed, interrupted or broken."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pandas as pd
import psutil
import pytest
from builders import disc, save_image
from reproductions import arguments, kernels, planned, until, write_result_of, written

from dmdd_lite.config import Config
from dmdd_lite.reproduce import demo, run
from dmdd_lite.reproduce.__main__ import main
from dmdd_lite.reproduce.plan import parse, plan
from dmdd_lite.reproduce.run import finished
from dmdd_lite.utils import locked


def test_a_job_a_category_and_seed_the_longest_first():
    found = plan(parse(["data", "--seeds", "0", "1", "1", "--image-size", "[192,320]"]))
    assert len(found) == 30
    assert {job.parameters["category"] for job in found[:4]} == {"cable", "transistor"}
    assert [job.parameters["iterations"] for job in found] == [10_000] * 4 + [5_000] * 26
    assert found[0].config() == Config(iterations=10_000, image_size=(192, 320))
    assert os.path.isabs(found[0].parameters["data_root"])


def assert_refused(told, capsys, tmp_path, words):
    """All of it in one message, before anything is written."""
    assert main(words) == 2
    message = capsys.readouterr().err
    assert [message.count(part) for part in told] == [1] * len(told), message
    assert not (tmp_path / "out").exists()


def test_all_wrong_parameters_in_one_message(nuts, tmp_path, capsys):
    wrong = ["--jobs", "0", "--set", "epochs=3", "seed=4", "teacher_options", "--iterations", "0"]
    told = ["--jobs must be at least 1, got 0", "unknown configuration field epochs"]
    told += ["seed=4: seed has an option of its own", "--set teacher_options: must be NAME=VALUE"]
    assert_refused(told, capsys, tmp_path, arguments(nuts, tmp_path / "out", *wrong))


def test_all_that_is_missing_in_one_message(nuts, tmp_path, capsys):
    save_image(nuts / "nut/ground_truth/hole/000_mask.png", disc()[:, :9])
    (nuts / "bolt/train/good/001.png").write_bytes(b"no image")
    wrong = ["--textures", str(tmp_path / "none"), "--teacher-weights", "none.pth", "--device", "cuda:99"]
    told = ["hole/000_mask.png: a mask of 9 x 16 pixels does not fit", "bolt/train/good/001.png"]
    told += ["no category named 'screw'", f"{tmp_path / 'none'}: no such folder"]
    told += ["teacher weights none.pth cannot be read", "device 'cuda:99' is not usable"]
    words = arguments(nuts, tmp_path / "out", *wrong, categories=("nut", "bolt", "screw"))
    assert_refused(told, capsys, tmp_path, words)


def test_workers_share_gpus_and_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-a")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    found = run.environments(3, "auto")
    assert [place["CUDA_VISIBLE_DEVICES"].strip() for place in found] == ["2", "GPU-a", "2"]
    assert {place["OMP_NUM_THREADS"] for place in found} == {"2"}
    assert len(run.environments(None, "auto")) == 2
    assert "CUDA_VISIBLE_DEVICES" not in run.environments(None, "cuda:1")[0]


def test_a_result_of_other_settings_is_refused_before_anything_runs(nuts, tmp_path, capsys):
    job, other = planned(nuts, tmp_path)
    assert finished(job) is None
    write_result_of(job, iterations=7, learning_rate=0.5)
    write_result_of(other)
    assert finished(other)["seconds"] == 90
    assert main(arguments(nuts, tmp_path / "out", categories=("nut", "bolt"))) == 2
    told, changes = capsys.readouterr().err, "iterations: 7 -> 6; learning_rate: 0.5 -> 0.005"
    assert f"{job.result} was made with other settings ({changes})" in told
    assert "choose another --results folder" in told
    assert other.result.name not in told
    changed = "mask_rule: 'auto' -> 'half'; layout: 'mvtec' -> 'mpdd'; full_size: False -> True"
    with pytest.raises(ValueError, match=changed):
        finished(planned(nuts, tmp_path, "--mask-rule", "half", "--layout", "mpdd", "--full-size")[1])
    other.result.unlink()
    assert main(arguments(nuts, tmp_path / "out", categories=("bolt",))) == 2  # it would be averaged with nut
    told = capsys.readouterr().err
    assert f"{other.result} is no run of the same kind as nut_seed0.json ({changes})" in told


@pytest.mark.parametrize("text", ["", "[]", '{"config": {"epochs": 3}}'])
def test_what_is_no_result_is_named_before_anything_runs(nuts, tmp_path, capsys, text):
    (tmp_path / "out").mkdir()
    for name in ("nut_seed0.json", "screw_seed3.json"):
        (tmp_path / "out" / name).write_text(text)
        assert main(arguments(nuts, tmp_path / "out", categories=("nut",))) == 2
        assert f"{name} is not a result file" in capsys.readouterr().err
        (tmp_path / "out" / name).unlink()


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers."""
    with run.local_client(run.environments(2, "cpu")) as client:
        yield client.scheduler.address


@pytest.fixture
def given(data, notebook, address, tmp_path):
    return arguments(data, tmp_path, "--scheduler", address, notebook=notebook)


@contextlib.contextmanager
def beside(action):
    """`action` in a thread; its error is the test's."""
    errors = []

    def attempt():
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    yield
    thread.join(300)
    assert not errors, errors


def gone(processes) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_is_tried_again_alone(given, tmp_path, capsys):
    (tmp_path / "break_pcb_seed0").touch()
    assert main(given) == 1
    told = capsys.readouterr().out
    log, executed = tmp_path / "logs/pcb_seed0.log", tmp_path / "notebooks/05_pcb_seed0.ipynb"
    assert f"pcb_seed0: failed: RuntimeError: broken on purpose\n  log: {log}, notebook: {executed}\n" in told
    assert log.read_text() == "hello from pcb_seed0\n"
    assert executed.exists()
    assert len(kernels(tmp_path, "pcb_seed0")) == 1  # an error of the notebook is not tried again
    assert written(tmp_path) == ["fabric_seed0"]

    (tmp_path / "break_pcb_seed0").unlink()
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "2 runs, 1 finished before" in told
    assert "[1/1] pcb_seed0: image_auroc 75.00, pixel_auroc 75.00, aupro 75.00, 1.5 minutes" in told
    assert set(pd.read_csv(tmp_path / "results.csv")["category"]) == {"fabric", "pcb"}
    assert "| mean of 2  | 2 " in (tmp_path / "results.md").read_text()
    assert (tmp_path / "figures/05_baselines.png").stat().st_size <= 150_000
    assert main(given) == 0  # nothing is left to do
    assert written(tmp_path) == ["fabric_seed0", "pcb_seed0"]


@pytest.mark.slow
def test_a_killed_worker_takes_its_kernel_along_and_the_run_completes_once(given, tmp_path):
    (tmp_path / "hold_pcb_seed0").touch()

    def kill():
        try:
            (kernel,) = until(lambda: kernels(tmp_path, "pcb_seed0"))
            process = psutil.Process(kernel)
            process.parent().kill()
            until(lambda: gone([process]), 10)
        finally:
            (tmp_path / "hold_pcb_seed0").unlink()

    with beside(kill):
        assert main(given) == 0
    assert len(kernels(tmp_path, "pcb_seed0")) == 2
    assert written(tmp_path) == ["fabric_seed0", "pcb_seed0"]


@pytest.mark.slow
def test_a_killed_kernel_is_tried_again(given, tmp_path):
    (tmp_path / "die_pcb_seed0").touch()
    assert main([*given, "--categories", "pcb"]) == 0
    assert len(kernels(tmp_path, "pcb_seed0")) == 2
    assert written(tmp_path) == ["pcb_seed0"]


@pytest.mark.slow
def test_what_another_command_runs_is_waited_for(given, tmp_path):
    fabric = next(job for job in plan(parse(given)) if job.name == "fabric_seed0")
    held = threading.Event()

    def hold():
        with locked(fabric.file("locks/{}.lock")):
            held.set()
            until((tmp_path / "pcb_seed0.json").exists)
            write_result_of(fabric)

    with beside(hold):
        held.wait(60)
        assert main(given) == 0
    assert written(tmp_path) == ["pcb_seed0"]
    assert finished(fabric)


@pytest.mark.slow
def test_every_worker_must_have_the_data(given, tmp_path, capsys):
    assert main([str(tmp_path / "none"), *given[1:]]) == 2
    assert re.search(r"none: no such folder.*\(worker tcp://127", capsys.readouterr().err)
    assert not list(tmp_path.glob("kernel_*"))


def test_no_scheduler_is_told(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 0.5)
    assert main(arguments(data, tmp_path, "--scheduler", "tcp://127.0.0.1:9")) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sign, status", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_command_leaves_no_process_and_the_next_completes(given, tmp_path, sign, status):
    """SIGINT goes to all processes of the terminal."""
    (tmp_path / "hold_pcb_seed0").touch()
    here = [word for word in given if word != "--scheduler" and not word.startswith("tcp:")]
    command = [sys.executable, "-m", "dmdd_lite.reproduce", *here, "--categories", "pcb"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            until(lambda: kernels(tmp_path, "pcb_seed0"))
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) >= 2
            (os.killpg if sign == signal.SIGINT else os.kill)(process.pid, sign)
            told, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == status
    assert ("the same command resumes" in told) == (status == 130)
    until(lambda: gone(children), 10 if sign == signal.SIGKILL else 3)
    (tmp_path / "hold_pcb_seed0").unlink()
    assert main([*given, "--categories", "pcb"]) == 0
    assert written(tmp_path) == ["pcb_seed0"]


@pytest.mark.slow
def test_notebook_05_itself(data, tmp_path):
    more = ("--iterations", "12", "--set", "learning_rate=0.001", "--set", "prior=false")
    more += ("--mask-rule", "half", "--layout", "mpdd", "--full-size")
    assert main(arguments(data, tmp_path, *more, categories=("fabric",))) == 0
    values = json.loads((tmp_path / "fabric_seed0.json").read_text())
    assert (values["mask_rule"], values["layout"], values["full_size"]) == ("half", "mpdd", True)
    config = values["config"]
    assert (config["iterations"], config["learning_rate"], config["prior"]) == (12, 0.001, False)


def test_the_demo_tells_what_was_done_and_refuses_the_rest(tmp_path, monkeypatch, capsys):
    defaults = demo.notebook_parameters(demo.REPRODUCTION) | {"results_dir": str(tmp_path)}
    for category in demo.SAMPLES:
        write_result_of(run.Job(defaults | {"category": category}))
    assert demo.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("75.00") >= 6
    assert demo.main(["--results", str(tmp_path), "--iterations", "9"]) == 2
    assert "pcb_seed0.json was made with other settings (iterations: 300 -> 9)" in capsys.readouterr().err
    for option in ("iterations", "jobs"):
        assert demo.main(["--results", str(tmp_path / "new"), f"--{option}", "0"]) == 2
        assert f"{option} must be" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
