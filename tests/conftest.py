"""Fixtures that several test modules share."""

from pathlib import Path

import pytest
from builders import make_category, some_samples, tiny_detector, tiny_teacher, train_tiny
from reproductions import small_notebook


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Fixtures of the session and the tests that compare with them to the bit run on equally many threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two small sample categories."""
    root = tmp_path_factory.mktemp("data")
    for category in ("fabric", "pcb"):
        some_samples(root, category, train=6)
    return root


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
    from dmdd_lite.detector import MAP_NAMES

    return tiny_detector(dict.fromkeys(MAP_NAMES, 0.125))


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
