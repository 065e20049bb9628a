"""Training: distillation of both branches, then the segmentation network beside it; resumable, atomic.

Stage 1, distillation only, is the first `fusion_start` of the iterations; in stage 2 the segmentation network
learns too, on maps detached from the student.
"""

import dataclasses
import hashlib
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
from .data import open_folder, open_train
from .detector import Detector
from .device import autocast, resolve_device
from .files import Progress
from .fusion_training import fusion_loss
from .images import load_images
from .losses import aim_loss, distillation_maps, ngm_loss
from .model import DMDD, build_model, fusion_input
from .student import is_standardised
from .synthesis import Pairs, PairSynthesizer, foreground_masks, step_generator
from .teacher import build_teacher

LOG_EVERY = 10  # iterations between two readings of the losses: each waits for the device


class Losses(NamedTuple):
    """Scalars of one iteration; msn is NaN in stage 1."""

    ngm: Tensor
    aim: Tensor
    msn: Tensor


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What training sees, all on the device: images and held-out images uint8 (N, 3, S, S), foreground masks
    bool (N, S, S) or None, textures uint8 (T, 3, S, S) or None; and a fingerprint of the files."""

    images: Tensor
    held_out: Tensor
    foreground: Tensor | None
    textures: Tensor | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` returns: the detector, the losses (columns iteration, ngm, aim, msn), the cost."""

    detector: Detector
    history: pd.DataFrame
    seconds: float
    pairs_per_second: float


def load_training_data(
    config: Config,
    data_root,
    category: str,
    texture_root="",
    device: torch.device | str = "cpu",
    progress=True,
) -> TrainingData:
    """Read and check train/good and the textures; never opens the test split. Raises DataError."""
    paths = open_train(data_root, category)
    texture_paths = open_folder(texture_root, recursive=True) if texture_root else []
    images = load_images(paths, config.image_size, "reading images" if progress else None)
    foreground = foreground_masks(images, category, config.foreground)
    rng = torch.Generator().manual_seed(config.seed)
    held = round(config.holdout * len(paths))
    if config.holdout > 0 and len(paths) > 1:
        held = max(1, held)
    order = torch.randperm(len(paths), generator=rng)
    kept, out = order[held:].sort().values, order[:held].sort().values
    textures = None
    if texture_paths:
        chosen = torch.randperm(len(texture_paths), generator=rng)[: config.texture_limit].tolist()
        selected = [texture_paths[i] for i in sorted(chosen)]
        textures = load_images(selected, config.image_size, "reading textures" if progress else None).to(
            device
        )
    names = "\n".join([category, *(path.name for path in paths), *(path.name for path in texture_paths)])
    return TrainingData(
        images[kept].to(device),
        images[out].to(device),
        None if foreground is None else foreground[kept].to(device),
        textures,
        hashlib.sha256(names.encode()).hexdigest(),
    )


class PairSource:
    """The pairs of every iteration, each a function of the seed and the iteration alone."""

    def __init__(self, config: Config, data: TrainingData):
        self.config, self.data = config, data
        self.synthesizer = PairSynthesizer(config, data.textures)

    def batch(self, iteration: int) -> Pairs:
        """`batch_size` pairs on the data's device: images in a new order every epoch."""
        count, start = len(self.data.images), iteration * self.config.batch_size
        epochs = range(start // count, (start + self.config.batch_size - 1) // count + 1)
        rngs = (step_generator(self.config.seed, "order", epoch) for epoch in epochs)
        order = torch.cat([torch.randperm(count, generator=rng) for rng in rngs])
        device = self.data.images.device
        index = order[start - epochs[0] * count :][: self.config.batch_size].to(device)
        normal = self.data.images[index].float() / 255
        foreground = None if self.data.foreground is None else self.data.foreground[index]
        rng = step_generator(self.config.seed, "pairs", iteration, device)
        return self.synthesizer(normal, foreground, rng)


class Trainer:
    """The state of one run, advanced by `step`; every random draw is a function of seed and iteration, so
    that a checkpoint needs no generator state."""

    def __init__(self, config: Config, model: DMDD, data: TrainingData):
        self.config, self.data = config, data
        self.device = data.images.device
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.pairs = PairSource(config, data)
        self.optimizers = {
            "student": torch.optim.Adam(model.student.parameters(), config.learning_rate, config.betas),
            "fusion": torch.optim.Adam(model.fusion.parameters(), config.fusion_learning_rate, config.betas),
        }
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[list[float]] = []

    @property
    def fusing(self) -> bool:
        """Whether this iteration belongs to stage 2."""
        return self.iteration >= self.config.fusion_start * self.config.iterations

    def losses(self, pairs: Pairs) -> Losses:
        """L_NGM, L_AIM and, in stage 2, L_MSN of a batch. Batch norm sees either view on its own."""
        config, model = self.config, self.model
        views = [pairs.normal, pairs.anomalous] if config.pairs else [pairs.normal]
        masks = [torch.zeros_like(pairs.mask), pairs.mask][: len(views)]
        together = torch.cat(views).contiguous(memory_format=torch.channels_last)
        features = [f.chunk(len(views)) for f in model.teacher(together)]
        teacher = [tuple(f[view] for f in features) for view in range(len(views))]  # T(x_n), T(x_a)
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
        with autocast(self.device):
            losses = self.losses(self.pairs.batch(self.iteration))
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
