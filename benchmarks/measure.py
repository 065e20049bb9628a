"""What the benchmarks share: timing, peak memory, a process for each way, conditions, results as JSON.

The scripts' own processes may run on another checkout of the package (`training_step.py --baseline`), so this
module asks of it only what has been there from the start, and only inside the functions that need it.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

GIVEN = set(os.environ)
ROOT = Path(__file__).resolve().parent.parent
if not importlib.util.find_spec("dmdd_lite"):  # a checkout that pip has not installed
    sys.path.insert(0, str(ROOT))

import dmdd_lite  # noqa: E402, F401, I001  before PyTorch: it tells OpenMP how its threads are to wait

import torch  # noqa: E402

ADDED = set(os.environ) - GIVEN  # by this checkout of the package; another has its own

#: what this project set itself, by what is measured and where: the GPU is an H200, the CPU has two cores
GOALS = {
    ("training", "cuda", "wide_resnet50_2", 256, 16): {"iterations_per_second": 30, "gb": 24, "least_gb": 12},
    ("training", "cpu", "mobilenetv2_100", 256, 8): {"times_floor": 1.5, "times_baseline": 2},
    ("inference", "cuda", "wide_resnet50_2", 256): {
        "images_per_second": {"32": 1500},
        "milliseconds": {"1": 8},
    },
    ("metrics",): {"times_faster": 5},
    ("synthesis",): {"times_faster": 10},
    ("mvtec", "cuda"): {"minutes": 60},
}


def goals(*where) -> dict:
    """Those of one place in GOALS, or none."""
    return GOALS.get(where, {})


class ScriptError(RuntimeError):
    """A script of its own process failed; the message is the last line that it said."""


def timed(call: Callable, device: torch.device, times: int, calls: int = 1) -> float:
    """Median over `times` of the seconds that a call takes, its work on the device included. With `calls`
    above 1 the device is waited for after so many of them, as a training does."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - began) / calls)
    return statistics.median(seconds)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """A dictionary, filled at the end: the peak within the block in GB, and how far it lay above the start.

    On a GPU `allocated_gb` (tensors) and `reserved_gb` (taken from the card by PyTorch's allocator), else
    `process_gb` (resident). Only Linux forgets a process's earlier peak; elsewhere it counts too.
    """
    from dmdd_lite.utils import peak_memory_mb

    found = {}
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    start = peak_memory_mb(device)
    yield found
    peak = peak_memory_mb(device)
    if device.type == "cuda":
        found |= {
            "allocated_gb": peak / 1000,
            "reserved_gb": torch.cuda.max_memory_reserved(device) / 1e9,
        }
    else:
        found["process_gb"] = peak / 1000
    found["above_start_gb"] = (peak - start) / 1000


def memory_text(memory: dict[str, float]) -> str:
    """'peak 3.20 GB allocated, 3.60 reserved' or 'peak 1.90 GB of the process'."""
    if "allocated_gb" in memory:
        return f"peak {memory['allocated_gb']:.2f} GB allocated, {memory['reserved_gb']:.2f} reserved"
    return f"peak {memory['process_gb']:.2f} GB of the process"


def highest(memories: list[dict[str, float]]) -> dict[str, float]:
    """The highest of each kind of memory."""
    return {kind: max(memory[kind] for memory in memories) for kind in memories[0]}


def environment(root: Path) -> dict[str, str]:
    """Variables with which Python finds the package of the checkout `root`, and prints without delay."""
    given = {name: value for name, value in os.environ.items() if name not in ADDED}
    paths = [str(root), given.get("PYTHONPATH", "")]
    return {**given, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


class Worker:
    """A script in a process of its own, on the package of the checkout `root`, that prepares what it measures
    and then answers one request after another (`request` and `tell` are its side).

    Raises ScriptError wherever the process ends instead of answering.
    """

    def __init__(self, script: str, arguments: list[str], root: Path = ROOT):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until close)
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=environment(root),
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self._answer()  # it is ready

    def ask(self, request=None) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the answer says why
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print, too
                return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        raise ScriptError(last_line(self.errors.read(), self.process.returncode))

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def request():
    """What the other process asks of this one. Ends this one when there is nobody left to ask."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit
    return json.loads(line)


def tell(answer: dict):
    """Answer the other process."""
    print(json.dumps(answer), flush=True)


def last_line(errors: str, code: int) -> str:
    """What a process that failed says last."""
    return (errors.strip().splitlines() or [f"ended with {code} and no message"])[-1]


def run_step(command: list[str], limit: float):
    """Run a script that starts others; it prints to the terminal. At `limit` seconds, or an interruption, it
    ends with all that it started. Raises ScriptError if it fails."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment(ROOT),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=limit)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ScriptError(f"took longer than {limit:.0f} s") from None
        raise
    if process.returncode:
        raise ScriptError(last_line(errors, process.returncode))


def take_turns(ways: dict[str, Callable[[], dict]], turns: int) -> dict[str, list[dict]]:
    """The results of each way, all of them in every turn, so that a slow second meets all. A way that fails
    has one result, {"error": message}, and no more turns."""
    runs = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            if runs[name] and "error" in runs[name][0]:
                continue
            try:
                runs[name].append(way())
            except ScriptError as error:
                runs[name] = [{"error": str(error)}]
    return runs


def rescored(detector, config):
    """The same networks under a configuration that differs in how they compute and are scored."""
    from dmdd_lite.detector import Detector
    from dmdd_lite.model import build_model

    model = build_model(config, detector.model.teacher)
    model.load_state_dict(detector.model.state_dict())
    return Detector(model.to(detector.device), detector.threshold)


def read_fields(texts: list[str]) -> dict:
    """'FIELD=JSON' or several of them after commas -> values by field. Raises ValueError, naming the text."""
    fields = {}
    for text in texts:
        for item in filter(None, re.split(r",(?=\w+=)", text)):
            name, _, value = item.partition("=")
            try:
                fields[name] = json.loads(value)
            except json.JSONDecodeError:
                raise ValueError(
                    f"{item!r} is not FIELD=JSON; a text needs its quotes: FIELD='\"x\"'"
                ) from None
    return fields


def optional(module: str, name: str):
    """An object of a package that need not be installed, or None."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


def without_out(arguments: list[str]) -> list[str]:
    """Command-line arguments without the place of the result."""
    if "--out" not in arguments:
        return list(arguments)
    place = arguments.index("--out")
    return [*arguments[:place], *arguments[place + 2 :]]


def command_line(script: str, arguments: list[str]) -> str:
    """What a reader types to measure the same."""
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *without_out(arguments)])


def write_result(path: Path | None, device: torch.device, seed: int, values: dict):
    """Write the result beside what it depends on (command line, device, threads, versions, seed), if a path
    is given. Raises ValueError for a number that is not finite."""
    from dmdd_lite.utils import describe, write_json

    if path:
        command = command_line(sys.argv[0], sys.argv[1:])
        write_json(path, {"command": command, **describe(device), "seed": seed, **values})
