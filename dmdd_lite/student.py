"""The student of DMDD: a network whose features are decoupled into two branches at every scale.

The decoupling into two branches is the paper's [paper]; that 1x1 convolutions widen C to 2C channels which
are then split in halves is a summary's [summary]. The network before it is an encoder of the teacher's own
structure [ours], or the decoder of reverse distillation that the same authors' published code uses [authors].

Legend: B images, C_k channels, H_k x W_k cells of scale k (strides 4, 8, 16).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbones.networks import untrained_network
from .losses import Features
from .teacher import FeatureInfo

BRANCHES = ("normality", "abnormality")


class StudentOutput(NamedTuple):
    """Per scale, from fine to coarse, features of the teacher's own shape (B, C_k, H_k, W_k); () for a branch
    that the student does not have."""

    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class Decoupling(nn.Module):
    """1x1 convolutions from the student's to twice the teacher's channels, split in halves. [summary]

    forward: (B, width, H, W) -> normality, abnormality, both (B, C, H, W). Both halves have the same
    capacity. Two convolutions, batch norm, ReLU where the teacher is rectified, and the prior are ours; with
    `branches` = 1 nothing is split. prior: (H, W) of a map (1, C, H, W) added to the first half before the
    ReLU, zero until it is set; () = none.
    """

    def __init__(self, width: int, channels: int, rectified: bool, branches: int = 2, prior=()):
        super().__init__()
        self.branches = branches
        middle = branches * max(width, channels)
        self.expand = nn.Sequential(
            conv_norm(width, middle, 1), *conv_norm(middle, branches * channels, 1, relu=False)
        )
        self.last = nn.ReLU() if rectified else nn.Identity()
        self.register_buffer("prior", torch.zeros(1, channels, *prior) if prior else None)

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        halves = self.expand(feature).chunk(self.branches, dim=1)
        if self.prior is not None:
            halves = (halves[0] + self.prior.to(halves[0].dtype), *halves[1:])
        return tuple(self.last(half) for half in halves)


class Student(nn.Module):
    """What both students share: hidden features at every scale, decoupled.

    forward: images (B, 3, H, W) in [0, 1], teacher features -> StudentOutput.
    """

    def __init__(self, widths, info: FeatureInfo, branches=BRANCHES, prior: tuple[int, ...] = ()):
        super().__init__()
        self.branches = tuple(name for name in BRANCHES if name in branches)
        sizes = zip(widths, info.channels, info.rectified, info.strides, strict=True)
        self.decouple = nn.ModuleList(
            Decoupling(w, c, r, len(self.branches), tuple(side // s for side in prior))
            for w, c, r, s in sizes
        )

    def forward(self, images: Tensor, features: Features) -> StudentOutput:
        hidden = self.hidden(images, features)
        scales = [split(h) for split, h in zip(self.decouple, hidden, strict=True)]
        found = dict(zip(self.branches, zip(*scales, strict=True), strict=True))
        return StudentOutput(*(found.get(name, ()) for name in BRANCHES))


class EncoderStudent(Student):
    """A student of the teacher's own structure, as the abstract's criticism of structural differences
    suggests [ours]: the image is the input of an untrained network like the teacher's, `network`."""

    def __init__(self, info: FeatureInfo, network: nn.Module, **kwargs):
        super().__init__(info.channels, info, **kwargs)
        self.network = network

    def hidden(self, images: Tensor, features: Features) -> Features:
        return self.network(2 * images - 1)


def build_student(config, info: FeatureInfo) -> Student:
    """The student that `config.student` names, for a teacher with these features."""
    prior = config.size if config.prior and "normality" in config.branches else ()
    kwargs = {"branches": config.branches, "prior": prior}
    if config.student == "encoder":
        network = untrained_network(config.teacher, config.teacher_options, config.image_size)
        return EncoderStudent(info, network, **kwargs)
    from .decoder import DecoderStudent  # imports this module

    return DecoderStudent(info, **kwargs)


# ---- where the features begin -------------------------------------------------------------------------


@torch.no_grad()
def start_at_statistics(student: Student, batches: Callable[[], Iterable[Features]]):
    """Let N begin at the mean of the teacher's features at every position, its prior, if it has one; and let
    the last batch norm of either branch begin with the mean and the standard deviation of what is left, per
    channel. [ours]

    batches: gives the teacher's features (B, C_k, H_k, W_k) of good images, once per call. Batch norm would
    begin at 0 and 1, from where a learning rate of some thousandths reaches features of another size late.
    """
    means, squares, positions = moments(batches())
    for k, decoupling in enumerate(student.decouple):
        norm, starts = decoupling.expand[-1], []
        for branch in range(decoupling.branches):
            if branch == 0 and decoupling.prior is not None:
                decoupling.prior.copy_(positions[k])
                mean = torch.zeros_like(means[k])
                square = squares[k] - positions[k][0].square().mean((1, 2))
            else:
                mean, square = means[k], squares[k] - means[k].square()
            starts.append((mean, square.clamp(min=1e-12).sqrt()))
        norm.bias.copy_(torch.cat([mean for mean, _ in starts]))
        norm.weight.copy_(torch.cat([spread for _, spread in starts]))


def moments(batches: Iterable[Features]) -> tuple[Features, Features, Features]:
    """Per scale: mean and mean square of every channel (C_k,), and the mean at every position
    (1, C_k, H_k, W_k)."""
    sums, squares, count = None, None, 0
    for features in batches:
        values = [f.float() for f in features]
        part = [v.sum(0, keepdim=True) for v in values]
        square = [v.square().mean((2, 3)).sum(0) for v in values]
        sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
        squares = square if squares is None else [a + b for a, b in zip(squares, square, strict=True)]
        count += len(values[0])
    positions = tuple(total / count for total in sums)
    means = tuple(p.mean((0, 2, 3)) for p in positions)
    return means, tuple(total / count for total in squares), positions
