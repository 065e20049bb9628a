"""Numbers stay true: metrics, thresholds and zones against brute force on awkward input, and what cannot be
measured is refused; whatever images a detector is trained on, its maps and scores are finite."""

import numpy as np
import pytest
import torch
from builders import save_image, tiny_config
from sklearn.metrics import average_precision_score, roc_auc_score
from test_metrics import brute_aupro

from dmdd_lite import evaluation, metrics
from dmdd_lite.data import open_category
from dmdd_lite.detector import Detector, DetectorError
from dmdd_lite.metrics import aupro, aupro_per_image, evaluate_maps, image_auroc, pixel_ap, pixel_auroc
from dmdd_lite.model import build_model
from dmdd_lite.position import PositionStatistics
from dmdd_lite.teacher import build_teacher
from dmdd_lite.thresholds import best_outline, error_rates, outline_quality, threshold_table
from dmdd_lite.training import TrainingError, train
from dmdd_lite.zones import split_zones, zone_recall

PIXELWISE = (pixel_auroc, pixel_ap, aupro, aupro_per_image)
SCALES = (1.0, 1e-3, 1e300, 5e-324, -1.0)  # of whole numbers: huge and denormal values too


# ---- metrics ------------------------------------------------------------------------------------------


def awkward_masks(rng, shape):
    """Single pixels, bars, noise, an image that its defect fills, good images; with both kinds of pixels."""
    masks = np.zeros(shape, bool)
    for mask in masks:
        kind = rng.integers(5)
        if kind == 0:
            mask[tuple(rng.integers(mask.shape))] = True
        elif kind == 1:
            mask[rng.integers(mask.shape[0])] = True
        elif kind < 4:
            mask[:] = rng.random(mask.shape) < rng.uniform(0.1, 0.9) if kind == 2 else True
    flat = masks.reshape(-1)
    flat[rng.permutation(flat.size)[:2]] = True, False
    return masks


def awkward_case(seed, levels=(1, 2, 3, 8, 1000)):
    """Maps float64 of few values, that is with many ties, and masks, both (N, H, W), at least 2 pixels."""
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 5), rng.integers(1, 8), rng.integers(2, 8))
    masks = awkward_masks(rng, shape)
    maps = rng.integers(0, rng.choice(levels), shape) + rng.integers(0, 2) * masks
    return maps * rng.choice(SCALES), masks


def test_metrics_equal_brute_force_on_awkward_cases(depth, tally):
    count = depth(80, 2000)
    for seed in range(count):
        maps, masks = awkward_case(seed)
        ranks = np.unique(maps, return_inverse=True)[1].ravel()
        assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), ranks), abs=1e-12), seed
        assert pixel_ap(maps, masks) == pytest.approx(
            average_precision_score(masks.ravel(), ranks), abs=1e-12
        ), seed
        assert aupro(maps, masks) == pytest.approx(brute_aupro(maps, masks, 0.3), abs=1e-12), seed
        alone = [
            brute_aupro(a[None], m[None], 0.3)
            for a, m in zip(maps, masks, strict=True)
            if m.any() and not m.all()
        ]
        if alone:
            assert aupro_per_image(maps, masks) == pytest.approx(np.mean(alone), abs=1e-12), seed
        else:
            with pytest.raises(ValueError, match="every defect fills its image"):
                aupro_per_image(maps, masks)
    tally("metrics against brute force", count)


def test_image_auroc_counts_pairs(depth, tally):
    count = depth(200, 5000)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(rng.integers(2, 12)) < 1 + rng.integers(0, 1 + seed % 2))
        labels[:2] = True, False
        scores = rng.integers(0, rng.choice([1, 2, 5, 100]), len(labels)) * rng.choice(SCALES)
        good, anomalous = scores[~labels][:, None], scores[labels]
        assert image_auroc(scores, labels) == pytest.approx(
            (anomalous > good).mean() + (anomalous == good).mean() / 2, abs=1e-12
        )
    tally("image AUROC against counting", count)


def increasing(rng, maps):
    """Any strictly increasing function, as a table of its values."""
    values, row = np.unique(maps, return_inverse=True)
    steps = rng.exponential(size=len(values)) * 10.0 ** rng.integers(-6, 7, len(values)) + 1e-7
    return (rng.normal() + np.cumsum(steps))[row].reshape(maps.shape)


