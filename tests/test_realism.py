"""Likeness to real defects: known answers, brute force, and that nothing depends on the order of images."""

import numpy as np
import pytest
import torch

from dmdd_lite.course import realism
from dmdd_lite.course.realism import Patches, Reference


def patches(count=400, centre=0.0, images=20, seed=0) -> Patches:
    """Random directions in 8 dimensions around one that `centre` moves away from the others."""
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    features[:, 0] += centre
    features = torch.nn.functional.normalize(features, dim=1)
    return Patches(features, torch.arange(count) % images, torch.full((count,), torch.nan))


def reference(real: Patches, bank: torch.Tensor) -> Reference:
    distance = realism.nearest_distance(real.features, bank)
    return Reference(bank, real, distance, torch.linspace(0, 1, 101))


def test_nearest_distance_equals_brute_force():
    queries, bank = patches(23).features, patches(17, seed=1).features
    cosines = torch.cosine_similarity(queries[:, None], bank[None], dim=2)
    found = realism.nearest_distance(queries, bank, chunk=5)
    torch.testing.assert_close(found, 1 - cosines.amax(1), atol=1e-5, rtol=0)


def test_two_sample_auroc_knows_same_far_and_kinds_apart():
    assert abs(realism.two_sample_auroc(patches(seed=1), patches(seed=2)) - 0.5) < 0.1
    first, second = patches(), patches(centre=9.0, seed=1)
    assert realism.two_sample_auroc(first, second) > 0.99
    moved = second._replace(image=second.image + 20)
    both = Patches(*(torch.cat(parts) for parts in zip(first, moved, strict=True)))
    assert abs(realism.split_half_auroc(both) - 0.5) < 0.15
    with pytest.raises(ValueError, match="two images"):
        realism.two_sample_auroc(patches(images=1), patches())


def test_measure_of_synthetic_anomalies_that_are_the_real_ones():
    real = patches(300, centre=3.0, seed=1)
    known = reference(real, patches(300, seed=2).features)
    row = realism.measure(known, real._replace(paired=torch.ones(300)))
    assert (row["relative"], row["change"], row["coverage"], row["patches"]) == (1, 1, 1, 300)
    assert row["auroc"] < 0.6
    assert known.limit == pytest.approx(0.99)  # what 99 % of the good keep below


def test_gather_takes_the_covered_cells_and_at_least_one_of_every_defect():
    features, masks = torch.arange(32.0).view(2, 1, 4, 4), torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 4:8, 4:12] = True  # cells (1, 1) and (1, 2)
    masks[0, 8:9, 4:5] = True  # a sixteenth of cell (2, 1)
    masks[1, 13, 1] = True  # a sixteenth of cell (3, 0), all there is
    found = realism.gather(features, masks, features)
    assert found.features.flatten().tolist() == [5, 6, 16 + 12]
    assert found.image.tolist() == [0, 0, 1]
    assert found.paired.tolist() == [1 - 25, 1 - 36, 1 - 28**2]
    assert realism.gather(features).features.flatten().tolist() == list(range(32))
    assert len(realism.gather(features, torch.zeros(2, 16, 16)).features) == 0


def test_describe_masks():
    masks = torch.zeros(3, 10, 10)
    masks[0, 0, 0] = masks[0, 1, 1] = 1  # touch at a corner: one region
    masks[1, 2, 2:6] = masks[1, 8, 0:2] = 1
    table = realism.describe_masks(masks)
    np.testing.assert_allclose(
        table[["share", "regions", "size"]], [[0.02, 1, 0.02], [0.06, 2, 0.03], [0, 0, 0]]
    )
