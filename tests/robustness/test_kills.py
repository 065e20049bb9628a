"""A training killed or interrupted at any moment and started again ends as one that nothing happened to."""

import json
import random
import signal

import pytest
from attempts import Attempts
from builders import tree

FINISHED = {"detector/config.json", "detector/model.safetensors", "training.json"}


@pytest.fixture(scope="module")
def attempts(root):
    started = Attempts(root)
    yield started
    started.close()


@pytest.fixture(scope="module")
def whole(attempts, tmp_path_factory):
    """What an uninterrupted run leaves, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
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


def settle(attempts, folder, whole, **options):
    """The last attempt, which nothing stops, completes."""
    attempt = attempts(folder, **options)
    assert attempt.status == 0, attempt.told
    assert outcome(folder) == whole[0]


def test_killed_at_random_moments_and_resumed(attempts, whole, tmp_path):
    """The moments are spread over a whole run; what is resumed is shorter and may escape its kill."""
    rng, kills, seconds = random.Random(1), 0, whole[1]
    for chain in range(15):
        folder = tmp_path / str(chain)
        while kills < 3:
            attempt = attempts(folder, after=seconds * (kills + rng.random()) / 3)
            if attempt.status == 0:
                seconds = (seconds + attempt.seconds) / 2  # this machine may be faster by now
                break
            assert_killed(attempt, folder)
            kills += 1
        settle(attempts, folder, whole)
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


def test_killed_while_saving_again_and_again(attempts, whole, tmp_path):
    """One run: kills in checkpoints, then in all that ends it; each attempt leaves no more than the last."""
    for dies in SAVING:
        assert_killed(attempts(tmp_path, dies=dies), tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    settle(attempts, tmp_path, whole)


def test_interrupted_and_called_again(attempts, whole, tmp_path):
    """Ctrl-C, then the same call in the same process, as in a notebook."""
    after = whole[1] * random.Random(0).random()
    settle(attempts, tmp_path, whole, after=after, sign=signal.SIGINT, again=True)


def test_an_interrupted_process_leaves_a_checkpoint_and_nothing_half_done(attempts, whole, tmp_path):
    attempt = attempts(tmp_path, after=0, sign=signal.SIGINT, once="checkpoint.pt")
    assert attempt.status == 1, attempt.told
    assert "stopped; the same call resumes from iteration" in attempt.told
    assert set(tree(tmp_path)) == {"checkpoint.pt"}
    settle(attempts, tmp_path, whole)


def test_two_at_once_train_one_detector(attempts, whole, tmp_path):
    """The second waits for the first, then loads what that has trained."""
    both = attempts.together([tmp_path, tmp_path], patience=300)
    assert [attempt.status for attempt in both] == [0, 0], both
    assert "loaded, trained before" in "".join(attempt.told for attempt in both)
    assert outcome(tmp_path) == whole[0]
