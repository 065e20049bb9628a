"""Where computation runs, in which precision, and what the machine is: for results that can be compared."""

import ctypes
import functools
import platform
import resource
import sys
from importlib import metadata

import torch

from .version import __version__


def resolve_device(name: str = "auto") -> torch.device:
    """'auto' = CUDA if there is one, else CPU. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not usable here ({reason}); try 'auto' or 'cpu'") from error
    return device


def precision_of(device: torch.device, precision: str = "auto") -> torch.dtype:
    """What 'auto' (bf16 where the device computes in it natively), 'bf16' or 'float32' comes to there."""
    if precision == "auto":
        precision = "bf16" if _computes_bf16(device.type) else "float32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: str = "auto"):
    """Convolutions in the precision that is asked for; losses and norms' statistics stay float32."""
    dtype = precision_of(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


@functools.cache
def _computes_bf16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            flags = next((line for line in info if line.startswith("flags")), "")
    except OSError:
        return False
    return kind == "cpu" and bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on the device; those of the CPU without waiting for what that still computes."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def unit_range(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images uint8 (B, 3, H, W) as the networks take them: floats in [0, 1] on the device, channels last."""
    return (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)


@functools.cache
def keep_freed_memory():
    """Keep freed memory in this process instead of handing it back and asking for it again in each step of a
    training, which takes page faults; glibc's allocator only, elsewhere it does nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory so far in MB: of the tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def describe(device: torch.device) -> dict:
    """Name of the device, threads, and the versions that a result depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
            "dmdd-lite": __version__,  # which may run from a checkout, not installed
        },
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
