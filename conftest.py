"""Notebooks under test start without the results of an earlier test run."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent


def pytest_sessionstart(session):
    for folder in ("notebooks", "notebooks/solutions"):
        shutil.rmtree(ROOT / folder / "results/nbmake", ignore_errors=True)
