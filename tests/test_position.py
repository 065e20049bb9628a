"""What is known of good images, against NumPy: statistics of positions, the student's prior, usual levels."""

import numpy as np
import pytest
import torch
from builders import tiny_config

from dmdd_lite import position
from dmdd_lite.detector import Detector
from dmdd_lite.model import build_model
from dmdd_lite.position import PositionStatistics, channel_moments, mean_features
from dmdd_lite.student import DecoderStudent, set_prior, start_at_statistics
from dmdd_lite.teacher import FeatureInfo, build_teacher

INFO = FeatureInfo((5, 7, 3), (4, 8, 16), (False,) * 3)  # at 32 px: 8 x 8, 4 x 4 and 2 x 2 positions


def good(count: int, seed: int = 0, info: FeatureInfo = INFO):
    """Features of as many images of 32 px, channels of different size that depend on each other."""
    rng, features = torch.Generator().manual_seed(seed), []
    for channels, stride in zip(*info[:2], strict=True):
        noise = torch.randn(count, channels, 32 // stride, 32 // stride, generator=rng)
        features.append(noise * torch.arange(1, channels + 1)[:, None, None] + 0.5 * noise[:, :1] + 1)
    return tuple(features)


def fitted(features, parts: int = 1, info: FeatureInfo = INFO, **options) -> PositionStatistics:
    return PositionStatistics(info, 32, **options).fit(
        lambda: zip(*(f.tensor_split(parts) for f in features), strict=True)
    )


def signed_roots(feature) -> np.ndarray:
    values = feature.double().numpy()
    return np.sign(values) * np.sqrt(np.abs(values))


def pooled(values: np.ndarray, pool: int) -> np.ndarray:
    """Values, each averaged with those of its neighbours inside the image."""
    far, found = pool // 2, np.empty_like(values)
    for y, x in np.ndindex(values.shape[2:]):
        around = values[:, :, max(0, y - far) : y + far + 1, max(0, x - far) : x + far + 1]
        found[:, :, y, x] = around.mean((2, 3))
    return found


def described(features, pools=(3, 3, 3)) -> list[np.ndarray]:
    """Signed roots, with those of the finer scales averaged into cells, pooled; in double precision."""
    found, finer = [], None
    for feature, pool in zip(features, pools, strict=True):
        values = signed_roots(feature)
        if finer is not None:
            cells = finer.reshape(*finer.shape[:2], finer.shape[2] // 2, 2, finer.shape[3] // 2, 2)
            values = np.concatenate((cells.mean((3, 5)), values), axis=1)
        finer = values
        found.append(pooled(values, pool))
    return found


def channel_means(features) -> np.ndarray:
    """Means of all channels' signed roots over the image, (B, D)."""
    return np.concatenate([d.mean((2, 3)) for d in map(signed_roots, features)], axis=1)


def looks_of(new, known, used: int) -> np.ndarray:
    """The first principal components of the standardised channel means, by their covariance's eigenvectors,
    which fixes them up to their signs and scale; (B, used)."""
    means = channel_means(known)
    spread = means.std(0, ddof=1)
    scale = spread + 1e-3 * spread.mean()
    values, vectors = np.linalg.eigh(np.cov((means - means.mean(0)) / scale, rowvar=False))
    return (channel_means(new) - means.mean(0)) / scale @ vectors[:, np.argsort(-values)[:used]]


def mahalanobis(values, known, ridge, looks=None, known_looks=None) -> np.ndarray:
    """Of values (B, R, H, W), at every position, to the mean that known ones have, as a linear function of
    the looks where there are some, and to the covariance of what that leaves plus a ridge, one for all or of
    every channel and position; over R."""
    ridge = np.broadcast_to(ridge, values.shape[1:])
    found = np.empty((len(values), *values.shape[2:]))
    new, old = (np.ones((len(v), 1)) for v in (values, known))
    if looks is not None:
        new, old = np.hstack((new, looks)), np.hstack((old, known_looks))
    for y, x in np.ndindex(values.shape[2:]):
        here = known[:, :, y, x]
        weights = np.linalg.lstsq(old, here, rcond=None)[0]
        left, off = here - old @ weights, values[:, :, y, x] - new @ weights
        covariance = left.T @ left / (len(left) - old.shape[1]) + np.diag(ridge[:, y, x])
        found[:, y, x] = (off * np.linalg.solve(covariance, off.T).T).sum(1) / here.shape[1]
    return found


def ridge_of(known: np.ndarray, known_looks=None) -> float:
    """3 % of the mean variance that is left at the positions."""
    old = np.ones((len(known), 1))
    old = old if known_looks is None else np.hstack((old, known_looks))
    flat = known.reshape(len(known), -1)
    left = flat - old @ np.linalg.lstsq(old, flat, rcond=None)[0]
    return 0.03 * (left**2).sum(0).mean() / (len(left) - old.shape[1])


@pytest.fixture
def two_components(monkeypatch):
    """Statistics of 30 images depend on two components of their look."""
    monkeypatch.setattr(position, "IMAGES_PER_COMPONENT", 12)


# ---- statistics of positions ----------------------------------------------------------------------------


@pytest.mark.parametrize("pools", [(1, 1, 1), (3, 3, 3)])
def test_distances_are_those_of_numpys_means_and_covariances(pools):
    known, new = good(30), good(4, seed=1)
    found = fitted(known, 4, pool=pools)(new)
    for distance, of_known, of_new in zip(found, described(known, pools), described(new, pools), strict=True):
        expected = mahalanobis(of_new, of_known, ridge_of(of_known))
        np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-3)


def test_noise_adds_to_the_variance_of_its_channel_and_position():
    known, new = good(30), good(4, seed=1)
    values = described(known)
    rng = np.random.default_rng(0)
    noise = [rng.exponential(size=of_known.shape[1:]) for of_known in values]
    statistics = PositionStatistics(INFO, 32, pool=(3, 3, 3))
    statistics.fit(lambda: [known], tuple(torch.from_numpy(n).float() for n in noise))
    for distance, of_known, of_new, extra in zip(statistics(new), values, described(new), noise, strict=True):
        expected = mahalanobis(of_new, of_known, ridge_of(of_known) + extra)
        np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-3)


