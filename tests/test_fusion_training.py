"""Fusions trained and scored on kept maps: the same as through the model, and nothing else is touched."""

import copy

import numpy as np
import pytest
import torch
from builders import make_category, tiny_config

from dmdd_lite.alterations import fusion_view
from dmdd_lite.data import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.fusion import SegmentationNetwork, WeightedSum
from dmdd_lite.fusion_comparison import (
    evaluate_fusion,
    fuse_again,
    keep_output,
    keep_split,
    score_fusions,
    summarise,
    train_fusions,
    with_fusion,
)
from dmdd_lite.fusion_training import KeptMaps, fusion_loss, keep_maps, train_fusion
from dmdd_lite.losses import resize_mask
from dmdd_lite.model import MAP_NAMES, build_model
from dmdd_lite.synthesis import Pairs
from dmdd_lite.teacher import build_teacher


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_config(), build_teacher("test_resnet", "random")).eval()


@pytest.fixture
def detector(model):
    return Detector(copy.deepcopy(model))


class FixedPairs:
    """A pair source of two pairs an iteration; the anomaly is a bright square."""

    def batch(self, iteration: int) -> Pairs:
        rng = torch.Generator().manual_seed(iteration)
        normal = torch.rand(2, 3, 64, 64, generator=rng)
        mask = torch.zeros(2, 64, 64)
        mask[:, 8:30, 20:50] = 1
        return Pairs(normal, torch.where(mask[:, None] > 0, torch.ones(()), normal), mask)


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


# ---- keeping maps and training on them ------------------------------------------------------------------


def test_kept_maps_are_those_of_the_model(model):
    kept = keep_maps(model, FixedPairs(), 2, progress=False)
    assert kept.maps.shape == (2, 4, 6, 16, 16)
    pairs = FixedPairs().batch(1)
    views = pairs.normal, fusion_view(pairs, model.config, 1)
    for rows, view in zip((slice(0, 2), slice(2, 4)), views, strict=True):
        with torch.no_grad():
            output = model(view)
        torch.testing.assert_close(kept.maps[1, rows].float(), output.maps, atol=2e-3, rtol=2e-3)
    assert not kept.masks[:, :2].any()
    torch.testing.assert_close(kept.masks[1, 2:], resize_mask(pairs.mask, (16, 16)))


def test_the_student_and_its_statistics_stay_as_they_were(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_fusion(model.config, keep_maps(model, FixedPairs(), 2, progress=False), progress=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("fusion", ["msn", "weighted"])
def test_training_lowers_the_loss(fusion):
    config, kept = tiny_config(fusion=fusion, fusion_learning_rate=0.02), learnable()
    maps, masks = learnable(31).maps[30].float(), kept.masks[0]

    def loss(network):
        with torch.no_grad():
            return fusion_loss(network, maps, masks, config)

    untrained = train_fusion(config, kept, passes=0, progress=False)
    assert loss(train_fusion(config, kept, progress=False)) < 0.8 * loss(untrained)


def test_training_is_a_function_of_the_seed_alone():
    kept, config = learnable(4), tiny_config()
    one = train_fusion(config, kept, 2, progress=False).state_dict()
    torch.rand(3)  # the global generator is not used
    same = train_fusion(config, kept, 2, progress=False).state_dict()
    other = train_fusion(config.replace(seed=1), kept, 2, progress=False).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_second_pass_sees_the_same_maps_again():
    kept, config = learnable(3), tiny_config()
    doubled = KeptMaps(kept.maps.repeat(2, 1, 1, 1, 1), kept.masks.repeat(2, 1, 1, 1))
    passes = train_fusion(config, kept, 2, progress=False).state_dict()
    longer = train_fusion(config, doubled, 1, progress=False).state_dict()
    assert all(torch.equal(passes[k], longer[k]) for k in passes)


# ---- scoring fusions ------------------------------------------------------------------------------------


def test_evaluation_on_kept_maps_equals_evaluation_through_the_detector(detector, split, tmp_path):
    kept = evaluate_fusion(split._replace(config=detector.config), detector.model.fusion, MAP_NAMES)
    whole = evaluate(detector, open_category(tmp_path, "nut"), progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(kept.maps[name], whole.maps[name], atol=1e-5)
        np.testing.assert_allclose(kept.scores[name], whole.scores[name], atol=1e-5)
    np.testing.assert_array_equal(kept.masks, whole.masks)


def test_another_fusion_changes_fused_and_weights_only(detector, split):
    torch.manual_seed(3)
    other = SegmentationNetwork(6, width=4).eval()
    torch.nn.init.normal_(other.reweight.weight)
    images = split.images.float() / 255
    detector.model.fusion = other
    with torch.no_grad():
        expected = detector.model(images)
    output = fuse_again(split.output, other, detector.config.fusion_skip)
    torch.testing.assert_close(output.fused, expected.fused, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.weights, expected.weights, atol=1e-4, rtol=1e-4)
    assert output.normality is split.output.normality


def test_batches_do_not_matter(detector, split):
    whole = keep_output(detector, split.images, batch_size=100, progress=False)
    torch.testing.assert_close(whole.fused, split.output.fused, atol=1e-5, rtol=1e-4)


def test_a_row_for_every_fusion_skip_and_seed(split):
    config = tiny_config()
    variants = {"sum": {"fusion": "weighted"}, "no attention": {"fusion_attention": ()}}
    fusions = train_fusions(config, learnable(2), variants, (0, 1), progress=False)
    assert list(fusions["no attention", 1].attentions) == []
    scores = score_fusions(split, fusions, (0.0, 1.0), progress=False)
    assert len(scores) == 2 * 2 * 2
    plain = scores[scores["skip"] == 1].drop(columns=["fusion", "skip", "seed"])
    assert plain.nunique().eq(1).all()  # with skip 1 every fusion is the plain mean
    table = summarise(scores, ("pixel_ap",))
    values = 100 * scores.query("fusion == 'sum' and skip == 0")["pixel_ap"]
    assert table.loc[("sum", 0.0), "pixel_ap"] == f"{values.mean():.1f} ± {values.std():.1f}"


def test_a_detector_with_another_fusion_is_calibrated_and_can_be_loaded(detector, tmp_path):
    config = tiny_config(fusion="weighted", fusion_skip=0.25)
    fusion = train_fusion(config, learnable(3), progress=False)
    held_out = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    before = copy.deepcopy(detector.model.state_dict())
    changed = with_fusion(detector, fusion, config, held_out)
    assert changed.threshold == pytest.approx(changed.maps(held_out)[1]["plus"].max().item())
    assert all(torch.equal(before[k], v) for k, v in detector.model.state_dict().items())
    loaded = Detector.load(changed.save(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(loaded.maps(held_out)[0]["fused"], changed.maps(held_out)[0]["fused"])


def test_a_fusion_that_its_configuration_does_not_describe_is_refused(detector):
    held_out = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for fusion in (WeightedSum(6), SegmentationNetwork(3, width=4), SegmentationNetwork(6, width=5)):
        with pytest.raises(ValueError, match="another fusion"):
            with_fusion(detector, fusion, tiny_config(), held_out)
