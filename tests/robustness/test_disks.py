"""Disks that fill up or cannot be written to: an error that names the file and the remedy, what was there
before stays whole, and once there is room the same call goes on; so for trainings, notebooks and tables."""

import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import torch
from attempts import assert_same
from builders import tree
from reproductions import arguments, planned, write_notebook, write_result_of

from dmdd_lite import checkpoints, training
from dmdd_lite.reproduce.__main__ import main
from dmdd_lite.reproduce.notebook import NotebookError, run_notebook
from dmdd_lite.training import Trainer, TrainingError
from dmdd_lite.utils import write_json

FULL, READ_ONLY = "No space left on device", "Read-only file system"


class Disk:
    """A file system in memory, of 20 MB."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")

    def remount(self, options: str):
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def fill(self, leave: int = 0):
        """Until no more than `leave` bytes are free."""
        free = shutil.disk_usage(self.folder).free - leave
        (self.folder / "filler").write_bytes(bytes(max(0, free)))

    def empty(self):
        (self.folder / "filler").unlink()


@contextmanager
def files_of_at_most(size: int):
    """For this process, which writes no larger ones: what any user may ask for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own that can be filled up."""
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], capture_output=True)


@pytest.fixture
def no_steps(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(Trainer, "__init__", None)


def fill_at_checkpoint(disk, monkeypatch):
    return {"watch": lambda trainer: trainer.iteration == 2 and disk.fill(leave=100_000)}


def fill_at_detector(disk, monkeypatch):
    save = training.save_finished
    monkeypatch.setattr(training, "save_finished", lambda *given: (disk.fill(100_000), save(*given)))
    return {}


@pytest.mark.parametrize("fill, told", [
    (fill_at_checkpoint, r"run/checkpoint\.pt'.* resumes from iteration 1"),
    (fill_at_detector, r"model\.safetensors'.* resumes from iteration 4"),
])  # fmt: skip
def test_a_full_disk_keeps_the_last_checkpoint(call, whole, disk, monkeypatch, fill, told):
    with pytest.raises(TrainingError, match=rf"{FULL}: '.*{told}"):
        call(disk.folder / "run", **fill(disk, monkeypatch))
    monkeypatch.undo()
    assert list(tree(disk.folder / "run")) == ["checkpoint.pt"]
    disk.empty()
    assert_same(call(disk.folder / "run"), whole)


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(call, disk, tmp_path, no_steps):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file/run cannot be written to .*Not a directory"):
        call(tmp_path / "file/run")
    disk.fill()
    with pytest.raises(TrainingError, match=rf"run cannot be written to .*{FULL}.*another output folder"):
        call(disk.folder / "run")
    disk.empty()
    disk.remount("ro")
    with pytest.raises(TrainingError, match=rf"run cannot be written to .*{READ_ONLY}"):
        call(disk.folder / "run")
    assert not tree(disk.folder)


class Saved:
    """What `save_checkpoint` asks of a trainer."""

    def __init__(self, value: float):
        self.value = value

    def state(self) -> dict:
        return {"a": torch.full((50_000,), self.value)}


def save_detector(path, detector, value):
    detector.thresholds["plus"] = value
    detector.save(path.parent)


WRITERS = {
    "checkpoint.pt": lambda path, detector, value: checkpoints.save_checkpoint(path, Saved(value), 0),
    "model.safetensors": save_detector,
    "a.json": lambda path, detector, value: write_json(path, {"a": [value] * 50_000}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_cannot_be_written_leaves_the_old_file_and_is_named(whole, tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, whole.detector, 0.25)
    before = tree(tmp_path)
    with files_of_at_most(70_000), pytest.raises((OSError, TrainingError), match=rf"large: '{path}'"):
        WRITERS[name](path, whole.detector, 0.75)
    assert tree(tmp_path) == before
    WRITERS[name](path, whole.detector, 0.75)
    assert tree(tmp_path).keys() == before.keys()
    assert tree(tmp_path) != before


def test_a_notebook_on_a_disk_that_fills_up(disk, tmp_path):
    """After room is made it runs."""
    source = write_notebook(tmp_path / "long.ipynb", "print('text ' * 100_000)", "print('end')")
    output, log = disk.folder / "out" / "ran.ipynb", tmp_path / "log"
    disk.fill(leave=300_000)
    with pytest.raises(NotebookError, match=rf"ran\.ipynb or .*log cannot be written .*{FULL}"):
        run_notebook(source, output, {}, log)
    disk.empty()
    run_notebook(source, output, {}, log)
    assert nbformat.read(output, 4).cells[-1].outputs[0].text == "end\n"


def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(nuts, disk, capsys):
    given = arguments(nuts, disk.folder / "out", categories=("nut",))
    disk.fill()
    assert main(given) == 2
    assert f"out cannot be written to ({FULL}); choose another --results folder" in capsys.readouterr().err
    disk.empty()
    disk.remount("ro")
    assert main(given) == 2
    assert f"out cannot be written to ({READ_ONLY})" in capsys.readouterr().err
    assert not tree(disk.folder)


def test_a_table_on_a_full_disk_keeps_its_results(nuts, tmp_path, disk, monkeypatch, capsys):
    for job in planned(nuts, tmp_path):
        write_result_of(job)
    shutil.move(tmp_path / "out", disk.folder / "out")
    before = tree(disk.folder / "out")
    disk.fill()
    assert main(arguments(nuts, disk.folder / "out", categories=("nut", "bolt"))) == 1
    assert f"{FULL}: '{disk.folder}/out/results.csv'; correct that" in capsys.readouterr().err
    assert tree(disk.folder / "out") == before
