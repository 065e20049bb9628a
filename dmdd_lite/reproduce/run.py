"""Notebook 05 by papermill as a future of `dask.distributed`, on workers of this machine or of a cluster.

A worker runs one notebook at a time and holds the lock of its run. The kernel polls its parent process, as
ipykernel does by itself, and ends soon after a worker that was killed; Dask gives the run to another worker.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout

from ..config import Config
from ..data.fingerprints import digests
from ..options import differences
from ..utils import locked, write_json
from .notebook import REPRODUCTION, KernelDied, NotebookError, run_notebook

RETRIES = 2  # of a run whose kernel was killed
PATIENCE = 60.0  # seconds for a scheduler to answer, a first worker, and another command's run
STOPPING = 20.0  # seconds for the runs on other machines' workers to end


class CannotStart(ValueError):
    """Problems found before any run has started, all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot start, nothing was run:\n" + "\n".join(f"- {text}" for text in problems))


def exit_status(command: Callable[[], dict]) -> int:
    """Call `command`, which returns its failed runs: 0 all done, 1 a run or the table failed, 2 nothing was
    started, 130 interrupted by SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(bool(command()))
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoints and repeats nothing finished")
        return 130
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # of the table: each run has written its own result
        print(f"failed: {error}; correct that, then the same command continues", file=sys.stderr)
        return 1


@dataclasses.dataclass(frozen=True)
class Job:
    """The run of a category and a seed, with all parameters of the notebook; "" stands for notebook 05."""

    parameters: dict
    notebook: str = ""

    @property
    def name(self) -> str:
        return f"{self.parameters['category']}_seed{self.parameters['seed']}"

    def file(self, name: str) -> Path:
        """A file of the results folder; {} stands for the run's name."""
        return Path(self.parameters["results_dir"], name.format(self.name))

    @property
    def result(self) -> Path:
        return self.file("{}.json")

    @property
    def log(self) -> Path:
        """What the cells print."""
        return self.file("logs/{}.log")

    @property
    def executed(self) -> Path:
        """The notebook with its outputs."""
        return self.file("notebooks/05_{}.ipynb")

    def config(self) -> Config:
        """As the notebook makes it. Raises ValueError or TypeError for a field out of range or unknown."""
        fields = {item.name for item in dataclasses.fields(Config)}
        given = {name: value for name, value in self.parameters.items() if name in fields}
        return Config.from_dict(dict(**given, **self.parameters["settings"]))


