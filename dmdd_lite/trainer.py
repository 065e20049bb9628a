"""One iteration of training, and the state that it advances: both branches' distillation, then the fusion.

Stage 1, the first `student_iterations`, trains the student; in stage 2 the segmentation network learns on the
maps of the finished student. Maps of a student that still learns are of another kind than those that the
network is asked about in the end.
"""

import copy
import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alterations import altered_view
from .checkpoints import FORMAT, TrainingError
from .config import Config, differences
from .data.images import send
from .losses import AimLoss, Features, aim_loss, ngm_loss
from .model import DMDD
from .msn_training import loss_on_maps, msn_inputs
from .pairs import Pairs
from .plus.statistics import channel_moments, mean_features
from .student import set_prior, start_at_statistics
from .teacher import Teacher
from .training_data import PairSource, TrainingData
from .utils import autocast, keep_freed_memory, precision_of

LEVEL_IMAGES = 128  # of the training, at most, from which stage 2 takes the levels of the maps


class Losses(NamedTuple):
    """Scalars of one iteration; msn is NaN in stage 1, the others in stage 2. aim_inside and aim_outside are
    the parts of L_AIM of the anomalous view."""

    ngm: Tensor
    aim: Tensor
    msn: Tensor
    aim_inside: Tensor
    aim_outside: Tensor


class ViewLosses(NamedTuple):
    """Of one view: L_NGM and L_AIM, 0 for a branch that is not there."""

    ngm: Tensor
    aim: AimLoss


