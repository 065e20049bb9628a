"""Training a category: both stages in one loop; loaded if finished, resumed if interrupted."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from .checkpoints import (
    CHECKPOINT,
    FORMAT,
    TrainingError,
    load_finished,
    own_folder,
    read_checkpoint,
    restore,
    save_checkpoint,
    save_finished,
)
from .config import Config
from .data.category import Category
from .data.features import TrainingFeatures
from .data.fingerprints import Fingerprint, digests
from .data.training import TrainingData, load_training_data
from .detector import Detector
from .facts import Facts
from .history import Losses, check_weights, described, read_losses, remedy
from .losses import Features, aim_loss, msn_loss, ngm_loss
from .model import DMDD, build_model
from .pairs import Pairs, PairSource
from .student import start_at_statistics
from .teacher import Teacher, build_teacher
from .utils import Progress, autocast, keep_freed_memory, resolve_device

LOG_EVERY = 10  # iterations between two readings of the losses
TRAINED = ("student", "calibration", "msn")  # networks that a checkpoint holds
LEVEL_IMAGES = 128  # maximum number of training images from which stage 2 takes the levels of the maps
WARM_UP = 0.05  # fraction of either stage with a rising learning rate [ours]
BETAS = (0.5, 0.999)  # of Adam [authors]


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` returns: the detector, the losses (columns iteration and those of `Losses`), the cost."""

    detector: Detector
    history: pd.DataFrame
    seconds: float
    pairs_per_second: float

    @classmethod
    def of(cls, detector: Detector, history: list[list[float]], seconds: float) -> "Training":
        frame = pd.DataFrame(history, columns=["iteration", *Losses._fields])
        pairs = detector.config.iterations * detector.config.batch_size
        return cls(detector, frame, seconds, pairs / max(seconds, 1e-9))


