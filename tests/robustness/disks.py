"""Disks that fill up or cannot be written to, for tests."""

import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

FULL, READ_ONLY = "No space left on device", "Read-only file system"


class Disk:
    """A file system in memory, of a few megabytes."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def mount(self, size: str):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder)]
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

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


@contextmanager
def mounted(folder: Path, size: str = "20m"):
    """A disk at that place. Skips the test where this user may not mount one."""
    disk = Disk(folder)
    disk.mount(size)
    try:
        yield disk
    finally:
        disk.unmount()


@contextmanager
def files_of_at_most(size: int):
    """For this process, which writes no larger ones: what any user may ask for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
