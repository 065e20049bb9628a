"""Training a category: loaded if finished, resumed if interrupted; progress, checkpoints, the detector."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from .checkpoints import (
    CHECKPOINT,
    TrainingError,
    kept,
    load_checkpoint,
    load_finished,
    own_folder,
    save_checkpoint,
    save_finished,
)
from .config import Config, student_differences
from .detector import Detector
from .model import DMDD, build_model
from .student import is_standardised
from .teacher import Teacher, build_teacher
from .trainer import Losses, Trainer, learning_rate_factor
from .training_data import PairSource, TrainingData, load_training_data
from .utils import Progress, resolve_device

__all__ = [
    "LossReader",
    "PairSource",
    "Trainer",
    "Training",
    "TrainingData",
    "TrainingError",
    "learning_rate_factor",
    "load_training_data",
    "refit_msn",
    "run",
    "snapshot",
    "train",
]

LOG_EVERY = 10  # iterations between two looks at the losses


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` returns: the detector, the losses (columns iteration, ngm, aim, msn, aim_inside and
    aim_outside), the cost."""

    detector: Detector
    history: pd.DataFrame
    seconds: float
    pairs_per_second: float


class LossReader:
    """Brings the losses of a trainer into its history without ever stopping the device: `read` starts a copy
    of the newest ones and takes in those of the call before, which have arrived by then.

    Raises TrainingError at a loss that is not finite.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.waiting: list[tuple[int, torch.Tensor]] = []  # on the device
        self.coming: tuple[list[int], torch.Tensor, torch.cuda.Event | None] | None = None

    def add(self, iteration: int, losses: Losses):
        self.waiting.append((iteration, torch.stack(losses)))

    def read(self, everything: bool = False):
        """everything: wait for the newest ones too."""
        self._take_in()
        if self.waiting:
            iterations, losses = zip(*self.waiting, strict=True)
            self.coming = (list(iterations), *self._send(torch.stack(losses)))
            self.waiting.clear()
        if everything or self.trainer.device.type != "cuda":
            self._take_in()

    @staticmethod
    def _send(losses: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        if losses.device.type != "cuda":
            return losses.cpu(), None
        arrived = torch.cuda.Event()
        copy = torch.empty(losses.shape, pin_memory=True).copy_(losses, non_blocking=True)
        arrived.record(torch.cuda.current_stream(losses.device))
        return copy, arrived

    def _take_in(self):
        if self.coming is None:
            return
        iterations, losses, arrived = self.coming
        self.coming = None
        if arrived is not None:
            arrived.synchronize()
        for iteration, row in zip(iterations, losses.tolist(), strict=True):
            self._check(iteration, row)
            self.trainer.history.append([iteration, *row])

    def _check(self, iteration: int, row: list[float]):
        config = self.trainer.config
        for name, value in zip(Losses._fields, row, strict=True):
            off = (name == "msn") == (iteration < config.student_iterations)  # not a loss of this stage
            if not math.isfinite(value) and not off:
                remedy = _remedy(config, of_msn=name == "msn")
                raise TrainingError(
                    f"L_{name.upper()} is {value} at iteration {iteration}: {remedy}; "
                    "the last checkpoint is intact"
                )


def run(
    trainer: Trainer,
    checkpoint: Path | None = None,
    every: int = 100,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
):
    """Advance to the last iteration; every `every` iterations and after the last one, call `watch` with the
    trainer, then save the state, each if it is given.

    The watch sees losses that are all read, and its time is not counted in `trainer.seconds`. It must leave
    the trainer as it is, see `snapshot`. A run stopped in the middle of a watch meets it again when it is
    resumed. Raises TrainingError when a loss or a weight is not finite; such a state is neither watched nor
    saved.
    """
    config, losses, saved = trainer.config, LossReader(trainer), trainer.iteration
    began = time.perf_counter() - trainer.seconds
    with Progress(config.iterations, "training", trainer.iteration, progress) as bar:
        try:
            while trainer.iteration < config.iterations:
                losses.add(trainer.iteration, trainer.step())
                last = trainer.iteration == config.iterations
                due = last or (bool(checkpoint or watch) and trainer.iteration % every == 0)
                if due or trainer.iteration % LOG_EVERY == 0:
                    losses.read(everything=due)
                    if due:
                        _check_weights(trainer)
                    trainer.seconds = time.perf_counter() - began
                    bar.update(trainer.iteration, _told(trainer.history))
                if due and watch:
                    watch(trainer)
                    began = time.perf_counter() - trainer.seconds
                if due and checkpoint:
                    with kept(saved):
                        save_checkpoint(checkpoint, trainer)
                    saved = trainer.iteration
        except KeyboardInterrupt:
            if checkpoint and checkpoint.exists():
                print(f"\nstopped; the same call goes on from iteration {saved}")
            raise


def _check_weights(trainer: Trainer):
    """A loss is that before its step: what the newest step made of the weights, no loss has told yet."""
    networks = trainer.model.student, trainer.model.msn
    finite = [values.isfinite().all() for network in networks for values in network.state_dict().values()]
    if not torch.stack(finite).all():
        raise TrainingError(
            f"a weight is NaN or infinite after {trainer.iteration} iterations: {_remedy(trainer.config)}; "
            "the last checkpoint is intact"
        )


def _remedy(config: Config, of_msn: bool = False) -> str:
    if of_msn:
        return f"lower msn_learning_rate (now {config.msn_learning_rate})"
    return f"lower learning_rate (now {config.learning_rate}) or set clip_norm=1"


def _told(history: list[list[float]]) -> str:
    newest = zip(Losses._fields, history[-1][1:], strict=True) if history else ()
    return "  ".join(f"{name} {value:.3f}" for name, value in newest if not math.isnan(value))


def snapshot(trainer: Trainer) -> Detector:
    """The calibrated detector that the training would return if it ended now, on a copy of the model:
    calibrating changes levels and mode, and the trainer stays as it is. Twice the model's memory. [ours]"""
    return _detector(copy.deepcopy(trainer.model), trainer.data)