class Distillation(nn.Module):
    """The student and its losses on one view, in one module, which a compiler can see as a whole.

    forward: images (B, 3, H, W); teacher features of these images and of the normal ones; mask (B, H, W) of
    the anomaly -> ViewLosses.
    """

    def __init__(self, config: Config, student: nn.Module):
        super().__init__()
        self.config, self.student = config, student

    def forward(self, images, seen: Features, normal: Features, mask: Tensor) -> ViewLosses:
        config = self.config
        output = self.student(images, seen)
        # in full precision from here on, converted once
        same = normal is seen
        seen = tuple(f.float() for f in seen)
        normal = seen if same else tuple(f.float() for f in normal)
        normality, abnormality = (tuple(f.float() for f in branch) for branch in output)
        ngm = torch.zeros((), device=images.device)
        aim = AimLoss(ngm, ngm, ngm)
        if normality:
            ngm = ngm_loss(normality, normal, mask, config.ngm_form)
        if abnormality:
            aim = aim_loss(abnormality, seen, mask)
        return ViewLosses(ngm, aim)


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
            "msn": _adam(self.model.msn, config.msn_learning_rate, config.betas),
        }
        self.networks = self._networks()
        self.untried = {False, True} if config.compile else set()  # stages (fusing?) yet to be compiled
        self.known = known_features(config, model.teacher, data)
        start_model(config, model, data, self.known)
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[list[float]] = []

    @property
    def fusing(self) -> bool:
        """Whether this iteration belongs to stage 2."""
        return self.iteration >= self.config.student_iterations

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
        """L_NGM and L_AIM of a batch in stage 1, L_MSN in stage 2; its normal images are those of `index`.

        learn: also accumulate gradients.
        """
        return (self._msn_losses if self.fusing else self._student_losses)(pairs, index, learn)

    def _student_losses(self, pairs: Pairs, index: Tensor | None, learn: bool) -> Losses:
        """Batch norm sees either view on its own, and the gradients come one view after the other: the same
        as all at once, and only one view's activations are in memory at a time."""
        views = [pairs.normal, pairs.anomalous] if self.config.pairs else [pairs.normal]
        masks = [torch.zeros_like(pairs.mask), pairs.mask][: len(views)]
        with autocast(self.device, self.config.precision):
            teacher = self.teacher_features(views, index)
        found = []
        for images, seen, mask in zip(views, teacher, masks, strict=True):
            with autocast(self.device, self.config.precision):
                view = self.networks["distillation"](images, seen, teacher[0], mask)
            if learn:
                (view.ngm + self.config.aim_weight * view.aim.total).backward()
            found.append(view)
        ngm, aim = sum(view.ngm for view in found), sum(view.aim.total for view in found)
        return Losses(ngm, aim, self._unknown(), found[-1].aim.inside, found[-1].aim.outside)

    def _msn_losses(self, pairs: Pairs, index: Tensor | None, learn: bool) -> Losses:
        config, views = self.config, [pairs.normal, altered_view(pairs, self.config, self.iteration)]
        masks = torch.cat((torch.zeros_like(pairs.mask), pairs.mask))
        with autocast(self.device, config.precision):
            maps = msn_inputs(self.model, views, self.teacher_features(views, index))
        with autocast(self.device, config.precision):
            msn = loss_on_maps(self.networks["msn"], maps, masks, config)
        if learn:
            msn.backward()
        return Losses(self._unknown(), self._unknown(), msn, self._unknown(), self._unknown())

    def _unknown(self) -> Tensor:
        return torch.full((), torch.nan, device=self.device)

    def finish_student(self):
        """The student is as it will be used; the levels of its maps are those on training images, from which
        the fusion learns."""
        self.model.eval()
        if self.iteration == self.config.student_iterations:  # else they are in the checkpoint
            self.model.calibrate(self.data.images[:: -(-len(self.data.images) // LEVEL_IMAGES)])

    def step(self) -> Losses:
        """One iteration: pairs, losses, and a step of the network that learns in this stage."""
        if self.fusing and self.model.training:
            self.finish_student()
        for name, optimizer in self.optimizers.items():
            base = self.config.learning_rate if name == "student" else self.config.msn_learning_rate
            for group in optimizer.param_groups:
                group["lr"] = base * learning_rate_factor(self.config, self.iteration)
            optimizer.zero_grad(set_to_none=True)
        index = send(self.pairs.indices(self.iteration), self.device)
        pairs = self.pairs.batch(self.iteration, index)
        trial = self.fusing in self.untried
        losses = self._compiled_losses(pairs, index) if trial else self.losses(pairs, index, True)
        if self.config.clip_norm and not self.fusing:
            torch.nn.utils.clip_grad_norm_(self.model.student.parameters(), self.config.clip_norm)
        self.optimizers["msn" if self.fusing else "student"].step()
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
            "msn": self.model.msn,
        }

    def state(self) -> dict:
        """Plain tensors and numbers from which `restore` goes on to the same weights."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "data": self.data.fingerprint,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "history": self.history,
            "student": self.model.student.state_dict(),
            "msn": self.model.msn.state_dict(),
            "calibration": self.model.calibration.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
        }

    def restore(self, state: dict):
        """Raises TrainingError if the state is of another configuration or other images."""
        if state.get("format") != FORMAT:
            raise TrainingError("the checkpoint is of another version of dmdd-lite, train again")
        changed = differences(Config.from_dict(state["config"]), self.config)
        if state["data"] != self.data.fingerprint:
            changed.append("the training or texture images differ")
        if changed:
            raise TrainingError(f"the checkpoint is of another run ({'; '.join(changed)})")
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.history = [list(row) for row in state["history"]]
        self.model.student.load_state_dict(state["student"])
        self.model.msn.load_state_dict(state["msn"])
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
        for features in teacher.stream(data.images):
            parts.append([f.bfloat16() if low else f for f in features])
    return tuple(torch.cat(scale) for scale in zip(*parts, strict=True))


def start_model(config: Config, model: DMDD, data: TrainingData, known: Features | None):
    """What the model knows of train/good before the first step: the prior, the channels' statistics with
    which either branch begins, and the statistics of positions. [ours]"""

    def batches():
        if known is not None:
            yield from zip(*(scale.split(8) for scale in known), strict=True)
            return
        for images in data.images.split(8):
            with autocast(data.images.device, config.precision):  # ends before the yield, or it would leak
                features = next(model.teacher.stream(images))
            yield features

    priors = {}
    if model.student.decouple[0].prior is not None:
        priors["normality"] = mean_features(batches())
        set_prior(model.student, priors["normality"])
    moments = channel_moments(batches(), *(priors.get(branch) for branch in model.student.branches))
    start_at_statistics(model.student, *moments)
    if model.position is not None:
        model.position.fit(batches, model.position.arithmetic_noise(model.teacher, data.images))


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Share of the full learning rate: in either stage a linear warm-up, then constant or half a cosine to
    zero. [ours]"""
    length = config.student_iterations
    if iteration >= length:
        iteration, length = iteration - length, config.iterations - length
    warm = config.warmup * length
    if iteration < warm:
        return (iteration + 1) / math.ceil(warm)
    if config.schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (iteration - warm) / (length - warm))