def test_an_empty_background_is_as_good_in_another_precision():
    """Good images that differ at an object alone: what bf16 changes elsewhere is noise, and no defect."""
    teacher = build_teacher("tf_efficientnet_lite0.pypi")
    rng = torch.Generator().manual_seed(0)
    images = torch.full((24, 3, 64, 64), 240, dtype=torch.uint8)
    images[:, :, 24:40, 24:40] = torch.randint(0, 256, (24, 3, 16, 16), generator=rng, dtype=torch.uint8)
    features = next(teacher.stream(images[:20], 20))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = next(teacher.stream(images[20:], 4))
    statistics = PositionStatistics(teacher.info, 64)
    noise = statistics.arithmetic_noise(teacher, images[:20])
    means = []
    for added in ((), noise):
        fine, middle, _ = statistics.fit(lambda: [features], added)(rounded)
        means.append((fine[:, 0].mean(), middle[:, 0].mean()))  # along an edge, far from the object
    assert min(means[0]) > 5
    assert max(means[1]) < 1


def test_with_a_look_they_are_those_of_numpys_regressions(two_components):
    known, new = good(30), good(4, seed=1)
    statistics = fitted(known, 4)
    assert statistics.used == 2
    old_looks, looks = looks_of(known, known, 2), looks_of(new, known, 2)
    overall = statistics.overall(known)
    torch.testing.assert_close(overall.T @ overall / 30, torch.diag(torch.tensor([1.0] * 2 + [0.0] * 6)))
    for distance, of_known, of_new in zip(statistics(new), described(known), described(new), strict=True):
        expected = mahalanobis(of_new, of_known, ridge_of(of_known, old_looks), looks, old_looks)
        np.testing.assert_allclose(distance.numpy(), expected, rtol=2e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.03])
