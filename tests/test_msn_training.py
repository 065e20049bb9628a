"""Fusions trained and scored on kept maps: the same as through the model, and nothing else is touched."""

import numpy as np
import pytest
import torch
from builders import make_category, random_images, same_state, square_pairs, state_of, tiny_config

from dmdd_lite.alterations import altered_view
from dmdd_lite.course.msn_comparison import (
    evaluate_msn,
    keep_split,
    with_msn,
)
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.losses import resize_mask
from dmdd_lite.model import MAP_NAMES
from dmdd_lite.msn_training import KeptMaps, keep_maps, loss_on_maps, train_msn
from dmdd_lite.pairs import Pairs


class FixedPairs:
    """A pair source of two pairs an iteration."""

    def batch(self, iteration: int) -> Pairs:
        return square_pairs(iteration)


@pytest.fixture
def split(detector, tmp_path):
    make_category(tmp_path)
    return keep_split(detector, open_category(tmp_path, "nut"), progress=False)


def learnable(steps=30) -> KeptMaps:
    """Calibrated maps, strong inside a square for the anomalous halves of the batches."""
    masks = torch.zeros(steps, 4, 16, 16)
    masks[:, 2:, 4:10, 4:10] = 1
    noise = torch.rand(steps, 4, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    return KeptMaps((noise + 3 * masks[:, :, None]).half(), masks)


def test_kept_maps_are_those_of_the_model_which_stays_as_it_was(detector):
    model = detector.model
    before = state_of(model)
    kept = keep_maps(model, FixedPairs(), 2, progress=False)
    train_msn(model.config, kept, progress=False)
    assert same_state(before, model)
    pairs = FixedPairs().batch(1)
    views = pairs.normal, altered_view(pairs, model.config, 1)
    for rows, view in zip(kept.maps[1].float().chunk(2), views, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(rows, model(view).maps, atol=2e-3, rtol=2e-3)
    assert not kept.masks[:, :2].any()
    torch.testing.assert_close(kept.masks[1, 2:], resize_mask(pairs.mask, (16, 16)))


@pytest.mark.parametrize("fusion", ["attention", "weighted"])
def test_training_lowers_the_loss(fusion):
    config, kept = tiny_config(msn=fusion, msn_learning_rate=0.02), learnable()
    maps, masks = learnable(31).maps[30].float(), kept.masks[0]

    def loss(network):
        with torch.no_grad():
            return loss_on_maps(network, maps, masks, config)

    untrained = train_msn(config, kept, passes=0, progress=False)
    assert loss(train_msn(config, kept, progress=False)) < 0.8 * loss(untrained)


def test_evaluation_on_kept_maps_equals_evaluation_through_the_detector(detector, split, tmp_path):
    kept = evaluate_msn(split._replace(config=detector.config), detector.model.msn, MAP_NAMES)
    whole = evaluate(detector, open_category(tmp_path, "nut"), progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(kept.maps[name], whole.maps[name], atol=1e-5)
        np.testing.assert_allclose(kept.scores[name], whole.scores[name], atol=1e-5)
    np.testing.assert_array_equal(kept.masks, whole.masks)


def test_a_detector_with_another_fusion_is_calibrated_and_can_be_loaded(detector, tmp_path):
    config, held_out = tiny_config(msn="weighted", msn_skip=0.25), random_images(3)
    fusion = train_msn(config, learnable(3), progress=False)
    before = state_of(detector.model)
    changed = with_msn(detector, fusion, config, held_out)
    assert changed.threshold == pytest.approx(changed.maps(held_out)[1]["plus"].max().item())
    assert same_state(before, detector.model)
    loaded = Detector.load(changed.save(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(loaded.maps(held_out)[0]["fused"], changed.maps(held_out)[0]["fused"])