def test_only_the_order_of_the_pixels_counts(depth, tally):
    """Nor does that of the images; a test set twice over is as the test set."""
    count = depth(25, 800)
    for seed in range(10**6, 10**6 + count):
        maps, masks = awkward_case(seed)
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1).permutation(len(maps))
        found = [metric(maps, masks) for metric in PIXELWISE[:3]]
        assert [metric(increasing(rng, maps), masks) for metric in PIXELWISE[:3]] == found
        same = pytest.approx(found, abs=1e-12)
        assert [metric(maps[other], masks[other]) for metric in PIXELWISE[:3]] == same
        assert [metric(maps[:, ::-1, ::-1], masks[:, ::-1, ::-1]) for metric in PIXELWISE[:3]] == same
        twice = np.concatenate((maps, maps)), np.concatenate((masks, masks))
        assert [metric(*twice) for metric in PIXELWISE[:3]] == same
    tally("invariances of the metrics", 4 * count)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda m, t=t: m.astype(t) for t in ("f2", "f4", ">f4", "f8", "g", "u1", "i1", "i8", "u8")),
        lambda m: m * 2e307,
        lambda m: m * 5e-324,
        lambda m: np.float32(1e-45) * m.astype("f4"),
        lambda m: m.astype("i8") + 2**62,
        lambda m: np.asfortranarray(m),
        lambda m: np.repeat(m, 3, axis=1)[:, ::3],
        lambda m: m.tolist(),
    ],
)
def test_metrics_are_exact_in_every_type_and_at_every_size(change):
    rng = np.random.default_rng(0)
    masks = awkward_masks(rng, (4, 6, 5)) | (np.arange(5) == 1)
    masks[:, 0, 0] = False
    maps = rng.integers(0, 6, masks.shape) + masks
    for metric in PIXELWISE:
        assert metric(change(maps), masks) == metric(maps, masks)
    scores, labels = maps.reshape(-1)[:40], masks.reshape(-1)[:40]
    assert image_auroc(np.asarray(change(maps)).reshape(-1)[:40], labels) == image_auroc(scores, labels)


def test_sorting_slice_by_slice_changes_nothing(monkeypatch, depth):
    for seed in range(depth(30, 500)):
        maps, masks = awkward_case(seed)
        whole = metrics.pixel_table(maps, masks)
        monkeypatch.setattr(metrics, "SLICE", 1 + seed % 60)
        for one, other in zip(metrics.pixel_table(maps, masks), whole, strict=True):
            np.testing.assert_array_equal(one, other)
        monkeypatch.undo()


def test_what_is_not_finite_is_refused_by_its_image(depth, tally):
    count = depth(60, 1000)
    for seed in range(count):
        maps, masks = awkward_case(seed)
        maps = maps.astype("f4" if seed % 2 and np.abs(maps).max() < 1e30 else "f8")
        rng = np.random.default_rng(seed)
        image = rng.integers(len(maps))
        place = (image, *rng.integers(maps.shape[1:]))
        maps[place] = rng.choice([np.nan, np.inf, -np.inf])
        for metric in (*PIXELWISE, metrics.pro_curve, best_outline, lambda a, m: outline_quality(a, m, {})):
            with pytest.raises(
                ValueError, match=rf"map {image} has NaN or infinite values \(1 of {len(maps)}"
            ):
                metric(maps, masks)
        scores, labels = rng.random(6), np.arange(6) < 3
        scores[image] = maps[place]
        for metric in (image_auroc, lambda s, t: error_rates(s, t, np.zeros(1))):
            with pytest.raises(ValueError, match=f"score {image} is NaN or infinite"):
                metric(scores, labels)
    tally("maps and scores that are not finite", 2 * count)


MAPS, MASKS = np.random.default_rng(0).random((3, 4, 5)), np.arange(60).reshape(3, 4, 5) % 7 == 0


@pytest.mark.parametrize(
    "maps, masks, reason",
    [
        (MAPS + 1j, MASKS, "maps must be real numbers, not complex128"),
        (MAPS.astype(str), MASKS, "maps must be real numbers, not <U"),
        (MAPS.astype(object), MASKS, "maps must be real numbers, not object"),
        (MAPS, MASKS.astype(object), "masks must be bool or integer"),
        (MAPS, MASKS.astype(np.float32), "masks must be bool or integer"),
        (MAPS, MASKS[:2], r"masks \(2, 4, 5\)"),
        (MAPS, MASKS[..., None], r"masks \(3, 4, 5, 1\)"),
        (MAPS[..., None], MASKS, r"\(N, H, W\)"),
        (MAPS[:, :0], MASKS[:, :0], "maps are empty"),
        (np.zeros(()), np.zeros((), bool), r"\(N, H, W\), not \(\)"),
    ],
)
def test_other_than_maps_and_masks_is_refused(maps, masks, reason):
    zones = (lambda m: split_zones(m, 1)._replace(background=m)) if masks.ndim == 3 else None
    if zones and masks.dtype == bool:
        with pytest.raises(ValueError, match=reason):
            zone_recall(maps, zones(masks))
    for metric in (*PIXELWISE, metrics.pro_curve, best_outline, lambda a, m: outline_quality(a, m, {})):
        with pytest.raises(ValueError, match=reason):
            metric(maps, masks)


