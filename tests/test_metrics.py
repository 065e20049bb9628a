"""Metrics against brute force in exact fractions, scikit-learn on raw pixels, and answers known by hand."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from dmdd_lite import metrics

LIMITS = (0.05, 0.3, 1.0)
SCALES = (1e300, 5e-324, -1.0)


def regions_of(mask):
    """8-connected components of (H, W) as sets of pixels, by flood fill: nothing shared with the package."""
    left, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        regions.append(region)
    return regions


def brute_curve(maps, masks):
    """(FPR, PRO) in exact fractions at every distinct score, from (0, 0)."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in regions_of(mask)]
    normal, points = sum(int((~mask).sum()) for mask in masks), [(Fraction(0), Fraction(0))]
    for threshold in np.unique(np.concatenate([values.ravel() for values in maps]))[::-1]:
        on = [values >= threshold for values in maps]
        pro = sum(Fraction(sum(bool(on[i][p]) for p in region), len(region)) for i, region in regions)
        wrong = sum(int((o & ~mask).sum()) for o, mask in zip(on, masks, strict=True))
        points.append((Fraction(wrong, normal), pro / len(regions)))
    return points


def brute_aupro(maps, masks, limit):
    limit, area = Fraction(limit), Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(brute_curve(maps, masks)):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return float(area / limit)


def tiny_case(seed, levels=None):
    """Up to 4 maps of up to 7 x 7 with few levels (many ties) or a million; image 0 has both classes."""
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 5), rng.integers(2, 8), rng.integers(2, 8))
    masks = rng.random(shape) < rng.uniform(0.05, 0.6)
    masks[0, 0, 0], masks[:, -1, -1] = True, False
    levels = rng.choice([1, 2, 3, 5, 12, 10**6]) if levels is None else levels
    maps = rng.integers(0, levels, shape) + (rng.random() < 0.5) * masks
    return (maps / 7.0).astype(rng.choice([np.float32, np.float64])), masks


def ranks_of(maps):
    return np.searchsorted(np.unique(maps), maps)


def test_aupro_equals_brute_force(monkeypatch):
    """Also of huge, denormal and negative values, and where the pixels are sorted slice by slice."""
    for seed in range(300):
        maps, masks = tiny_case(seed)
        if seed % 2:
            maps = ranks_of(maps) * SCALES[seed % 3]
        monkeypatch.setattr(metrics, "SLICE", 1 + seed)
        limit = LIMITS[seed % 3]
        found = metrics._area(*metrics.pro_curve(maps, masks), limit)
        assert found == pytest.approx(brute_aupro(maps, masks, limit), abs=1e-12)
        if seed < 60:
            alone = [brute_aupro(a[None], m[None], 0.3) for a, m in zip(maps, masks, strict=True) if m.any()]
            assert metrics._mean_area(maps, masks) == pytest.approx(np.mean(alone), abs=1e-12), seed


def test_pro_curve_passes_through_every_threshold():
    for seed in range(2000, 2050):
        maps, masks = tiny_case(seed)
        fpr, pro = metrics.pro_curve(maps, masks)
        assert min(np.diff(fpr).min(), np.diff(pro).min()) >= 0
        for x, y in brute_curve(maps, masks):
            low, high = np.searchsorted(fpr, [float(x) - 1e-9, float(x) + 1e-9])
            on_jump = pro[low:high].min(initial=1) - 1e-9 <= y <= pro[low:high].max(initial=0) + 1e-9
            assert on_jump or np.interp(float(x), fpr, pro) == pytest.approx(float(y), abs=1e-9)


def test_pixel_and_image_metrics_equal_scikit_learn(monkeypatch):
    for seed in range(3000, 3060):
        maps, masks = tiny_case(seed)
        monkeypatch.setattr(metrics, "SLICE", seed - 2999)
        if seed % 2:
            maps = ranks_of(maps) * SCALES[seed % 3]
        truth, score = masks.ravel(), ranks_of(maps).ravel()
        auroc = pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert (metrics.pixel_auroc(maps, masks), metrics.image_auroc(maps.ravel(), truth)) == (auroc, auroc)
        ap = average_precision_score(truth, score)
        assert metrics.pixel_ap(maps, masks) == pytest.approx(ap, abs=1e-12)


def square_masks():
    """Two images of 16 x 16: a region of 4 pixels in the first, one of 64 in the second."""
    masks = np.zeros((2, 16, 16), dtype=bool)
    masks[0, 2:4, 2:4] = masks[1, 4:12, 4:12] = True
    return masks


SQUARES = square_masks()
FIRST, SECOND = (SQUARES * (np.arange(2) == i)[:, None, None] for i in range(2))
GOOD = np.concatenate((SQUARES, np.zeros((1, 16, 16), dtype=bool)))  # and a good image, the third


