"""The output folder of a training: lock, checkpoint of an unfinished run, record of a finished one."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import filelock
import torch

from .backbones.weights import load_plain
from .config import Config
from .data.fingerprints import Fingerprint, changes, digests
from .detector import Detector
from .options import differences
from .utils import locked, write_atomically, write_json, writing_problem

FORMAT = 6  # of the checkpoint and the record of a finished run
CHECKPOINT, DETECTOR, RECORD, LOCK = "checkpoint.pt", "detector", "training.json", "training.lock"
PATIENCE = 20.0  # seconds to wait for another process that trains into the same folder


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the reason and the remedy."""


@contextlib.contextmanager
def own_folder(folder: Path | None) -> Iterator[None]:
    """The folder, made if necessary, is this training's alone. One that was made and stays empty, because
    the training was refused, is removed. Raises TrainingError."""
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not folder.exists():
            stack.callback(_remove_empty, folder)
        try:
            stack.enter_context(locked(folder / LOCK, PATIENCE))
        except filelock.Timeout as error:
            told = f"{folder} is used for another training; wait, or use another folder"
            raise TrainingError(told) from error
        except OSError as error:
            told = f"{folder} cannot be written to ({error}); use another output folder"
            raise TrainingError(told) from error
        if problem := writing_problem(folder):  # a full disk still takes an empty lock file
            raise TrainingError(f"{problem}; free disk space or use another output folder")
        for left in _half_written(folder):
            left.unlink(missing_ok=True)
        yield


def _half_written(folder: Path) -> list[Path]:
    """Files that a killed process was writing, see `utils.write_atomically`."""
    return [*folder.glob(".*.partial"), *(folder / DETECTOR).glob(".*.partial")]


def _remove_empty(folder: Path):
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def room(iteration: int):
    """A file that cannot be written becomes a TrainingError that names where the same call resumes."""
    try:
        yield
    except OSError as error:
        where = f"resumes from iteration {iteration}" if iteration else "starts again"
        raise TrainingError(f"{error}; free disk space, then the same call {where}") from error


def check_same(found: Config, config: Config, before: Fingerprint, made_from: Fingerprint):
    """Raises TrainingError, naming what differs, for another configuration or other files or weights."""
    if changed := [*differences(found, config), *changes(before, made_from)]:
        raise TrainingError(f"it is of another run ({'; '.join(changed)})")


def save_checkpoint(path: Path, trainer, saved: int):
    """All of it or nothing. saved: the iteration of the checkpoint before. Raises TrainingError."""

    def write(temporary: Path):
        with open(temporary, "wb") as file:  # of a path that it cannot write, PyTorch tells no reason
            torch.save(trainer.state(), file)

    with room(saved):
        write_atomically(path, write)


def read_checkpoint(path: Path, config: Config, made_from: Fingerprint) -> dict | None:
    """The state of an interrupted run, on the CPU; None if there is none. Raises TrainingError naming the
    file if it is broken or of another version, configuration or data."""
    if not path.exists():
        return None
    with _usable(path):
        state = load_plain(path)
        if state.get("format") != FORMAT:
            raise TrainingError("it is of another version of dmdd-lite")
        check_same(Config.from_dict(state["config"]), config, state["made_from"], made_from)
        return state


def restore(path: Path, state: dict, trainer):
    """Raises TrainingError naming the file if its state does not fit the trainer."""
    with _usable(path):
        trainer.restore(state)


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}; delete it or use another output folder") from error
    except (MemoryError, torch.OutOfMemoryError):  # of the machine, not of the file
        raise
    except Exception as error:
        raise TrainingError(f"{path} is not usable ({error!r}); delete it to start again") from error


def save_finished(folder: Path, detector: Detector, trainer):
    """The detector, then the record that makes the run a finished one, then the checkpoint is deleted."""
    history = [[None if math.isnan(value) else value for value in row] for row in trainer.history]
    record = {
        "format": FORMAT,
        "made_from": trainer.made_from,
        "seconds": trainer.seconds,
        "history": history,
    }
    with room(trainer.iteration):
        detector.save(folder / DETECTOR)
        write_json(folder / RECORD, record)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def load_finished(folder: Path, config: Config, made_from: Fingerprint, device):
    """Detector, history and seconds of the finished run in `folder`, or None if there is none.

    Raises TrainingError if it is of another configuration, other files or another teacher, or its record is
    broken or not its detector's; DetectorError if its detector is broken.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    with _usable(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise TrainingError("it is of another version of dmdd-lite")
        before, seconds = record["made_from"], float(record["seconds"])
        known = digests(before)
        history = [[math.nan if value is None else value for value in row] for row in record["history"]]
    detector = Detector.load(folder / DETECTOR, device)
    with _usable(path):
        if detector.made_from != known:
            raise TrainingError(f"it is not of the training of {folder / DETECTOR}")
        check_same(detector.config, config, before, made_from)
    (folder / CHECKPOINT).unlink(missing_ok=True)  # left by a run that was killed when all else was done
    return detector, history, seconds