def finished(job: Job) -> dict | None:
    """The content of the job's result file; None if there is none. Raises ValueError, naming what differs, if
    it was made with other settings, or is not a result."""
    if not job.result.exists():
        return None
    try:
        values = json.loads(job.result.read_text(encoding="utf-8"))
        changed = differences(Config.from_dict(values["config"]), job.config())
        _ = values["metrics"]["fused"], values["seconds"], digests(values.get("files", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{job.result} is not a result file ({error!r}); move it away") from error
    told, names = {"layout": "mvtec"} | values, ("mask_rule", "layout", "full_size")
    pairs = [(name, told.get(name), job.parameters[name]) for name in names]
    changed += [f"{name}: {before!r} -> {now!r}" for name, before, now in pairs if before != now]
    if changed:
        told = f"{job.result} was made with other settings ({'; '.join(changed)})"
        raise ValueError(f"{told}; choose another --results folder")
    return values


# ---- on a worker --------------------------------------------------------------------------------------

_sessions: list[str] = []  # commands whose run this worker has


def run_job(job: Job, session: str, wait: bool) -> tuple[str, dict | str]:
    """("done", result), ("failed", why), or ("busy", "") if another command has the run, at once or, with
    `wait`, after PATIENCE seconds. Raises KernelDied, which Dask answers by another attempt."""
    from distributed import get_worker

    _sessions.append(session)
    try:
        with locked(job.file("locks/{}.lock"), PATIENCE if wait else 0):
            if finished(job) is None:
                worker = get_worker()
                worker.log_event(session, f"{job.name}: started on {worker.address}")
                run_notebook(job.notebook or REPRODUCTION, job.executed, job.parameters, job.log)
            result = finished(job)
        return ("done", result) if result else ("failed", f"the notebook ended without {job.result}")
    except Timeout:
        return "busy", ""
    except KernelDied:
        raise
    except (NotebookError, ValueError, TypeError, OSError) as error:
        return "failed", str(error)
    finally:
        _sessions.remove(session)


def stop_kernels(session: str) -> bool:
    """End the kernel of the session's run, if this worker has one; whether it has the run still."""
    import psutil

    for child in psutil.Process().children() if session in _sessions else ():
        with contextlib.suppress(psutil.Error):
            if "ipykernel_launcher" in child.cmdline():
                child.kill()
    return session in _sessions


# ---- on the client ------------------------------------------------------------------------------------


def environments(jobs: int | None, device: str) -> list[dict[str, str]]:
    """The environment of each local worker: one GPU each in turn, and a share of the cores, unless
    OMP_NUM_THREADS is set. `jobs` None is one for each GPU that `device` leaves to choose, else one."""
    import torch

    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    gpus = (visible or [str(i) for i in range(count)])[:count]
    jobs = jobs or max(1, count)
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // jobs)
    common = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return [common | ({"CUDA_VISIBLE_DEVICES": gpus[i % count]} if gpus else {}) for i in range(jobs)]


@contextlib.contextmanager
def local_client(places: list[dict[str, str]], dashboard: bool = False) -> Iterator:
    """A client of a cluster on this machine with a worker process for each environment; they ignore Ctrl-C,
    which a terminal sends to all processes."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    common = {"nthreads": 1, "memory_limit": None, "silence_logs": "CRITICAL", "dashboard": False}
    common["preload"] = ["import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"]
    workers = {i: {"cls": Nanny, "options": {**common, "env": place}} for i, place in enumerate(places)}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": dashboard}}
    with SpecCluster(workers, scheduler, silence_logs="CRITICAL") as cluster, Client(cluster) as client:
        if dashboard:
            print(f"dashboard: {client.dashboard_link}", flush=True)
        yield client


@contextlib.contextmanager
def remote_client(address: str) -> Iterator:
    """A client of a running scheduler that has a worker. Raises CannotStart."""
    from distributed import Client

    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        raise CannotStart([f"no Dask scheduler answers at {address} ({error})"]) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except asyncio.TimeoutError as error:  # before Python 3.11 not the built-in one
            told = f"{address} has no workers; start some with: dask worker {address} --nthreads 1"
            raise CannotStart([told]) from error
        yield client


def run_jobs(client, jobs: list[Job]) -> dict[str, str]:
    """Run all jobs, with a line for every event; what went wrong, by the name of the run.

    On KeyboardInterrupt the kernels on the workers are stopped before it goes on.
    """
    from distributed import as_completed

    session, failed, ended = f"dmdd-{uuid.uuid4().hex[:12]}", {}, 0
    gpu = any(client.run(lambda dask_worker: "GPU" in dask_worker.state.total_resources).values())
    common = {"retries": RETRIES, "resources": {"GPU": 1} if gpu else None}

    def submit(job: Job, wait: bool = False):
        return client.submit(run_job, job, session, wait, pure=False, **common)

    client.subscribe_topic(session, lambda event: print(event[1], flush=True))
    futures = {job.name: submit(job) for job in jobs}
    queue = as_completed(list(futures.values()))
    try:
        for future in queue:
            job = next(job for job in jobs if futures[job.name] is future)
            state, told = _outcome(job, future)
            if state == "busy":
                futures[job.name] = submit(job, wait=True)
                queue.add(futures[job.name])
                continue
            ended += 1
            if state == "failed":
                failed[job.name] = told
            print(f"[{ended}/{len(jobs)}] {job.name}: {told}", flush=True)
    except KeyboardInterrupt:
        _stop(client, session, list(futures.values()))
        raise
    return failed


def _stop(client, session: str, futures: list):
    """End the runs on the workers, whoever started those, undisturbed by further signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("stopping ...", flush=True)
    client.cancel(futures, force=True)
    deadline = time.monotonic() + STOPPING
    while any(client.run(stop_kernels, session, on_error="ignore").values()) and time.monotonic() < deadline:
        time.sleep(0.2)


def _outcome(job: Job, future) -> tuple[str, str]:
    """The state, as of `run_job`, and what to tell. A result on another disk is written here too."""
    try:
        state, told = future.result()
        if state == "done":
            if finished(job) is None:
                write_json(job.result, told)
            fused = told["metrics"]["fused"]
            known = [n for n in ("image_auroc", "pixel_auroc", "aupro") if fused[n] is not None]
            numbers = [f"{name} {100 * fused[name]:.2f}" for name in known]
            told = ", ".join([*numbers, f"{told['seconds'] / 60:.1f} minutes of training"])
    except Exception as error:  # of the kernel, the worker or the scheduler
        state, told = "failed", f"{type(error).__name__}: {error}"
    if state == "failed":
        line = next(iter(told.splitlines()), "no message")
        told = f"failed: {line}\n  log: {job.log}, notebook: {job.executed}"
    return state, told