@pytest.mark.parametrize("maps, masks, pooled, per_image", [
    (1.0 * SQUARES, SQUARES, 1, 1), (1.0 - SQUARES, SQUARES, 0, 0),
    (0.0 * SQUARES, SQUARES, 0.15, 0.15),  # the diagonal: (0.3 * 0.3 / 2) / 0.3
    # a small and a large region weigh the same: from (0, 1/2) to (1, 1), on average 1/2 + 0.3 / 4
    (1.0 * FIRST, SQUARES, 0.575, 0.575), (1.0 * SECOND, SQUARES, 0.575, 0.575),
    # image 1 ten higher: its region at once, the other after the 192 / 444 normal pixels of image 1
    (SQUARES + 10.0 * np.arange(2)[:, None, None], SQUARES, 0.5, 1),
    # a good image above everything counts for the pooled one only
    (GOOD + 2.0 * (np.arange(3) == 2)[:, None, None], GOOD, 0, 1),
])  # fmt: skip
def test_aupro_of_known_maps(maps, masks, pooled, per_image):
    assert metrics.aupro(maps, masks) == pytest.approx(pooled, abs=1e-12)
    assert metrics._mean_area(maps, masks) == pytest.approx(per_image, abs=1e-12)


def test_an_image_without_normal_pixels_has_no_aupro_of_its_own():
    masks, maps = SQUARES.copy(), np.random.default_rng(0).random(SQUARES.shape)
    masks[1] = True
    assert metrics._mean_area(maps, masks) == metrics.aupro(maps[:1], masks[:1])
    masks[0] = False
    assert np.isnan(metrics._mean_area(maps, masks))


def test_an_evaluation_has_all_metrics_and_decisions_as_of_scikit_learn():
    """An image is called anomalous above the threshold, not at it; a pixel at or above."""
    for seed in range(4000, 4040):
        maps, masks = tiny_case(seed)
        masks[-1] &= len(masks) == 1
        maps, masks = np.concatenate((maps, maps[:1])), np.concatenate((masks, masks[:1] & False))
        scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
        threshold = float(np.random.default_rng(seed).choice(scores))
        found = metrics.evaluate_maps(maps, masks, scores, labels, threshold)
        assert found["image_auroc"] == metrics.image_auroc(scores, labels)
        for name in PIXEL_METRICS[:3]:
            assert found[name] == getattr(metrics, name)(maps, masks)
        assert found["aupro_per_image"] == metrics._mean_area(maps, masks)
        best = max(f1_score(masks.ravel(), (maps >= t).ravel()) for t in np.unique(maps))
        assert found["best_pixel_f1"] == pytest.approx(best, abs=1e-12)
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            expected = score(labels, scores > threshold, zero_division=0 if name == "f1" else np.nan)
            assert found[f"image_{name}"] == pytest.approx(expected, nan_ok=True), name


def test_maps_of_mixed_sizes_are_pooled():
    for seed in range(40):
        (maps, masks), (more, marked) = tiny_case(seed), tiny_case(seed + 1)
        mixed = [*maps, *more], [*masks, *marked]
        assert metrics.aupro(*mixed) == pytest.approx(brute_aupro(*mixed, 0.3), abs=1e-12)
        flat = [np.concatenate([values.ravel() for values in part])[None, None] for part in mixed]
        assert metrics.pixel_auroc(*mixed) == metrics.pixel_auroc(*flat)
        assert metrics.aupro(list(maps), list(masks)) == metrics.aupro(maps, masks)
    for wrong, reason in ((maps * np.nan, f"map {len(more)} has NaN"), (maps[:, 1:], "have the shape")):
        with pytest.raises(ValueError, match=reason):
            metrics.pixel_ap([*more, *wrong], [*marked, *masks])


PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "aupro", "pro_curve")


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize("change, reason", [
    (lambda a, m: (a[:, :-1], m), r"maps have the shape \(2, 15, 16\)"),
    (lambda a, m: (a[0], m[0]), r"\(N, H, W\)"), (lambda a, m: (a[:0], m[:0]), "empty"),
    (lambda a, m: (a, m & False), "no anomalous pixel"), (lambda a, m: (a, m | True), "no normal pixel"),
    (lambda a, m: (a, m * 1.0), "bool"),
])  # fmt: skip
def test_pixel_metrics_refuse(metric, change, reason):
    with pytest.raises(ValueError, match=reason):
        getattr(metrics, metric)(*change(SQUARES.astype(np.float64), SQUARES))


@pytest.mark.parametrize("scores, labels, reason", [
    ([0.1, 0.2], [True], "shape"), ([[0.1, 0.2]], [[True, False]], "shape"), ([], [], "empty"),
    ([0.1, 0.2], [True, True], "no normal image"), ([0.1, 0.2], [False, False], "no anomalous image"),
])  # fmt: skip
def test_image_auroc_refuses(scores, labels, reason):
    with pytest.raises(ValueError, match=reason):
        metrics.image_auroc(np.array(scores), np.array(labels))
