"""Room for arrays that may be larger than the memory."""

import errno
import math
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, on_disk: bool = False, **options
) -> Tensor:
    """torch.zeros on the CPU; `on_disk` in a temporary file that ends with the tensor, so that the system can
    take its memory for something else. Where files cannot be reserved (outside of Unix) always in memory.

    Raises OSError naming the folder if it has not so much room.
    """
    if not on_disk or not hasattr(os, "posix_fallocate"):
        return torch.zeros(tuple(shape), dtype=dtype, **options)
    count = math.prod(shape)
    with tempfile.NamedTemporaryFile(prefix="dmdd_lite_") as file:
        _reserve(file.fileno(), max(1, count * dtype.itemsize))
        # a file that has lost its name is kept for as long as it is mapped
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(tuple(shape))


def _reserve(file: int, size: int):
    """All of it now: a disk that turns out to be full while a mapped file is written ends the process."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needed = f"{error.strerror}: {size / 1e9:.1f} GB of maps are to lie there; choose another with TMPDIR"
        raise OSError(error.errno, needed, tempfile.gettempdir()) from error
