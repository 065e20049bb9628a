"""What a training costs: operations, the time that they take on a device, memory, disk. [ours]

One multiply-add counts as two operations. Only convolutions and matrix products are counted, as PyTorch's own
counter does; what is left (norms, losses, synthesis, launches) makes the real time longer than the floor.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..config import MVTEC_CATEGORIES, Config, published_iterations
from ..losses import distance_maps
from ..model import DMDD
from ..plus.statistics import PositionStatistics
from ..teacher import empty_teacher
from ..utils import precision_of

#: name: dense operations per second and gigabytes of memory, of NVIDIA's data sheets
GPUS = {
    "T4 float32": (8.1e12, 16),
    "T4 float16": (65e12, 16),
    "A100 bf16": (312e12, 40),
    "H100, H200 bf16": (989e12, 80),
}
#: fraction of that peak that a training is assumed to reach [ours]
UTILISATION = {"float32": 0.4, "float16": 0.15, "bf16": 0.15}


class Operations(NamedTuple):
    """Operations of one training pair (two views), in the mean over a training: the teacher forward; the
    student forward, and back while it learns; the fusion forward and back, in its own stage."""

    teacher: int
    student: int
    msn: int

    @property
    def total(self) -> int:
        return sum(self)


class Sizes(NamedTuple):
    """Bytes in float32. In memory: the weights, the student's gradients and both moments of Adam; what
    autograd keeps of one view of a batch. On disk: the checkpoint of an unfinished run; the detector."""

    networks: int
    activations: int
    checkpoint: int
    detector: int


def pair_operations(config: Config) -> Operations:
    """Count the operations of a pair, without computing any: on PyTorch's meta device, so that no weights are
    needed. Raises TeacherError for an unknown teacher."""
    model, images = _on_meta(config, 2)
    features, teach = _counted(lambda: model.teacher(images))
    maps, learn = _counted(lambda: _maps(model, images, features))
    _, back = _counted(lambda: sum(m.sum() for m in maps).backward())
    with torch.no_grad():
        _, look = _counted(lambda: model.student(images, features))
    _, fuse = _counted(lambda: model.msn(model.calibration(maps).maps).logits.sum().backward())
    share = config.student_iterations / config.iterations
    student = round(share * (learn + back) + (1 - share) * look)
    return Operations(teach, student, round((1 - share) * fuse))


def image_operations(config: Config) -> int:
    """Operations of the forward pass of one image, counted as `pair_operations` does; what it raises."""
    model, image = _on_meta(config, 1)
    with torch.no_grad():
        return _counted(lambda: model.eval()(image))[1]


def sizes(config: Config) -> Sizes:
    """Counted on the meta device, as `pair_operations` does; what it raises."""
    model, images = _on_meta(config, 1)
    known = {w.untyped_storage()._cdata for w in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    features = model.teacher(images)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        _graph = _maps(model, images, features)  # alive: a freed storage's number may come again
    activations = config.batch_size * sum(size for number, size in kept.items() if number not in known)
    networks, learned, statistics = _bytes(model), _bytes(model.student), 0
    if config.plus is not None:
        with torch.device("meta"):
            statistics = _bytes(PositionStatistics(config.plus, model.teacher.info, config.image_size))
    return Sizes(networks + 3 * learned, activations, 3 * learned, networks + statistics)


def minutes(operations: int, batch: int, categories: Sequence[str] = MVTEC_CATEGORIES) -> pd.DataFrame:
    """One row per category, trained for its iterations [authors] with `operations` per pair: iterations,
    pairs, PFLOP, and minutes on each of GPUS at its peak times UTILISATION."""
    steps = [published_iterations(name) for name in categories]
    table = pd.DataFrame({"iterations": steps}, index=pd.Index(categories, name="category"))
    table["pairs"] = batch * table["iterations"]
    table["PFLOP"] = table["pairs"] * operations / 1e15
    for gpu, (peak, _) in GPUS.items():
        rate = peak * UTILISATION[gpu.split()[-1]]
        table[gpu] = table["pairs"] * operations / rate / 60
    return table


def _on_meta(config: Config, images: int) -> tuple[DMDD, Tensor]:
    """The networks, training, and images (N, 3, S, S)."""
    teacher = empty_teacher(config.teacher, config.teacher_options, config.image_size)
    with torch.device("meta"):
        model = DMDD(config, teacher).to("meta").train()
        return model, torch.empty(images, 3, *config.size)


def _maps(model: DMDD, images: Tensor, features) -> list[Tensor]:
    """Distances of both branches at all scales."""
    return [d for branch in model.student(images, features) for d in distance_maps(branch, features)]


def _bytes(network: nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values())


def _counted(function: Callable) -> tuple:
    """What the function returns, and its operations."""
    with FlopCounterMode(display=False) as counter:
        found = function()
    return found, counter.get_total_flops()


@torch.no_grad()
def convolution_rate(device: torch.device | str = "cpu", precision: str = "auto") -> float:
    """Operations a second that this device reaches on a 3 x 3 convolution, its operands already in the
    precision of training: the median of five timings. A GPU gets a larger convolution, several times in a
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
    for _ in range(6):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            layer(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return calls * counter.get_total_flops() / statistics.median(seconds[1:])
