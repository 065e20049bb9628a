"""Writing files so that a crash never leaves a half-written one, and progress that suits where it is seen."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary)` make the file beside `path`, then rename it there: all of it or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | Path, values: dict) -> Path:
    """Strict JSON (no NaN), written atomically."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
