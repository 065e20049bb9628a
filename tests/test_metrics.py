"""Metrics against brute force in exact fractions, scikit-learn on raw pixels, and answers known by hand."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from dmdd_lite import metrics

LIMITS = (0.05, 0.3, 1.0)


def regions_of(mask):
    """8-connected components of (H, W) as sets of pixels, by flood fill: nothing shared with the package."""
    left = set(zip(*np.nonzero(mask), strict=True))
    regions = []
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
    normal = int((~masks).sum())
    points = [(Fraction(0), Fraction(0))]
    for threshold in np.unique(maps)[::-1]:
        on = maps >= threshold
        pro = sum(Fraction(sum(bool(on[i][p]) for p in region), len(region)) for i, region in regions)
        points.append((Fraction(int((on & ~masks).sum()), normal), pro / len(regions)))
    return points


def brute_aupro(maps, masks, limit):
    limit, area = Fraction(limit), Fraction(0)
    points = brute_curve(maps, masks)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
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


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_aupro_equals_brute_force(first):
    for seed in range(first, first + 100):
        maps, masks = tiny_case(seed)
        limit = LIMITS[seed % 3]
        exact = brute_aupro(maps, masks, limit)
        assert metrics.aupro(maps, masks, limit) == pytest.approx(exact, abs=1e-12), seed


def test_aupro_per_image_equals_the_mean_of_brute_force():
    for seed in range(1000, 1060):
        maps, masks = tiny_case(seed)
        alone = [brute_aupro(a[None], m[None], 0.3) for a, m in zip(maps, masks, strict=True) if m.any()]
        assert metrics.aupro_per_image(maps, masks) == pytest.approx(np.mean(alone), abs=1e-12), seed


def test_pro_curve_passes_through_every_threshold():
    for seed in range(2000, 2050):
        maps, masks = tiny_case(seed)
        fpr, pro = metrics.pro_curve(maps, masks)
        assert (np.diff(fpr) >= 0).all()
        assert (np.diff(pro) >= 0).all()
        for x, y in brute_curve(maps, masks):
            low, high = np.searchsorted(fpr, [float(x) - 1e-9, float(x) + 1e-9])
            on_jump = pro[low:high].min(initial=1) - 1e-9 <= y <= pro[low:high].max(initial=0) + 1e-9
            assert on_jump or np.interp(float(x), fpr, pro) == pytest.approx(float(y), abs=1e-9)


def test_pixel_metrics_equal_scikit_learn_on_raw_pixels():
    for seed in range(3000, 3100):
        maps, masks = tiny_case(seed)
        truth, score = masks.ravel(), maps.ravel()
        assert metrics.pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        assert metrics.pixel_ap(maps, masks) == pytest.approx(
            average_precision_score(truth, score), abs=1e-12
        )


def test_image_auroc_counts_ordered_pairs():
    scores, labels = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert metrics.image_auroc(scores, labels) == (1 + 1 + 1 + 0.5) / 4
    assert metrics.image_auroc(-scores, labels) == 0.5 / 4


@pytest.mark.parametrize(
    "transform", [np.exp, np.cbrt, lambda x: 1e-6 * x - 40.0, lambda x: np.searchsorted(np.unique(x), x)]
)
def test_strictly_monotone_transforms_change_nothing(transform):
    for seed in range(20):
        maps, masks = tiny_case(seed, levels=9)
        maps = maps.astype(np.float64)
        for metric in (metrics.aupro, metrics.aupro_per_image, metrics.pixel_auroc, metrics.pixel_ap):
            assert metric(transform(maps), masks) == metric(maps, masks)


def square_masks():
    """Two images of 16 x 16: a region of 4 pixels in the first, one of 64 in the second."""
    masks = np.zeros((2, 16, 16), dtype=bool)
    masks[0, 2:4, 2:4] = True
    masks[1, 4:12, 4:12] = True
    return masks


def test_known_answers():
    masks = square_masks()
    perfect = masks.astype(np.float32)
    assert metrics.aupro(perfect, masks) == metrics.aupro_per_image(perfect, masks) == 1.0
    assert metrics.aupro(1 - perfect, masks) == 0.0
    for limit in LIMITS:  # the curve is the diagonal: (limit * limit / 2) / limit
        assert metrics.aupro(np.zeros(masks.shape), masks, limit) == pytest.approx(limit / 2, abs=1e-15)


@pytest.mark.parametrize("found", [0, 1])
def test_small_and_large_region_weigh_the_same(found):
    masks = square_masks()
    maps = np.zeros(masks.shape)
    maps[found][masks[found]] = 1.0  # the other region ties with everything normal
    # straight from (0, 1/2) to (1, 1): the mean height over 0 .. 0.3 is 1/2 + 0.3 / 4
    assert metrics.aupro(maps, masks) == pytest.approx(0.575, abs=1e-12)


def test_regions_are_8_connected_and_stay_within_their_image():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, [1, 2, 3], [1, 2, 3]] = True  # a diagonal of 3 is one region, 4-connected it would be three
    masks[0, 6, 6] = True
    masks[1, 6, 6] = True  # above the pixel of image 0, yet a region of its own
    maps = np.zeros(masks.shape)
    maps[0, [1, 2, 3], [1, 2, 3]] = 1.0
    assert metrics.aupro(maps, masks, 1.0) == pytest.approx((1 / 3 + 1) / 2, abs=1e-12)


def test_pooled_and_per_image_differ_when_levels_differ_between_images():
    masks = square_masks()
    maps = masks + 10.0 * np.arange(2)[:, None, None]  # perfect within each image, image 1 ten higher
    assert metrics.aupro_per_image(maps, masks) == 1.0
    # pooled: the large region at once, the small one only after the 192 normal pixels of image 1
    assert 192 / (512 - 68) > 0.3
    assert metrics.aupro(maps, masks) == pytest.approx(0.5, abs=1e-12)


def test_good_images_count_for_the_pooled_aupro_only():
    masks = np.concatenate((square_masks(), np.zeros((1, 16, 16), dtype=bool)))
    maps = masks.astype(float)
    maps[2] = 2.0  # a good image above everything
    assert metrics.aupro_per_image(maps, masks) == 1.0
    assert metrics.aupro(maps, masks) == 0.0


def test_thinned_curve_keeps_its_ends_and_its_area():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 96, 96), dtype=bool)
    masks[:, 20:70, 30:60] = True
    maps = rng.normal(size=masks.shape) + masks
    fpr, pro = metrics.pro_curve(maps, masks)
    thin_fpr, thin_pro = metrics.pro_curve(maps, masks, max_points=200)
    assert len(fpr) > 5000 > 200 >= len(thin_fpr) > 150
    assert (thin_fpr[0], thin_pro[0], thin_fpr[-1], thin_pro[-1]) == (0, 0, 1, 1)
    grid = np.linspace(0, 1, 500)
    gap = np.interp(grid, fpr, pro) - np.interp(grid, thin_fpr, thin_pro)
    assert np.abs(gap).max() < 4 / 199


def test_evaluate_maps_is_the_five_metrics():
    maps, masks = tiny_case(17)
    masks[-1] = False
    assert len(maps) > 1
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    result = metrics.evaluate_maps(maps, masks, scores, labels)
    names = ["image_auroc", "pixel_auroc", "pixel_ap", "aupro", "aupro_per_image"]
    assert list(result) == names
    assert all(type(value) is float for value in result.values())
    assert result.pop("image_auroc") == metrics.image_auroc(scores, labels)
    assert result == {name: getattr(metrics, name)(maps, masks) for name in names[1:]}


PIXEL_METRICS = (
    metrics.pixel_auroc,
    metrics.pixel_ap,
    metrics.aupro,
    metrics.aupro_per_image,
    metrics.pro_curve,
)


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda a, m: (a[:, :-1], m), r"maps have the shape \(2, 15, 16\)"),
        (lambda a, m: (a[0], m[0]), r"\(N, H, W\)"),
        (lambda a, m: (a[:0], m[:0]), "empty"),
        (lambda a, m: (np.where(np.arange(2)[:, None, None] == 1, np.nan, a), m), "map 1 has NaN"),
        (lambda a, m: (a + np.inf, m), "map 0 has NaN or infinite"),
        (lambda a, m: (a, m & False), "no anomalous pixel"),
        (lambda a, m: (a, m | True), "no normal pixel"),
        (lambda a, m: (a, m * 1.0), "bool"),
    ],
)
def test_pixel_metrics_refuse(metric, change, reason):
    masks = square_masks()
    with pytest.raises(ValueError, match=reason):
        metric(*change(masks.astype(np.float64), masks))


@pytest.mark.parametrize("metric", [metrics.aupro, metrics.aupro_per_image])
@pytest.mark.parametrize("limit", [0.0, -0.3, 1.01, float("nan")])
def test_aupro_refuses_limits_outside_0_1(metric, limit):
    masks = square_masks()
    with pytest.raises(ValueError, match="fpr_limit"):
        metric(masks * 1.0, masks, limit)


def test_aupro_per_image_leaves_out_an_image_without_normal_pixels():
    masks = square_masks()
    masks[1] = True
    maps = np.random.default_rng(0).random(masks.shape)
    assert metrics.aupro_per_image(maps, masks) == metrics.aupro(maps[:1], masks[:1])
    masks[0] = False
    with pytest.raises(ValueError, match="every defect fills its image"):
        metrics.aupro_per_image(maps, masks)
    assert metrics.aupro(masks * 1.0, masks) == 1.0


@pytest.mark.parametrize(
    "scores, labels, reason",
    [
        ([0.1, 0.2], [True], "shape"),
        ([[0.1, 0.2]], [[True, False]], "shape"),
        ([], [], "empty"),
        ([0.1, np.nan], [True, False], "score 1 is NaN"),
        ([0.1, 0.2], [True, True], "no normal image"),
        ([0.1, 0.2], [False, False], "no anomalous image"),
    ],
)
def test_image_auroc_refuses(scores, labels, reason):
    with pytest.raises(ValueError, match=reason):
        metrics.image_auroc(np.array(scores), np.array(labels))


def test_evaluate_maps_and_pro_curve_refuse():
    masks = square_masks()
    maps = masks * 1.0
    with pytest.raises(ValueError, match="3 scores for 2 maps"):
        metrics.evaluate_maps(maps, masks, np.arange(3.0), np.array([True, True, False]))
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.pro_curve(maps, masks, max_points=1)
