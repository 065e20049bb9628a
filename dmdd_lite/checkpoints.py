"""What a training leaves on disk: the state of an unfinished run, the record of a finished one."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import Timeout

from .config import Config, differences
from .detector import Detector
from .utils import locked, write_atomically, write_json, writing_problem
from .weights import load_plain

FORMAT = 5  # of the state and the record
CHECKPOINT, DETECTOR, RECORD, LOCK = "checkpoint.pt", "detector", "training.json", "training.lock"
PATIENCE = 20.0  # seconds to wait for a folder: who was killed together with its user needs some


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@contextlib.contextmanager
def own_folder(folder: Path | None) -> Iterator[None]:
    """The folder, made if it is not there, is this training's alone, and can be written to. One that was made
    and is still empty at the end, because the training was refused, does not stay.

    Raises TrainingError naming it if it cannot, or if another process still trains into it after
    PATIENCE seconds.
    """
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not folder.exists():
            stack.callback(_remove_empty, folder)
        try:
            stack.enter_context(locked(folder / LOCK, PATIENCE))
        except Timeout as error:
            told = f"{folder} is used for a training by another process; wait for it, or use another folder"
            raise TrainingError(told) from error
        except OSError as error:
            raise TrainingError(
                f"{folder} cannot be written to ({error}); mend that or use another output folder"
            ) from error
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
def kept(iteration: int) -> Iterator[None]:
    """What cannot be written becomes a TrainingError that says where the same call goes on from."""
    try:
        yield
    except OSError as error:
        where = f"goes on from iteration {iteration}" if iteration else "starts again"
        raise TrainingError(f"{error}; make room or mend it, then the same call {where}") from error


def save_checkpoint(path: Path, trainer):
    """All of it or nothing: a crash in the middle leaves the previous checkpoint."""

    def write(temporary: Path):
        with open(temporary, "wb") as file:  # of a path that it cannot write, PyTorch tells no reason
            torch.save(trainer.state(), file)

    write_atomically(path, write)


def load_checkpoint(path: Path, trainer):
    """Restore plain tensors; raises TrainingError naming the file if it is broken or of another run."""
    try:
        trainer.restore(load_plain(path, trainer.device))
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}; delete it or use another output folder") from error
    except (MemoryError, torch.OutOfMemoryError):  # of the machine, not of the file
        raise
    except Exception as error:
        raise TrainingError(
            f"{path} is not a usable checkpoint ({error}); delete it to start again"
        ) from error


def save_finished(folder: Path, detector: Detector, trainer):
    """The detector, then the record that makes the run a finished one; its checkpoint has done its work.
    Raises TrainingError if they cannot be written."""
    history = [[None if math.isnan(value) else value for value in row] for row in trainer.history]
    record = {
        "format": FORMAT,
        "data": trainer.data.fingerprint,
        "seconds": trainer.seconds,
        "history": history,
    }
    with kept(trainer.iteration):
        detector.save(folder / DETECTOR)
        write_json(folder / RECORD, record)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def load_finished(folder: Path | None, config: Config, fingerprint: str, device):
    """Detector, history and seconds of the finished run in `folder`, or None if there is none.

    Raises TrainingError if it is of another configuration or other images, or its record is broken;
    DetectorError if its detector is.
    """
    if folder is None or not (folder / RECORD).exists():
        return None
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise TrainingError(f"{folder} was trained by another version of dmdd-lite; delete it")
        data, seconds = record["data"], float(record["seconds"])
        history = [[math.nan if value is None else value for value in row] for row in record["history"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not a training's record ({error!r}); delete {folder}") from error
    detector = Detector.load(folder / DETECTOR, device)
    changed = differences(detector.config, config)
    if data != fingerprint:
        changed.append("the training or texture images differ")
    if changed:
        raise TrainingError(
            f"{folder} holds another finished run ({'; '.join(changed)}); "
            "delete it or use another output folder"
        )
    _clear(folder)
    return detector, history, seconds


def _clear(folder: Path):
    """What is left of a run that was killed when all but this was done, if nobody is about to remove it."""
    left = [path for path in (folder / CHECKPOINT, *_half_written(folder)) if path.exists()]
    if left or (folder / LOCK).exists():
        with contextlib.suppress(OSError), locked(folder / LOCK, 0):  # Timeout is an OSError
            for path in left:
                path.unlink(missing_ok=True)
