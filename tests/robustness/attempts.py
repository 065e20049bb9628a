"""Trainings in processes that die: a server imports PyTorch once and forks a process for every attempt.

`Attempts` talks to the server, which is this file run as a script.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TINY = {"iterations": 8, "plus": {"channels": 8}}


def train_small(root: Path, output_dir=None, every: int = 1, watch=None, **changes):
    """Train the smallest model there is, in this process."""
    from builders import train_tiny

    return train_tiny(root, output_dir, every, watch, **{**TINY, "iterations": 4, **changes})


def assert_same(one, other):
    """Trainings to the same weights by the same losses."""
    import pandas as pd
    from builders import networks_of, same_state

    assert same_state(networks_of(one.detector), networks_of(other.detector))
    pd.testing.assert_frame_equal(one.history, other.history)


@dataclass(frozen=True)
class Attempt:
    """How a process ended (its exit status, or minus the signal), its wall-clock seconds, what it printed."""

    status: int
    seconds: float
    told: str


class Attempts:
    """attempts(folder, ...) trains into the folder in a process of its own, and tells how that went.

    after: seconds until the process gets the signal `sign`. once: or later, as soon as the folder has that
    file. dies: (owner, name, call, when) kills it at that call of a function, "before", "after" or in the
    "middle" of its file. again: whether a KeyboardInterrupt is followed by the same call, as in a notebook.
    """

    def __init__(self, root: Path):
        self.root = root
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, folder: Path, after=None, sign=signal.SIGKILL, once="", **options) -> Attempt:
        return self.together([folder], after=after, sign=sign, once=once, **options)[0]

    def together(self, folders: list[Path], **options) -> list[Attempt]:
        """As many at the same time."""
        order = {"root": str(self.root), "folders": [str(folder) for folder in folders], **options}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return [Attempt(**values) for values in json.loads(self.server.stdout.readline())]

    def close(self):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


# ---- the server ---------------------------------------------------------------------------------------


def serve():
    for line in sys.stdin:
        order = json.loads(line)
        folders = order.pop("folders")
        after, sign = order.pop("after", None), order.pop("sign", signal.SIGKILL)
        once = order.pop("once", "")
        awaited = Path(folders[0], once) if once else None
        began = time.monotonic()
        started = [start(folder, order) for folder in folders]
        print(json.dumps([wait(*process, began, after, sign, awaited) for process in started]), flush=True)


def start(folder: str, order: dict) -> tuple[int, int]:
    """A process that trains; its id, and the pipe that it prints into."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work(folder, **order)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def wait(
    process: int, reading: int, began: float, after: float | None, sign: int, awaited: Path | None
) -> dict:
    """How it ended: by the signal, if not before, after so many seconds and once the awaited file exists."""
    ended, status = 0, 0

    def early() -> bool:
        return time.monotonic() < began + after or (awaited is not None and not awaited.exists())

    while after is not None and not ended and early():
        ended, status = os.waitpid(process, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        if after is not None:
            os.kill(process, sign)
        _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - began
    with open(reading, errors="replace") as pipe:
        told = pipe.read()
    return {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "told": told}


def work(folder: str, root: str, dies=None, again: bool = False, patience=None):
    import torch
    from builders import train_tiny

    from dmdd_lite import checkpoints

    torch.set_num_threads(1)
    if dies:
        die_at(*dies)
    if patience is not None:
        checkpoints.PATIENCE = patience
    try:
        train_tiny(root, folder, 1, **TINY)
    except KeyboardInterrupt:
        if not again:
            raise
        train_tiny(root, folder, 1, **TINY)


def die_at(owner: str, name: str, call: int, when: str):
    """This process kills itself at the call of `owner`.`name` of that number, from 1."""
    import pkgutil

    holder, calls = pkgutil.resolve_name(owner), []
    real = getattr(holder, name)

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == call:
            if when == "middle":
                cut(args[1])
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, dying)


def cut(file):
    """Only half of what was written, a path or an open file, has got there."""
    if hasattr(file, "flush"):
        file.flush()
        file = file.name
    os.truncate(file, os.path.getsize(file) // 2)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import builders  # noqa: F401
    import torch  # noqa: F401

    serve()
