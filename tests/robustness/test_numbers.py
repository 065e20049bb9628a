"""Numbers stay true: metrics and thresholds against brute force on awkward input, and what cannot be measured
is refused; whatever images a detector is trained on, its maps and scores are finite."""

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
from builders import networks_of, save_image, tiny_config, tiny_detector
from test_metrics import tiny_case

from dmdd_lite import evaluation, metrics
from dmdd_lite.course.thresholds import best_outline, error_rates, outline_quality
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import Detector, DetectorError
from dmdd_lite.metrics import aupro, image_auroc, pixel_ap, pixel_auroc
from dmdd_lite.model import build_model
from dmdd_lite.training import TrainingError, train

PIXELWISE = (pixel_auroc, pixel_ap, aupro)


MAPS, MASKS = np.random.default_rng(0).random((3, 4, 5)), np.arange(60).reshape(3, 4, 5) % 7 == 0
OUTLINES = (metrics.pro_curve, best_outline, lambda a, m: outline_quality(a, m, {}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_image(value):
    maps, scores = MAPS.copy(), MAPS[:, 0, 0].copy()
    maps[1, 2, 3] = scores[1] = value
    for metric in (*PIXELWISE, *OUTLINES):
        with pytest.raises(ValueError, match="map 1 has NaN or infinite values, 1 of 3"):
            metric(maps, MASKS)
    for metric in (image_auroc, lambda s, t: error_rates(s, t, np.zeros(1))):
        with pytest.raises(ValueError, match="score 1 has NaN or infinite values"):
            metric(scores, np.array([True, False, True]))


def test_best_outline_is_the_best_of_all():
    """Also among neighbouring floating-point numbers, between which there is nothing."""
    for seed in range(100):
        maps, masks = tiny_case(seed)
        if seed % 2:
            maps = np.nextafter(np.float32(1), np.where(maps > np.median(maps), np.float32(2), np.float32(0)))
        below = np.nextafter(maps.min(), maps.dtype.type(-np.inf))
        overlaps = [(t, (maps > t) & masks, (maps > t) | masks) for t in (below, *np.unique(maps))]
        best = max(both.sum() / either.sum() for _, both, either in overlaps)
        above = maps > best_outline(maps, masks)
        assert (above & masks).sum() / (above | masks).sum() == best, seed


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def flat(value):
    return np.full((64, 64, 3), value, np.uint8)


def category_of(root, image, count):
    """train/good of `count` images; a test split of flat images and noise, each good and with a square."""
    for i in range(count):
        save_image(root / f"nut/train/good/{i:03}.png", image(i))
    for i, test in enumerate([image(0), noise(99), flat(0), flat(255)]):
        save_image(root / f"nut/test/good/{i}.png", test)
        test, mask = test.copy(), np.zeros((64, 64), np.uint8)
        test[8:24, 8:24], mask[8:24, 8:24] = 255 - test[8:24, 8:24], 255
        save_image(root / f"nut/test/hole/{i}.png", test)
        save_image(root / f"nut/ground_truth/hole/{i}_mask.png", mask)
    return root


SETS = {
    "black": lambda i: flat(0),
    "the same image": lambda i: noise(0),
    "one white": lambda i: flat(255 * (i == 3)),
    "one pixel": lambda i: np.uint8(255 * (np.arange(64 * 64).reshape(64, 64, 1) == i) + flat(0)),
}


@pytest.mark.filterwarnings("ignore:.* of one value")
@pytest.mark.parametrize("kind", SETS)
def test_whatever_the_training_images_all_numbers_are_finite(tmp_path, kind):
    root = category_of(tmp_path, SETS[kind], 5)
    detector = train(tiny_config(iterations=2), root, "nut", device="cpu", progress=False).detector
    found = evaluation.evaluate(detector, open_category(root, "nut"), progress=False)
    assert all(torch.isfinite(values).all() for values in networks_of(detector).state_dict().values())
    for name, maps in found.maps.items():
        assert np.isfinite(maps).all(), name
        assert np.isfinite(found.scores[name]).all(), name
        assert all(0 <= value <= 1 for value in found.metrics[name].values()), name
    assert 0 <= found.maps["fused"].min() <= found.maps["fused"].max() <= 1
    assert 0 <= detector.threshold <= 1


@pytest.mark.parametrize("iterations, msn_iterations", [(1, 0), (8, 2)])
def test_weights_that_are_not_finite_are_neither_saved_nor_returned(tmp_path, iterations, msn_iterations):
    """The losses of an iteration are those before its step, so that the last one may be the worst."""
    root, out = category_of(tmp_path, noise, 4), tmp_path / "out"
    given = {"iterations": iterations, "msn_iterations": msn_iterations}
    config = tiny_config(learning_rate=1e30, prior=False, **given)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(config, root, "nut", output_dir=out, device="cpu", checkpoint_every=1, progress=False)
    assert not (out / "detector").exists()
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        assert all(values.isfinite().all() for values in state["networks"]["student"].values())


def test_a_broken_detector_is_told_by_the_image(tmp_path):
    root, detector = category_of(tmp_path, noise, 1), tiny_detector(plus=None)
    detector.model.student.decouple[0].expand[-2].weight.data[0, 0] = torch.nan
    with pytest.raises(DetectorError, match=r"test/good/0\.png is nan \(8 of 8 are not finite\)"):
        evaluation.evaluate(detector, open_category(root, "nut"), progress=False)


# ---- the same call gives the same numbers: to the bit where that is promised, else to so many digits --


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
    parts = {
        "weights": networks_of(result.detector).state_dict().values(),
        "losses": [result.history.to_numpy()],
        "maps": [*found.maps.values(), *found.scores.values()],
        "predictions": [p.fused for p in result.detector.predict(root / "lever/test")],
    }
    whole = {name: b"".join(np.ascontiguousarray(a).tobytes() for a in part) for name, part in parts.items()}
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in whole.items()}
    return {**digests, "thresholds": result.detector.thresholds, "metrics": found.metrics}


@pytest.fixture(scope="module")
def here(root):
    return trained(root)


@pytest.fixture(scope="module")
def known(root, here):
    return everything(root, *here)


def test_the_same_call_gives_the_same_bits_in_another_process(root, known):
    code = (
        f"import json, pathlib, test_numbers as t; root = pathlib.Path({str(root)!r})\n"
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


def test_neither_global_random_numbers_nor_the_order_of_listed_files_count(root, known, monkeypatch):
    """And the random numbers are left as they were."""
    asked, listed, shuffles = [], Path.iterdir, random.Random(0)

    def shuffled(folder):
        asked.append(folder)
        return iter(shuffles.sample(found := list(listed(folder)), len(found)))

    monkeypatch.setattr(Path, "iterdir", shuffled)
    torch.rand(17), np.random.rand(17), random.random()  # noqa: NPY002
    before = states()
    assert everything(root, *trained(root)) == known
    assert states() == before
    assert len(asked) > 6


def test_two_threads_give_the_same_bits_twice(root):
    one, other = (everything(root, *trained(root, threads=2)) for _ in range(2))
    assert one == other


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
