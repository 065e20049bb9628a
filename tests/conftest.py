"""Fixtures that several test modules share."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from builders import make_category, some_samples, tiny_model, tiny_teacher, train_tiny
from reproductions import small_data, small_notebook

from dmdd_lite.data import download


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


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """One tiny sample category, lever, which no test writes into."""
    root = tmp_path_factory.mktemp("samples")
    some_samples(root, "lever", train=7)
    return root


@pytest.fixture(scope="session")
def teacher():
    return tiny_teacher()


@pytest.fixture(scope="session")
def detector():
    """Untrained; no test changes it."""
    from dmdd_lite.detector import Detector

    return Detector(tiny_model(), threshold=0.125)


@pytest.fixture(scope="session")
def whole(root):
    """A whole training of the tiny configuration, which no test changes."""
    return train_tiny(root)


@pytest.fixture(scope="module")
def scripts():
    """The benchmarks' folder in the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
        yield


@pytest.fixture
def nuts(tmp_path):
    """Two categories of the lightest kind, for what never computes on them."""
    for name in ("nut", "bolt"):
        make_category(tmp_path / "data", name)
    return tmp_path / "data"


@pytest.fixture
def no_proxy(monkeypatch):
    """Downloads go straight to the address that a test names."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", download.URL_VARIABLE):
        monkeypatch.delenv(name, raising=False)
