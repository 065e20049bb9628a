"""Pictures of features: the pictures themselves where the features are the bank's own."""

import numpy as np
import pytest
import torch
from builders import tiny_config

from dmdd_lite.course.patches import PatchBank, choose_examples, shrunk
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.samples import samples_root


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)


def test_own_features_give_the_picture_back(pictures):
    features = torch.randn(3, 5, 6, 8)
    bank = PatchBank(pictures, features)
    torch.testing.assert_close(bank.nearest(3 * features), torch.arange(3 * 48).view(3, 48))
    torch.testing.assert_close(bank.paint(features), pictures, atol=1, rtol=0)


def test_the_nearest_by_angle_of_all_images_is_painted(pictures):
    features = torch.randn(3, 5, 6, 8)
    bank, asked = PatchBank(pictures, features), torch.randn(2, 5, 6, 8)
    for query, found in zip(
        asked.flatten(2).transpose(1, 2).flatten(0, 1), bank.nearest(asked).flatten(), strict=True
    ):
        distances = 1 - torch.cosine_similarity(query[:, None, None], features)
        assert found == distances.flatten().argmin()


def test_examples_are_damaged_within_their_masks_only():
    category = open_category(samples_root(), "pcb")
    found = choose_examples(category, tiny_config(), 128)
    changed = (found.damaged.int() - found.good.int()).abs().amax(1)
    assert found.names[-1] == "synthetic"
    assert len(set(found.names)) == 4
    assert not changed[3][~found.masks[3]].any()
    areas = found.masks.sum((1, 2)).tolist()
    assert areas[:3] == sorted(areas[:3], reverse=True)
    for difference, mask in zip(changed.float(), found.masks, strict=True):
        assert difference[mask].mean() > 5 * difference[~mask].mean()
    assert shrunk(found.damaged, 32).shape == (4, 3, 32, 32)


def test_only_synthetic_examples_where_no_undamaged_picture_is_known(nuts):
    found = choose_examples(open_category(nuts, "nut"), tiny_config(), 64, 2)
    assert found.names == ["synthetic", "synthetic"]
    assert np.all(found.masks.sum((1, 2)).numpy() > 0)
