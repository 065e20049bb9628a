"""Strength of anomalies: brute force, and known answers."""

import numpy as np
import torch

from dmdd_lite.config import Config
from dmdd_lite.course import realism
from dmdd_lite.pairs import PairSynthesizer


class Identity:
    """A "teacher" whose features at every scale are the image, averaged over cells of 4 x 4 pixels."""

    mean = torch.zeros(1)

    def __call__(self, images):
        return [torch.nn.functional.avg_pool2d(images, 4)] * 3


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_nearest_distance_equals_brute_force():
    queries, bank = unit_vectors(23, 0), unit_vectors(17, 1)
    cosines = torch.cosine_similarity(queries[:, None], bank[None], dim=2)
    found = realism.nearest_distance(queries, bank, chunk=5)
    torch.testing.assert_close(found, 1 - cosines.amax(1), atol=1e-5, rtol=0)


def test_anomalous_cells_are_the_covered_ones_and_at_least_one_per_defect():
    masks = torch.zeros(3, 16, 16)
    masks[0, 4:8, 4:12] = 1  # cells (1, 1) and (1, 2)
    masks[0, 8:9, 4:5] = 1  # a sixteenth of cell (2, 1)
    masks[1, 13, 1] = 1  # a sixteenth of cell (3, 0), all there is
    found = realism.anomalous_cells(masks, (4, 4))
    assert found.nonzero().tolist() == [[0, 1, 1], [0, 1, 2], [1, 3, 0]]


def test_strength_is_zero_for_known_colours_and_one_for_an_orthogonal_one():
    images = torch.zeros(2, 3, 16, 16)
    images[:, 0] = 1.0  # red
    bank = realism.build_bank(Identity(), images)
    assert bank.shape == (32, 3)
    assert realism.strengths(Identity(), bank, images)[0].tolist() == [0] * 32
    masks = torch.zeros(2, 16, 16)
    images[1, :, :4, :8], masks[1, :4, :8] = torch.tensor([0.0, 1, 0])[:, None, None], 1
    distance, image = realism.strengths(Identity(), bank, images, masks)
    assert (distance.tolist(), image.tolist()) == ([1, 1], [1, 1])


def test_synthetic_strengths_grow_with_the_opacity():
    images = torch.full((3, 3, 32, 32), 128, dtype=torch.uint8)
    bank = realism.build_bank(Identity(), images)
    textures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    textures[:, 0] = 255

    def median(opacity):
        maker = PairSynthesizer(Config(opacity=(opacity, opacity)), textures)
        distances, masks = realism.synthetic_strengths(Identity(), bank, maker, images, rounds=2)
        assert masks.shape == (6, 32, 32)
        assert masks.any((1, 2)).all()
        return float(distances.median())

    assert median(0.0) < 1e-6 < median(0.3) < median(0.9)


def test_describe_masks():
    masks = torch.zeros(3, 10, 10)
    masks[0, 0, 0] = masks[0, 1, 1] = 1  # touch at a corner: one region
    masks[1, 2, 2:6] = masks[1, 8, 0:2] = 1
    np.testing.assert_allclose(realism.describe_masks(masks), [[0.02, 1], [0.06, 2], [0, 0]])
