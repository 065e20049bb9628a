"""The benchmark of the branches against loops over cells and known answers; a batch that A must learn."""

import itertools
from importlib import import_module

import pytest
import torch
from builders import tiny_config, tiny_model

from dmdd_lite import training
from dmdd_lite.data.training import load_training_data
from dmdd_lite.losses import aim_loss, cosine_distance, resize_mask
from dmdd_lite.pairs import Pairs


@pytest.fixture(scope="module")
def branches(scripts):
    return import_module("branches")


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Four pairs of 64 px, the left upper quarter of each anomalous."""
    rng = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8, generator=rng), (64, 64))
    mask = torch.zeros(4, 64, 64)
    mask[:, :32, :32] = 1
    noise = torch.rand(4, 3, 64, 64, generator=rng)
    return Pairs(normal, torch.where(mask[:, None] > 0, noise, normal), mask)


@torch.no_grad()
def test_distances_equal_loops_over_cells(branches, model, pairs):
    normal, seen = model.teacher(pairs.normal), model.teacher(pairs.anomalous)
    table = branches.pair_table(branches.PairViews(model, pairs), tuple(f[:1] for f in normal))
    clean, damaged = model.student(pairs.normal, normal), model.student(pairs.anomalous, seen)
    for k, stride in enumerate((4, 8, 16)):
        n, t, own, a = normal[k], seen[k], damaged.normality[k], damaged.abnormality[k]
        inside = {"A_T_in": (a, t), "N_Tn_in": (own, n), "A_N_in": (a, own), "T_Tn_in": (t, n)}
        found = {name: [] for name in (*inside, "A_T_out")}
        for b, y, x in itertools.product(range(4), range(64 // stride), range(64 // stride)):
            pairs_here = inside if max(y, x) < 32 // stride else {"A_T_out": (a, t)}
            for name, (p, q) in pairs_here.items():
                found[name].append(1 - torch.cosine_similarity(p[b, :, y, x], q[b, :, y, x], dim=0))
        for name, values in found.items():
            assert table.loc[stride, name] == pytest.approx(torch.stack(values).mean().item(), abs=1e-4), name
        of_clean = cosine_distance(clean.normality[k], n).mean().item()
        assert table.loc[stride, "N_clean"] == pytest.approx(of_clean, abs=1e-4)


def test_one_repeated_batch_is_learned(root, pairs):
    """A departs inside and stays near outside, N restores: where these fail, so would any training."""
    changes = {"iterations": 160, "msn_iterations": 0, "batch_size": 4}
    data = load_training_data(tiny_config(**changes), root, "lever", progress=False)
    trainer = training.Trainer(tiny_config(**changes), tiny_model(**changes), data)
    trainer.known.kept = None  # its normal images are none of these
    trainer.pairs.batch = lambda iteration: pairs
    losses = [trainer.step() for _ in range(160)]
    assert losses[-1].aim_inside < losses[0].aim_inside / 5
    with torch.no_grad():
        normal, seen = trainer.model.teacher(pairs.normal), trainer.model.teacher(pairs.anomalous)
        output = trainer.model.student(pairs.anomalous, seen)
    for n, a, good, own in zip(*output, normal, seen, strict=True):
        distance = cosine_distance(a, own)
        share = resize_mask(pairs.mask, distance.shape[1:])
        assert distance[share >= 0.99].mean() > 0.9
        assert distance[share <= 0.01].mean() < 0.1
        assert cosine_distance(n, good)[share >= 0.99].mean() < 0.2
    loss = aim_loss(output.abnormality, seen, pairs.mask)
    assert max(loss.inside, loss.outside) < 0.3
