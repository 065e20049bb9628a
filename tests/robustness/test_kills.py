"""A training killed or interrupted at any moment and started again ends as one that nothing happened to."""

import json
import random
import signal

import pytest
from attempts import ITERATIONS, Attempts
from builders import tree

FINISHED = {"detector/config.json", "detector/model.safetensors", "training.json"}


@pytest.fixture(scope="module")
def attempts(root):
    started = Attempts(root)
    yield started
    started.close()


@pytest.fixture(scope="module")
def whole(attempts, tmp_path_factory):
    """whole(threads=1, **changes): what an uninterrupted run leaves, and its seconds."""
    known = {}

    def run(**options):
        key = tuple(sorted(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            attempt = attempts(folder, **options)
            assert attempt.status == 0, attempt.told
            known[key] = outcome(folder), attempt.seconds
        return known[key]

    return run


def outcome(folder) -> dict:
    """Weights and settings byte for byte and the history of a finished run, which has left nothing else."""
    files = tree(folder)
    assert set(files) == FINISHED
    return {**files, "training.json": json.loads(files["training.json"])["history"]}


def assert_tidy(folder):
    """A kill leaves at most one temporary file that it met and its lock, whose names nothing reads."""
    strange = set(tree(folder)) - FINISHED - {"checkpoint.pt", "training.lock"}
    assert len(strange) <= 2, strange
    assert all(name.rpartition("/")[2].startswith(".") and name.endswith(".partial") for name in strange)


def settle(attempts, folder, whole, **options):
    """The last attempt, which nothing happens to."""
    attempt = attempts(folder, **options)
    assert attempt.status == 0, attempt.told
    assert outcome(folder) == whole


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_at_random_moments_and_resumed(attempts, whole, tmp_path, depth, tally, threads):
    """The moments are spread over a whole run; what is resumed is shorter and may escape its kill."""
    rng, kills, done, chains = random.Random(threads), depth(3 if threads == 1 else 0, 15), 0, 0
    if not kills:
        pytest.skip("under stress only")
    expected, seconds = whole(threads=threads)
    while done < kills:
        folder = tmp_path / str(chains)
        assert chains < 5 * kills
        while done < kills:
            attempt = attempts(folder, after=seconds * (done + rng.random()) / kills, threads=threads)
            if attempt.status == 0:
                seconds = (seconds + attempt.seconds) / 2  # this machine may be faster by now
                break
            assert attempt.status == -signal.SIGKILL, attempt.told
            assert_tidy(folder)
            done += 1
        settle(attempts, folder, expected, threads=threads)
        chains += 1
    tally("trainings killed at a random moment", done)


ENDS = [
    ("dmdd_lite.detector", "save_file", 1, "middle"),
    ("os", "replace", 2, "before"),  # the detector's settings: the first is of its weights
    ("os", "replace", 3, "before"),  # the record
    ("os", "replace", 3, "after"),  # the checkpoint is not needed any more
]


def test_killed_while_saving_again_and_again(attempts, whole, tmp_path, tally):
    """One run: kills in checkpoints, then in all that ends it; each attempt leaves no more than the last."""
    checkpoints = [
        ("torch", "save", 2, "middle"),
        ("torch", "save", 2, "middle"),
        ("os", "replace", 2, "before"),
    ]
    for dies in [*checkpoints, ("dmdd_lite.training", "_detector", 1, "before"), *ENDS]:
        attempt = attempts(tmp_path, dies=dies)
        assert attempt.status == -signal.SIGKILL, (dies, attempt.told)
        assert_tidy(tmp_path)
        tally("trainings killed while they saved")
    assert (tmp_path / "checkpoint.pt").exists()
    settle(attempts, tmp_path, whole()[0])


def test_killed_at_any_write(attempts, whole, tmp_path, depth, tally):
    """Every checkpoint, the weights, the settings and the record, before and after each of their steps."""
    writes = ITERATIONS + 3
    moments = [
        ("os", name, call, when)
        for name in ("fsync", "replace")
        for call in range(1, writes + 1)
        for when in ("before", "after")
    ]
    for number, dies in enumerate(random.Random(0).sample(moments, depth(1, 24))):
        attempt = attempts(tmp_path / str(number), dies=dies)
        assert attempt.status == -signal.SIGKILL, (dies, attempt.told)
        settle(attempts, tmp_path / str(number), whole()[0])
        tally("trainings killed while they saved")


def test_interrupted_at_random_moments_and_called_again(attempts, whole, tmp_path, depth, tally):
    """Ctrl-C, then the same call in the same process, as in a notebook."""
    rng, count = random.Random(0), depth(1, 20)
    expected, seconds = whole()
    for number in range(count):
        folder, after = tmp_path / str(number), seconds * (number + rng.random()) / count
        attempt = attempts(folder, after=after, sign=signal.SIGINT, again=True)
        assert attempt.status == 0, attempt.told
        assert outcome(folder) == expected
        tally("trainings interrupted at a random moment", int(attempt.seconds > after))


def test_an_interrupted_process_leaves_a_checkpoint_and_nothing_half_done(attempts, whole, tmp_path, tally):
    expected, _ = whole()
    attempt = attempts(tmp_path, after=0, sign=signal.SIGINT, once="checkpoint.pt")
    assert attempt.status == 1, attempt.told
    assert "stopped; the same call goes on from iteration" in attempt.told
    assert set(tree(tmp_path)) == {"checkpoint.pt"}
    tally("trainings interrupted at a random moment")
    settle(attempts, tmp_path, expected)


def test_two_at_once_train_one_detector(attempts, whole, tmp_path, tally):
    """The second waits for the first, then loads what that has trained."""
    both = attempts.together([tmp_path, tmp_path], patience=300)
    assert [attempt.status for attempt in both] == [0, 0], both
    assert "loaded, trained before" in "".join(attempt.told for attempt in both)
    assert outcome(tmp_path) == whole()[0]
    tally("two trainings into one folder")


def test_a_larger_student_is_resumed_too(attempts, whole, tmp_path, depth, tally):
    """The default's kind, whose checkpoints take their time."""
    options, rng, count = {"student": "decoder", "iterations": 4}, random.Random(1), depth(0, 4)
    if not count:
        pytest.skip("under stress only")
    expected, seconds = whole(**options)
    for number in range(count):
        attempt = attempts(tmp_path, after=seconds * (number + rng.random()) / count, **options)
        assert attempt.status in (0, -signal.SIGKILL), attempt.told
        tally("trainings killed at a random moment", int(attempt.status != 0))
    settle(attempts, tmp_path, expected, **options)
