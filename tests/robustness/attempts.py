"""Trainings in processes that die, forked from a server that has imported PyTorch once."""

import multiprocessing
import os
import pkgutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

TINY = {"iterations": 8, "plus": {"channels": 8}}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision.transforms.v2", "timm", "pandas", "dmdd_lite.training"])


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

    after: seconds until the process is killed. dies: (owner, name, call, when) kills it at that call of a
    function, "before", "after" or in the "middle" of its file. Logs are written into the folder `logs`.
    """

    def __init__(self, root: Path, logs: Path):
        self.root, self.logs, self.count = root, logs, 0

    def __call__(self, folder: Path, **options) -> Attempt:
        return self.together([folder], **options)[0]

    def together(self, folders: list[Path], after: float | None = None, **options) -> list[Attempt]:
        """As many at the same time."""
        began, started = time.monotonic(), []
        for folder in folders:
            self.count += 1
            log = self.logs / f"{self.count}.log"
            process = SERVER.Process(target=work, args=(self.root, folder, log), kwargs=options)
            process.start()
            started.append((process, log))
        return [self.ended(*each, began, after) for each in started]

    @staticmethod
    def ended(process, log: Path, began: float, after: float | None) -> Attempt:
        process.join(after)
        if process.exitcode is None:
            process.kill()
            process.join()
        told = log.read_text(errors="replace") if log.exists() else ""
        return Attempt(process.exitcode, time.monotonic() - began, told)


def work(root: Path, folder: Path, log: Path, dies=None, patience=None):
    import torch
    from builders import train_tiny

    from dmdd_lite import checkpoints

    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    if dies:
        die_at(*dies)
    if patience is not None:
        checkpoints.PATIENCE = patience
    train_tiny(root, folder, 1, **TINY)


def die_at(owner: str, name: str, call: int, when: str):
    """This process kills itself at the call of `owner`.`name` of that number, from 1."""
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
