"""What the benchmarks share: timing, peak memory, a process for each way, conditions, results as JSON."""

import argparse
import contextlib
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

ROOT = Path(__file__).resolve().parent.parent
if not importlib.util.find_spec("dmdd_lite"):  # a checkout that pip has not installed
    sys.path.insert(0, str(ROOT))

import dmdd_lite  # noqa: E402, F401, I001  before PyTorch: it tells OpenMP how its threads are to wait

import torch  # noqa: E402


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

    found, cuda = {}, device.type == "cuda"
    if cuda:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    start = peak_memory_mb(device)
    yield found
    peak = peak_memory_mb(device)
    found["allocated_gb" if cuda else "process_gb"] = peak / 1000
    if cuda:
        found["reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    found["above_start_gb"] = (peak - start) / 1000


def memory_text(memory: dict[str, float]) -> str:
    """'peak 3.20 GB allocated, 3.60 reserved' or 'peak 1.90 GB of the process'."""
    if "allocated_gb" in memory:
        return f"peak {memory['allocated_gb']:.2f} GB allocated, {memory['reserved_gb']:.2f} reserved"
    return f"peak {memory['process_gb']:.2f} GB of the process"


# ---- processes ----------------------------------------------------------------------------------------


def run_script(command: list[str], limit: float | None = None):
    """Run a script, which prints to the terminal. At `limit` seconds, or an interruption, it ends with all
    that it started. Raises ScriptError if it fails."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    own = limit is not None  # a group of processes; one within another would outlive it
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=own
    )
    try:
        _, errors = process.communicate(timeout=limit)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if own else process.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ScriptError(f"took longer than {limit:.0f} s") from None
        raise
    if process.returncode:
        raise ScriptError(last_line(errors, process.returncode))


def last_line(errors: str, code: int) -> str:
    """What a process that failed says last."""
    return (errors.strip().splitlines() or [f"ended with {code} and no message"])[-1]


def take_turns(script: str, ways: dict[str, list[str]], turns: int) -> dict[str, list[dict]]:
    """What a script writes for the arguments of each way, all of them in every turn, so that a slow minute
    meets all. A way that fails has one answer, {"error": message}, and no more turns."""
    found = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        for name, arguments in list(ways.items()) * turns:
            if found[name] and "error" in found[name][0]:
                continue
            print(f"  {name}", flush=True)
            try:
                run_script([script, *arguments, "--out", str(answer)])
                found[name].append(json.loads(answer.read_text(encoding="utf-8")))
            except ScriptError as error:
                found[name] = [{"error": str(error)}]
    return found


# ---- configurations, arguments, results ---------------------------------------------------------------


def read_fields(texts: list[str]) -> dict:
    """'FIELD=JSON' or several of them after commas -> values by field. Raises ValueError, naming the text."""
    fields = {}
    for item in [part for text in texts for part in re.split(r",(?=\w+=)", text) if part]:
        name, _, value = item.partition("=")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            told = f"{item!r} is not FIELD=JSON; a text needs its quotes: FIELD='\"x\"'"
            raise ValueError(told) from None
    return fields


def parser(description: str, **defaults) -> argparse.ArgumentParser:
    """Of a script: the place of its result, and options with a default, of whose type they are."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=description, formatter_class=raw)
    found.add_argument("--out", type=Path, help="where the result goes")
    for name, value in defaults.items():
        option, kind = f"--{name.replace('_', '-')}", type(value)
        found.add_argument(option, type=kind, default=value, help=f"default {value!r}")
    return found


def without_out(arguments: list[str]) -> list[str]:
    """Command-line arguments without the place of the result."""
    place = arguments.index("--out") if "--out" in arguments else len(arguments)
    return [*arguments[:place], *arguments[place + 2 :]]


def command_line(script: str, arguments: list[str]) -> str:
    """What a reader types to measure the same."""
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *without_out(arguments)])


def table(rows: list[list[str]]) -> str:
    """Markdown of rows: what, value and, where there is one, the baseline's value and how many times faster
    ours is."""
    rows = [["what", "value", "baseline", "times its speed"], ["---"] * 4, *rows]
    return "\n".join("| " + " | ".join([*row, "", ""][:4]) + " |" for row in rows) + "\n"


def write_result(path: Path | None, device: torch.device, seed: int, values: dict):
    """The result beside what it depends on (command line, device, threads, versions, seed), if a path is
    given; its rows, if it has some, are printed. Raises ValueError for a number that is not finite."""
    from dmdd_lite.utils import describe, write_json

    if "table" in values:
        print(table(values["table"]))
    if path:
        command = command_line(sys.argv[0], sys.argv[1:])
        write_json(path, {"command": command, **describe(device), "seed": seed, **values})
