"""How deep the tests of faults, bad input and hostile files go.

`make test` tries some of everything, `make stress` (DMDD_STRESS=1) much more of it.
"""

import os

import pytest
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
