"""Nearest neighbours against brute force; the subspace student against scikit-learn and known answers."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from dmdd_lite.losses import cosine_distance
from dmdd_lite.model import smooth
from dmdd_lite.neighbours import NearestNeighbour, SubspaceStudent, nearest
from dmdd_lite.teacher import build_teacher


@pytest.fixture(scope="module")
def teacher():
    return build_teacher("test_resnet", "random")


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (24, 3, 64, 64), generator=rng, dtype=torch.uint8)


def patches(teacher, images, neighbourhood):
    """Per scale (N, h, w, C_k) on the grid of stride 8, pixel by pixel averaged over its neighbours."""
    found = []
    for feature in teacher(images.float() / 255):
        local = torch.empty_like(feature)
        reach = neighbourhood // 2
        for y in range(feature.shape[2]):
            for x in range(feature.shape[3]):
                around = feature[:, :, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                local[:, :, y, x] = around.mean((2, 3))
        found.append(F.interpolate(local, (8, 8), mode="bilinear", align_corners=False).permute(0, 2, 3, 1))
    return found


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_euclidean_maps_equal_brute_force(teacher, images, neighbourhood):
    good, test = images[:3], images[3:5]
    model = NearestNeighbour(neighbourhood=neighbourhood, sigma=0).fit(teacher, good, patches=10**6)
    spreads = [
        p.flatten(0, 2).var(0, correction=0).sum().sqrt() for p in patches(teacher, good, neighbourhood)
    ]
    known, asked = (
        torch.cat([p / s for p, s in zip(patches(teacher, x, neighbourhood), spreads, strict=True)], dim=3)
        for x in (good, test)
    )
    searched = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known.flatten(0, 2).numpy())
    expected = torch.from_numpy(searched.kneighbors(asked.flatten(0, 2).numpy())[0]).view(2, 1, 8, 8)
    expected = F.interpolate(expected.float(), (64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(model.maps(test), expected, rtol=1e-4, atol=1e-5)


def test_cosine_maps_are_the_least_sum_of_cosine_distances(teacher, images):
    good, test = images[:2], images[3:4]
    model = NearestNeighbour("cosine", neighbourhood=1, sigma=0).fit(teacher, good, patches=10**6)
    known, asked = ([p.flatten(0, 2) for p in patches(teacher, x, 1)] for x in (good, test))
    totals = sum(
        cosine_distance(a.T[None, :, :, None], k.T[None, :, None, :])[0]  # every query with every patch
        for a, k in zip(asked, known, strict=True)
    )
    expected = F.interpolate(totals.amin(1).view(1, 1, 8, 8), (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.maps(test), expected[:, 0], rtol=1e-3, atol=1e-5)


def test_chunks_and_batches_change_nothing(teacher, images):
    rng = torch.Generator().manual_seed(1)
    queries, bank = torch.randn(50, 30, generator=rng), torch.randn(40, 30, generator=rng)
    torch.testing.assert_close(nearest(queries, bank, chunk=90), nearest(queries, bank))
    one, all_at_once = (
        NearestNeighbour().fit(teacher, images, patches=50, batch=b).maps(images, batch=b) for b in (1, 7)
    )
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


def test_a_known_patch_is_at_distance_zero_however_large_its_norm():
    bank = 1000 + torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    assert nearest(bank, bank).max() == 0


def test_the_kept_patches_depend_on_the_seed_alone(teacher, images):
    first, again, other = (NearestNeighbour().fit(teacher, images, 40, seed=s).bank for s in (0, 0, 1))
    assert len(first) == 40
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        NearestNeighbour().fit(teacher, images, 40)
        assert torch.rand(1) == expected


def test_maps_are_smoothed_in_proportion_to_the_image(teacher, images):
    plain, smoothed = (NearestNeighbour(sigma=s).fit(teacher, images[:2]).maps(images[3:5]) for s in (0, 4))
    torch.testing.assert_close(smoothed, smooth(plain, 1.0))  # sigma 4 at 256 is 1 at 64


@pytest.mark.parametrize("options", [{"distance": "manhattan"}, {"neighbourhood": 2}, {"neighbourhood": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        NearestNeighbour(**options)


@pytest.fixture(scope="module")
def student(teacher, images):
    return SubspaceStudent().fit(teacher, images, batch=2)


def test_components_are_those_of_scikit_learn(teacher, images, student):
    for k, feature in enumerate(teacher(images.float() / 255)):
        pca = PCA(svd_solver="full").fit(feature.permute(0, 2, 3, 1).flatten(0, 2).double().numpy())
        torch.testing.assert_close(
            student.means[k], torch.from_numpy(pca.mean_).float(), rtol=1e-4, atol=1e-5
        )
        pixels = len(images) * feature.shape[2] * feature.shape[3]
        variances = torch.from_numpy(pca.explained_variance_).float() * (pixels - 1) / pixels
        torch.testing.assert_close(student.variances[k], variances, rtol=1e-3, atol=1e-5)
        first, expected = student.components[k][:, :3].T, torch.from_numpy(pca.components_[:3]).float()
        torch.testing.assert_close((first * expected).sum(1).abs(), torch.ones(3), rtol=1e-3, atol=0)


def test_without_components_nothing_is_copied_and_with_all_everything_is(teacher, images, student):
    unseen = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(9)
    )
    torch.testing.assert_close(student.maps(unseen, 0.0), torch.full((2, 64, 64), 3.0))  # 1 for each scale
    torch.testing.assert_close(student.maps(unseen, 1.0), torch.zeros(2, 64, 64), rtol=0, atol=1e-5)


def test_the_distance_never_grows_with_the_share(teacher, images, student):
    features = teacher(images.float() / 255)
    shares = torch.linspace(0, 1, 9).tolist()
    per_share = [student.distances(features, share) for share in shares]
    for fewer, more in pairwise(per_share):
        assert all((b <= a + 1e-6).all() for a, b in zip(fewer, more, strict=True))


def test_the_distance_is_one_minus_the_length_that_is_kept(teacher, images, student):
    """A projection is at the angle to its original whose cosine is the share of the length that it keeps."""
    features = teacher(images.float() / 255)
    pca_share, k = 0.25, 1
    kept = student.components[k][:, : round(pca_share * len(student.means[k]))]
    centred = features[k].permute(0, 2, 3, 1) - student.means[k]
    expected = 1 - (centred @ kept).norm(dim=3) / centred.norm(dim=3)
    torch.testing.assert_close(student.distances(features, pca_share)[k], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_zero_to_one_is_refused(teacher, images, student, share):
    with pytest.raises(ValueError, match="share"):
        student.maps(images, share)
