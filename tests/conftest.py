"""Fixtures that several test modules share, and the count of what the tests of robustness tried."""

from collections import Counter
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from builders import make_category, tiny_model, tiny_teacher, train_tiny
from reproductions import small_data, small_notebook

from dmdd_lite import download
from dmdd_lite.samples import write_samples

TRIED = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.stash[TRIED] = Counter()


@pytest.fixture(scope="session")
def tally(pytestconfig):
    """tally(kind, count=1): faults injected or inputs tried, told at the end of the run."""

    def count(kind: str, number: int = 1):
        pytestconfig.stash[TRIED][kind] += number

    return count


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["tried"] = dict(session.config.stash[TRIED])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A process of pytest-xdist has ended; one that crashed tells nothing."""
    node.config.stash[TRIED].update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter, config):
    tried = config.stash[TRIED]
    if tried:
        terminalreporter.write_sep("-", "tried")
        for kind, number in sorted(tried.items()):
            terminalreporter.write_line(f"{number:7} {kind}")


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
    write_samples(root, "lever", size=64, train=7, good=2, per_defect=1)
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
