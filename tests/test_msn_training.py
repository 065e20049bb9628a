"""Fusions trained and scored on kept maps: the same as through the model, and nothing else is touched."""

import numpy as np
import pytest
import torch
from builders import make_category, random_images, same_state, square_pairs, state_of

from dmdd_lite.course.msn_comparison import (
    KeptMaps,
    WeightedSum,
    evaluate_msn,
    keep_maps,
    keep_split,
    score_msns,
    summarise,
    train_msn,
    train_msns,
    with_msn,
)
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.losses import msn_loss, resize_mask
from dmdd_lite.pairs import Pairs, alter, step_generator

OF_DMDD = ("fused", "normality", "abnormality", "sum")


class FixedPairs:
    """A pair source of two pairs an iteration."""

    def batch(self, step: int) -> Pairs:
        return square_pairs(step)

    def altered(self, pairs: Pairs, step: int) -> torch.Tensor:
        return alter(pairs.normal, pairs.mask, step_generator(0, "alterations", step))


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
    train_msn(kept, attention=("channel",), progress=False)
    assert same_state(before, model)
    pairs = FixedPairs().batch(1)
    views = pairs.normal, FixedPairs().altered(pairs, 1)
    for rows, view in zip(kept.maps[1].float().chunk(2), views, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(rows, model(view).inputs.maps, atol=2e-3, rtol=2e-3)
    assert not kept.masks[:, :2].any()
    torch.testing.assert_close(kept.masks[1, 2:], resize_mask(pairs.mask, (16, 16)))


@pytest.mark.parametrize("attention", [("channel", "spatial"), (), None])
def test_training_lowers_the_loss(attention):
    kept, masks = learnable(), learnable().masks[0]
    maps = learnable(31).maps[30].float()

    def loss(network):
        with torch.no_grad():
            return msn_loss(network(maps).logits, masks)

    untrained, trained = (
        train_msn(kept, attention=attention, passes=passes, rate=0.02, progress=False) for passes in (0, 1)
    )
    assert isinstance(trained, WeightedSum) == (attention is None)
    assert loss(trained) < 0.8 * loss(untrained)


def test_evaluation_on_kept_maps_equals_evaluation_through_the_detector(detector, split, tmp_path):
    kept = evaluate_msn(split, detector.model.msn, OF_DMDD)
    whole = evaluate(detector, open_category(tmp_path, "nut"), progress=False)
    for name in OF_DMDD:
        np.testing.assert_allclose(kept.maps[name], whole.maps[name], atol=1e-5)
        np.testing.assert_allclose(kept.scores[name], whole.scores[name], atol=1e-5)
    np.testing.assert_array_equal(kept.masks, whole.masks)


def test_scores_of_several_fusions_are_those_of_each(split):
    variants = {"none": {"attention": ()}, "sum": {"attention": None}}
    networks = train_msns(learnable(3), variants, seeds=(0, 1), progress=False)
    scores = score_msns(split, networks, (0.0, 1.0), progress=False)
    assert len(scores) == 2 * 2 * 2
    row = scores.set_index(["fusion", "plain_weight", "seed"]).loc[("sum", 0.0, 1)]
    expected = evaluate_msn(split, networks["sum", 1], plain_weight=0.0).metrics["fused"]
    assert row.to_dict() == pytest.approx(expected)
    table = summarise(scores)
    assert list(table.index) == [(name, weight) for name in variants for weight in (0.0, 1.0)]
    assert all(text.endswith(" ± 0.0") for text in table.loc[("none", 1.0)])  # no fusion takes part


def test_a_detector_with_another_msn_is_calibrated_and_can_be_loaded(detector, tmp_path):
    held_out = random_images(3)
    msn = train_msn(learnable(3), attention=detector.config.msn_attention, rate=0.02, progress=False)
    before = state_of(detector.model)
    changed = with_msn(detector, msn, held_out)
    assert changed.threshold == pytest.approx(changed.maps(held_out)[1]["plus"].max().item())
    assert same_state(before, detector.model)
    assert same_state(msn, changed.model.msn)
    loaded = Detector.load(changed.save(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(loaded.maps(held_out)[0]["fused"], changed.maps(held_out)[0]["fused"])
