"""The other student: the decoder of reverse distillation, whose input is the teacher's features.

Legend: B images, C_k channels, H_k x W_k cells of scale k (strides 4, 8, 16).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .losses import Features
from .student import Student, conv_norm
from .teacher import FeatureInfo

LEAST_WIDTH = 64  # channels of a decoder stage: small teachers are too thin to mirror exactly [ours]


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
