"""Fixtures that several test modules share."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
from reproductions import small_data, small_notebook


@pytest.fixture
def no_trace():
    """No figure stays open in pyplot, and the caller's settings stay as they were."""
    matplotlib.use("Agg")
    settings = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two small sample categories."""
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A stand-in for notebook 05."""
    return small_notebook(tmp_path_factory.mktemp("notebook") / "small.ipynb")
