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
from builders import save_image, tiny_config

from dmdd_lite import evaluation
from dmdd_lite.data import open_category
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


@pytest.fixture(scope="module")
def nuts(tmp_path_factory):
    """Images of coarse noise, some of them with a square, and textures in two folders."""
    root = tmp_path_factory.mktemp("nuts")
    for i in range(6):
        save_image(root / f"nut/train/good/{i}.png", picture(i))
        save_image(root / f"textures/{'ab'[i % 2]}/{i}.png", picture(300 + i))
    for i in range(4):
        save_image(root / f"nut/test/good/{i}.png", picture(100 + i))
        broken, mask = picture(200 + i), np.zeros((64, 64), np.uint8)
        broken[20:36, 4 * i : 4 * i + 16] = 255 - broken[20:36, 4 * i : 4 * i + 16]
        mask[20:36, 4 * i : 4 * i + 16] = 255
        save_image(root / f"nut/test/hole/{i}.png", broken)
        save_image(root / f"nut/ground_truth/hole/{i}_mask.png", mask)
    return root


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def digest(arrays) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def trained(root, seed: int, threads: int = 1):
    """Training and evaluation."""
    torch.set_num_threads(threads)
    config = tiny_config(seed=seed, iterations=2)
    result = train(config, root, "nut", root / "textures", device="cpu", progress=False)
    return result, evaluation.evaluate(result.detector, open_category(root, "nut"), progress=False)


def everything(root, result, found) -> dict:
    """All that both give, as digests and numbers that survive JSON unchanged."""
    predicted = result.detector.predict(root / "nut/test")
    return {
        "weights": digest(v.numpy() for v in result.detector.model.state_dict().values()),
        "losses": digest([result.history.to_numpy()]),
        "threshold": result.detector.threshold,
        "maps": digest(found.maps.values()),
        "scores": digest(found.scores.values()),
        "metrics": found.metrics,
        "predictions": digest([*(p.fused for p in predicted), [p.score for p in predicted]]),
    }


def elsewhere(root, seeds, hash_seed: int) -> list[dict]:
    """The same in a process of its own, for several seeds."""
    code = (
        f"import json, pathlib, test_determinism as t; root = pathlib.Path({str(root)!r})\n"
        f"found = [t.everything(root, *t.trained(root, seed)) for seed in {list(seeds)}]\n"
        "print('FOUND', json.dumps(found))"
    )
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent.parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("FOUND")[1])


def use_random_numbers(seed: int):
    """What a caller may have done before, with every global generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    torch.rand(seed), np.random.rand(seed), random.random()  # noqa: NPY002


def states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), [*map(str, numpy_state)], random.getstate()


@pytest.fixture(scope="module")
def here(nuts, depth):
    """Trainings and evaluations of several seeds on one thread."""
    return [trained(nuts, seed) for seed in range(depth(3, 8))]


@pytest.fixture(scope="module")
def known(nuts, here):
    return [everything(nuts, *both) for both in here]


def test_the_same_call_gives_the_same_bits_in_other_processes(nuts, known, depth, tally):
    for hash_seed in range(depth(1, 3)):
        assert elsewhere(nuts, range(len(known)), hash_seed) == known
        tally("trainings and evaluations compared bit by bit", len(known))
    assert len({found["weights"] for found in known}) == len(known)


def test_global_random_numbers_are_neither_used_nor_touched(nuts, known, depth, tally):
    for seed in range(depth(1, 6)):
        use_random_numbers(seed + 17)
        before = states()
        assert everything(nuts, *trained(nuts, seed)) == known[seed]
        assert states() == before
        tally("trainings and evaluations compared bit by bit")


def test_two_threads_give_the_same_bits_twice(nuts, depth, tally):
    for seed in range(depth(1, 6)):
        one, other = (everything(nuts, *trained(nuts, seed, threads=2)) for _ in range(2))
        assert one == other
        tally("trainings and evaluations compared bit by bit")


class Listing(list):
    """What os.scandir returns can be closed."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_the_order_in_which_a_file_system_lists_changes_nothing(nuts, known, monkeypatch, depth, tally):
    asked = []

    def shuffled(real):
        def listing(path="."):
            entries = Listing(real(path))
            random.Random(len(asked)).shuffle(entries)
            asked.append(path)
            return entries

        return listing

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, shuffled(getattr(os, name)))
    assert os.listdir(nuts / "nut/train/good") != sorted(os.listdir(nuts / "nut/train/good"))
    for seed in range(depth(1, 6)):
        asked.clear()
        assert everything(nuts, *trained(nuts, seed)) == known[seed]
        assert len(asked) > 6
        tally("trainings on shuffled listings")


def differences(one, other) -> dict[str, float]:
    """Largest difference of the maps by name, the scores counted with them."""
    return {
        name: max(np.abs(one[k][name] - other[k][name]).max().item() for k in ("maps", "scores"))
        for name in one["maps"]
    }


def test_batch_size_and_threads_change_the_sixth_digit_at_most(here, depth, tally):
    for result, expected in here:
        for batch_size in (3, 1, 100)[: depth(1, 3)]:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                other = evaluation.evaluate(result.detector, expected.category, batch_size, progress=False)
                apart = differences(vars(other), vars(expected))
                assert apart["fused"] < 2e-6
                assert max(apart.values()) < 1e-5  # of maps that reach 2 and more
                tally("evaluations in other batches and threads")


def test_half_the_digits_of_bf16_are_those_of_float32(here, tally):
    """Mean differences, for single pixels of position maps, logarithms of small distances, differ by more."""
    for result, expected in here:
        model = build_model(tiny_config(precision="bf16"), result.detector.model.teacher)
        model.load_state_dict(result.detector.model.state_dict())
        other = evaluation.evaluate(Detector(model), expected.category, progress=False)
        for name, maps in expected.maps.items():
            apart = np.abs(other.maps[name] - maps)
            assert 1e-6 < apart.mean() < 0.02 * (maps.max() - maps.min()), name
        assert np.abs(other.maps["fused"] - expected.maps["fused"]).max() < 0.1
        tally("bf16 compared with float32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_maps_of_the_cpu(here, tmp_path):
    for result, expected in here:
        moved = Detector.load(result.detector.save(tmp_path), "cuda")
        other = evaluation.evaluate(moved, expected.category, progress=False)
        apart = differences(vars(other), vars(expected))
        assert apart["fused"] < 5e-3  # convolutions may use TF32
        assert max(apart.values()) < 5e-2
