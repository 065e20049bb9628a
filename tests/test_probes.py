"""Probes: distances of the branches against the losses, and of branches whose distances are known."""

import pytest
import torch
from builders import same_state, square_pairs, state_of, tiny_model

from dmdd_lite import losses
from dmdd_lite.course import probes


@pytest.fixture
def pairs():
    return square_pairs()


def test_distances_are_the_means_over_the_cells(pairs):
    model = tiny_model().train()
    before = state_of(model)
    table = probes.distance_table(model.student, model.teacher, pairs)
    assert model.student.training
    assert same_state(before, model)
    t_n, t_a = model.teacher(pairs.normal), model.teacher(pairs.anomalous)
    n, a = model.eval().student(pairs.anomalous, t_a)
    fraction = losses.resize_mask(pairs.mask, t_a[0].shape[2:])
    inside, outside = fraction == 1, fraction == 0
    wanted = [(a, t_a, inside), (a, t_a, outside), (n, t_n, inside), (a, n, inside), (t_a, t_n, inside)]
    for found, (one, other, where) in zip(table.iloc[0], wanted, strict=True):
        distance = (1 - torch.cosine_similarity(one[0], other[0]))[where].mean()
        assert found == pytest.approx(distance.item(), abs=1e-5)


def test_a_student_that_restores_and_departs(pairs):
    class Perfect(torch.nn.Module):
        def forward(self, images, features):
            return teacher(pairs.normal), tuple(-f for f in features)

    teacher = tiny_model().teacher
    table = probes.distance_table(Perfect(), teacher, pairs)
    assert (table["N to T(x_n) inside"].abs() < 1e-5).all()
    assert ((table["A to T(x_a) inside"] - 2).abs() < 1e-5).all()
    alone = probes.distance_table(tiny_model(branches=("normality",)).student, teacher, pairs)
    assert alone["A to N inside"].isna().all()
    assert alone["N to T(x_n) inside"].notna().all()


def test_trivial_branches_cost_what_the_loss_says(pairs):
    model = tiny_model().eval()
    table = probes.trivial_branches(model.student, model.teacher, pairs)
    t_n, t_a = model.teacher(pairs.normal), model.teacher(pairs.anomalous)
    loss = losses.aim_loss(t_n, t_a, pairs.mask)
    assert table.loc["A = T(x_n)", ["total", "inside", "outside"]].tolist() == pytest.approx(
        [part.item() for part in loss], abs=1e-5
    )
    copied = sum(losses.resize_mask(pairs.mask, t.shape[2:]).mean() for t in t_a)
    assert table.loc["A = T(x_a)", "one mean"] == pytest.approx(copied.item(), abs=1e-5)
