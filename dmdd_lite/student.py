"""The student of DMDD: a network whose features are decoupled into two branches at every scale.

The decoupling into two branches is the paper's [paper]; that 1x1 convolutions widen C to 2C channels which
are then split in halves is a summary's [summary]. The network before it is an encoder of the teacher's own
structure [ours], or the decoder of reverse distillation that the same authors' published code uses [authors].

Legend: B images, C_k channels, H_k x W_k cells of scale k (strides 4, 8, 16).
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .losses import Features
from .teacher import FeatureInfo, untrained_network

BRANCHES = ("normality", "abnormality")
LEAST_WIDTH = 64  # channels of a decoder stage: small teachers are too thin to mirror exactly [ours]


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
    `branches` = 1 nothing is split. prior: side H of a map (1, C, H, H) added to the first half before the
    ReLU, zero until it is set; 0 = none.
    """

    def __init__(self, width: int, channels: int, rectified: bool, branches: int = 2, prior: int = 0):
        super().__init__()
        self.branches = branches
        middle = branches * max(width, channels)
        self.expand = nn.Sequential(
            conv_norm(width, middle, 1), *conv_norm(middle, branches * channels, 1, relu=False)
        )
        self.last = nn.ReLU() if rectified else nn.Identity()
        self.register_buffer("prior", torch.zeros(1, channels, prior, prior) if prior else None)

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        halves = self.expand(feature).chunk(self.branches, dim=1)
        if self.prior is not None:
            halves = (halves[0] + self.prior.to(halves[0].dtype), *halves[1:])
        return tuple(self.last(half) for half in halves)


class Student(nn.Module):
    """What both students share: hidden features at every scale, decoupled.

    forward: images (B, 3, H, W) in [0, 1], teacher features -> StudentOutput.
    """

    def __init__(self, widths, info: FeatureInfo, branches=BRANCHES, prior: int = 0):
        super().__init__()
        self.branches = tuple(name for name in BRANCHES if name in branches)
        sizes = zip(widths, info.channels, info.rectified, info.strides, strict=True)
        self.decouple = nn.ModuleList(
            Decoupling(w, c, r, len(self.branches), prior // s) for w, c, r, s in sizes
        )

    def forward(self, images: Tensor, features: Features) -> StudentOutput:
        hidden = self.hidden(images, features)
        scales = [split(h) for split, h in zip(self.decouple, hidden, strict=True)]
        found = dict(zip(self.branches, zip(*scales, strict=True), strict=True))
        return StudentOutput(*(found.get(name, ()) for name in BRANCHES))


class EncoderStudent(Student):
    """A student of the teacher's own structure, as the abstract's criticism of structural differences
    suggests [ours]: the image is the input of an untrained network like the teacher's."""

    def __init__(self, info: FeatureInfo, name: str, options: dict | None = None, **kwargs):
        network = untrained_network(name, options)
        super().__init__(info.channels, info, **kwargs)
        self.network = network

    def hidden(self, images: Tensor, features: Features) -> Features:
        return self.network(2 * images - 1)


class DecoderStudent(Student):
    """Reverse distillation: the teacher's features are the input, squeezed, and decoded from coarse to fine.
    [authors] Each stage passes on its *unsplit* feature [ours]."""

    def __init__(self, info: FeatureInfo, **kwargs):
        widths = tuple(max(c, LEAST_WIDTH) for c in info.channels)
        wide = info.channels[0] >= 256  # the teacher has bottleneck blocks, as a ResNet-50, to be mirrored
        blocks = (3, 4, 6) if wide else (2, 2, 2)  # per stage, from the deepest; RD4AD's [field]
        inputs = (2 * widths[2], widths[2], widths[1])
        bottleneck = Bottleneck(info.channels, widths, wide)
        sizes = zip(inputs, reversed(widths), blocks, strict=True)
        stages = nn.ModuleList(stage(i, o, n, 2, wide) for i, o, n in sizes)  # coarse to fine
        super().__init__(widths, info, **kwargs)
        self.bottleneck, self.stages = bottleneck, stages

    def hidden(self, images: Tensor, features: Features) -> list[Tensor]:
        x, found = self.bottleneck(features), []
        for decode in self.stages:
            x = decode(x)  # doubles H, W
            found.insert(0, x)
        return found


class ResidualBlock(nn.Module):
    """A ResNet block, basic or (wide) bottleneck, that keeps, halves or doubles the resolution.

    forward: (B, inputs, H, W) -> (B, outputs, H', W') with H' = H / 2, H or 2 H.
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1, wide: bool = False):
        super().__init__()
        middle = outputs // 2 if wide else outputs
        first = conv_norm(inputs, middle, 1) if wide else nn.Identity()
        second = _resize(middle if wide else inputs, middle, scale, 3)
        last = conv_norm(middle, outputs, 1 if wide else 3, relu=False)
        self.body = nn.Sequential(first, second, last)
        same = (inputs, scale) == (outputs, 1)
        self.skip = nn.Identity() if same else _resize(inputs, outputs, scale, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _resize(inputs: int, outputs: int, scale: float, kernel: int, relu: bool = True) -> nn.Sequential:
    if scale != 2:
        return conv_norm(inputs, outputs, kernel, 2 if scale == 0.5 else 1, relu)
    layers = [nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def stage(inputs: int, outputs: int, blocks: int, scale: float, wide: bool) -> nn.Sequential:
    """One block that changes the resolution, then `blocks` - 1 that keep it."""
    first = ResidualBlock(inputs, outputs, scale, wide)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1, wide) for _ in range(blocks - 1)))


class Bottleneck(nn.Module):
    """RD4AD's multi-scale feature fusion and one-class embedding. [authors]

    forward: features (B, C_k, H_k, W_k), k = 1, 2, 3 -> embedding (B, 2 C_3, H_3 / 2, W_3 / 2): too small to
    carry what was not in the training images.
    """

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...], wide: bool):
        super().__init__()
        self.down = nn.ModuleList()
        for k in range(len(channels)):
            sizes = (channels[k], *widths[k + 1 :])
            self.down.append(nn.Sequential(*[conv_norm(a, b, 3, 2) for a, b in pairwise(sizes)]))
        fused = sum(widths[-1] for _ in channels[:-1]) + channels[-1]
        self.embed = stage(fused, 2 * widths[-1], 3, 0.5, wide)

    def forward(self, features: Features) -> Tensor:
        aligned = [down(f) for down, f in zip(self.down, features, strict=True)]
        return self.embed(torch.cat(aligned, dim=1))  # B, 2 C_3, H_3 / 2, W_3 / 2


def build_student(config, info: FeatureInfo) -> Student:
    """The student that `config.student` names, for a teacher with these features."""
    prior = config.image_size if config.prior and "normality" in config.branches else 0
    kwargs = {"branches": config.branches, "prior": prior}
    if config.student == "encoder":
        return EncoderStudent(info, config.teacher, config.teacher_options, **kwargs)
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
