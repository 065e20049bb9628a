"""The student of DMDD: a network whose features are decoupled at every scale.

The dual-branch decoupling is the paper's [paper]; that 1x1 convolutions widen C to 2C channels which are
then split in halves is a summary's [summary]. The network before it is an encoder of the teacher's own
structure [ours], or the decoder of reverse distillation that the same authors' published code uses
[authors], sized from any teacher [ours].

Legend: B images, C_k channels, H_k x W_k pixels of scale k (strides 4, 8, 16).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .losses import Features
from .teacher import FeatureInfo, untrained_network

BRANCHES = ("normality", "abnormality")


class StudentOutput(NamedTuple):
    """Per scale, from fine to coarse: two features of the teacher's own shape (B, C_k, H_k, W_k); () for a
    branch that the student does not have."""

    normality: tuple[Tensor, ...]
    abnormality: tuple[Tensor, ...]


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """A ResNet block, basic or (wide) bottleneck, that keeps, halves or doubles the resolution.

    forward: (B, inputs, H, W) -> (B, outputs, H', W') with H' = H / 2, H or 2 H.
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1, wide: bool = False):
        super().__init__()
        middle = outputs // 2 if wide else outputs
        first = conv_norm(inputs, middle, 1) if wide else nn.Identity()
        second = self._resize(middle if wide else inputs, middle, scale)
        last = conv_norm(middle, outputs, 1 if wide else 3, relu=False)
        self.body = nn.Sequential(first, second, last)
        self.skip = (
            nn.Identity() if (inputs, scale) == (outputs, 1) else self._shortcut(inputs, outputs, scale)
        )

    @staticmethod
    def _resize(inputs, outputs, scale):
        if scale == 2:
            up = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
            return nn.Sequential(up, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        return conv_norm(inputs, outputs, 3, 2 if scale == 0.5 else 1)

    @staticmethod
    def _shortcut(inputs, outputs, scale):
        if scale == 2:
            up = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
            return nn.Sequential(up, nn.BatchNorm2d(outputs))
        return conv_norm(inputs, outputs, 1, 2 if scale == 0.5 else 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


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
            steps = [conv_norm(a, b, 3, 2) for a, b in pairwise(sizes)]
            self.down.append(nn.Sequential(*steps))
        fused = sum(widths[-1] for _ in channels[:-1]) + channels[-1]
        self.embed = stage(fused, 2 * widths[-1], 3, 0.5, wide)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        aligned = [down(f) for down, f in zip(self.down, features, strict=True)]
        return self.embed(torch.cat(aligned, dim=1))  # B, 2 C_3, H_3 / 2, W_3 / 2


class Decoupling(nn.Module):
    """1x1 convolutions from the student's to twice the teacher's channels, split in halves. [summary]

    forward: (B, width, H, W) -> normality, abnormality, both (B, C, H, W). Both halves have the same
    capacity. Two convolutions, batch norm, ReLU where the teacher is rectified, and the prior, are ours;
    with `branches` = 1 nothing is split. prior: side H of a map (1, C, H, H) added to the first half before
    the ReLU, zero until it is set; 0 = none.
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


class EncoderStudent(nn.Module):
    """A student of the teacher's own structure, as the abstract's criticism of structural differences
    suggests [ours]: the image in, an untrained network like the teacher's, the decoupling at every scale.

    forward: images (B, 3, H, W) in [0, 1], teacher features (unused) -> StudentOutput.
    """

    def __init__(
        self,
        info: FeatureInfo,
        name: str,
        options: dict | None = None,
        branches=BRANCHES,
        prior: int = 0,
    ):
        super().__init__()
        self.branches = branches
        self.network = untrained_network(name, options)
        self.decouple = _decouplings(info.channels, info, branches, prior)

    def forward(self, images: Tensor, features: tuple[Tensor, ...]) -> StudentOutput:
        return _decouple(self.decouple, self.network(2 * images - 1), self.branches)


class DecoderStudent(nn.Module):
    """Reverse distillation: the teacher's features in, squeezed, and decoded from coarse to fine. [authors]

    forward: images (unused), teacher features -> StudentOutput. Each stage hands on its *unsplit* feature,
    and is at least `width` channels wide [ours]. prior: the images' side if the outputs have a prior
    [ours], see Decoupling; 0 = none.
    """

    def __init__(
        self,
        info: FeatureInfo,
        blocks=(2, 2, 2),
        width: int = 64,
        branches=BRANCHES,
        prior: int = 0,
    ):
        super().__init__()
        self.branches = branches
        widths = tuple(max(c, width) for c in info.channels)
        wide, inputs = is_wide(info), (2 * widths[2], widths[2], widths[1])
        self.bottleneck = Bottleneck(info.channels, widths, wide)
        sizes = zip(inputs, reversed(widths), blocks, strict=True)
        self.stages = nn.ModuleList(stage(i, o, n, 2, wide) for i, o, n in sizes)  # coarse to fine
        self.decouple = _decouplings(widths, info, branches, prior)

    def forward(self, images: Tensor, features: tuple[Tensor, ...]) -> StudentOutput:
        hidden, unsplit = self.bottleneck(features), []
        for decode in self.stages:
            hidden = decode(hidden)  # doubles H, W
            unsplit.append(hidden)
        return _decouple(self.decouple, reversed(unsplit), self.branches)


def is_standardised(config, info: FeatureInfo) -> bool:
    """Whether `config.standardise` applies to a teacher with these features."""
    return config.standardise == "always" or (config.standardise == "rectified" and all(info.rectified))


def is_wide(info: FeatureInfo) -> bool:
    """Whether the teacher's own blocks are (wide) bottlenecks, to be mirrored, as a ResNet-50's are."""
    return info.channels[0] >= 256


def _decouplings(widths, info: FeatureInfo, branches, prior: int) -> nn.ModuleList:
    sizes = zip(widths, info.channels, info.rectified, info.strides, strict=True)
    return nn.ModuleList(Decoupling(w, c, r, len(branches), prior // s) for w, c, r, s in sizes)


def start_at_statistics(student: nn.Module, *moments: tuple[Features, Features]):
    """Let every channel of each branch, in their order, begin with a mean and a standard deviation, per scale
    (C_k,) each: those of the teacher's features, or of what they differ from the prior by. [ours]

    Batch norm begins at 0 and 1. From there the learning rate cannot reach features of another size within
    a short training.
    """
    for k, decoupling in enumerate(student.decouple):
        norm = decoupling.expand[-1]
        norm.bias.data.copy_(torch.cat([means[k] for means, _ in moments]))
        norm.weight.data.copy_(torch.cat([spreads[k] for _, spreads in moments]))


def set_prior(student: nn.Module, means: Features):
    """Let the normality branch begin at these features, per scale (1, C_k, H_k, W_k), what it has learned
    being what is added. [ours]"""
    for decoupling, mean in zip(student.decouple, means, strict=True):
        decoupling.prior.copy_(mean)


def _decouple(decouplings: nn.ModuleList, hidden, branches) -> StudentOutput:
    scales = [split(h) for split, h in zip(decouplings, hidden, strict=True)]
    found = dict(zip(branches, zip(*scales, strict=True), strict=True))
    return StudentOutput(*(found.get(name, ()) for name in BRANCHES))


def build_student(config, info: FeatureInfo) -> nn.Module:
    """The student that `config.student` names, for a teacher with these features; standardised ones are
    signed, whatever the network gives."""
    if is_standardised(config, info):
        info = info._replace(rectified=(False,) * len(info.channels))
    branches = tuple(name for name in BRANCHES if name in config.branches)
    prior = config.image_size if config.position_prior and "normality" in branches else 0
    if config.student == "encoder":
        return EncoderStudent(info, config.teacher, config.teacher_options, branches, prior)
    blocks = config.student_blocks or ((3, 4, 6) if is_wide(info) else (2, 2, 2))
    return DecoderStudent(info, blocks, config.student_width, branches, prior)
