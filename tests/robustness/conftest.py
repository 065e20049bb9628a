"""Fixtures of the robustness tests; hypothesis draws the same cases in every run."""

from functools import partial

import pytest
from attempts import train_small
from hypothesis import HealthCheck, settings

settings.register_profile(
    "dmdd", max_examples=25, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("dmdd")


@pytest.fixture(scope="module")
def call(root):
    """A tiny training into a folder."""
    return partial(train_small, root)


@pytest.fixture(scope="module")
def whole(call):
    """The training that nothing happens to."""
    return call()
