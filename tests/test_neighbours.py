"""Nearest neighbours against brute force."""

import pytest
import torch
import torch.nn.functional as F
from builders import random_images
from sklearn.neighbors import NearestNeighbors

from dmdd_lite.course.neighbours import NearestNeighbour

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
