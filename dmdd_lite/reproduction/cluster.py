"""Jobs over a Dask cluster: one task for each category and seed, on workers that have the data at the same
path as the client says.

A worker should run one task at a time: start it with `--nthreads 1`, and with `--resources GPU=1` and its own
CUDA_VISIBLE_DEVICES on a machine with GPUs. A task whose worker dies is given to another one.
"""

import contextlib
import dataclasses
import time
import uuid

from ..utils import write_atomically
from .board import Board, Run
from .jobs import BUSY, Job, Note, Process, finished
from .schedule import close

POLL = 1.0  # seconds between two looks, of a task at its process and of the client at its tasks
PATIENCE = 60.0  # seconds for the scheduler to answer and a worker to come
RETRIES = 3  # of a job whose process was killed; Dask itself gives the tasks of a dead worker to others


class ClusterError(RuntimeError):
    """The cluster cannot do the work; the message says why and what to do."""


class Killed(RuntimeError):
    """The job's process was ended by a signal (out of memory, say): worth another try, elsewhere perhaps."""


# ---- on a worker --------------------------------------------------------------------------------------


def run_job(values: dict, session: str) -> dict[str, str]:
    """Run the job that `values` describes in a process of its own; {"result": the file's text} when it is
    done, {"error": why} when its notebook failed, which another try would not mend.

    Raises Killed when the process was killed. `session` names the client's events and its wish to stop.
    """
    job = Job(**values)
    while True:  # for as long as another process has the job
        process = Process(job)
        try:
            code = _attend(process, session)
        finally:
            process.stop()
            process.wait()
        if code == 0 and finished(job):
            return {"result": job.result.read_text(encoding="utf-8")}
        if code < 0:
            raise Killed(process.error())
        if code != BUSY:
            return {"error": process.error()}


def _attend(process: Process, session: str) -> int:
    """Wait for the process and tell the client what it does; stop it when the client wishes so."""
    from distributed import Event, get_worker

    worker, stop, told = get_worker(), Event(f"{session}-stop"), None
    while (code := process.poll()) is None:
        note = process.note()
        if note != told:
            worker.log_event(session, {"name": process.job.name, "worker": worker.address, "note": note})
            told = note
        if stop.is_set():
            process.stop()
        time.sleep(POLL)
    return code


def probe(dask_worker=None) -> dict:
    """A worker's resources, to choose by."""
    return dict(dask_worker.state.total_resources)


# ---- on the client ------------------------------------------------------------------------------------


@contextlib.contextmanager
def connect(address: str):
    """A client of the scheduler, once a worker is there. Raises ClusterError."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError("--scheduler needs dask.distributed: pip install 'dmdd-lite[dask]'") from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {address} ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ClusterError(
                f"{address} has no workers; start some with: dask worker {address} --nthreads 1"
            ) from error
        yield client


def run_on_cluster(runs: list[Run], client, board: Board):
    """Run all open runs as tasks; each result is written here once, if its file has not appeared yet.

    On KeyboardInterrupt the jobs on the workers are stopped too, before it goes on.
    """
    from distributed import Event

    session = f"dmdd-{uuid.uuid4().hex[:12]}"
    gpu = any("GPU" in resources for resources in client.run(probe).values())
    tasks = {
        run.job.name: client.submit(
            run_job,
            dataclasses.asdict(run.job),
            session,
            key=f"{session}-{run.job.name}",
            retries=RETRIES,
            resources={"GPU": 1} if gpu else None,
        )
        for run in runs
        if run.open
    }
    try:
        while any(run.open for run in runs):
            _read_events(runs, client.get_events(session))
            for run in runs:
                if run.open and tasks[run.job.name].done():
                    _collect(run, tasks[run.job.name])
            board.show(runs)
            if any(run.open for run in runs):
                time.sleep(POLL)
    except KeyboardInterrupt:
        Event(f"{session}-stop", client=client).set()
        client.cancel(list(tasks.values()))
        time.sleep(3 * POLL)  # in which the tasks see the event
        raise


def _read_events(runs: list[Run], events):
    """What the tasks told last, and on which worker."""
    last = {event["name"]: event for _, event in events or ()}
    for run in runs:
        event = last.get(run.job.name)
        if event and run.open:
            if run.state != "running":
                run.start()
            run.note, run.detail = Note(*event["note"]), event["worker"]


def _collect(run: Run, task):
    """The outcome of a task that has ended."""
    error = task.exception()
    if error is not None:
        run.end("failed", f"{type(error).__name__}: {error}")
        return
    outcome = task.result()
    if "error" in outcome:
        run.end("failed", outcome["error"])
        return
    if not run.job.result.exists():  # the worker writes to a disk of its own
        write_atomically(run.job.result, lambda path: path.write_text(outcome["result"], encoding="utf-8"))
    close(run)


def problems(client, of_data, of_teacher, parameters: list[dict], config: dict) -> list[str]:
    """What the two functions find wrong: every worker must see the data, one reads all of it and builds the
    teacher. Raises ClusterError if a worker cannot run them."""
    try:
        seen = client.run(of_data, parameters, check_files=False)
    except ImportError as error:
        raise ClusterError(f"a worker lacks the package ({error}); install dmdd-lite there") from error
    missing = {f"{text} (worker {address})" for address, texts in seen.items() for text in texts}
    if missing:
        return sorted(missing)
    tasks = [client.submit(of_data, parameters, pure=False), client.submit(of_teacher, config, pure=False)]
    return [text for task in tasks for text in task.result()]
