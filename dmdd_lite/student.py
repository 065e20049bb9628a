"""The student of DMDD: a decoder (or encoder) whose features are decoupled at every scale.

The dual-branch decoupling is the paper's [paper]; that a 1x1 convolution widens C to 2C channels which are
then split in halves is a summary's [summary]; the reverse-distillation decoder around it is the one that
the same authors' published code uses [authors], here sized from any teacher [ours].

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
    carry what was not in the training images. `factor` 1 or 4 instead of 2 is for experiments [ours].
    """

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...], wide: bool, factor: int = 2):
        super().__init__()
        self.down = nn.ModuleList()
        for k in range(len(channels)):
            sizes = (channels[k], *widths[k + 1 :])
            steps = [conv_norm(a, b, 3, 2) for a, b in pairwise(sizes)]
            self.down.append(nn.Sequential(*steps))
        fused = sum(widths[-1] for _ in channels[:-1]) + channels[-1]
        self.embed = stage(fused, 2 * widths[-1], 3, 1 if factor == 1 else 0.5, wide)
        if factor == 4:
            self.embed.append(ResidualBlock(2 * widths[-1], 2 * widths[-1], 0.5, wide))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        aligned = [down(f) for down, f in zip(self.down, features, strict=True)]
        return self.embed(torch.cat(aligned, dim=1))  # B, 2 C_3, H_3 / factor, W_3 / factor


