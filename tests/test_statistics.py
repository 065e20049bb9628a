"""What is known of good images, against NumPy: statistics of positions, the student's prior, usual levels."""

import numpy as np
import pytest
import torch
from builders import tiny_model

from dmdd_lite.config import PlusConfig
from dmdd_lite.decoder import DecoderStudent
from dmdd_lite.plus import statistics as position
from dmdd_lite.plus.statistics import PositionStatistics
from dmdd_lite.student import start_at_statistics
from dmdd_lite.teacher import FeatureInfo, build_teacher

INFO = FeatureInfo((5, 7, 3), (4, 8, 16), (False,) * 3)  # at 32 px: 8 x 8, 4 x 4 and 2 x 2 positions


def good(count: int, seed: int = 0, info: FeatureInfo = INFO):
    """Features of as many images of 32 px, channels of different size that depend on each other."""
    rng, features = torch.Generator().manual_seed(seed), []
    for channels, stride in zip(*info[:2], strict=True):
        noise = torch.randn(count, channels, 32 // stride, 32 // stride, generator=rng)
        features.append(noise * torch.arange(1, channels + 1)[:, None, None] + 0.5 * noise[:, :1] + 1)
    return tuple(features)


def statistics_of(info: FeatureInfo = INFO, size: int = 32, seed: int = 0, **options) -> PositionStatistics:
    return PositionStatistics(PlusConfig(**options), info, size, seed)


def fitted(features, parts: int = 1, **options) -> PositionStatistics:
    return statistics_of(**options).fit(lambda: zip(*(f.tensor_split(parts) for f in features), strict=True))


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


def assert_distances(found, new, known, noise=(0, 0, 0), looks=(None, None), rtol=1e-3, pools=(3, 3, 3)):
    """Those of NumPy's means and covariances, or of its regressions on looks."""
    scales = zip(found, described(new, pools), described(known, pools), noise, strict=True)
    for distance, of_new, of_known, extra in scales:
        expected = mahalanobis(of_new, of_known, ridge_of(of_known, looks[1]) + extra, *looks)
        np.testing.assert_allclose(distance.numpy(), expected, rtol=rtol)


@pytest.mark.parametrize("pools", [(1, 1, 1), (3, 3, 3)])
def test_distances_are_those_of_numpys_means_and_covariances(pools):
    known, new = good(30), good(4, seed=1)
    statistics, other = fitted(known, 4, pool=pools), fitted(good(30, seed=2), 4, pool=pools)
    assert_distances(statistics(new), new, known, pools=pools)
    assert not any("precision" in name for name in statistics.state_dict())
    other.load_state_dict(statistics.state_dict())  # used as they are saved
    assert all(map(torch.equal, other(new), statistics(new)))


def test_noise_adds_to_the_variance_of_its_channel_and_position():
    known, new, rng = good(30), good(4, seed=1), np.random.default_rng(0)
    noise = [rng.exponential(size=values.shape[1:]) for values in described(known)]
    statistics = statistics_of(pool=(3, 3, 3))
    statistics.fit(lambda: [known], tuple(torch.from_numpy(n).float() for n in noise))
    assert_distances(statistics(new), new, known, noise)


def test_with_a_look_they_are_those_of_numpys_regressions(two_components):
    known, new = good(30), good(4, seed=1)
    statistics = fitted(known, 4)
    looks = looks_of(new, known, 2), looks_of(known, known, 2)
    assert_distances(statistics(new), new, known, looks=looks, rtol=2e-3)
    overall = statistics.describe(known).looks
    torch.testing.assert_close(overall.T @ overall / 30, torch.diag(torch.tensor([1.0] * 2 + [0.0] * 6)))


def test_batches_and_other_images_change_nothing(two_components):
    known, new = good(30), good(4, seed=1)
    expected = fitted(known)(new)
    for parts in (2, 7, 30):
        torch.testing.assert_close(fitted(known, parts)(new), expected, rtol=5e-3, atol=1e-3)
    single = fitted(known)(tuple(f[3:4] for f in new))
    torch.testing.assert_close(single, tuple(d[3:4] for d in expected), rtol=1e-3, atol=1e-4)


def test_wide_features_are_projected_orthonormally_and_the_same_by_seed():
    known, new = good(30), good(4, seed=1)
    kept, again, other = (fitted(known, channels=4, seed=s) for s in (3, 3, 4))
    for k, size in enumerate(((5, 4), (12, 6), (15, 8))):
        projection = getattr(kept, f"projection_{k}")
        assert projection.shape == size
        torch.testing.assert_close(projection.T @ projection, torch.eye(size[1]))
        assert torch.equal(projection, getattr(again, f"projection_{k}"))
        assert not torch.equal(projection, getattr(other, f"projection_{k}"))
    mixed = [np.einsum("bchw,cr->brhw", described(f)[1], kept.projection_1.numpy()) for f in (new, known)]
    np.testing.assert_allclose(kept(new)[1].numpy(), mahalanobis(*mixed, ridge_of(mixed[1])), rtol=1e-3)


def test_an_empty_background_is_as_good_in_another_precision():
    """Good images that differ at an object alone: what bf16 changes elsewhere is noise, and no defect."""
    teacher = build_teacher("tf_efficientnet_lite0.pypi")
    rng = torch.Generator().manual_seed(0)
    images = torch.full((24, 3, 64, 64), 240, dtype=torch.uint8)
    images[:, :, 24:40, 24:40] = torch.randint(0, 256, (24, 3, 16, 16), generator=rng, dtype=torch.uint8)
    features = next(teacher.stream(images[:20], 20))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = next(teacher.stream(images[20:], 4))
    statistics = statistics_of(teacher.info, 64)
    noise = statistics.arithmetic_noise(teacher, images[:20])
    means = []
    for added in ((), noise):
        fine, middle, _ = statistics.fit(lambda: [features], added)(rounded)
        means.append((fine[:, 0].mean(), middle[:, 0].mean()))  # along an edge, far from the object
    assert min(means[0]) > 5
    assert max(means[1]) < 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_refused(count):
    with pytest.raises(ValueError, match=f"needs at least three training images, got {count}"):
        fitted(good(count))
    assert fitted(good(3))(good(1))[0].isfinite().all()


@pytest.mark.parametrize("prior", [(), (32, 32)])
def test_branches_begin_at_numpys_statistics(prior):
    """The prior is the mean at every position; the last batch norm has as bias and weight the mean and the
    standard deviation of what is left, for N after the prior is taken off, for A of everything."""
    known = good(12)
    student = DecoderStudent(INFO, prior=prior).eval()
    start_at_statistics(student, lambda: zip(*(f.split(5) for f in known), strict=True))
    for split, feature in zip(student.decouple, known, strict=True):
        values, norm = feature.double().numpy(), split.expand[-1]
        left = values - values.mean(0) if prior else values
        channels = values.shape[1]
        for part, of in ((slice(channels), left), (slice(channels, None), values)):
            tolerance = {"atol": 1e-5, "rtol": 1e-3}
            np.testing.assert_allclose(norm.bias[part].detach(), of.mean((0, 2, 3)), **tolerance)
            np.testing.assert_allclose(norm.weight[part].detach(), of.std((0, 2, 3)), **tolerance)
        if prior:
            np.testing.assert_allclose(split.prior[0], values.mean(0), atol=1e-5)
        else:
            assert split.prior is None


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_the_prior_is_added_to_what_was_learned(student):
    with_prior, without = (tiny_model(student=student, prior=p).eval() for p in (True, False))
    assert not any(with_prior.teacher.info.rectified)
    images = torch.rand(2, 3, 64, 64)
    features = with_prior.teacher(images)
    means = tuple(torch.randn(1, *f.shape[1:]) for f in features)
    for split, mean in zip(with_prior.student.decouple, means, strict=True):
        split.prior.copy_(mean)
    one, other = with_prior.student(images, features), without.student(images, features)
    for found, learned, mean in zip(one.normality, other.normality, means, strict=True):
        torch.testing.assert_close(found, learned + mean)
    for found, learned in zip(one.abnormality, other.abnormality, strict=True):
        torch.testing.assert_close(found, learned)
