"""Probes: shapes against the networks' own outputs, distances against the losses, depth against erosion."""

import numpy as np
import pytest
import torch
from builders import same_state, square_pairs, state_of, tiny_model

from dmdd_lite import losses
from dmdd_lite.course import probes
from dmdd_lite.course.zones import split_zones


@pytest.fixture
def pairs():
    return square_pairs()


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return np.stack(
        [np.kron((rng.random((5, 6)) < 0.02) | np.eye(5, 6, dtype=bool), np.ones((4, 4), bool))] * 3
    )


@pytest.mark.parametrize("changes", [{}, {"student": "decoder"}, {"branches": ("abnormality",)}])
def test_shapes_are_those_of_the_features(changes, pairs):
    model = tiny_model(**changes).train()
    table = probes.trace_shapes(model, pairs.normal).set_index("module")
    teacher = model.teacher(pairs.normal)
    for k, (t, a) in enumerate(zip(teacher, model.student(pairs.normal, teacher).abnormality, strict=True)):
        assert tuple(table.loc[f"teacher[{k}]"][1:]) == tuple(t.shape[1:])
        width = len(model.config.branches) * a.shape[1]
        assert table.loc[f"student.decouple.{k}.expand", "channels"] == width
        for branch in model.config.branches:
            row = table[table["gives"] == f"{branch}, scale {k + 1}"]
            assert row.iloc[0, 1:].tolist() == list(a.shape[1:])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_distances_are_the_losses_of_one_view(pairs):
    model = tiny_model().train()
    before = state_of(model)
    found = probes.pair_distances(model, pairs, "abnormality")
    assert model.training
    assert same_state(before, model)
    normal, anomalous = model.eval().teacher(pairs.normal), model.teacher(pairs.anomalous)
    output = model.student(pairs.anomalous, anomalous)
    restored = sum(d.restored.mean() for d in found)
    torch.testing.assert_close(
        restored, sum(m.mean() for m in losses.distance_maps(output.abnormality, normal))
    )
    costs = [((d.seen - d.mask).abs(), d.mask) for d in found]
    inside = sum((cost * mask).sum() / mask.sum() for cost, mask in costs)
    outside = sum((cost * (1 - mask)).sum() / (1 - mask).sum() for cost, mask in costs)
    expected = losses.AimLoss((inside + outside) / 2, inside, outside)
    torch.testing.assert_close(losses.aim_loss(output.abnormality, anomalous, pairs.mask), expected)
    assert all((d.change[d.mask > 0.5] > 0).all() for d in found)
    with pytest.raises(ValueError, match="no branch 'abnormality', only normality"):
        probes.pair_distances(tiny_model(branches=("normality",)), pairs, "abnormality")


@pytest.mark.parametrize("width", [1, 2, 3])
def test_depth_agrees_with_erosion_and_dilation(width, masks):
    deep, zones = probes.depth(masks), split_zones(masks, width)
    np.testing.assert_array_equal(deep > width, zones.centre)
    np.testing.assert_array_equal((deep >= 1) & (deep <= width), zones.edge)
    np.testing.assert_array_equal((deep <= -1) & (deep >= -width), zones.rim)
    nothing, everything = probes.depth(np.stack([np.zeros((4, 4), bool), np.ones((4, 4), bool)]))
    assert nothing.max() < -(10**6) < 10**6 < everything.min()
