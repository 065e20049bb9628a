"""Nearest neighbours against brute force; the subspace student against scikit-learn and known answers."""

import pytest
import torch
import torch.nn.functional as F
from builders import random_images
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from dmdd_lite.course.neighbours import NearestNeighbour, SubspaceStudent
from dmdd_lite.losses import cosine_distance

IMAGES = random_images(24)


def patches(teacher, images, reach):
    """Per scale (N * 64, C_k) on the grid of stride 8, pixel by pixel averaged over its neighbours."""
    found = []
    for feature in teacher(images.float() / 255):
        local = torch.empty_like(feature)
        for y in range(feature.shape[2]):
            for x in range(feature.shape[3]):
                around = feature[:, :, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                local[:, :, y, x] = around.mean((2, 3))
        small = F.interpolate(local, (8, 8), mode="bilinear", align_corners=False)
        found.append(small.permute(0, 2, 3, 1).flatten(0, 2))
    return found


def enlarged(distances):
    maps = distances.float().view(-1, 1, 8, 8)
    return F.interpolate(maps, (64, 64), mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("neighbourhood", [1, 3])
def test_euclidean_maps_equal_brute_force(teacher, neighbourhood):
    good, test = IMAGES[:3], IMAGES[3:5]
    model = NearestNeighbour(neighbourhood=neighbourhood, sigma=0).fit(teacher, good, patches=10**6)
    known, asked = (patches(teacher, x, neighbourhood // 2) for x in (good, test))
    spreads = [p.var(0, correction=0).sum().sqrt() for p in known]
    known, asked = (torch.cat([p / s for p, s in zip(x, spreads, strict=True)], 1) for x in (known, asked))
    searched = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known.numpy())
    expected = enlarged(torch.from_numpy(searched.kneighbors(asked.numpy())[0]))
    torch.testing.assert_close(model.maps(test), expected, rtol=1e-4, atol=1e-5)


def test_cosine_maps_are_the_least_sum_of_cosine_distances(teacher):
    good, test = IMAGES[:2], IMAGES[3:4]
    model = NearestNeighbour("cosine", neighbourhood=1, sigma=0).fit(teacher, good, patches=10**6)
    totals = sum(
        cosine_distance(a.T[None, :, :, None], k.T[None, :, None, :])[0]  # every query with every patch
        for a, k in zip(patches(teacher, test, 0), patches(teacher, good, 0), strict=True)
    )
    torch.testing.assert_close(model.maps(test), enlarged(totals.amin(1)), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def student(teacher):
    return SubspaceStudent().fit(teacher, IMAGES, batch=2)


def test_components_are_those_of_scikit_learn(teacher, student):
    for k, feature in enumerate(teacher(IMAGES.float() / 255)):
        pixels = feature.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        pca = PCA(svd_solver="full").fit(pixels)
        mean, variances, first = (
            torch.from_numpy(v).float() for v in (pca.mean_, pca.explained_variance_, pca.components_[:3])
        )
        torch.testing.assert_close(student.means[k], mean, rtol=1e-4, atol=1e-5)
        variances *= (len(pixels) - 1) / len(pixels)
        torch.testing.assert_close(student.variances[k], variances, rtol=1e-3, atol=1e-5)
        same = (student.components[k][:, :3].T * first).sum(1).abs()
        torch.testing.assert_close(same, torch.ones(3), rtol=1e-3, atol=0)


def test_without_components_nothing_is_copied_and_with_all_everything_is(student):
    unseen = random_images(2, seed=9)
    torch.testing.assert_close(student.maps(unseen, 0.0), torch.full((2, 64, 64), 3.0))  # 1 for each scale
    torch.testing.assert_close(student.maps(unseen, 1.0), torch.zeros(2, 64, 64), rtol=0, atol=1e-5)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share"):
            student.maps(unseen, share)
