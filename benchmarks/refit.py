"""Train the MSN again and fit DMDD+ again, on a student that was trained before."""

import copy
import dataclasses
from pathlib import Path

from dmdd_lite.config import Config
from dmdd_lite.data.training import load_training_data
from dmdd_lite.detector import Detector, map_names
from dmdd_lite.model import build_model
from dmdd_lite.options import differences
from dmdd_lite.training import Trainer, Training, finish, run
from dmdd_lite.utils import resolve_device

#: what the student's training never reads; of `iterations` and `msn_iterations` it reads `student_iterations`
AFTER_STUDENT = (
    *("msn_attention", "plain_weight", "msn_iterations", "msn_learning_rate"),
    *("iterations", "smoothing_sigma", "plus"),
)


def student_differences(one: Config, other: Config) -> list[str]:
    """Of `differences`, those through which the two configurations train different students."""
    found = [text for text in differences(one, other) if text.split(":")[0] not in AFTER_STUDENT]
    if one.student_iterations != other.student_iterations:
        found.append(f"student_iterations: {one.student_iterations} -> {other.student_iterations}")
    return found


def rescored(detector, config):
    """The same networks under a configuration that differs in how they compute and are scored, or lacks
    DMDD+; with the same thresholds."""
    model = copy.copy(detector.model)  # which shares its networks
    model.config = config
    thresholds = {name: detector.thresholds[name] for name in map_names(config)}
    facts = dataclasses.replace(detector.facts, thresholds=thresholds)
    return Detector(model, config.plus and detector.plus, facts)


def refit(
    detector: Detector,
    config: Config,
    data_root: str | Path,
    category: str,
    texture_root: str | Path = "",
    device: str = "auto",
    progress: bool = True,
) -> Training:
    """What `train` returns for `config`, from a detector with the same student: only the MSN is trained, and
    DMDD+ fitted (bit-equal on CPU). The images must be those of its training. Nothing is saved.

    Raises ValueError if the configuration differs from the detector's in more than AFTER_STUDENT,
    and as `train`.
    """
    if changed := student_differences(detector.config, config):
        raise ValueError(
            f"config is of another student than the detector's ({'; '.join(changed)}); train it with `train`"
        )
    data = load_training_data(config, data_root, category, texture_root, resolve_device(device), progress)
    trainer = Trainer(config, build_model(config, copy.deepcopy(detector.model.teacher)), data)
    trainer.model.student.load_state_dict(detector.model.student.state_dict())
    trainer.iteration = config.student_iterations
    run(trainer, progress=progress)
    return Training.of(finish(trainer.model, data), trainer.history, trainer.seconds)