def _detector(model: DMDD, data: TrainingData) -> Detector:
    """Levels and the threshold from held-out good images, from those of the training
    where none were held out. Raises TrainingError if their scores are not finite."""
    trained_on = not len(data.held_out)
    good = data.images if trained_on else data.held_out
    model.eval().calibrate(good, trained_on)
    detector = Detector.calibrated(model, good, trained_on)
    if not math.isfinite(detector.threshold):
        raise TrainingError(
            f"a good image's score is {detector.threshold}, the weights have grown out of all bounds: "
            f"{_remedy(model.config)}, in another output folder"
        )
    return detector


def train(
    config: Config,
    data_root: str | Path,
    category: str,
    texture_root: str | Path = "",
    output_dir: str | Path | None = None,
    device: str = "auto",
    checkpoint_every: int = 100,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
) -> Training:
    """Train on `<data_root>/<category>/train/good` and return a calibrated detector.

    With output_dir, the state is saved every `checkpoint_every` iterations. The same call then resumes an
    interrupted run to the same weights (bit-equal on CPU), and loads a finished one, whose detector lies in
    `<output_dir>/detector`; it says which.

    watch: called with the trainer every `checkpoint_every` iterations and after the last one, with or without
    output_dir; not for iterations that were done before, nor for a finished run. It must not change the
    training: ask `snapshot(trainer)` for the detector of that moment. The weights are the same with it and
    without (bit-equal on CPU).

    The same call on a CPU with the same number of threads and the same versions gives the same bits, whatever
    the global random generators, which it leaves alone, and the order of the file system's listings. Another
    number of threads rounds differently, and training amplifies that, as a GPU and bf16 do; memory does not
    grow with the iterations.

    Raises before any work: DataError, TeacherError, ValueError, and TrainingError if the folder holds another
    run, cannot be written to, or is another process's; later TrainingError.
    """
    place = resolve_device(device)
    teacher = build_teacher(config.teacher, config.teacher_weights, config.teacher_options, config.seed)
    data = load_training_data(config, data_root, category, texture_root, place, progress)
    folder = Path(output_dir) if output_dir else None
    finished = load_finished(folder, config, data.fingerprint, place)
    if not finished:
        with own_folder(folder):
            finished = load_finished(folder, config, data.fingerprint, place)  # by the one we waited for
            if not finished:
                trainer = _trainer(config, teacher, data, folder)
                run(trainer, folder and folder / CHECKPOINT, checkpoint_every, progress, watch)
                detector = _detector(trainer.model, data)
                if folder:
                    save_finished(folder, detector, trainer)
                return _result(config, detector, trainer.history, trainer.seconds)
    print(f"{folder}: loaded, trained before; delete the folder to train again")
    return _result(config, *finished)


def refit_msn(
    detector: Detector,
    config: Config,
    data_root: str | Path,
    category: str,
    texture_root: str | Path = "",
    device: str = "auto",
    progress: bool = True,
) -> Training:
    """What `train` returns for `config`, from a detector with the same student: only the fusion is trained,
    on the maps of that student (bit-equal on CPU). The images must be those of its training. [ours]

    The configuration may differ from the detector's in what the student's training never reads, see
    `config.AFTER_STUDENT`: everything of the fusion, of position maps and of scores. Nothing is saved.
    Raises ValueError if it differs in more, and as `train`.
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
    return _result(config, _detector(trainer.model, data), trainer.history, trainer.seconds)


def _trainer(config: Config, teacher: Teacher, data: TrainingData, folder: Path | None) -> Trainer:
    """A new one, or one that goes on from the checkpoint in the folder."""
    if is_standardised(config, teacher.info):
        teacher.to(data.images.device).standardise(data.images)
    trainer = Trainer(config, build_model(config, teacher), data)
    if folder and (folder / CHECKPOINT).exists():
        load_checkpoint(folder / CHECKPOINT, trainer)
        print(f"{folder}: goes on from iteration {trainer.iteration}")
    return trainer


def _result(config: Config, detector: Detector, history: list, seconds: float) -> Training:
    frame = pd.DataFrame(history, columns=["iteration", *Losses._fields])
    return Training(detector, frame, seconds, config.iterations * config.batch_size / max(seconds, 1e-9))
