"""One iteration of training, and the state that it advances: both branches' distillation, then the fusion.

Stage 1, distillation only, is the first `fusion_start` of the iterations; in stage 2 the segmentation network
learns too, on maps detached from the student.
"""

import copy
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alterations import fusion_view
from .checkpoints import TrainingError
from .config import Config, differences
from .device import autocast, keep_freed_memory, precision_of, send
from .fusion_training import fusion_loss
from .losses import Features, aim_loss, distillation_maps, ngm_loss
from .model import DMDD, usual_distances
from .position import mean_features
from .student import set_prior
from .synthesis import Pairs
from .teacher import Teacher
from .training_data import PairSource, TrainingData

LEVEL_SHARE = 0.05  # of an iteration in the running levels of the maps


class Losses(NamedTuple):
    """Scalars of one iteration; msn is NaN in stage 1."""

    ngm: Tensor
    aim: Tensor
    msn: Tensor


class ViewLosses(NamedTuple):
    """Of one view: L_NGM and L_AIM, 0 for a branch that is not there; the branches' maps for the fusion, or
    () where they are not wanted."""

    ngm: Tensor
    aim: Tensor
    maps: Features


class Distillation(nn.Module):
    """The student and its losses on one view, in one module, which a compiler can see as a whole.

    forward: images (B, 3, H, W); teacher features of these images and of the normal ones; mask (B, H, W) of
    the anomaly; whether the maps are wanted -> ViewLosses.
    """

    def __init__(self, config: Config, student: nn.Module):
        super().__init__()
        self.config, self.student = config, student

    def forward(self, images, seen: Features, normal: Features, mask: Tensor, fusing: bool) -> ViewLosses:
        config = self.config
        output = self.student(images, seen)
        # in full precision from here on, converted once
        same = normal is seen
        seen = tuple(f.float() for f in seen)
        normal = seen if same else tuple(f.float() for f in normal)
        branches = [tuple(f.float() for f in branch) for branch in output]
        normality, abnormality = branches
        ngm = aim = torch.zeros((), device=images.device)
        if normality:
            ngm = ngm_loss(normality, normal, config.ngm_form)
        if abnormality:
            target = seen if config.aim_target == "anomalous" else normal
            aim = aim_loss(abnormality, target, mask, config.aim_form, config.aim_balanced)
        if not fusing:
            return ViewLosses(ngm, aim, ())
        with torch.no_grad():
            maps = [m for branch in branches for m in distillation_maps(branch, seen)]
            return ViewLosses(ngm, aim, tuple(maps))


