"""Jobs on this machine: so many at a time, each with its share of the GPUs or of the cores.

A GPU does not wait for the end of a run: once it has predicted its test images, the next run starts there
beside its tail, that is its metrics, pictures and notebook. On a CPU the two would only share the cores.
"""

import os
import time

import torch

from .board import Board, Run
from .jobs import BUSY, Process, ResultError, finished, holder

POLL = 0.5  # seconds between two looks at the processes


def gpu_names() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[:count] if given else [str(i) for i in range(count)]


def places(jobs: int | None, device: str, gpus: list[str] | None = None) -> list[dict[str, str]]:
    """The environment of each of `jobs` simultaneous jobs: one GPU each in turn, and a share of the cores.

    `jobs` None = one for each GPU that `device` leaves to choose ('auto' or 'cuda'), else one. A number of
    threads that OMP_NUM_THREADS gives already is kept.
    """
    gpus = (gpu_names() if gpus is None else gpus) if device in ("auto", "cuda") else []
    jobs = jobs or max(1, len(gpus))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))
    chosen = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(jobs)]
    cached = {
        "HF_HUB_OFFLINE": "1"
    }  # the teacher's weights are there since the check; do not ask the hub again
    return [{"OMP_NUM_THREADS": threads, **cached, **place} for place in chosen]


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Place:
    """Room for a run in `environment` and, if that names a GPU, for the tail of the one before it."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.has_gpu = bool(environment.get("CUDA_VISIBLE_DEVICES"))
        self.main: tuple[Run, Process] | None = None
        self.tail: tuple[Run, Process] | None = None

    def start(self, run: Run):
        """Nothing can be started where its log cannot be written, say."""
        run.start()
        try:
            self.main = run, Process(run.job, self.environment)
        except OSError as error:
            run.end("failed", str(error))

    def look(self):
        """Settle the runs that have ended; one that has come to its tail makes room, if no other's is there
        still."""
        if self.tail and _ended(*self.tail):
            self.tail = None
        if self.main and _ended(*self.main):
            self.main = None
        if self.main and self.has_gpu and not self.tail and self.main[0].note.scoring:
            self.main, self.tail = None, self.main

    @property
    def processes(self) -> list[Process]:
        return [process for _, process in filter(None, (self.main, self.tail))]


def run_here(runs: list[Run], environments: list[dict[str, str]], board: Board):
    """Run all open runs, at most one in each environment, not counting tails; a failure stops no other.

    A job that another command works on is left to it, and taken up if it lets go unfinished. On
    KeyboardInterrupt all processes are stopped before it goes on.
    """
    all_places = [Place(environment) for environment in environments]
    try:
        while any(run.open for run in runs):
            for place in all_places:
                place.look()
            free = [place for place in all_places if place.main is None]
            for run in runs:
                if free and run.state in ("waiting", "elsewhere") and _is_ours(run):
                    free.pop(0).start(run)
            board.show(runs)
            if any(run.open for run in runs):
                time.sleep(POLL)
    finally:
        processes = [process for place in all_places for process in place.processes]
        for process in processes:
            process.stop()
        for process in processes:
            process.wait()


def close(run: Run):
    """Done, if the result file is there and as it should be."""
    try:
        result = finished(run.job)
    except ResultError as error:
        run.end("failed", str(error))
        return
    run.end("done" if result else "failed", "" if result else f"{run.job.result} is gone", result)


def _is_ours(run: Run) -> bool:
    """Whether nobody else has the job or has just finished it."""
    if run.job.result.exists():
        run.began = None
        close(run)
        return False
    owner = holder(run.job)
    run.state, run.detail = ("elsewhere", owner) if owner else (run.state, "")
    return not owner


def _ended(run: Run, process: Process) -> bool:
    """Look at a running process; True when it has ended, and the run then has its outcome."""
    code = process.poll()
    run.note = process.note()
    if code is None:
        return False
    process.wait()
    if code == 0:
        close(run)
    elif code == BUSY:
        run.state, run.detail = "elsewhere", holder(run.job)
    else:
        run.end("failed", process.error())
    return True
