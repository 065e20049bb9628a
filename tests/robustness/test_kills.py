"""A training killed or interrupted at any moment and started again ends as one that nothing happened to."""

import io
import json
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attempts import Attempts, assert_same
from builders import tree

from dmdd_lite import checkpoints, tables
from dmdd_lite.training import Trainer, TrainingError
from dmdd_lite.utils import locked, write_atomically, write_json

FINISHED = {"detector/config.json", "detector/model.safetensors", "training.json"}


@pytest.fixture(scope="module")
def attempts(root, tmp_path_factory):
    return Attempts(root, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def uninterrupted(attempts, tmp_path_factory):
    """What an uninterrupted run leaves, and its seconds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    attempt = attempts(folder)
    assert attempt.status == 0, attempt.told
    return outcome(folder), attempt.seconds


def outcome(folder) -> dict:
    """Weights and settings byte for byte and the history of a finished run, which has left nothing else."""
    files = tree(folder)
    assert set(files) == FINISHED
    return {**files, "training.json": json.loads(files["training.json"])["history"]}


def assert_killed(attempt, folder):
    """A kill leaves at most one temporary file that it met and its lock, whose names nothing reads."""
    assert attempt.status == -signal.SIGKILL, attempt.told
    strange = set(tree(folder)) - FINISHED - {"checkpoint.pt", "training.lock"}
    assert len(strange) <= 2, strange
    assert all(name.rpartition("/")[2].startswith(".") and name.endswith(".partial") for name in strange)


def settle(attempts, folder, uninterrupted):
    """The last attempt, which nothing stops, completes."""
    attempt = attempts(folder)
    assert attempt.status == 0, attempt.told
    assert outcome(folder) == uninterrupted[0]


def test_killed_at_random_moments_and_resumed(attempts, uninterrupted, tmp_path):
    """The moments are spread over a whole run; what is resumed is shorter and may escape its kill."""
    rng, kills, seconds = random.Random(1), 0, uninterrupted[1]
    for chain in range(15):
        folder = tmp_path / str(chain)
        while kills < 3:
            attempt = attempts(folder, after=seconds * (kills + rng.random()) / 3)
            if attempt.status == 0:
                seconds = (seconds + attempt.seconds) / 2  # this machine may be faster by now
                break
            assert_killed(attempt, folder)
            kills += 1
        settle(attempts, folder, uninterrupted)
        if kills == 3:
            return
    pytest.fail(f"only {kills} attempts were killed")


SAVING = [
    ("torch", "save", 2, "middle"),
    ("torch", "save", 2, "middle"),
    ("os", "fsync", 2, "before"),
    ("os", "replace", 2, "before"),
    ("dmdd_lite.training", "finish", 1, "before"),
    ("dmdd_lite.detector", "save_file", 1, "middle"),
    ("os", "replace", 2, "before"),  # the detector's settings: the first is of its weights
    ("os", "replace", 3, "before"),  # the record
    ("os", "replace", 3, "after"),  # the checkpoint is not needed any more
]


def test_killed_while_saving_again_and_again(attempts, uninterrupted, tmp_path):
    """One run: kills in checkpoints, then in all that ends it; each attempt leaves no more than the last."""
    for dies in SAVING:
        assert_killed(attempts(tmp_path, dies=dies), tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    settle(attempts, tmp_path, uninterrupted)


def test_two_at_once_train_one_detector(attempts, uninterrupted, tmp_path):
    """The second waits for the first, then loads what that has trained."""
    both = attempts.together([tmp_path, tmp_path], patience=300)
    assert [attempt.status for attempt in both] == [0, 0], both
    assert "loaded, trained before" in "".join(attempt.told for attempt in both)
    assert outcome(tmp_path) == uninterrupted[0]


# ---- faults in this process ---------------------------------------------------------------------------


def test_writers_of_one_file_never_spoil_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"rows": [0] * 2000})

    def write(value: int):
        for _ in range(25):
            write_json(path, {"rows": [value] * 2000})
            rows = json.loads(path.read_text())["rows"]
            assert (len(rows), len(set(rows))) == (2000, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert tree(tmp_path).keys() == {"a.json"}


def test_what_a_killed_writer_left_is_no_result_and_goes_with_the_next_training(call, tmp_path):
    (tmp_path / "detector").mkdir()
    for name in (".pcb_seed0.json", ".checkpoint.pt", "detector/.config.json"):
        (tmp_path / f"{name}-00.partial").write_text('{"metr')
    assert len(tables.collect_results(tmp_path)) == 0
    call(tmp_path)
    assert set(tree(tmp_path)) == {"training.json", "detector/config.json", "detector/model.safetensors"}


MOMENTS = [(Trainer, "student_losses"), (torch.optim.Adam, "step"), (torch, "save")]


@pytest.mark.parametrize("owner, name", MOMENTS, ids=["losses", "student", "save"])
def test_ctrl_c_in_the_middle_of_an_iteration(call, whole, tmp_path, monkeypatch, capsys, owner, name):
    """With gradients of it, with half of the weights changed, with the checkpoint's file written."""
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
    assert "stopped; the same call resumes from iteration" in capsys.readouterr().out
    assert set(tree(tmp_path)) == {"checkpoint.pt"}
    assert_same(call(tmp_path), whole)


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


def test_a_folder_in_use_is_named_and_left_alone(call, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PATIENCE", 0)
    with locked(tmp_path / "training.lock"), pytest.raises(TrainingError, match=f"{tmp_path} is used"):
        call(tmp_path)
    assert not tree(tmp_path)
