"""Device and precision, atomic writing, progress."""

import contextlib
import ctypes
import functools
import json
import os
import platform
import re
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from .version import __version__


def resolve_device(name: str = "auto") -> torch.device:
    """'auto' = CUDA if there is one, else CPU. Raises ValueError for a device that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not usable here ({reason}); try 'auto' or 'cpu'") from error


def precision_of(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype of 'bf16', 'float32' or 'auto': bf16 where the device computes in it natively."""
    low = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        low = torch.cuda.is_bf16_supported(including_emulation=False)
    elif precision == "auto" and device.type == "cpu":
        low = bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split()))
    return torch.bfloat16 if low else torch.float32


def autocast(device: torch.device, precision: str = "auto"):
    """Convolutions in the given precision; losses and the statistics of norms stay float32."""
    return torch.autocast(device.type, torch.bfloat16, precision_of(device, precision) is torch.bfloat16)


@functools.cache
def _cpuinfo(key: str) -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        return next((line.split(":")[1].strip() for line in info if line.startswith(key)), "")
    return ""


def keep_freed_memory():
    """Let glibc keep freed memory: giving it back and asking again costs page faults in every step."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another allocator
        for option, size in ((-1, 2**31 - 1), (-3, 2**30)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(option, size)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on macOS bytes
    return kilobytes * (1e-6 if sys.platform == "darwin" else 1.024e-3)


def describe(device: torch.device) -> dict:
    """Name of the device, number of threads, and the versions that a result depends on."""
    cpu = _cpuinfo("model name") or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    versions = {p: metadata.version(p) for p in ("torch", "torchvision", "timm", "numpy", "scikit-learn")}
    versions |= {"python": platform.python_version(), "dmdd-lite": __version__}
    return {"device": f"{device.type}: {name}", "threads": torch.get_num_threads(), "versions": versions}


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, which the system releases when its holder dies; timeout in seconds, or -1.
    Raises filelock.Timeout if another holder keeps it, OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=timeout):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temporary)` make the file beside `path`, then rename it. Raises OSError naming `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.partial")  # no *.json finds it
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _raise_hidden(error, temporary, path)
        raise
    return path


def _raise_hidden(error: BaseException, temporary: Path, path: Path):
    """What PyTorch or safetensors hide behind an error of their own: Ctrl-C, or an OSError, naming `path`."""
    inner = error.__context__ if isinstance(error, RuntimeError) else error  # PyTorch's
    text = re.search(r"\(os error (\d+)\)", str(error))  # safetensors'
    number = int(text[1]) if text else getattr(inner, "errno", None)
    if number and getattr(inner, "filename", None) in (None, str(temporary)):
        raise OSError(number, os.strerror(number), str(path)) from error
    if isinstance(inner, KeyboardInterrupt):
        raise inner


def write_json(path: str | Path, values: dict) -> Path:
    """Strict JSON (no NaN), written atomically."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def writing_problem(folder: str | Path) -> str:
    """Why nothing can be written into the folder, which need not exist yet; '' if something can."""
    nearest = next(place for place in (Path(folder), *Path(folder).absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(b"?")
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror})"
    return ""


class Progress(contextlib.AbstractContextManager):
    """A bar in a terminal or live notebook, else a plain line every tenth; DMDD_PROGRESS=bar|lines|none."""

    def __init__(self, total: int, name: str, start: int = 0, enabled: bool = True):
        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.mode = os.environ.get("DMDD_PROGRESS", "bar" if live else "lines") if enabled else "none"
        self.total, self.name, self.start, self.done = total, name, start, start
        self.began = self.told = time.monotonic()
        self.bar = tqdm(total=total, desc=name, initial=start, leave=False) if self.mode == "bar" else None

    def update(self, done: int, text: str = "", quiet: float = 5.0):
        """`done` of `total` are finished; `text` is shown beside it; no line within `quiet` seconds."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.done)
        now, tenth = time.monotonic(), 10 * done // self.total > 10 * self.done // self.total
        if self.mode == "lines" and tenth and now - self.told >= quiet:
            seconds, self.told = now - self.began, now
            left = seconds / max(1, done - self.start) * (self.total - done)
            print(f"{self.name} {done}/{self.total}  {seconds:.0f} s, {left:.0f} s left  {text}", flush=True)
        self.done = done

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], values):
    """The same nested tuples with every tensor changed."""
    if isinstance(values, torch.Tensor):
        return change(values)
    changed = [map_tensors(change, value) for value in values]
    return type(values)(*changed) if hasattr(values, "_fields") else tuple(changed)
