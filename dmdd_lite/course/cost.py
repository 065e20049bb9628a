"""What a training costs in operations, and the least time that they take on a device. [ours]

One multiply-add counts as two operations. Only convolutions and matrix products are counted, as PyTorch's own
counter does; what is left (norms, losses, synthesis, launches) makes the real time longer than the floor.
"""

import statistics
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..losses import distance_maps
from ..model import DMDD
from ..teacher import empty_teacher
from ..utils import precision_of


class Operations(NamedTuple):
    """Operations of one training pair (two views), in the mean over a training: the teacher forward; the
    student forward, and back while it learns; the fusion forward and back, in its own stage."""

    teacher: int
    student: int
    msn: int

    @property
    def total(self) -> int:
        return sum(self)


def pair_operations(config: Config) -> Operations:
    """Count the operations of a pair, without computing any: on PyTorch's meta device, so that no weights are
    needed. Raises TeacherError for an unknown teacher."""
    model = _on_meta(config).train()
    images = torch.empty(2, 3, *config.size, device="meta")
    with FlopCounterMode(display=False) as teaching:
        features = model.teacher(images)
    with FlopCounterMode(display=False) as learning:
        output = model.student(images, features)
        maps = tuple(m for branch in output for m in distance_maps(branch, features))
        sum(m.sum() for m in maps).backward()
    with FlopCounterMode(display=False) as looking, torch.no_grad():
        model.student(images, features)
    with FlopCounterMode(display=False) as fusing:
        model.msn(model.calibration(maps).maps).logits.sum().backward()
    teach, learn, look, fuse = (c.get_total_flops() for c in (teaching, learning, looking, fusing))
    share = config.student_iterations / config.iterations
    return Operations(teach, round(share * learn + (1 - share) * look), round((1 - share) * fuse))


def image_operations(config: Config) -> int:
    """Operations of the forward pass of one image, counted as `pair_operations` does; what it raises."""
    model = _on_meta(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *config.size, device="meta"))
    return counter.get_total_flops()


def _on_meta(config: Config) -> DMDD:
    teacher = empty_teacher(config.teacher, config.teacher_options, config.image_size)
    return DMDD(config, teacher).to("meta")


@torch.no_grad()
def convolution_rate(device: torch.device | str = "cpu", repeats: int = 5, precision: str = "auto") -> float:
    """Operations a second that this device reaches on a 3 x 3 convolution, its operands already in the
    precision of training: the median of several timings. A GPU gets a larger convolution, several times in a
    row, so that neither launching nor waiting counts."""
    device = torch.device(device)
    batch, channels, calls = (64, 256, 10) if device.type == "cuda" else (8, 128, 1)
    place = {"device": device, "dtype": precision_of(device, precision)}
    x = torch.randn(batch, channels, 64, 64, **place).to(memory_format=torch.channels_last)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **place)
    layer = layer.to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            layer(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return calls * counter.get_total_flops() / statistics.median(seconds[1:])
