"""How deep the tests of faults, bad input and hostile files go.

`make test` tries some of everything, `make stress` (DMDD_STRESS=1) much more of it.
"""

import os
from functools import partial

import pytest
from attempts import train_small
from disks import mounted
from hypothesis import HealthCheck, settings

STRESS = bool(os.environ.get("DMDD_STRESS"))

# what is drawn is the same in every run of the suite; under stress it is new each time
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "dmdd", max_examples=500 if STRESS else 25, derandomize=not STRESS, database=None, deadline=None,
    suppress_health_check=CHECKS,
)  # fmt: skip
settings.load_profile("dmdd")


@pytest.fixture(scope="session")
def depth():
    """depth(quick, stress): how many cases a test of its own loop tries."""
    return lambda quick, stress: stress if STRESS else quick


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own that can be filled up."""
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture(scope="module")
def call(root):
    """A tiny training into a folder."""
    return partial(train_small, root)


@pytest.fixture(scope="module")
def whole(call):
    """The training that nothing happens to."""
    return call()
