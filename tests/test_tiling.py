"""Tiled prediction: cover, seams, and equality with whole images where there is one tile."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import random_images, tiny_detector

from dmdd_lite.tiling import edge_ramp, tile_starts


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.mark.parametrize("length, tile, overlap", [(64, 64, 16), (65, 64, 16), (300, 64, 16), (1000, 96, 0)])
def test_tiles_cover_everything_and_overlap_enough(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert (starts[0], starts[-1]) == (0, length - tile)
    assert all(b - a <= tile - overlap for a, b in pairwise(starts))
    assert len(starts) == int(np.ceil((length - overlap) / (tile - overlap)))


def test_one_tile_is_the_image(detector):
    image = random_images(1)[0].permute(1, 2, 0).numpy()  # 64 px, the detector's size
    whole, tiled = detector.predict(image), detector.predict(image, 8, 64, 16)
    for name, values in whole.maps.items():
        np.testing.assert_allclose(tiled.maps[name], values, atol=1e-6)
    assert tiled.score == pytest.approx(whole.score, abs=1e-6)


def test_maps_are_weighted_means_of_those_of_the_tiles(detector):
    image = torch.cat(list(random_images(2)), dim=2)[:, :60, :100].permute(1, 2, 0).numpy()
    found = detector.predict(image, 1, 64, 16)
    padded = np.pad(image, ((0, 4), (0, 0), (0, 0)), mode="symmetric")
    ramp, total, weight = edge_ramp(64, 16).numpy(), np.zeros((64, 100)), np.zeros((64, 100))
    for x in (0, 36):
        total[:, x : x + 64] += np.outer(ramp, ramp) * detector.predict(padded[:, x : x + 64].copy()).plus
        weight[:, x : x + 64] += np.outer(ramp, ramp)
    np.testing.assert_allclose(found.plus, (total / weight)[:60], atol=1e-5)
    assert found.size == (60, 100)
    assert found.score == found.plus.max()


def test_a_map_that_is_the_same_in_all_tiles_has_no_seams(detector, monkeypatch):
    names = detector.maps(random_images(1))[0]
    maps = {name: torch.full((1, 64, 64), 0.25) for name in names}
    same = lambda batch: ({name: m.expand(len(batch), -1, -1) for name, m in maps.items()},)  # noqa: E731
    monkeypatch.setattr(detector, "maps", same)
    found = detector.predict(np.zeros((150, 230, 3), np.uint8), 8, 64, 16)
    np.testing.assert_allclose(found.plus, 0.25, rtol=1e-6)


def test_impossible_tiles_are_refused(detector):
    for tile, overlap in ((64, 64), (64, -1)):
        with pytest.raises(ValueError, match="overlap must be from 0 to below tile"):
            detector.predict(np.zeros((80, 80), np.uint8), 8, tile, overlap)
