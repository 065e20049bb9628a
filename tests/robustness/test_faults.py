"""Threads that die, two runs at a time, a clock set back, Ctrl-C in the middle of an iteration."""

import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from attempts import assert_same
from builders import tree

from dmdd_lite import checkpoints, evaluation, synthesis
from dmdd_lite.files import PARTIAL, Progress, locked, write_atomically, write_json
from dmdd_lite.training import Trainer, TrainingError

# ---- threads that die ---------------------------------------------------------------------------------


def test_a_thread_that_fails_at_a_pair_stops_training_once(call, tmp_path, monkeypatch, depth, tally):
    """Two threads make the pairs. The same call then goes on to the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    fill, expected = synthesis.PairSynthesizer._fill, call()
    try:
        for fails in range(3, 3 + depth(1, 4)):
            made = []

            def broken(self, *given, made=made, fails=fails):
                made.append(1)
                if len(made) == fails:
                    raise MemoryError("no memory in a thread")
                fill(self, *given)

            monkeypatch.setattr(synthesis.PairSynthesizer, "_fill", broken)
            with pytest.raises(MemoryError, match="no memory in a thread"):
                call(tmp_path / str(fails))
            monkeypatch.undo()
            assert_same(call(tmp_path / str(fails)), expected)
            tally("workers that died")
    finally:
        torch.set_num_threads(threads)


def test_threads_that_cannot_be_started_keep_nobody_waiting(monkeypatch, tally):
    start, asked = threading.Thread.start, []

    def broken(thread):
        asked.append(thread)
        if len(asked) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    before = torch.get_num_threads()
    monkeypatch.setattr(threading.Thread, "start", broken)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        synthesis._pool(3, -1)  # of a process that is not there: never taken from the cache
    monkeypatch.undo()
    asked[0].join(30)
    assert not asked[0].is_alive()
    assert torch.get_num_threads() == before
    assert list(synthesis._pool(3, -1).map(abs, [-1, -2])) == [1, 2]
    tally("workers that died")


def test_a_thread_that_fails_at_a_metric_tells_its_error():
    with pytest.raises(ValueError, match="broken map"):
        evaluation._side_by_side(lambda name: (_ for _ in ()).throw(ValueError(f"broken {name}")), ["map"])


# ---- two at a time ------------------------------------------------------------------------------------


def test_a_folder_in_use_is_named_and_left_alone(call, tmp_path, monkeypatch, tally):
    monkeypatch.setattr(checkpoints, "PATIENCE", 0)
    monkeypatch.setattr(Trainer, "__init__", None)
    told = rf"{tmp_path} is used for a training by another process; wait for it, or use another"
    with locked(tmp_path / "training.lock"), pytest.raises(TrainingError, match=told):
        call(tmp_path)
    assert not tree(tmp_path)
    tally("two writers of one folder")


def test_writers_of_one_file_never_spoil_it(tmp_path, depth, tally):
    """Four writers, and readers at any time."""
    path, rounds = tmp_path / "a.json", depth(25, 1000)
    write_json(path, {"rows": [0] * 2000})

    def write(value: int):
        for _ in range(rounds):
            write_json(path, {"rows": [value] * 2000})
            rows = pd.read_json(path)["rows"]
            assert (len(rows), rows.nunique()) == (2000, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert tree(tmp_path).keys() == {"a.json"}
    tally("files written by several at once", 4 * rounds)


def test_what_a_killed_writer_left_is_no_result_and_goes_with_the_next(tmp_path):
    path = tmp_path / "pcb_seed0.json"
    for name in (f".{path.name}{PARTIAL}", f".{path.name}.lock{PARTIAL}"):
        (tmp_path / name).write_text('{"metr')
    assert len(evaluation.collect_results(tmp_path)) == 0
    write_json(path, {})
    assert tree(tmp_path) == {"pcb_seed0.json": b"{}\n"}


# ---- the clock set back -------------------------------------------------------------------------------


def test_a_clock_set_back_decides_nothing(call, whole, tmp_path, monkeypatch, capsys, tally):
    """Every look at it finds it an hour earlier, and files are from long ago or from the future."""
    clock = iter(np.arange(time.time(), 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(Progress, "QUIET", 0.0)

    def stop(trainer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, every=2, watch=lambda trainer: trainer.iteration == 3 and stop(trainer))
    os.utime(tmp_path / "checkpoint.pt", (1e9, 1e9))
    (tmp_path / "training.lock").write_text("process 1 on nowhere")
    os.utime(tmp_path / "training.lock", (3e9, 3e9))
    resumed = call(tmp_path, every=2)
    assert "goes on from iteration 2" in capsys.readouterr().out
    assert_same(resumed, whole)
    assert 0 < resumed.seconds < 600
    tally("clocks set back")


def test_progress_never_counts_backwards(monkeypatch, capsys):
    clock = iter(np.arange(time.time(), 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(Progress, "QUIET", 0.0)
    monkeypatch.setenv("DMDD_PROGRESS", "lines")
    with Progress(10, "training", start=4) as bar:
        for done in range(5, 11):
            bar.update(done)
    told = capsys.readouterr().out
    assert told.count("\n") == 6
    assert "-" not in told


# ---- Ctrl-C -------------------------------------------------------------------------------------------


MOMENTS = {"losses": (Trainer, "losses"), "student": (torch.optim.Adam, "step"), "save": (torch, "save")}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_in_the_middle_of_an_iteration(call, whole, tmp_path, monkeypatch, moment, tally):
    """With gradients of it, with half of the weights changed, with the checkpoint's file written."""
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), []

    def interrupted(*given, **named):
        calls.append(1)
        result = real(*given, **named)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path)
    monkeypatch.undo()
    assert set(tree(tmp_path)) == {"checkpoint.pt"}
    assert_same(call(tmp_path), whole)
    tally("trainings interrupted at a given moment")


def test_ctrl_c_while_pytorch_writes_stays_ctrl_c(tmp_path):
    """PyTorch closes its half-written archive first, and fails at that with an error of its own."""

    class Interrupted(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                raise KeyboardInterrupt
            return super().write(data)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.pt", lambda _: torch.save(torch.zeros(5000), Interrupted()))
    assert not tree(tmp_path)
