"""Locks on files, which the system lets go of when their holder dies, however it does: no clock and no age
decides whether one still counts."""

import contextlib
import os
import socket
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: everything is as if nobody else were there
    fcntl = None

AVAILABLE = fcntl is not None
PATIENCE = 20.0  # seconds to wait for a lock: whoever was killed together with its holder needs some


class Busy(RuntimeError):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def claim(path: Path, what: str, patience: float | None = None):
    """Hold the lock file `path`, which is there for as long as it is held; patience None is PATIENCE seconds.

    Raises Busy, "`what` by process 12 on name", if another still holds it after that; OSError if the file
    cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    patience = PATIENCE if patience is None else patience
    deadline, told = time.monotonic() + patience, False
    while (file := _open_locked(path)) is None:
        busy = Busy(f"{what} by {holder(path) or 'another process'}")
        if time.monotonic() >= deadline:
            raise busy
        if not told:
            print(f"{busy}; waits for it {patience:.0f} s", flush=True)
            told = True
        time.sleep(0.2)
    try:
        _sign(file, path)
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that is gone, say: the lock ends all the same
            path.unlink()
        _close(file)


def holder(path: Path) -> str:
    """Who has the lock, as 'process 12 on name'; '' if nobody has."""
    try:
        with open(path, "r+b", buffering=0) as file:
            return "" if _lock(file) else file.read(1000).decode(errors="replace") or "another process"
    except FileNotFoundError:
        return ""


def hold(file) -> bool:
    """Lock an open file that is still in its folder, for as long as it stays open; False if another process
    has it or has removed it."""
    return _lock(file) and os.fstat(file.fileno()).st_nlink > 0


def _lock(file) -> bool:
    """A file system without locks counts as one where nobody else is."""
    if not AVAILABLE:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _open_locked(path: Path):
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 (`claim` closes it)
    if hold(file):
        return file
    file.close()
    return None


def _sign(file, path: Path):
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _close(file):
    """Let go for children too that were forked meanwhile: theirs is the same open file."""
    if AVAILABLE:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