def test_an_image_left_out_is_as_if_never_seen(shrinkage, monkeypatch):
    """Of the ridge, which belongs to the whole set, the formula keeps n - 1 parts of n - 2."""
    monkeypatch.setattr(position, "SHRINKAGE", shrinkage)
    known, changed = good(24), good(24, seed=1)
    whole = fitted(known)
    for view in (known, changed):  # the images themselves, and other ones made from them
        found = whole(view, own=known)
        for k, (values, of_view) in enumerate(zip(described(known), described(view), strict=True)):
            ridge = 23 / 22 * shrinkage / 0.03 * ridge_of(values)
            for i in (0, 9, 23):
                expected = mahalanobis(of_view[i : i + 1], np.delete(values, i, axis=0), ridge)
                np.testing.assert_allclose(found[k][i : i + 1].numpy(), expected, rtol=5e-3)


def test_an_image_left_out_of_a_regression_is_as_if_never_seen(two_components):
    """The components themselves are those of all images."""
    known, changed = good(30), good(30, seed=1)
    whole = fitted(known)
    looks = looks_of(known, known, 2)
    for view in (known, changed):
        found, of_view_looks = whole(view, own=known), looks_of(view, known, 2)
        for k, (values, of_view) in enumerate(zip(described(known), described(view), strict=True)):
            ridge = 27 / 26 * ridge_of(values, looks)
            for i in (0, 9, 23):
                others = [np.delete(part, i, axis=0) for part in (values, looks)]
                expected = mahalanobis(
                    of_view[i : i + 1], others[0], ridge, of_view_looks[i : i + 1], others[1]
                )
                np.testing.assert_allclose(found[k][i : i + 1].numpy(), expected, rtol=5e-3)


def test_views_together_are_as_each_alone(two_components):
    known, changed = good(30), good(30, seed=1)
    statistics = fitted(known)
    for own in (None, known, good(30, seed=2)):
        for together, view in zip(statistics.of_views([known, changed], own), (known, changed), strict=True):
            for one, other in zip(together, statistics(view, own), strict=True):
                torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


def test_without_a_ridge_leaving_out_equals_fitting_the_others(monkeypatch):
    monkeypatch.setattr(position, "SHRINKAGE", 0.0)
    known = good(24)
    found = fitted(known)(known, own=known)
    others = fitted(tuple(f[1:] for f in known))(tuple(f[:1] for f in known))
    for one, other in zip(found, others, strict=True):
        torch.testing.assert_close(one[:1], other, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("pool, near", [(1, 0.05), (3, 0.12)])  # the ridge lowers it
def test_new_normal_images_are_near_one_and_odd_ones_are_not(pool, near):
    rng = torch.Generator().manual_seed(0)
    known, new = (tuple(torch.randn(f.shape, generator=rng) for f in good(400)) for _ in range(2))
    statistics = fitted(known, 8, pool=(pool,) * 3, context=0)
    for distance, off in zip(statistics(new), statistics(tuple(9 * f for f in new)), strict=True):
        assert distance.mean().item() == pytest.approx(1, abs=near)
        torch.testing.assert_close(off.mean(), 9 * distance.mean(), rtol=0.05, atol=0)  # as roots count


def test_another_light_is_no_defect_where_images_differ_in_light():
    """Features that rise and fall together over the whole image, by as much in new images; and in one of
    those at one position only."""
    rng = torch.Generator().manual_seed(0)
    side = (8, 4, 2)

    def lit(count: int):
        light = 1 + torch.rand(count, 1, 1, 1, generator=rng)
        noise = (torch.randn(count, 3, s, s, generator=rng) for s in side)
        return tuple((4 * light + 0.2 * n).square() for n in noise)

    info = INFO._replace(channels=(3, 3, 3))
    known, new = lit(160), lit(20)
    aware, blind = (fitted(known, info=info, pool=(1, 1, 1), context=c) for c in (1, 0))
    odd = tuple(f.clone() for f in new)
    odd[0][:, :, 3, 3] = 36 + 36 - odd[0][:, :, 3, 3]  # the light that others of them have
    for statistics, tells in ((aware, True), (blind, False)):
        distance = statistics(odd)[0]
        share = (distance[:, 3, 3] > distance.flatten(1).median(1).values * 5).float().mean()
        assert (share > 0.8) == tells


def test_before_they_are_fitted_they_are_of_a_standard_normal_distribution():
    new = good(2)
    statistics = PositionStatistics(INFO, 32, pool=(1, 1, 1))
    for distance, values in zip(statistics(new), described(new, (1, 1, 1)), strict=True):
        np.testing.assert_allclose(distance.numpy(), (values**2).mean(1), rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 7, 30])
