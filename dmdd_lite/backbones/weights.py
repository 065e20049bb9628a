"""Weights from files of any origin: read without running what is in them, compared with what is needed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..data.problems import some


class WeightsError(ValueError):
    """Why a file of weights was not read; the message goes after the file's name."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors, on the CPU, of a .safetensors file, or of another that torch.save wrote: of a state, or
    of what holds one as 'state_dict' or 'model'. Nothing is unpickled as code. Raises WeightsError."""
    if not path.is_file():  # nor a pipe or a device, which may never end
        raise WeightsError("cannot be read: there is no such file")
    if path.suffix != ".safetensors":
        return _named_tensors(load_plain(path))
    try:
        return load_file(path)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"cannot be read: {error}") from error


def load_plain(path: Path | BinaryIO):
    """What torch.save wrote, on the CPU, if it is of tensors and plain values only. Raises WeightsError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):  # of the machine, not of the file
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"cannot be read: {error}") from error
    except Exception as error:  # pickle's own: a file that wants to run code; the text says how to let it
        raise WeightsError(f"are not plain tensors and were not opened: {type(error).__name__}") from error


def _named_tensors(state) -> dict[str, Tensor]:
    for inner in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(inner), Mapping):
            state = state[inner]
            break
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise WeightsError(f"cannot be read: no named tensors, but a {type(state).__name__}")
    strange = [name for name, value in state.items() if not _is_plain(value)]
    if strange:
        raise WeightsError(f"cannot be read: {some(strange)} are no plain tensors")
    return dict(state)


def _is_plain(value) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def misfits(found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str:
    """What keeps `found` from being the tensors that are needed; '' if nothing does."""
    both = [name for name in needed if name in found]
    shaped = [name for name in both if found[name].shape == needed[name].shape]
    typed = [name for name in shaped if found[name].dtype == needed[name].dtype]
    problems = {
        "are missing": needed.keys() - found.keys(),
        "are extra": found.keys() - needed.keys(),
        "are of another shape": set(both) - set(shaped),
        "are of another type": set(shaped) - set(typed),
        "hold NaN or infinity": {name for name in typed if not found[name].isfinite().all()},
    }
    told = {what: sorted(names) for what, names in problems.items() if names}
    return "; ".join(f"{len(names)} tensors {what} ({some(names)})" for what, names in told.items())


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values, in hexadecimal; without batch norm's counts of batches, which not
    every file has."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not name.endswith("num_batches_tracked"):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