def test_masks_count_as_anomalous_wherever_they_are_not_zero():
    for values in (MASKS * np.uint8(255), MASKS * np.int64(-3), MASKS * np.uint16(256)):
        assert [metric(MAPS, values) for metric in PIXELWISE] == [metric(MAPS, MASKS) for metric in PIXELWISE]
        assert best_outline(MAPS, values) == best_outline(MAPS, MASKS)
        assert outline_quality(MAPS, values, {"t": 0.5}).equals(outline_quality(MAPS, MASKS, {"t": 0.5}))


def test_a_test_set_that_lacks_something():
    maps, masks = np.stack((MAPS[0], MAPS[1])), np.stack((MASKS[0], np.zeros_like(MASKS[0])))
    scores, labels = maps.max((1, 2)), masks.any((1, 2))
    whole = evaluate_maps(maps, masks, scores, labels)
    filled = np.stack((np.ones_like(MASKS[0]), masks[1]))
    for given, reason in (
        ((maps, masks & False, scores, labels), "masks mark no anomalous pixel"),
        ((maps, masks | True, scores, labels | True), "labels have no normal image"),
        ((maps[:1], masks[:1], scores[:1], labels[:1]), "labels have no normal image"),
        ((maps[1:], masks[1:], scores[1:], labels[1:]), "labels have no anomalous image"),
        ((maps, masks, scores, ~labels), "image 0 is labelled good, but its mask marks a defect"),
        ((maps, filled, scores, labels), "every defect fills its image"),
    ):
        with pytest.raises(ValueError, match=reason):
            evaluate_maps(*given)
    more = [np.concatenate((a, b)) for a, b in ((maps, maps[:1]), (masks, filled[:1]))]
    with_full = evaluate_maps(*more, np.append(scores, scores[0]), np.append(labels, True))
    assert with_full["aupro_per_image"] == whole["aupro_per_image"]
    more[1][2] = False  # a thin defect that vanished when its mask was resized
    vanished = evaluate_maps(*more, np.append(scores, scores[0]), np.append(labels, True))
    assert vanished["aupro_per_image"] == whole["aupro_per_image"]


def test_constant_maps_have_the_values_of_chance():
    masks = np.arange(60).reshape(3, 4, 5) % 4 == 0
    for value in (0, 1e300, -5e-324, np.float16(65504), np.uint8(255)):
        maps = np.full(masks.shape, value)
        expected = [0.5, masks.mean(), 0.15, 0.15]
        assert [metric(maps, masks) for metric in PIXELWISE] == pytest.approx(expected, abs=1e-12)


# ---- thresholds and zones -----------------------------------------------------------------------------


def adjacent(rng, masks, dtype):
    """Maps of neighbouring floating-point numbers, between which there is nothing."""
    values = [dtype(rng.choice([1, -1, 1e-7, 1e4, 0]))]
    for _ in range(rng.integers(1, 4)):
        values.append(np.nextafter(values[-1], dtype(np.inf), dtype=dtype))
    return np.array(values, dtype)[rng.integers(0, len(values), masks.shape)]


def overlap(maps, masks, threshold):
    above = maps > threshold
    return (above & masks).sum() / (above | masks).sum()


def test_best_outline_is_the_best_of_all(depth, tally):
    count = depth(150, 4000)
    for seed in range(count):
        maps, masks = awkward_case(seed)
        rng = np.random.default_rng(seed)
        if seed % 2:
            maps = adjacent(rng, masks, rng.choice([np.float16, np.float32, np.float64]))
        below = np.nextafter(maps.min(), maps.dtype.type(-np.inf))
        best = max(overlap(maps, masks, value) for value in (below, *np.unique(maps)))
        assert overlap(maps, masks, best_outline(maps, masks)) == best, seed
    tally("outlines against all thresholds", count)


