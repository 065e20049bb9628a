"""Disks that fill up or cannot be written to, for tests."""

import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

FULL, READ_ONLY = "No space left on device", "Read-only file system"


class Disk:
    """A file system in memory, of 20 MB."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")

    def remount(self, options: str):
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def fill(self, leave: int = 0):
        """Until no more than `leave` bytes are free."""
        free = shutil.disk_usage(self.folder).free - leave
        (self.folder / "filler").write_bytes(bytes(max(0, free)))

    def empty(self):
        (self.folder / "filler").unlink()


@contextmanager
def files_of_at_most(size: int):
    """For this process, which writes no larger ones: what any user may ask for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
