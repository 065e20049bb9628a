"""What a training leaves on disk: the state of an unfinished run, the record of a finished one."""

import json
import math
from pathlib import Path

import torch

from .config import Config, differences
from .detector import Detector
from .files import write_atomically, write_json

CHECKPOINT, DETECTOR, RECORD = "checkpoint.pt", "detector", "training.json"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


def save_checkpoint(path: Path, trainer):
    """All of it or nothing: a crash in the middle leaves the previous checkpoint."""
    write_atomically(path, lambda temporary: torch.save(trainer.state(), temporary))


def load_checkpoint(path: Path, trainer):
    """Restore plain tensors; raises TrainingError naming the file if it is broken or of another run."""
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        trainer.restore(state)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}; delete it or use another output folder") from error
    except Exception as error:
        raise TrainingError(
            f"{path} is not a usable checkpoint ({error}); delete it to start again"
        ) from error


def save_finished(folder: Path, detector: Detector, trainer):
    """The detector, then the record that makes the run a finished one; its checkpoint has done its work."""
    detector.save(folder / DETECTOR)
    history = [[None if math.isnan(value) else value for value in row] for row in trainer.history]
    record = {"format": 1, "data": trainer.data.fingerprint, "seconds": trainer.seconds, "history": history}
    write_json(folder / RECORD, record)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def load_finished(folder: Path, config: Config, fingerprint: str, device):
    """Detector, history and seconds of the finished run in `folder`, or None if there is none.

    Raises TrainingError if it is of another configuration or other images, or its record is broken;
    DetectorError if its detector is.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
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
    return detector, history, seconds