def test_rates_and_outlines_equal_counting(depth, tally):
    count = depth(60, 1500)
    for seed in range(count):
        maps, masks = awkward_case(seed)
        threshold = float(np.random.default_rng(seed).choice([*maps.ravel(), np.inf, -np.inf]))
        row = outline_quality(maps, masks, {"t": threshold}).loc["t"]
        defective = masks.any((1, 2))
        above, truth = maps[defective] > threshold, masks[defective]
        expected = [
            100 * truth[above].mean() if above.any() else np.nan,
            100 * above[truth].mean(),
            100 * (above & truth).sum() / (above | truth).sum(),
            100 * np.mean([(m > threshold).any() for m in maps[~defective]])
            if (~defective).any()
            else np.nan,
        ]
        np.testing.assert_allclose(row.to_numpy()[1:].astype(float), expected)
        scores, labels = maps.ravel(), masks.ravel()
        alarms, misses = error_rates(scores, labels, np.array([threshold]))
        assert alarms[0] == pytest.approx((scores[~labels] > threshold).mean())
        assert misses[0] == pytest.approx((scores[labels] <= threshold).mean())
        table = threshold_table(scores, labels.astype(np.uint8), {"t": threshold}).loc["t"]
        assert table["false alarms"] == (scores[~labels] > threshold).sum()
        assert table["misses"] == (scores[labels] <= threshold).sum()
    tally("thresholds against counting", count)


def near(masks, width):
    """Whether a True pixel of the same image lies within `width` pixels, by looking at every one."""
    found = np.zeros_like(masks)
    for n, y, x in np.ndindex(masks.shape):
        around = masks[n, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        found[n, y, x] = around.any()
    return found


def test_zones_and_their_recall_equal_brute_force(depth, tally):
    count = depth(60, 1000)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        masks = awkward_masks(rng, (2, rng.integers(2, 10), rng.integers(2, 10)))
        width, fpr = int(rng.integers(1, 5)), rng.uniform(0.01, 0.5)
        zones = split_zones(masks, width)
        np.testing.assert_array_equal(zones.edge, masks & near(~masks, width))
        np.testing.assert_array_equal(zones.rim, ~masks & near(masks, width))
        assert (sum(zone.astype(int) for zone in zones) == 1).all()
        maps = rng.integers(0, 5, masks.shape).astype(rng.choice([np.float32, np.float64, np.uint8]))
        if not zones.background.any():
            with pytest.raises(ValueError, match="no background"):
                zone_recall(maps, zones, fpr)
            continue
        found, background = zone_recall(maps, zones, fpr), maps[zones.background]
        highest, at = np.sort(background)[::-1].astype(float), fpr * (background.size - 1)
        assert found["threshold"] == pytest.approx(np.interp(at, np.arange(len(highest)), highest), rel=1e-6)
        assert (background > found["threshold"]).sum() <= np.ceil(at)
        for name in ("centre", "edge", "rim"):
            inside = maps[getattr(zones, name)]
            expected = (inside > found["threshold"]).mean() if inside.size else np.nan
            np.testing.assert_equal(found[name], expected)
    tally("zones against brute force", count)


def test_zones_refuse_what_they_cannot_measure():
    for width in (0, -1, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="width must be a whole number"):
            split_zones(MASKS, width)
    with pytest.raises(ValueError, match=r"masks must have the shape \(N, H, W\)"):
        split_zones(MASKS[0], 1)
    zones = split_zones(MASKS[:1], 1)._replace(background=~MASKS[:1])
    with pytest.raises(ValueError, match="map 0 has NaN"):
        zone_recall(MAPS[:1] * np.nan, zones)
    for fpr in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="fpr must be within"):
            zone_recall(MAPS[:1], zones, fpr)


# ---- detectors ----------------------------------------------------------------------------------------

FLAT = {"black": 0, "white": 255, "grey": 128}


def noise(seed, size=64):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def flat(value, size=64):
    return np.full((size, size, 3), value, np.uint8)


SETS = {
    **{name: lambda i, value=value: flat(value) for name, value in FLAT.items()},
    "the same image": lambda i: noise(0),
    "black and white": lambda i: flat(255 * (i % 2)),
    "one white": lambda i: flat(255 * (i == 3)),
    "noise": noise,
    "one pixel": lambda i: np.where(np.arange(64 * 64).reshape(64, 64, 1) == i, 255, flat(0)).astype(
        np.uint8
    ),
}


def category_of(root, image, count):
    """train/good of `count` images; a test split of flat images and noise, each good and with a square."""
    for i in range(count):
        save_image(root / f"nut/train/good/{i:03}.png", image(i))
    for i, test in enumerate([image(0), noise(99), *map(flat, FLAT.values())]):
        save_image(root / f"nut/test/good/{i}.png", test)
        test = test.copy()
        test[8:24, 8:24] = 255 - test[8:24, 8:24]
        save_image(root / f"nut/test/hole/{i}.png", test)
        mask = np.zeros((64, 64), np.uint8)
        mask[8:24, 8:24] = 255
        save_image(root / f"nut/ground_truth/hole/{i}_mask.png", mask)
    return root