def test_the_batch_size_changes_nothing(parts, two_components):
    known = good(30)
    at_once, in_parts = fitted(known), fitted(known, parts)
    for own in (None, known):
        whole = at_once(known, own)
        for one, other in zip(in_parts(known, own), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=5e-3, atol=1e-3)
        single = at_once(tuple(f[3:4] for f in known), own and tuple(f[3:4] for f in own))
        for one, all_of_them in zip(single, whole, strict=True):
            torch.testing.assert_close(one, all_of_them[3:4], rtol=1e-3, atol=1e-4)


def test_only_the_position_itself_counts():
    known, new = good(30), good(1, seed=1)
    statistics = fitted(known, pool=(1, 1, 1))
    changed = new[0].clone()
    changed[..., 3, 0] += 50
    for k, (before, after) in enumerate(zip(statistics(new), statistics((changed, *new[1:])), strict=True)):
        differs = torch.zeros_like(before, dtype=torch.bool)
        differs[:, 3 >> k, 0] = True  # the cells that the changed one lies in
        assert torch.equal(before != after, differs)


def test_wide_features_are_mixed_orthonormally_and_the_same_by_seed():
    kept = PositionStatistics(INFO, 32, most=4, seed=3)
    again, other = (PositionStatistics(INFO, 32, most=4, seed=s) for s in (3, 4))
    for k, (channels, left) in enumerate(((5, 4), (12, 6), (15, 8))):
        mixture = getattr(kept, f"mixture_{k}")
        assert mixture.shape == (channels, left)
        torch.testing.assert_close(mixture.T @ mixture, torch.eye(left))
        assert torch.equal(mixture, getattr(again, f"mixture_{k}"))
        assert not torch.equal(mixture, getattr(other, f"mixture_{k}"))
    some = PositionStatistics(INFO, 32, most=8)
    assert [hasattr(some, f"mixture_{k}") for k in range(3)] == [False, False, False]  # 8, 12, 16


def test_distances_of_mixed_features():
    known, new = good(30), good(4, seed=1)
    statistics = fitted(known, most=4)
    mixture = statistics.mixture_1.numpy()
    mixed = [np.einsum("bchw,cr->brhw", described(f)[1], mixture) for f in (known, new)]
    expected = mahalanobis(mixed[1], mixed[0], ridge_of(mixed[0]))
    np.testing.assert_allclose(statistics(new)[1].numpy(), expected, rtol=1e-3)


def test_pools_are_at_most_a_third_of_a_map():
    sizes = {32: [3, 3, 3], 128: [5, 5, 3], 256: [5, 5, 5], 512: [5, 5, 5]}
    for size, pools in sizes.items():
        assert PositionStatistics(INFO, size, pool=(5, 5, 5)).pools == pools
    assert PositionStatistics(INFO, 64, pool=(1, 3, 7)).pools == [1, 3, 3]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_refused(count):
    with pytest.raises(ValueError, match=f"needs at least three training images, got {count}"):
        fitted(good(count))
    assert fitted(good(3))(good(1))[0].isfinite().all()


@pytest.mark.parametrize("count", [5, 170])  # without and with components of the look
def test_images_that_are_all_the_same(count):
    """No variance anywhere: the mean is known, and anything else is far."""
    same = tuple(f.expand(count, -1, -1, -1) for f in good(1))
    statistics = fitted(same)
    for own in (None, same):
        assert all(d.isfinite().all() and d.max() < 1 for d in statistics(same, own))
    assert all(d.isfinite().all() and d.min() > 100 for d in statistics(good(2, seed=1)))


# ---- the prior ------------------------------------------------------------------------------------------


