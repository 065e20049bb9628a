"""One job of the table: notebook 05 for one category and seed, in a process of its own, locked and logged.

The process is `python -m dmdd_lite.reproduction.jobs`; it reads the job from the first line of its standard
input, which then stays open as a lifeline: when it closes, the one who started the job is gone, and the job
stops too. Its checkpoints let the next start go on from there.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import locks
from ..config import Config, differences
from ..evaluation import SCORING, result_path
from ..locks import Busy
from ..runner import REPRODUCTION, run_notebook, show_prints
from ..utils import writing_problem

FAILED, BUSY, INTERRUPTED = 1, 75, 130  # exit codes: the notebook stopped; another process has the job; ours


class ResultError(RuntimeError):
    """A result file that is not what this job would write; the message says why and what to do."""


class Note(NamedTuple):
    """The last that a running job told of itself: its iteration and losses, or that it is scoring."""

    progress: str = ""
    losses: str = ""

    @property
    def scoring(self) -> bool:
        """Whether training and predicting are over: what is left (metrics, pictures, the notebook) is the
        CPU's."""
        return self.progress == "scoring"


@dataclasses.dataclass(frozen=True)
class Job:
    """A category and a seed: `parameters` are all of the notebook's; `notebook` "" means notebook 05."""

    parameters: dict
    notebook: str = ""

    @property
    def results(self) -> Path:
        return Path(self.parameters["results_dir"])

    @property
    def name(self) -> str:
        return f"{self.parameters['category']}_seed{self.parameters['seed']}"

    @property
    def result(self) -> Path:
        return result_path(self.results, self.parameters["category"], self.parameters["seed"])

    @property
    def log(self) -> Path:
        return self.results / "logs" / f"{self.name}.log"

    @property
    def lock(self) -> Path:
        return self.results / "locks" / f"{self.name}.lock"

    @property
    def executed(self) -> Path:
        """The notebook with its outputs."""
        return self.results / "notebooks" / f"05_{self.name}.ipynb"

    def config(self) -> Config:
        """What the notebook makes of its parameters. Raises ValueError or TypeError for one out of range."""
        fields = {item.name for item in dataclasses.fields(Config)}
        return Config(**{name: value for name, value in self.parameters.items() if name in fields})


def finished(job: Job) -> dict | None:
    """The job's result, if it has been done; None if there is none yet.

    Raises ResultError if the file is of another configuration, or not a result.
    """
    if not job.result.exists():
        return None
    try:
        values = json.loads(job.result.read_text(encoding="utf-8"))
        changed = differences(Config.from_dict(values["config"]), job.config())
        _ = values["metrics"]["fused"], values["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{job.result} is not a result file ({error!r}); move it away") from error
    changed += _other_textures(job)
    if changed:
        raise ResultError(
            f"{job.result} was made with other settings ({'; '.join(changed)}); "
            "choose another --results folder"
        )
    return values


def _other_textures(job: Job) -> list[str]:
    """Textures are not in the configuration; whether there were any is read from the executed notebook."""
    try:
        ran = json.loads(job.executed.read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
    except (OSError, ValueError, KeyError):
        return []
    before, now = ran.get("texture_root", ""), job.parameters["texture_root"]
    return [f"texture_root: {before!r} -> {now!r}"] if bool(before) != bool(now) else []


# ---- locks --------------------------------------------------------------------------------------------


def claim(job, patience: float | None = None):
    """Hold the job's lock; `locks.claim` tells the rest. Raises Busy if another process still holds it after
    `patience` seconds."""
    return locks.claim(job.lock, f"{job.name} is run", patience)


def holder(job) -> str:
    """Who has the job's lock, as 'process 12 on name'; '' if nobody has."""
    return locks.holder(job.lock)


# ---- the side that starts a job -----------------------------------------------------------------------


class Process:
    """A started job: `poll` is its exit code or None, `note` and `error` are read from its log."""

    COMMAND = ("-u", "-m", "dmdd_lite.reproduction.jobs")  # what Python runs

    def __init__(self, job: Job, environment: dict[str, str] | None = None):
        self.job = job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            self.offset = log.tell()  # what earlier starts have written is not ours
            self.process = subprocess.Popen(
                [sys.executable, *self.COMMAND],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), "DMDD_PROGRESS": "lines"},
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop the children in order
            )
        with contextlib.suppress(BrokenPipeError):  # ended already: `poll` tells
            self.process.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            self.process.stdin.flush()

    def poll(self) -> int | None:
        return self.process.poll()

    def text(self) -> str:
        """What this start has written to the log."""
        with open(self.job.log, "rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace")

    def note(self) -> Note:
        lines = rf"training (\d+/\d+) .*? left *(.*)|^ *({SCORING})"
        found = re.findall(lines, self.text(), re.MULTILINE)
        if not found:
            return Note()
        progress, losses, scoring = found[-1]
        return Note("scoring") if scoring else Note(progress, losses)

    def error(self) -> str:
        """Why it failed, in one line: its own last words, or the signal that ended it."""
        code, text = self.poll(), self.text()
        told = text.rpartition("\nfailed: ")[2] if "\nfailed: " in text else text
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        lines = lines or [writing_problem(self.job.log.parent) or "no output"]
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return lines[0] if told is not text else lines[-1]

    def stop(self):
        """Ask it to stop; `wait` then sees to it."""
        if self.poll() is None:
            self.process.terminate()

    def wait(self, seconds: float = 20.0):
        """Until it has ended, by force after `seconds`."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


# ---- the job's own process ----------------------------------------------------------------------------


def interrupt_on_sigterm():
    """SIGTERM becomes a KeyboardInterrupt, so that kernels and children are stopped in order."""

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def stop_with_parent():
    """When the lifeline closes, stop as if asked to; in a thread, which reads the raw file descriptor because
    a buffered reader would keep the interpreter from ending."""

    def watch():
        while os.read(0, 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    interrupt_on_sigterm()
    job = Job(**json.loads(sys.stdin.buffer.readline()))
    stop_with_parent()
    print(
        f"\n{job.name}: {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()} on {socket.gethostname()}"
    )
    show_prints()
    return attempt(job, execute)


def execute(job: Job):
    """Run the notebook, unless another command has been faster. Raises ResultError if it writes no result."""
    if finished(job) is None:
        run_notebook(job.notebook or REPRODUCTION, job.executed, job.parameters)
        if finished(job) is None:
            raise ResultError(f"the notebook ended without writing {job.result}")


def attempt(job, work: Callable) -> int:
    """Do `work` of the job, which has a name and a lock, holding the lock; the exit code, told in the log."""
    try:
        with claim(job):
            work(job)
    except Busy as error:
        print(f"not started: {error}")
        return BUSY
    except KeyboardInterrupt:
        print("stopped; the next start goes on from the last checkpoint")
        return INTERRUPTED
    except Exception as error:
        print(f"\nfailed: {error}")
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
