"""Edge and centre of anomalies: a partition, brute force, and known answers."""

import numpy as np
import pytest

from dmdd_lite.course.zones import split_zones, zone_recall, zone_table

MASKS = np.zeros((2, 24, 32), bool)
MASKS[0, 6:16, 8:20] = True
MASKS[1, :7, 25:] = True  # cut off by the border


def grown(masks, width):
    """What is within `width` of the mask, by looking at every pixel; the picture goes on at its border."""
    padded = np.pad(masks, ((0, 0), (width, width), (width, width)), mode="edge")
    near = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1), axis=(1, 2))
    return near.any((3, 4))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_zones_are_a_partition_by_the_distance_to_the_outline(width):
    zones = split_zones(MASKS, width)
    assert (sum(zone.astype(int) for zone in zones) == 1).all()
    np.testing.assert_array_equal(zones.edge, MASKS & grown(~MASKS, width))
    np.testing.assert_array_equal(zones.rim, ~MASKS & grown(MASKS, width))
    assert zones.centre[1, 0, 31]  # a defect at the border has no edge there


def test_recall_counts_pixels_above_the_background_quantile():
    maps, zones = np.random.default_rng(0).random(MASKS.shape), split_zones(MASKS, 1)
    found = zone_recall(maps, zones, 0.1)
    above = maps > found["threshold"]
    assert above[zones.background].mean() == pytest.approx(0.1, abs=2 / zones.background.sum())
    for name in ("centre", "edge", "rim"):
        assert found[name] == pytest.approx(above[getattr(zones, name)].mean())


def test_maps_that_see_only_one_zone():
    table = zone_table({"edge": 1.0 * split_zones(MASKS, 2).edge, "all": 1.0 * MASKS}, MASKS, 2)
    assert table.loc["edge"].tolist() == [0, 1, 0]
    assert table.loc["all"].tolist() == [1, 1, 0]


def test_no_background_or_centre():
    with pytest.raises(ValueError, match="no background"):
        zone_recall(np.zeros((1, 4, 4)), split_zones(np.ones((1, 4, 4), bool), 1))
    thin = np.zeros((1, 9, 9), bool)
    thin[0, 4] = True
    assert np.isnan(zone_recall(np.zeros((1, 9, 9)), split_zones(thin, 1))["centre"])
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        split_zones(MASKS, 0)