def assert_all_finite(detector, root):
    found = evaluation.evaluate(detector, open_category(root, "nut"), progress=False)
    assert all(torch.isfinite(values).all() for values in detector.model.state_dict().values())
    for name, maps in found.maps.items():
        assert np.isfinite(maps).all(), name
        assert np.isfinite(found.scores[name]).all(), name
        assert all(0 <= value <= 1 for value in found.metrics[name].values()), name
    assert 0 <= found.maps["fused"].min() <= found.maps["fused"].max() <= 1
    assert 0 <= detector.threshold <= 1


@pytest.mark.parametrize("kind", SETS)
def test_whatever_the_training_images_all_numbers_are_finite(tmp_path, tally, depth, kind):
    root = category_of(tmp_path, SETS[kind], 5)
    changes = [{}, {"holdout": 0.0}, {"precision": "bf16"}, {"standardise": "never", "position_prior": False}]
    for change in changes[: depth(1, 4)]:
        config = tiny_config(iterations=depth(2, 4), **change)
        detector = train(config, root, "nut", device="cpu", progress=False).detector
        assert_all_finite(detector, root)
        tally("trainings on degenerate images")


@pytest.mark.parametrize("count", [1, 2])
def test_the_least_number_of_images_is_told_or_enough(tmp_path, count):
    root = category_of(tmp_path, noise, count)
    with pytest.raises(ValueError, match="needs at least three training images, got 1: add good images"):
        train(tiny_config(), root, "nut", device="cpu", progress=False)
    config = tiny_config(position_maps=False, iterations=1)
    assert_all_finite(train(config, root, "nut", device="cpu", progress=False).detector, root)


def features_of(images):
    """As PositionStatistics takes them, and the teacher's description of them."""
    teacher = build_teacher("test_resnet", "random")
    return teacher.info, list(teacher.stream(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))


@pytest.mark.parametrize(
    "images",
    [
        [flat(255 * (i % 2)) for i in range(90)],
        [flat(255 * (i == 3)) for i in range(90)],
        [noise(i == 85) for i in range(90)],
        [noise(i % 3) for i in range(170)],
        [flat(7)] * 90,
        [flat(255 * (i > 7)) for i in range(30)],
    ],
    ids=["two kinds", "an odd one", "an odd one late", "three kinds", "one kind", "others later"],
)
def test_positions_of_images_that_differ_in_their_look_alone(images, tally):
    """From 80 images on the look explains all there is, which leaves rounding to divide by."""
    info, batches = features_of(images)
    statistics = PositionStatistics(info, 64).fit(lambda: batches)
    changed = tuple(1.5 * scale for scale in batches[0])
    for own in (None, batches[0]):
        for view in (batches[0], changed):
            for distance in statistics(view, own):
                assert torch.isfinite(distance).all()
                assert distance.min() > -0.05  # of which the logarithm is taken
    tally("statistics of degenerate images")


def test_an_image_of_a_look_that_no_other_has_is_not_known_from_itself():
    info, batches = features_of([flat(255 * (i == 3)) for i in range(90)])
    statistics = PositionStatistics(info, 64).fit(lambda: batches)
    for known, left_out in zip(statistics(batches[0]), statistics(batches[0], batches[0]), strict=True):
        assert (left_out[3] > 100 * known[3]).all()


@pytest.mark.parametrize("rate, iterations, start", [(1e30, 1, 1.0), (1e10, 3, 1.0), (1e30, 6, 0.5)])
def test_weights_that_are_not_finite_are_neither_saved_nor_returned(tmp_path, rate, iterations, start):
    """The losses of an iteration are those before its step, so that the last one may be the worst."""
    root = category_of(tmp_path, noise, 4)
    config = tiny_config(learning_rate=rate, iterations=iterations, fusion_start=start, position_prior=False)
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(config, root, "nut", output_dir=out, device="cpu", checkpoint_every=1, progress=False)
    assert not (out / "detector").exists()
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        assert all(values.isfinite().all() for values in state["student"].values())


def test_a_broken_detector_is_told_by_the_image(tmp_path):
    root = category_of(tmp_path, noise, 1)
    model = build_model(tiny_config(position_maps=False), build_teacher("test_resnet", "random"))
    model.student.decouple[0].expand[-2].weight.data[0, 0] = torch.nan
    with pytest.raises(DetectorError, match=r"test/good/0\.png is nan \(10 of 10 are not finite\)"):
        evaluation.evaluate(Detector(model), open_category(root, "nut"), progress=False)
