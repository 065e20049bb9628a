"""Training: distillation of both branches, then the segmentation network beside it; resumable, atomic.

Stage 1, distillation only, is the first `fusion_start` of the iterations; in stage 2 the segmentation network
learns too, on maps detached from the student.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .checkpoints import (
    CHECKPOINT,
    TrainingError,
    load_checkpoint,
    load_finished,
    save_checkpoint,
    save_finished,
)
from .config import Config, differences
from .detector import Detector
from .device import autocast, precision_of, resolve_device
from .files import Progress
from .fusion_training import fusion_loss
from .losses import aim_loss, distillation_maps, ngm_loss
from .model import DMDD, build_model, fusion_input
from .student import is_standardised
from .synthesis import Pairs
from .teacher import Teacher, build_teacher
from .training_data import PairSource, TrainingData, load_training_data

LOG_EVERY = 10  # iterations between two readings of the losses: each waits for the device


class Losses(NamedTuple):
    """Scalars of one iteration; msn is NaN in stage 1."""

    ngm: Tensor
    aim: Tensor
    msn: Tensor


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` returns: the detector, the losses (columns iteration, ngm, aim, msn), the cost."""

    detector: Detector
    history: pd.DataFrame
    seconds: float
    pairs_per_second: float


class Trainer:
    """The state of one run, advanced by `step`; every random draw is a function of seed and iteration, so
    that a checkpoint needs no generator state."""

    def __init__(self, config: Config, model: DMDD, data: TrainingData):
        self.config, self.data = config, data
        self.device = data.images.device
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.pairs = PairSource(config, data)
        self.optimizers = {
            "student": _adam(self.model.student, config.learning_rate, config.betas),
            "fusion": _adam(self.model.fusion, config.fusion_learning_rate, config.betas),
        }
        self.known = known_features(config, model.teacher, data)
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[list[float]] = []

    @property
    def fusing(self) -> bool:
        """Whether this iteration belongs to stage 2."""
        return self.iteration >= self.config.fusion_start * self.config.iterations

    def teacher_features(self, views: list[Tensor], index: Tensor | None) -> list[tuple[Tensor, ...]]:
        """T(x_n) and T(x_a); the former from memory if it is kept and `index` tells the images."""
        if self.known is None or index is None:
            together = torch.cat(views).contiguous(memory_format=torch.channels_last)
            features = [f.chunk(len(views)) for f in self.model.teacher(together)]
            return [tuple(f[view] for f in features) for view in range(len(views))]
        index = index.to(self.device)
        others = [v.contiguous(memory_format=torch.channels_last) for v in views[1:]]
        return [tuple(f[index] for f in self.known), *(self.model.teacher(view) for view in others)]

    def losses(self, pairs: Pairs, index: Tensor | None = None) -> Losses:
        """L_NGM, L_AIM and, in stage 2, L_MSN of a batch, its normal images those of `index`. Batch norm sees
        either view on its own."""
        config, model = self.config, self.model
        views = [pairs.normal, pairs.anomalous] if config.pairs else [pairs.normal]
        masks = [torch.zeros_like(pairs.mask), pairs.mask][: len(views)]
        teacher = self.teacher_features(views, index)
        ngm = aim = torch.zeros((), device=self.device)
        maps = []
        for images, seen, mask in zip(views, teacher, masks, strict=True):
            output = model.student(images, seen)
            if output.normality:
                ngm = ngm + ngm_loss(output.normality, teacher[0], config.ngm_form)
            if output.abnormality:
                aim = aim + aim_loss(output.abnormality, seen, mask, config.aim_form, config.aim_balanced)
            if self.fusing:
                maps.append(fusion_input(*(distillation_maps(branch, seen) for branch in output)))
        if not maps:
            return Losses(ngm, aim, torch.full((), torch.nan, device=self.device))
        fused = fusion_loss(model.fusion, torch.cat(maps), torch.cat(masks), config, self.iteration)
        return Losses(ngm, aim, fused)

    def step(self) -> Losses:
        """One iteration: pairs, losses, and a step of the networks that learn in this stage."""
        for name, optimizer in self.optimizers.items():
            base = self.config.learning_rate if name == "student" else self.config.fusion_learning_rate
            for group in optimizer.param_groups:
                group["lr"] = base * learning_rate_factor(self.config, self.iteration)
            optimizer.zero_grad(set_to_none=True)
        pairs = self.pairs.batch(self.iteration)
        with autocast(self.device, self.config.precision):
            losses = self.losses(pairs, self.pairs.indices(self.iteration))
        total = losses.ngm + self.config.aim_weight * losses.aim
        (total + losses.msn if self.fusing else total).backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.student.parameters(), self.config.clip_norm)
        self.optimizers["student"].step()
        if self.fusing:
            self.optimizers["fusion"].step()
        self.iteration += 1
        return Losses(*(loss.detach() for loss in losses))

    def state(self) -> dict:
        """Plain tensors and numbers from which `restore` goes on to the same weights."""
        return {
            "config": self.config.to_dict(),
            "data": self.data.fingerprint,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "history": self.history,
            "student": self.model.student.state_dict(),
            "fusion": self.model.fusion.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }

    def restore(self, state: dict):
        """Raises TrainingError if the state is of another configuration or other images."""
        changed = differences(Config.from_dict(state["config"]), self.config)
        if state["data"] != self.data.fingerprint:
            changed.append("the training or texture images differ")
        if changed:
            raise TrainingError(f"the checkpoint is of another run ({'; '.join(changed)})")
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.history = [list(row) for row in state["history"]]
        self.model.student.load_state_dict(state["student"])
        self.model.fusion.load_state_dict(state["fusion"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def _adam(network: torch.nn.Module, learning_rate: float, betas) -> torch.optim.Adam:
    """Fused: one pass over all weights instead of several for each."""
    return torch.optim.Adam(network.parameters(), learning_rate, betas, fused=True)


@torch.no_grad()
def known_features(config: Config, teacher: Teacher, data: TrainingData) -> tuple[Tensor, ...] | None:
    """The teacher's features of all training images, kept because these never change: a tuple over scales of
    (N, C_k, H_k, W_k). None where they would not fit into `feature_memory`, or a run sees no image twice."""
    count, side = len(data.images), config.image_size
    info = zip(teacher.info.channels, teacher.info.strides, strict=True)
    low = precision_of(data.images.device, config.precision) is torch.bfloat16
    size = count * sum(c * (side // s) ** 2 for c, s in info) * (2 if low else 4)
    if size > 1e9 * config.feature_memory or config.iterations * config.batch_size < count:
        return None
    parts = []
    with autocast(data.images.device, config.precision):
        for images in data.images.split(8):
            batch = (images.float() / 255).contiguous(memory_format=torch.channels_last)
            features = teacher(batch)
            parts.append([f.bfloat16() if low else f for f in features])
    return tuple(torch.cat(scale) for scale in zip(*parts, strict=True))


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Share of the full learning rate: a linear warm-up, then constant or half a cosine to zero. [ours]"""
    warm = config.warmup * config.iterations
    if iteration < warm:
        return (iteration + 1) / math.ceil(warm)
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (iteration - warm) / (config.iterations - warm))


def run(trainer: Trainer, checkpoint: Path | None = None, every: int = 100, progress: bool = True):
    """Advance to the last iteration, reading the losses and saving the state every `every` iterations.

    Raises TrainingError when a loss is not finite; such a state is never saved.
    """
    config, waiting, began = trainer.config, [], time.perf_counter()
    before = trainer.seconds
    with Progress(config.iterations, "training", trainer.iteration, progress) as bar:
        try:
            while trainer.iteration < config.iterations:
                waiting.append((trainer.iteration, torch.stack(trainer.step())))
                last = trainer.iteration == config.iterations
                due = checkpoint and (trainer.iteration % every == 0 or last)
                if due or last or trainer.iteration % LOG_EVERY == 0:
                    _read(trainer, waiting)
                    trainer.seconds = before + time.perf_counter() - began
                    bar.update(
                        trainer.iteration,
                        "ngm {:.3f}  aim {:.3f}  msn {:.3f}".format(*trainer.history[-1][1:]),
                    )
                if due:
                    save_checkpoint(checkpoint, trainer)
        except KeyboardInterrupt:
            if checkpoint and checkpoint.exists():
                print(f"\nstopped; the same call goes on from iteration {trainer.iteration // every * every}")
            raise


def _read(trainer: Trainer, waiting: list):
    """Move losses from the device into the history; stop on NaN or infinity."""
    rows = torch.stack([losses for _, losses in waiting]).tolist()
    for (iteration, _), row in zip(waiting, rows, strict=True):
        for name, value in zip(Losses._fields, row, strict=True):
            off = name == "msn" and iteration < trainer.config.fusion_start * trainer.config.iterations
            if not math.isfinite(value) and not off:
                raise TrainingError(
                    f"L_{name.upper()} is {value} at iteration {iteration}: lower learning_rate "
                    f"(now {trainer.config.learning_rate}) or set clip_norm=1; the last checkpoint is intact"
                )
        trainer.history.append([iteration, *row])
    waiting.clear()


def train(
    config: Config,
    data_root: str | Path,
    category: str,
    texture_root: str | Path = "",
    output_dir: str | Path | None = None,
    device: str = "auto",
    checkpoint_every: int = 100,
    progress: bool = True,
) -> Training:
    """Train on `<data_root>/<category>/train/good` and return a calibrated detector.

    With output_dir, the state is saved every `checkpoint_every` iterations. The same call then resumes an
    interrupted run to the same weights (bit-equal on CPU), and loads a finished one, whose detector lies in
    `<output_dir>/detector`; it says which. Raises before any work: DataError, TeacherError, ValueError, and
    TrainingError if the folder holds another run; later TrainingError.
    """
    place = resolve_device(device)
    teacher = build_teacher(config.teacher, config.teacher_weights, config.teacher_options, config.seed)
    data = load_training_data(config, data_root, category, texture_root, place, progress)
    folder = Path(output_dir) if output_dir else None
    finished = folder and load_finished(folder, config, data.fingerprint, place)
    if finished:
        print(f"{folder}: loaded, trained before; delete the folder to train again")
        return _result(config, *finished)
    if is_standardised(config, teacher.info):
        teacher.to(place).standardise(data.images)
    trainer = Trainer(config, build_model(config, teacher), data)
    checkpoint = folder and folder / CHECKPOINT
    if checkpoint and checkpoint.exists():
        load_checkpoint(checkpoint, trainer)
        print(f"{folder}: goes on from iteration {trainer.iteration}")
    run(trainer, checkpoint, checkpoint_every, progress)
    detector = Detector.calibrated(trainer.model, data.held_out if len(data.held_out) else data.images)
    if folder:
        save_finished(folder, detector, trainer)
    return _result(config, detector, trainer.history, trainer.seconds)


def _result(config: Config, detector: Detector, history: list, seconds: float) -> Training:
    frame = pd.DataFrame(history, columns=["iteration", *Losses._fields])
    return Training(detector, frame, seconds, config.iterations * config.batch_size / max(seconds, 1e-9))
