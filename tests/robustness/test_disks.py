"""Trainings and files on a disk that fills up or cannot be written to: an error that names the file, what was
there before stays whole, and once there is room the same call goes on."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from attempts import assert_same
from builders import tiny_config, tree
from disks import FULL, READ_ONLY, files_of_at_most

from dmdd_lite import checkpoints, evaluation, room, training
from dmdd_lite.data import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.files import write_atomically, write_json
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher
from dmdd_lite.training import Trainer, TrainingError


@pytest.fixture
def no_steps(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(Trainer, "__init__", None)


# ---- a full disk --------------------------------------------------------------------------------------


def test_a_disk_full_at_a_checkpoint_keeps_the_last_one(call, whole, disk, tally):
    def fill(trainer):
        if trainer.iteration == 2:
            disk.fill(leave=100_000)

    with pytest.raises(TrainingError, match=rf"{FULL}: '.*/run/checkpoint\.pt'.* goes on from iteration 1"):
        call(disk.folder / "run", watch=fill)
    assert list(tree(disk.folder / "run")) == ["checkpoint.pt"]
    assert torch.load(disk.folder / "run/checkpoint.pt", weights_only=True)["iteration"] == 1
    disk.empty()
    assert_same(call(disk.folder / "run"), whole)
    tally("full disks")


def test_a_disk_full_at_the_detector_keeps_the_last_checkpoint(call, whole, disk, monkeypatch, tally):
    save = training.save_finished
    monkeypatch.setattr(training, "save_finished", lambda *given: (disk.fill(100_000), save(*given)))
    with pytest.raises(TrainingError, match=rf"{FULL}: '.*model\.safetensors'.* goes on from iteration 3"):
        call(disk.folder / "run")
    assert list(tree(disk.folder / "run")) == ["checkpoint.pt"]
    monkeypatch.undo()
    disk.empty()
    assert_same(call(disk.folder / "run"), whole)
    tally("full disks")


def test_a_full_disk_is_refused_before_training(call, disk, no_steps, tally):
    disk.fill()
    with pytest.raises(
        TrainingError, match=rf"disk/run cannot be written to .*{FULL}.*another output folder"
    ):
        call(disk.folder / "run")
    assert tree(disk.folder).keys() == {"filler"}
    tally("full disks")


WRITERS = {
    "checkpoint.pt": lambda path, detector, value: checkpoints.save_checkpoint(path, Saved(value)),
    "model.safetensors": lambda path, detector, value: saved(path.parent, detector, value),
    "a.json": lambda path, detector, value: write_json(path, {"a": [value] * 50_000}),
    "a.csv": lambda path, detector, value: write_atomically(
        path, pd.DataFrame({"a": [value] * 20_000}).to_csv
    ),
    "a.png": lambda path, detector, value: write_atomically(path, lambda t: t.write_bytes(bytes(200_000))),
}


class Saved:
    """What `save_checkpoint` asks of a trainer."""

    def __init__(self, value: float):
        self.value = value

    def state(self) -> dict:
        return {"a": torch.full((50_000,), self.value)}


def saved(folder: Path, detector: Detector, value: float):
    detector.threshold = value
    detector.save(folder)


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_cannot_be_written_leaves_the_old_file_and_is_named(whole, tmp_path, name, tally):
    path = tmp_path / name
    WRITERS[name](path, whole.detector, 0.25)
    before = tree(tmp_path)
    with files_of_at_most(70_000), pytest.raises(OSError, match=rf"File too large: '{path}'"):
        WRITERS[name](path, whole.detector, 0.75)
    assert tree(tmp_path) == before
    WRITERS[name](path, whole.detector, 0.75)
    assert tree(tmp_path).keys() == before.keys()
    assert name == "a.png" or tree(tmp_path) != before
    tally("files that could not be written")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_by_every_writer(whole, disk, name, tally):
    disk.fill(leave=50_000)
    with pytest.raises(OSError, match=rf"{FULL}: '{disk.folder / name}'"):
        WRITERS[name](disk.folder / name, whole.detector, 0.75)
    assert tree(disk.folder).keys() == {"filler"}
    tally("full disks")


def test_other_errors_stay_what_they_are(tmp_path):
    """Also while an error of the system is handled, and where another file is the culprit."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        write_atomically(tmp_path / "a", lambda temporary: shutil.copy(tmp_path / "nowhere.txt", temporary))
    try:
        raise OSError(28, FULL)
    except OSError:
        with pytest.raises(TypeError):
            write_atomically(tmp_path / "a", lambda temporary: temporary.write_text(3))
    assert not tree(tmp_path)


# ---- a folder that cannot be written to ---------------------------------------------------------------


def test_a_read_only_folder_is_refused_before_training(call, disk, no_steps, tally):
    disk.remount("ro")
    for folder in (disk.folder, disk.folder / "run"):
        with pytest.raises(TrainingError, match=rf"{folder} cannot be written to .*{READ_ONLY}"):
            call(folder)
    tally("read-only folders", 2)


def test_a_folder_below_a_file_is_refused_before_training(call, tmp_path, no_steps, tally):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/run cannot be written to .*Not a directory"):
        call(tmp_path / "file/run")
    tally("read-only folders")


def test_a_finished_run_is_loaded_from_a_read_only_folder(call, whole, disk, tally):
    call(disk.folder / "run")
    (disk.folder / "run" / "training.lock").touch()
    disk.remount("ro")
    assert_same(call(disk.folder / "run"), whole)
    with pytest.raises(OSError, match=rf"{READ_ONLY}: '{disk.folder / 'detector'}'"):
        whole.detector.save(disk.folder / "detector")
    disk.remount("rw")
    call(disk.folder / "run")
    assert not (disk.folder / "run" / "training.lock").exists()
    tally("read-only folders", 2)


# ---- temporary files ----------------------------------------------------------------------------------


def test_a_test_split_that_has_no_room_is_refused_at_once(disk, monkeypatch, tally):
    """Were it not, a mapped file on a full disk would end the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    held = room.zeros((100, 64), on_disk=True)
    assert tree(disk.folder) == {}  # it has no name that a killed process could leave behind
    free = shutil.disk_usage(disk.folder).free
    with pytest.raises(OSError, match=rf"{FULL}.*TMPDIR.*'{disk.folder}'"):
        room.zeros((2 * free,), torch.uint8, on_disk=True)
    assert tree(disk.folder) == {}
    assert shutil.disk_usage(disk.folder).free == free
    del held
    assert shutil.disk_usage(disk.folder).free > free
    tally("full disks")


def test_a_test_split_in_temporary_files_gives_the_same_numbers(root, monkeypatch):
    category = open_category(root, "lever")
    detector = Detector(build_model(tiny_config(), build_teacher("test_resnet", "random")))
    held = evaluate(detector, category, progress=False)
    monkeypatch.setattr(evaluation, "HELD", 0)
    filed = evaluate(detector, category, progress=False)
    assert filed.metrics == held.metrics
    for name in ("images", "masks"):
        assert np.array_equal(getattr(filed, name), getattr(held, name))
    assert all(np.array_equal(filed.maps[name], held.maps[name]) for name in held.maps)
