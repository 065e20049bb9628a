"""Jobs on this machine: so many at a time, each with its share of the GPUs or of the cores."""

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


def run_here(runs: list[Run], environments: list[dict[str, str]], board: Board):
    """Run all open runs, at most one in each environment; a failure stops no other.

    A job that another command works on is left to it, and taken up if it lets go unfinished. On
    KeyboardInterrupt all processes are stopped before it goes on.
    """
    free, active = list(environments), {}
    try:
        while any(run.open for run in runs):
            for run in [run for run in runs if run.job.name in active]:
                if _ended(run, active[run.job.name][0]):
                    free.append(active.pop(run.job.name)[1])
            for run in runs:
                if free and run.state in ("waiting", "elsewhere") and _is_ours(run):
                    environment = free.pop(0)
                    run.start()
                    active[run.job.name] = (Process(run.job, environment), environment)
            board.show(runs)
            if any(run.open for run in runs):
                time.sleep(POLL)
    finally:
        for process, _ in active.values():
            process.stop()
        for process, _ in active.values():
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