def test_mean_features_are_the_mean_of_all():
    known = good(10)
    parts = zip(*(f.split(4) for f in known), strict=True)
    for mean, f in zip(mean_features(parts), known, strict=True):
        torch.testing.assert_close(mean, f.mean(0, keepdim=True))


@pytest.mark.parametrize("rectified", [False, True])
def test_a_student_that_adds_nothing_gives_the_prior(rectified):
    info = INFO._replace(rectified=(rectified,) * 3)
    student = DecoderStudent(info, (1, 1, 1), 16, prior=32).eval()
    means = tuple(f.abs() if rectified else f for f in mean_features([good(3)]))
    set_prior(student, means)
    for decoupling in student.decouple:
        for parameter in decoupling.expand[-1].parameters():
            torch.nn.init.zeros_(parameter)
    output = student(None, good(2))
    for found, mean in zip(output.normality, means, strict=True):
        assert torch.equal(found, mean.expand_as(found))
    assert not any(f.any() for f in output.abnormality)  # which has no prior


@pytest.mark.parametrize("with_prior", [False, True])
def test_branches_begin_with_the_mean_and_the_deviation_of_every_channel(with_prior):
    known, teacher = good(12), FeatureInfo((5, 7, 3), (4, 8, 16), (False,) * 3)
    prior = mean_features([known]) if with_prior else None
    parts = zip(*(f.split(5) for f in known), strict=True)
    (means, spreads), raw = channel_moments(parts, prior, None)
    left = [f - (prior[k] if with_prior else 0) for k, f in enumerate(known)]
    for k, f in enumerate(left):
        torch.testing.assert_close(means[k], f.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(spreads[k], f.std((0, 2, 3), correction=0), atol=1e-4, rtol=1e-4)
    for k, f in enumerate(known):  # in the same pass, with nothing taken off
        torch.testing.assert_close(raw[0][k], f.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(raw[1][k], f.std((0, 2, 3), correction=0), atol=1e-4, rtol=1e-4)
    student = DecoderStudent(teacher, (1, 1, 1), 16).train()
    other = tuple(-m for m in means), tuple(2 * s for s in spreads)
    start_at_statistics(student, (means, spreads), other)
    for branch, (mean, spread) in zip(student(None, known), ((means, spreads), other), strict=True):
        for k, found in enumerate(branch):  # batch norm sees this batch alone
            torch.testing.assert_close(found.mean((0, 2, 3)), mean[k], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(found.std((0, 2, 3), correction=0), spread[k], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_the_prior_is_added_to_what_was_learned(student):
    teacher = build_teacher("test_resnet", "random")
    with_prior, without = (
        build_model(tiny_config(student=student, position_prior=p, standardise="always"), teacher).eval()
        for p in (True, False)
    )
    images = torch.rand(2, 3, 64, 64)
    features = teacher(images)
    means = tuple(torch.randn(1, *f.shape[1:]) for f in features)
    set_prior(with_prior.student, means)
    one, other = with_prior.student(images, features), without.student(images, features)
    for found, learned, mean in zip(one.normality, other.normality, means, strict=True):
        torch.testing.assert_close(found, learned + mean)
    for found, learned in zip(one.abnormality, other.abnormality, strict=True):
        torch.testing.assert_close(found, learned)


# ---- together -------------------------------------------------------------------------------------------


def test_a_fitted_model_saved_and_loaded_gives_the_same(tmp_path):
    config = tiny_config(position_channels=40)
    model = build_model(config, build_teacher("test_resnet", "random"))
    images = torch.randint(0, 256, (9, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    features = list(model.teacher.stream(images[:6]))
    set_prior(model.student, mean_features(features))
    model.position.fit(lambda: features)
    model.eval().calibrate(images[6:])
    detector = Detector.calibrated(model, images[6:])
    loaded = Detector.load(detector.save(tmp_path), "cpu")
    assert loaded.threshold == detector.threshold
    for one, other in zip(loaded.output(images), detector.output(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    untouched = build_model(config, model.teacher).eval()
    assert not torch.allclose(untouched(images.float() / 255).maps, detector.output(images).maps)
    for name, scores in detector.maps(images)[1].items():
        assert torch.equal(loaded.maps(images)[1][name], scores)