class Decoupling(nn.Module):
    """1x1 convolutions from the student's to twice the teacher's channels, split in halves. [summary]

    forward: (B, width, H, W) -> normality, abnormality, both (B, C, H, W). Both halves have the same
    capacity. `depth` of the convolutions, batch norm, ReLU where the teacher is rectified, and the prior, are
    ours; with `branches` = 1 nothing is split. prior: side H of a map (1, C, H, H) added to either half
    before the ReLU, zero until it is set; 0 = none.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        rectified: bool,
        norm_relu: bool,
        branches: int = 2,
        prior: int = 0,
        depth: int = 1,
    ):
        super().__init__()
        self.branches = branches
        widths = (width, *[branches * max(width, channels)] * (depth - 1))
        layers = [conv_norm(a, b, 1) for a, b in pairwise(widths)]
        layers.append(nn.Conv2d(widths[-1], branches * channels, 1, bias=not norm_relu))
        if norm_relu:
            layers.append(nn.BatchNorm2d(branches * channels))
        self.expand = nn.Sequential(*layers)
        self.last = nn.ReLU() if norm_relu and rectified else nn.Identity()
        self.register_buffer("prior", torch.zeros(1, channels, prior, prior) if prior else None)

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        halves = self.expand(feature).chunk(self.branches, dim=1)
        if self.prior is not None:
            halves = tuple(half + self.prior.to(half.dtype) for half in halves)
        return tuple(self.last(half) for half in halves)


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
        norm_relu: bool = True,
        bottleneck: int = 2,
        branches=BRANCHES,
        prior: int = 0,
        depth: int = 1,
    ):
        super().__init__()
        self.branches = branches
        widths = tuple(max(c, width) for c in info.channels)
        self.bottleneck, self.stages = _decoder(info, widths, blocks, bottleneck)
        embedded = 2 * widths[2]
        enlarge = bottleneck == 4
        self.enlarge = ResidualBlock(embedded, embedded, 2, is_wide(info)) if enlarge else nn.Identity()
        self.decouple = _decouplings(widths, info, norm_relu, branches, prior, depth)

    def forward(self, images: Tensor, features: tuple[Tensor, ...]) -> StudentOutput:
        hidden, unsplit = self.enlarge(self.bottleneck(features)), []
        for decode in self.stages:
            hidden = decode(hidden)  # doubles H, W
            unsplit.append(hidden)
        return _decouple(self.decouple, reversed(unsplit), self.branches)


class EncoderStudent(nn.Module):
    """A student of the teacher's own structure, as the abstract's criticism of structural differences
    suggests [ours]: the image in, one untrained copy of the teacher, the same decoupling.

    forward: images (B, 3, H, W) in [0, 1], teacher features (unused) -> StudentOutput.
    """

    def __init__(
        self,
        info: FeatureInfo,
        name: str,
        options: dict | None = None,
        norm_relu: bool = True,
        branches=BRANCHES,
        prior: int = 0,
        depth: int = 1,
    ):
        super().__init__()
        self.branches = branches
        self.network = untrained_network(name, options)
        self.decouple = _decouplings(info.channels, info, norm_relu, branches, prior, depth)

    def forward(self, images: Tensor, features: tuple[Tensor, ...]) -> StudentOutput:
        return _decouple(self.decouple, self.network(2 * images - 1), self.branches)


class EncoderDecoderStudent(nn.Module):
    """The image in, an untrained copy of the teacher as encoder, the decoder's bottleneck and stages, and the
    encoder's features beside each stage. An encoder-decoder is DeSTSeg's student [field]; the skips are ours:
    abnormality features must follow the teacher at every normal pixel, right up to the anomaly.

    forward: images (B, 3, H, W) in [0, 1], teacher features (unused) -> StudentOutput.
    """

    def __init__(
        self,
        info: FeatureInfo,
        name: str,
        options: dict | None = None,
        blocks=(2, 2, 2),
        width: int = 64,
        norm_relu: bool = True,
        branches=BRANCHES,
        prior: int = 0,
        depth: int = 1,
    ):
        super().__init__()
        self.branches = branches
        self.network = untrained_network(name, options)
        widths = tuple(max(c, width) for c in info.channels)
        self.bottleneck, self.stages = _decoder(info, widths, blocks)
        skips = zip(reversed(info.channels), reversed(widths), strict=True)
        self.merge = nn.ModuleList(conv_norm(c + w, w) for c, w in skips)
        self.decouple = _decouplings(widths, info, norm_relu, branches, prior, depth)

    def forward(self, images: Tensor, features: tuple[Tensor, ...]) -> StudentOutput:
        encoded = self.network(2 * images - 1)
        hidden, unsplit = self.bottleneck(encoded), []
        for decode, merge, own in zip(self.stages, self.merge, reversed(encoded), strict=True):
            hidden = merge(torch.cat((own, decode(hidden)), dim=1))
            unsplit.append(hidden)
        return _decouple(self.decouple, reversed(unsplit), self.branches)


def _decoder(info: FeatureInfo, widths, blocks, bottleneck: int = 2) -> tuple[Bottleneck, nn.ModuleList]:
    """The bottleneck and the stages from coarse to fine, of these widths; each stage doubles the resolution,
    the first one only if the bottleneck has halved it."""
    wide = is_wide(info)
    squeeze = Bottleneck(info.channels, widths, wide, bottleneck)
    inputs = (2 * widths[2], widths[2], widths[1])
    scales = (1 if bottleneck == 1 else 2, 2, 2)
    coarse_to_fine = zip(inputs, reversed(widths), blocks, scales, strict=True)
    return squeeze, nn.ModuleList(stage(i, o, n, s, wide) for i, o, n, s in coarse_to_fine)


def is_standardised(config, info: FeatureInfo) -> bool:
    """Whether `config.standardise` applies to a teacher with these features."""
    return config.standardise == "always" or (config.standardise == "rectified" and all(info.rectified))


def is_wide(info: FeatureInfo) -> bool:
    """Whether the teacher's own blocks are (wide) bottlenecks, to be mirrored, as a ResNet-50's are."""
    return info.channels[0] >= 256


def _decouplings(widths, info: FeatureInfo, norm_relu, branches, prior: int, depth: int) -> nn.ModuleList:
    sizes = zip(widths, info.channels, info.rectified, info.strides, strict=True)
    count = len(branches)
    return nn.ModuleList(Decoupling(w, c, r, norm_relu, count, prior // s, depth) for w, c, r, s in sizes)


def start_at_statistics(student: nn.Module, means: Features, spreads: Features):
    """Let every channel of both branches begin with a mean and a standard deviation, per scale (C_k,) each:
    those of the teacher's features, or of what they differ from the prior by. [ours]

    Batch norm begins at 0 and 1. From there the learning rate cannot reach features of another size within
    a short training, and a branch stays at its prior.
    """
    for decoupling, mean, spread in zip(student.decouple, means, spreads, strict=True):
        norm = decoupling.expand[-1]
        norm.bias.data.copy_(mean.repeat(decoupling.branches))
        norm.weight.data.copy_(spread.repeat(decoupling.branches))


def set_prior(student: nn.Module, means: Features):
    """Let both branches begin at these features, per scale (1, C_k, H_k, W_k), what they have learned being
    what is added. [ours]"""
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
    blocks = config.student_blocks or ((3, 4, 6) if is_wide(info) else (2, 2, 2))
    common = {
        "norm_relu": config.student_norm_relu,
        "branches": config.branches,
        "prior": config.image_size if config.position_prior else 0,
        "depth": config.student_depth,
    }
    if config.student == "encoder":
        return EncoderStudent(info, config.teacher, config.teacher_options, **common)
    if config.student == "encoder_decoder":
        sizes = {"blocks": blocks, "width": config.student_width}
        return EncoderDecoderStudent(info, config.teacher, config.teacher_options, **sizes, **common)
    return DecoderStudent(info, blocks, config.student_width, bottleneck=config.student_bottleneck, **common)
