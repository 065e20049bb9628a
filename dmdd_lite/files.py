"""Writing files so that a crash never leaves a half-written one, and progress that suits where it is seen."""

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

PARTIAL = ".partial"  # how the name of an unfinished file ends, so that no pattern such as *.json finds it


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, which the system releases when its holder dies; timeout in seconds, or -1.
    Raises filelock.Timeout if another holder keeps it, OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=timeout):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary)` make the file beside `path`, then rename it there: all of it or nothing. One
    process at a time writes `path`; what a killed one left there is overwritten.

    Raises OSError naming `path` and the system's reason, such as a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    with naming(path), locked(path.with_name(f".{path.name}.lock{PARTIAL}")):
        try:
            temporary.unlink(missing_ok=True)
            write(temporary)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


@contextlib.contextmanager
def naming(path: Path):
    """Errors of the system name `path`, not a temporary file or none, and Ctrl-C stays Ctrl-C, however deep a
    library that was writing has hidden them."""
    handled = sys.exc_info()[1]
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename and not str(error.filename).endswith(PARTIAL):
            raise
        for cause in _behind(error, handled):
            if not isinstance(cause, Exception):
                raise type(cause)(*cause.args) from error
            if number := _error_number(cause):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _behind(error: BaseException | None, handled: BaseException | None) -> Iterator[BaseException]:
    """The error and what is behind it, up to `handled`, which was there before."""
    while error is not None and error is not handled:
        yield error
        error = error.__cause__ or error.__context__


def _error_number(error: BaseException) -> int | None:
    """Of an error of the system; safetensors has it in its message alone."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def write_json(path: str | Path, values: dict) -> Path:
    """Strict JSON (no NaN), written atomically."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def writing_problem(folder: str | Path) -> str:
    """Why nothing can be written into the folder, which need not be there yet; '' if something can."""
    try:
        nearest = next(place for place in (Path(folder), *Path(folder).absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(b"?")
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror})"
    return ""


class Progress:
    """A tqdm bar on a terminal or in a live notebook, else (logs, papermill) a plain line every tenth, if
    QUIET seconds have passed since the last.

    The environment variable DMDD_PROGRESS = bar, lines or none overrides the choice.
    """

    QUIET = 5.0

    def __init__(self, total: int, name: str, start: int = 0, enabled: bool = True):
        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.mode = os.environ.get("DMDD_PROGRESS", "bar" if live else "lines") if enabled else "none"
        self.total, self.name, self.done = total, name, start
        self.began = self.told = time.monotonic()
        self.first = start
        self.bar = tqdm(total=total, desc=name, initial=start, leave=False) if self.mode == "bar" else None

    def update(self, done: int, text: str = ""):
        """`done` of `total` are finished; `text` is shown beside it."""
        tenth = max(1, self.total // 10)
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.done)
        elif self.mode == "lines" and (done // tenth > self.done // tenth or done == self.total):
            self._tell(done, text)
        self.done = done

    def _tell(self, done: int, text: str):
        now = time.monotonic()
        if now - self.told >= self.QUIET:
            seconds, self.told = now - self.began, now
            left = seconds / max(1, done - self.first) * (self.total - done)
            print(f"{self.name} {done}/{self.total}  {seconds:.0f} s, {left:.0f} s left  {text}", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()


def in_threads(
    function: Callable[[Any], Any], items: Sequence, progress: str | None = None, workers: int | None = None
) -> Iterator:
    """`map` over a small thread pool, in order; Pillow and numpy work outside of Python's lock. `progress`
    names the bar, None silences it."""
    workers = workers or min(8, os.cpu_count() or 1)
    bar = Progress(len(items), progress or "", enabled=bool(progress))
    with ThreadPoolExecutor(workers) as pool, bar:
        for done, result in enumerate(pool.map(function, items), start=1):
            yield result
            bar.update(done)
