"""Numbers stay true: metrics and thresholds against brute force on awkward input, and what cannot be measured
is refused; whatever images a detector is trained on, its maps and scores are finite."""

import numpy as np
import pytest
import torch
from builders import networks_of, save_image, tiny_config, tiny_detector
from test_metrics import tiny_case

from dmdd_lite import evaluation, metrics
from dmdd_lite.course.thresholds import best_outline, error_rates, outline_quality
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import DetectorError
from dmdd_lite.metrics import aupro, aupro_per_image, image_auroc, pixel_ap, pixel_auroc
from dmdd_lite.training import TrainingError, train

PIXELWISE = (pixel_auroc, pixel_ap, aupro, aupro_per_image)

# ---- metrics ------------------------------------------------------------------------------------------


MAPS, MASKS = np.random.default_rng(0).random((3, 4, 5)), np.arange(60).reshape(3, 4, 5) % 7 == 0
OUTLINES = (metrics.pro_curve, best_outline, lambda a, m: outline_quality(a, m, {}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_its_image(value):
    maps, scores = MAPS.copy(), MAPS[:, 0, 0].copy()
    maps[1, 2, 3] = scores[1] = value
    for metric in (*PIXELWISE, *OUTLINES):
        with pytest.raises(ValueError, match=r"map 1 has NaN or infinite values \(1 of 3"):
            metric(maps, MASKS)
    for metric in (image_auroc, lambda s, t: error_rates(s, t, np.zeros(1))):
        with pytest.raises(ValueError, match="score 1 is NaN or infinite"):
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


# ---- detectors ----------------------------------------------------------------------------------------


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
