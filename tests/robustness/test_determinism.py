"""The same call gives the same numbers: to the bit where that is promised, else to so many digits."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import networks_of, tiny_config

from dmdd_lite import evaluation
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.model import build_model
from dmdd_lite.training import train

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(root, seed: int = 0, threads: int = 1):
    """Training and evaluation."""
    torch.set_num_threads(threads)
    config = tiny_config(seed=seed, iterations=2)
    result = train(config, root, "lever", root / "lever/test", device="cpu", progress=False)
    return result, evaluation.evaluate(result.detector, open_category(root, "lever"), progress=False)


def everything(root, result, found) -> dict:
    """All that both give, as digests and numbers that survive JSON unchanged."""
    arrays = {
        "weights": networks_of(result.detector).state_dict().values(),
        "losses": [result.history.to_numpy()],
        "maps": [*found.maps.values(), *found.scores.values()],
        "predictions": [p.fused for p in result.detector.predict(root / "lever/test")],
    }
    parts = {name: [np.ascontiguousarray(a).tobytes() for a in values] for name, values in arrays.items()}
    digests = {name: hashlib.sha256(b"".join(values)).hexdigest() for name, values in parts.items()}
    return {**digests, "thresholds": result.detector.thresholds, "metrics": found.metrics}


@pytest.fixture(scope="module")
def here(root):
    return trained(root)


@pytest.fixture(scope="module")
def known(root, here):
    return everything(root, *here)


def test_the_same_call_gives_the_same_bits_in_another_process(root, known):
    code = (
        f"import json, pathlib, test_determinism as t; root = pathlib.Path({str(root)!r})\n"
        "print('FOUND', json.dumps(t.everything(root, *t.trained(root))))"
    )
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent.parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.split("FOUND")[1]) == known
    assert everything(root, *trained(root, seed=1)) != known


def states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), [*map(str, numpy_state)], random.getstate()


def test_global_random_numbers_are_neither_used_nor_touched(root, known):
    torch.rand(17), np.random.rand(17), random.random()  # noqa: NPY002
    before = states()
    assert everything(root, *trained(root)) == known
    assert states() == before


def test_two_threads_give_the_same_bits_twice(root):
    one, other = (everything(root, *trained(root, threads=2)) for _ in range(2))
    assert one == other


def test_the_order_in_which_a_file_system_lists_changes_nothing(root, known, monkeypatch):
    asked, listed = [], Path.iterdir

    def shuffled(folder):
        asked.append(folder)
        return iter(random.Random(len(asked)).sample(found := list(listed(folder)), len(found)))

    monkeypatch.setattr(Path, "iterdir", shuffled)
    assert everything(root, *trained(root)) == known
    assert len(asked) > 6


def apart(one, other) -> dict[str, float]:
    """Largest difference of the maps by name, the scores counted with them."""
    both = (one.maps, other.maps), (one.scores, other.scores)
    return {n: max(np.abs(a[n] - b[n]).max().item() for a, b in both) for n in one.maps}


@pytest.mark.parametrize("batch_size, threads", [(3, 1), (8, 2)])
def test_batch_size_and_threads_change_the_sixth_digit_at_most(here, batch_size, threads):
    result, expected = here
    torch.set_num_threads(threads)
    other = apart(evaluation.evaluate(result.detector, expected.category, batch_size, False), expected)
    assert other["fused"] < 2e-6
    assert max(other.values()) < 1e-5  # of maps that reach 2 and more


def test_half_the_digits_of_bf16_are_those_of_float32(here):
    """Mean differences: single pixels of position maps, logarithms of small distances, differ by more."""
    result, expected = here
    model = build_model(tiny_config(precision="bf16"), result.detector.model.teacher)
    model.load_state_dict(result.detector.model.state_dict())
    detector = Detector(model, result.detector.plus)
    other = evaluation.evaluate(detector, expected.category, progress=False)
    for name, maps in expected.maps.items():
        assert 1e-6 < np.abs(other.maps[name] - maps).mean() < 0.02 * (maps.max() - maps.min()), name
    assert apart(other, expected)["fused"] < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_maps_of_the_cpu(here, tmp_path):
    result, expected = here
    moved = Detector.load(result.detector.save(tmp_path), "cuda")
    other = apart(evaluation.evaluate(moved, expected.category, progress=False), expected)
    assert other["fused"] < 5e-3  # convolutions may use TF32
    assert max(other.values()) < 5e-2