class Trainer:
    """The state of one run, advanced by `step`; every random draw is a function of seed and iteration, so
    that a checkpoint needs no generator state."""

    def __init__(self, config: Config, model: DMDD, data: TrainingData):
        self.config, self.data = config, data
        self.device = data.images.device
        prepare(self.device)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.pairs = PairSource(config, data)
        self.optimizers = {
            "student": _adam(self.model.student, config.learning_rate, config.betas),
            "fusion": _adam(self.model.fusion, config.fusion_learning_rate, config.betas),
        }
        self.networks = self._networks()
        self.untried = {False, True} if config.compile else set()  # stages (fusing?) yet to be compiled
        self.known = known_features(config, model.teacher, data)
        learn_positions(config, model, data, self.known)
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[list[float]] = []

    @property
    def fusing(self) -> bool:
        """Whether this iteration belongs to stage 2."""
        return self.iteration >= self.config.fusion_start * self.config.iterations

    def teacher_features(self, views: list[Tensor], index: Tensor | None) -> list[tuple[Tensor, ...]]:
        """T(x_n) and T(x_a); the former from memory if it is kept and `index` tells the images."""
        teacher = self.networks["teacher"]
        if self.known is None or index is None or self.config.illumination:
            together = torch.cat(views).contiguous(memory_format=torch.channels_last)
            features = [f.chunk(len(views)) for f in teacher(together)]
            return [tuple(f[view] for f in features) for view in range(len(views))]
        index = send(index, self.device)
        others = [v.contiguous(memory_format=torch.channels_last) for v in views[1:]]
        return [tuple(f[index] for f in self.known), *(teacher(view) for view in others)]

    def losses(self, pairs: Pairs, index: Tensor | None = None, learn: bool = False) -> Losses:
        """L_NGM, L_AIM and, in stage 2, L_MSN of a batch, its normal images those of `index`. Batch norm sees
        either view on its own.

        learn: add their gradients too, one view after the other. That gives the same gradients as all at
        once, and only one view's activations are in memory at a time.
        """
        views = [pairs.normal, pairs.anomalous] if self.config.pairs else [pairs.normal]
        masks = [torch.zeros_like(pairs.mask), pairs.mask][: len(views)]
        with autocast(self.device, self.config.precision):
            teacher = self.teacher_features(views, index)
        found = []
        for images, seen, mask in zip(views, teacher, masks, strict=True):
            with autocast(self.device, self.config.precision):
                view = self.networks["distillation"](images, seen, teacher[0], mask, self.fusing)
            if learn:
                (view.ngm + self.config.aim_weight * view.aim).backward()
            found.append(view)
        ngm, aim = sum(view.ngm for view in found), sum(view.aim for view in found)
        if not self.fusing:
            return Losses(ngm, aim, torch.full((), torch.nan, device=self.device))
        seen = [view.maps for view in found]
        damaged = fusion_view(pairs, self.config, self.iteration)
        if damaged is not pairs.anomalous:
            with torch.no_grad(), autocast(self.device, self.config.precision):
                teacher[1] = self.networks["teacher"](damaged)
                seen[1] = sum(self.model.branch_maps(damaged, teacher[1]), ())
        maps = torch.cat(self.fusion_inputs(seen, teacher))
        with autocast(self.device, self.config.precision):
            msn = fusion_loss(self.networks["fusion"], maps, torch.cat(masks), self.config, self.iteration)
        if learn:
            msn.backward()
        return Losses(ngm, aim, msn)

    @torch.no_grad()
    def fusion_inputs(self, views: list[Features], teacher: list[Features]) -> list[Tensor]:
        """What the fusion sees of either view, whose branches' maps and teacher features these are. The maps'
        usual levels are learned from the normal one, and the statistics of positions leave out each image
        itself, as if it were a new one."""
        model = self.model
        if model.position is not None:
            own = None if self.config.illumination else teacher[0]  # in other light it is another image
            positions = model.position.of_views(teacher, own)
            views = [(*maps, *of_view) for maps, of_view in zip(views, positions, strict=True)]
        first = self.iteration == math.ceil(self.config.fusion_start * self.config.iterations)
        usual = usual_distances(model.student, teacher[0])
        model.calibration.observe(views[0], usual, 1.0 if first else LEVEL_SHARE)
        return [model.calibration(maps) for maps in views]

    def step(self) -> Losses:
        """One iteration: pairs, losses, and a step of the networks that learn in this stage."""
        for name, optimizer in self.optimizers.items():
            base = self.config.learning_rate if name == "student" else self.config.fusion_learning_rate
            for group in optimizer.param_groups:
                group["lr"] = base * learning_rate_factor(self.config, self.iteration)
            optimizer.zero_grad(set_to_none=True)
        index = send(self.pairs.indices(self.iteration), self.device)
        pairs = self.pairs.batch(self.iteration, index)
        trial = self.fusing in self.untried
        losses = self._compiled_losses(pairs, index) if trial else self.losses(pairs, index, True)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.student.parameters(), self.config.clip_norm)
        self.optimizers["student"].step()
        if self.fusing:
            self.optimizers["fusion"].step()
        self.iteration += 1
        return Losses(*(loss.detach() for loss in losses))

    def _compiled_losses(self, pairs: Pairs, index: Tensor) -> Losses:
        """The first losses of compiled networks in a stage; where they cannot be compiled, it warns, and
        training goes on without."""
        before = copy.deepcopy(self.model.state_dict())  # batch norm counts what it sees
        if len(self.untried) == 2:
            self.networks = {name: torch.compile(network) for name, network in self.networks.items()}
        self.untried = self.untried - {self.fusing}
        try:
            return self.losses(pairs, index, True)
        except Exception as error:  # a compiler that is missing or fails raises whatever it likes
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"compile=True fails here ({reason}); training without", stacklevel=2)
        self.untried = set()
        self.networks = self._networks()
        self.model.load_state_dict(before)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return self.losses(pairs, index, True)

    def _networks(self) -> dict[str, nn.Module]:
        """What an iteration calls, as it is; compiled ones may take their places."""
        return {
            "teacher": self.model.teacher,
            "distillation": Distillation(self.config, self.model.student),
            "fusion": self.model.fusion,
        }

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
            "calibration": self.model.calibration.state_dict(),
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
        self.model.calibration.load_state_dict(state["calibration"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def prepare(device: torch.device):
    """What makes a training of fixed sizes fast on this device, for the whole process."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # the fastest of its convolutions, found in the first steps
    else:
        keep_freed_memory()


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


def learn_positions(config: Config, model: DMDD, data: TrainingData, known: Features | None):
    """Fit what the model knows of positions, the student's prior and the statistics, to train/good."""

    def batches():
        if known is not None:
            yield from zip(*(scale.split(8) for scale in known), strict=True)
            return
        for images in data.images.split(8):
            with autocast(data.images.device, config.precision):  # ends before the yield, or it would leak
                features = next(model.teacher.stream(images))
            yield features

    if config.position_prior:
        set_prior(model.student, mean_features(batches()))
    if model.position is not None:
        model.position.fit(batches)


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Share of the full learning rate: a linear warm-up, then constant or half a cosine to zero. [ours]"""
    warm = config.warmup * config.iterations
    if iteration < warm:
        return (iteration + 1) / math.ceil(warm)
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (iteration - warm) / (config.iterations - warm))