class Trainer:
    """The state of one run, advanced by `step`: stage 1, the first `student_iterations`, distils both
    branches; in stage 2 the MSN learns on the maps of the finished student."""

    def __init__(self, config: Config, model: DMDD, data: TrainingData):
        self.config, self.data, self.device = config, data, data.images.device
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # sizes are fixed
        else:
            keep_freed_memory()
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.pairs = PairSource(config, data.images, data.foreground, data.textures)
        self.optimizers = {
            "student": torch.optim.Adam(model.student.parameters(), config.learning_rate, BETAS, fused=True),
            "msn": torch.optim.Adam(model.msn.parameters(), config.msn_learning_rate, BETAS, fused=True),
        }
        self.teacher, self.student = model.teacher, model.student
        if config.compile:
            self.teacher, self.student = torch.compile(model.teacher), torch.compile(model.student)
        self.made_from = made_from(data, model.teacher)
        self.known = TrainingFeatures(config, model.teacher, data.images)
        start_at_statistics(model.student, lambda: self.known)
        self.iteration, self.seconds = 0, 0.0
        self.history: list[list[float]] = []

    @property
    def stage(self) -> str:
        return "student" if self.iteration < self.config.student_iterations else "msn"

    def step(self) -> Losses:
        """One iteration: pairs, losses, gradients, and a step of the network that learns in this stage."""
        if self.stage == "msn" and self.model.training:
            self._finish_student()
        optimizer = self.optimizers[self.stage]
        base = self.config.learning_rate if self.stage == "student" else self.config.msn_learning_rate
        for group in optimizer.param_groups:
            group["lr"] = base * learning_rate_factor(self.config, self.iteration)
        optimizer.zero_grad(set_to_none=True)
        pairs = self.pairs.batch(self.iteration)
        losses = (self.student_losses if self.stage == "student" else self.msn_losses)(pairs, self.iteration)
        optimizer.step()
        self.iteration += 1
        return losses

    def student_losses(self, pairs: Pairs, step: int | None = None) -> Losses:
        """Stage 1: L_NGM + lambda L_AIM of both views [paper]; their gradients are added to the student's.

        Batch norm sees one view at a time [authors], and only one view's activations are in memory."""
        nothing = torch.zeros_like(pairs.mask)
        views = [(pairs.normal, nothing), (pairs.anomalous, pairs.mask)][: 1 + self.config.pairs]
        with autocast(self.device, self.config.precision):
            features = self.teacher_features([images for images, _ in views], step)
        ngm = aim = torch.zeros((), device=self.device)
        for (images, mask), seen in zip(views, features, strict=True):
            with autocast(self.device, self.config.precision):
                normality, abnormality = self.student(images, seen)
            view_ngm = ngm_loss(normality, features[0], mask) if normality else ngm * 0
            view_aim = aim_loss(abnormality, seen, mask) if abnormality else (ngm * 0,) * 3
            (view_ngm + self.config.aim_weight * view_aim[0]).backward()
            ngm, aim = ngm + view_ngm.detach(), aim + view_aim[0].detach()
        return Losses(ngm, aim, aim_inside=view_aim[1].detach(), aim_outside=view_aim[2].detach())

    def msn_losses(self, pairs: Pairs, step: int | None = None) -> Losses:
        """Stage 2: L_MSN on the maps of the finished student, of normal and altered views; its gradients are
        added to the MSN's."""
        views = [pairs.normal, self.pairs.altered(pairs, self.iteration)]
        with torch.no_grad(), autocast(self.device, self.config.precision):
            maps = []
            for images, features in zip(views, self.teacher_features(views, step), strict=True):
                maps.append(self.model.calibration(sum(self.model.branch_maps(images, features), ())).maps)
        masks = torch.cat((torch.zeros_like(pairs.mask), pairs.mask))
        with autocast(self.device, self.config.precision):
            logits = self.model.msn(torch.cat(maps)).logits
        loss = msn_loss(logits, masks)
        loss.backward()
        return Losses(msn=loss.detach())

    def teacher_features(self, views: list[Tensor], step: int | None = None) -> list[Features]:
        """T(x_n), and T of the other view; the former from memory if it is kept and the pairs are those of
        `step`."""
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        normal = None if step is None else self.known.of(self.pairs.indices(step))
        return [normal or self.teacher(views[0]), *(self.teacher(view) for view in views[1:])]

    def _finish_student(self):
        """The student is as it will be used; the MSN learns with the levels of the training images."""
        self.model.eval()
        if self.iteration == self.config.student_iterations:  # else they are in the checkpoint
            self.model.calibrate(self.data.images[:: -(-len(self.data.images) // LEVEL_IMAGES)])

    def state(self) -> dict:
        """Plain tensors and numbers from which `restore` continues to the same weights."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "made_from": self.made_from,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "history": self.history,
            "networks": {name: getattr(self.model, name).state_dict() for name in TRAINED},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }

    def restore(self, state: dict):
        """Go on from what `state` returned in a run of the same configuration and data."""
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.history = [list(row) for row in state["history"]]
        for name, values in state["networks"].items():
            getattr(self.model, name).load_state_dict(values)
        for name, values in state["optimizers"].items():
            self.optimizers[name].load_state_dict(values)


def made_from(data: TrainingData, teacher: Teacher) -> Fingerprint:
    """What the training's outcome depends on beside the configuration, see `data.fingerprints`."""
    return {**data.files, "teacher": teacher.sha256}


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Fraction of the full learning rate: in either stage a linear warm-up, then half a cosine to zero, so
    that the last iteration is a settled one. [ours]"""
    length = config.student_iterations
    if iteration >= length:
        iteration, length = iteration - length, config.iterations - length
    warm = WARM_UP * length
    if iteration < warm:
        return (iteration + 1) / math.ceil(warm)
    return 0.5 + 0.5 * math.cos(math.pi * (iteration - warm) / (length - warm))


def run(
    trainer: Trainer,
    checkpoint: Path | None = None,
    every: int = 100,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
):
    """Advance to the last iteration; every `every` iterations and after the last one, call `watch` with the
    trainer, then save the state, each if it is given.

    Raises TrainingError when a loss or a weight is not finite; such a state is neither watched nor saved.
    """
    config, losses, saved = trainer.config, [], trainer.iteration
    began = time.perf_counter() - trainer.seconds
    with Progress(config.iterations, "training", trainer.iteration, progress) as bar:
        try:
            while trainer.iteration < config.iterations:
                losses.append((trainer.iteration, trainer.step()))
                last = trainer.iteration == config.iterations
                due = last or (bool(checkpoint or watch) and trainer.iteration % every == 0)
                if due or trainer.iteration % LOG_EVERY == 0:
                    read_losses(trainer, losses)
                    trainer.seconds = time.perf_counter() - began
                    bar.update(trainer.iteration, described(trainer.history[-1]))
                if due:
                    check_weights(trainer)
                    if watch:
                        watch(trainer)
                        began = time.perf_counter() - trainer.seconds  # its time does not count
                    if checkpoint:
                        save_checkpoint(checkpoint, trainer, saved)
                        saved = trainer.iteration
        except KeyboardInterrupt:
            if checkpoint and checkpoint.exists():
                print(f"\nstopped; the same call resumes from iteration {saved}")
            raise


def train(
    config: Config,
    data_root: str | Path = "",
    category: str = "",
    texture_root: str | Path = "",
    output_dir: str | Path | None = None,
    device: str = "auto",
    checkpoint_every: int = 100,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
    good: str | Path | Category | None = None,
) -> Training:
    """Train on `<data_root>/<category>/train/good`, or on `good`, and return a calibrated detector.

    With output_dir, the state is saved every `checkpoint_every` iterations. The same call then resumes an
    interrupted run to the same weights (bit-equal on a CPU with the same number of threads and versions), and
    loads a finished one, from `<output_dir>/detector`; it prints which, and the false alarms to expect.

    good: a Category, or a folder, of which a fifth is held out as by `open_folders` with the same seed.
    watch: called with the trainer every `checkpoint_every` iterations and after the last one; it must not
    change the training. `finish` makes a detector of a copy of its model.

    Raises before any work: DataError, TeacherError, ValueError, and TrainingError if the folder holds a run
    of another configuration, other images or textures (their contents count, not where they lie) or another
    teacher, cannot be written to, or is another process's; later TrainingError.
    """
    c, place = config, resolve_device(device)
    teacher = build_teacher(c.teacher, c.teacher_weights, c.teacher_options, c.seed, c.image_size)
    data = load_training_data(config, data_root, category, texture_root, place, progress, good)
    folder = Path(output_dir) if output_dir else None
    with own_folder(folder):
        state = None
        if folder:
            if finished := load_finished(folder, config, made_from(data, teacher), place):
                print(f"{folder}: loaded, trained before; delete the folder to train again")
                return Training.of(*finished)
            state = read_checkpoint(folder / CHECKPOINT, config, made_from(data, teacher))
        teacher.to(place).standardise(data.images)
        trainer = Trainer(config, build_model(config, teacher), data)
        if state:
            restore(folder / CHECKPOINT, state, trainer)
            state = None  # as large as the networks and their optimizers
            print(f"{folder}: resumes from iteration {trainer.iteration}")
        run(trainer, folder and folder / CHECKPOINT, checkpoint_every, progress, watch)
        detector = finish(trainer.model, data)
        if folder:
            save_finished(folder, detector, trainer)
        print(detector.facts.expectation)
        return Training.of(detector, trainer.history, trainer.seconds)


def finish(model: DMDD, data: TrainingData) -> Detector:
    """The detector of a trained model: levels of the maps, DMDD+ unless plus=None, and the thresholds, from
    held-out good images. Raises TrainingError if their scores are not finite."""
    model.eval().calibrate(data.held_out)
    plus = None
    if model.config.plus is not None:
        from .plus.fusion import fit_plus

        plus = fit_plus(model, data.images, data.held_out)
    facts = Facts(depth=data.depth, made_from=digests(made_from(data, model.teacher)))
    detector = Detector.calibrated(model, plus, data.held_out, facts)
    if not all(map(math.isfinite, detector.thresholds.values())):
        raise TrainingError(
            f"the thresholds are {detector.thresholds}, the weights are too large: {remedy(model.config)} "
            "and use another output folder"
        )
    return detector
