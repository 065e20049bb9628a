"""Edge and centre of anomalies: a partition, brute force, and known answers."""

import numpy as np
import pytest

from dmdd_lite.zones import split_zones, zone_recall, zone_table


@pytest.fixture
def masks():
    masks = np.zeros((2, 24, 32), bool)
    masks[0, 6:16, 8:20] = True
    masks[1, :7, 25:] = True  # cut off by the border
    return masks


def test_zones_are_a_partition_around_the_outline(masks):
    zones = split_zones(masks, 2)
    assert (sum(zone.astype(int) for zone in zones) == 1).all()
    expected = np.zeros_like(masks[0])
    expected[8:14, 10:18] = True
    np.testing.assert_array_equal(zones.centre[0], expected)
    around = np.zeros_like(masks[0])
    around[4:18, 6:22] = True
    np.testing.assert_array_equal(zones.rim[0], around & ~masks[0])


def test_a_defect_at_the_border_has_no_edge_there(masks):
    centre = split_zones(masks, 2).centre[1]
    assert centre[0, 31]
    assert not centre[6, 31]


@pytest.mark.parametrize("width", [1, 3])
def test_edge_is_within_width_of_a_normal_pixel(masks, width):
    zones = split_zones(masks, width)
    padded = np.pad(masks, ((0, 0), (width, width), (width, width)), mode="edge")
    for n, y, x in np.argwhere(masks):
        near = padded[n, y : y + 2 * width + 1, x : x + 2 * width + 1]
        assert zones.edge[n, y, x] == (not near.all())


def test_recall_counts_pixels_above_the_background_quantile(masks):
    maps = np.random.default_rng(0).random(masks.shape)
    zones = split_zones(masks, 1)
    found = zone_recall(maps, zones, 0.1)
    threshold = np.sort(maps[zones.background])
    assert (threshold > found["threshold"]).mean() == pytest.approx(0.1, abs=2 / threshold.size)
    expected = np.mean([maps[tuple(i)] > found["threshold"] for i in np.argwhere(zones.edge)])
    assert found["edge"] == pytest.approx(expected)


def test_maps_that_see_only_one_zone(masks):
    zones = split_zones(masks, 2)
    table = zone_table({"edge only": 1.0 * zones.edge, "all": 1.0 * masks}, masks, 2)
    assert table.loc["edge only"].tolist() == [0, 1, 0]
    assert table.loc["all"].tolist() == [1, 1, 0]


def test_no_background_or_centre(masks):
    with pytest.raises(ValueError, match="no background"):
        zone_recall(np.zeros((1, 4, 4)), split_zones(np.ones((1, 4, 4), bool), 1))
    thin = np.zeros((1, 9, 9), bool)
    thin[0, 4] = True
    assert np.isnan(zone_recall(np.zeros((1, 9, 9)), split_zones(thin, 1))["centre"])
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        split_zones(masks, 0)
