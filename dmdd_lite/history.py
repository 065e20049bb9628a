"""The losses of a training: their names, their history, and the check that nothing is NaN or infinite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoints import TrainingError
from .config import Config


class Losses(NamedTuple):
    """Scalars of one iteration; msn is NaN in stage 1, the others in stage 2. aim_inside and aim_outside are
    the parts of L_AIM of the anomalous view."""

    ngm: Tensor | float = math.nan
    aim: Tensor | float = math.nan
    msn: Tensor | float = math.nan
    aim_inside: Tensor | float = math.nan
    aim_outside: Tensor | float = math.nan


def read_losses(trainer, waiting: list):
    """Move the losses of the last iterations from the device into the history."""
    for iteration, losses in waiting:
        row = [float(value) for value in losses]
        for name, value in zip(Losses._fields, row, strict=True):
            expected = (name == "msn") == (iteration >= trainer.config.student_iterations)
            if expected and not math.isfinite(value):
                raise TrainingError(
                    f"L_{name.upper()} is {value} at iteration {iteration}: {remedy(trainer.config, name)}; "
                    "the last checkpoint is intact"
                )
        trainer.history.append([iteration, *row])
    waiting.clear()


def check_weights(trainer):
    """A loss is computed before its step: no loss shows what the newest step did to the weights."""
    networks = trainer.model.student, trainer.model.msn
    finite = [values.isfinite().all() for network in networks for values in network.state_dict().values()]
    if not torch.stack(finite).all():
        raise TrainingError(
            f"a weight is NaN or infinite after {trainer.iteration} iterations: {remedy(trainer.config)}; "
            "the last checkpoint is intact"
        )


def remedy(config: Config, loss: str = "") -> str:
    name = "msn_learning_rate" if loss == "msn" else "learning_rate"
    return f"lower {name} (now {getattr(config, name)})"


def described(row: list[float]) -> str:
    found = zip(Losses._fields, row[1:], strict=True)
    return "  ".join(f"{name} {value:.3f}" for name, value in found if not math.isnan(value))
