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
from dmdd_lite.fusion import BIAS, GAIN, SegmentationNetwork, WeightedSum
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
from dmdd_lite.fusion_training import KeptMaps, fading_maps, fusion_loss, keep_maps, train_fusion
from dmdd_lite.losses import resize_mask
from dmdd_lite.model import MAP_NAMES, build_model
from dmdd_lite.synthesis import Pairs
from dmdd_lite.teacher import build_teacher


@pytest.fixture(scope="module")
def model():
    config = tiny_config(fusion_unseen=0.0)
    return build_model(config, build_teacher("test_resnet", "random")).eval()


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
    noise = torch.rand(steps, 4, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    return KeptMaps((noise + 3 * masks[:, :, None]).half(), masks)


# ---- keeping maps and training on them ------------------------------------------------------------------


def test_kept_maps_are_those_of_the_model(model):
    kept = keep_maps(model, FixedPairs(), 2, progress=False)
    assert kept.maps.shape == (2, 4, 9, 16, 16)
    pairs = FixedPairs().batch(1)
    for rows, view in ((slice(0, 2), pairs.normal), (slice(2, 4), pairs.anomalous)):
        with torch.no_grad():
            output = model(view)
        torch.testing.assert_close(kept.maps[1, rows].float(), output.inputs, atol=2e-3, rtol=2e-3)
    assert not kept.masks[:, :2].any()
    torch.testing.assert_close(kept.masks[1, 2:], resize_mask(pairs.mask, (16, 16)))


def test_kept_maps_leave_each_image_out_of_the_statistics():
    """Of more images than channels: with fewer, rounding counts."""
    config, pairs = tiny_config(position_channels=8, fusion_unseen=0.0), FixedPairs().batch(0)
    model = build_model(config, build_teacher("test_resnet", "random")).eval()
    images = torch.cat([FixedPairs().batch(i).normal for i in range(16)])
    model.position.fit(lambda: [model.teacher(images)])
    kept = keep_maps(model, FixedPairs(), 1, progress=False)
    own = model.teacher(pairs.normal)
    for seen, left_out in zip(model.position(own), model.position(own, own), strict=True):
        assert (seen < left_out).all()  # an image that is part of the statistics is nearer
    for rows, view in ((slice(0, 2), pairs.normal), (slice(2, 4), pairs.anomalous)):
        with torch.no_grad():
            kinds = model.distances(view, model.teacher(view), own)
        expected = model.calibration(sum(kinds, ()))
        torch.testing.assert_close(kept.maps[0, rows].float(), expected, atol=5e-3, rtol=5e-3)


def test_kept_maps_have_the_alterations_of_training(model):
    """In every second batch, instead of the textures; the masks are the same."""
    model = copy.deepcopy(model)
    plain = keep_maps(model, FixedPairs(), 2, progress=False)
    model.config = model.config.replace(fusion_unseen=0.5)
    kept = keep_maps(model, FixedPairs(), 2, progress=False)
    with torch.no_grad():
        altered = model(fusion_view(FixedPairs().batch(1), model.config, 1)).inputs
    assert torch.equal(kept.masks, plain.masks)
    assert torch.equal(kept.maps[0], plain.maps[0])
    assert torch.equal(kept.maps[1, :2], plain.maps[1, :2])
    torch.testing.assert_close(kept.maps[1, 2:].float(), altered, atol=2e-3, rtol=2e-3)
    assert not torch.equal(kept.maps[1, 2:], plain.maps[1, 2:])


def test_the_student_and_its_statistics_stay_as_they_were(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_fusion(model.config, keep_maps(model, FixedPairs(), 2, progress=False), progress=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("fusion", ["msn", "weighted"])
def test_training_lowers_the_loss(fusion):
    config, kept = tiny_config(fusion=fusion, fusion_learning_rate=0.02), learnable()
    maps, masks = learnable(31).maps[30].float(), kept.masks[0]
    as_they_are = config.replace(fusion_fade=0.0, fusion_jitter=0.0, fusion_zoom=1.0)

    def loss(network):
        with torch.no_grad():
            return fusion_loss(network, maps, masks, as_they_are, 0)

    untrained = train_fusion(config, kept, passes=0, progress=False)
    assert loss(train_fusion(config, kept, progress=False)) < 0.8 * loss(untrained)


def test_a_fusion_that_saw_anomalies_fade_hears_positions_alone():
    """Of an anomaly that only the position maps show, against one that all maps show."""
    seen = learnable(31).maps[30, 2:].float()
    quiet = seen.clone()
    quiet[:, :6] = learnable(32).maps[31, :2, :6].float()

    def heard(fade):
        config = tiny_config(fusion_learning_rate=0.02, fusion_fade=fade)
        fusion = train_fusion(config, learnable(60), 2, progress=False)
        with torch.no_grad():
            return tuple(fusion(maps).logits[:, 5:9, 5:9].mean().item() for maps in (quiet, seen))

    without, with_fading = heard(0.0), heard(1.0)
    assert with_fading[0] > without[0] + 1
    assert with_fading[1] > 0  # what all maps show is found as before


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 6), ({"branches": ("normality",)}, 3), ({"position_maps": False}, 0)],
    ids=["all", "one branch", "no positions"],
)
def test_only_branches_fade_and_only_beside_positions(changes, count):
    config = tiny_config(**changes)
    kinds = len(config.branches) + config.position_maps
    assert fading_maps(config, 3 * kinds) == count


def test_training_is_a_function_of_the_seed_alone():
    kept, config = learnable(4), tiny_config()
    one = train_fusion(config, kept, 2, progress=False).state_dict()
    torch.rand(3)  # the global generator is not used
    same = train_fusion(config, kept, 2, progress=False).state_dict()
    other = train_fusion(config.replace(seed=1), kept, 2, progress=False).state_dict()
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_a_second_pass_sees_the_same_maps_varied_anew():
    kept, config = learnable(3), tiny_config()
    doubled = KeptMaps(kept.maps.repeat(2, 1, 1, 1, 1), kept.masks.repeat(2, 1, 1, 1))
    passes = train_fusion(config, kept, 2, progress=False).state_dict()
    longer = train_fusion(config, doubled, 1, progress=False).state_dict()
    assert all(torch.equal(passes[k], longer[k]) for k in passes)


def test_weighted_sum_by_hand():
    fusion, maps = WeightedSum(3, skip=0.25), torch.rand(2, 3, 4, 4) * 2
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        fusion.bias.fill_(0.3)
        output = fusion(maps)
    a, b, c = maps.unbind(1)
    learned = GAIN * (0.5 * a + 2 * b - c) / 3 + 0.3
    torch.testing.assert_close(output.logits, learned)
    plain = GAIN * (a + b + c) / 3 + BIAS
    torch.testing.assert_close(output.fused, torch.sigmoid(0.75 * learned + 0.25 * plain))


# ---- scoring fusions ------------------------------------------------------------------------------------


def test_evaluation_on_kept_maps_equals_evaluation_through_the_detector(detector, split, tmp_path):
    detector.config = detector.config.replace(score_rule="max")  # each map by itself: nothing is calibrated
    kept = evaluate_fusion(split._replace(config=detector.config), detector.model.fusion, MAP_NAMES)
    whole = evaluate(detector, open_category(tmp_path, "nut"), progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(kept.maps[name], whole.maps[name], atol=1e-5)
        np.testing.assert_allclose(kept.scores[name], whole.scores[name], atol=1e-5)
    np.testing.assert_array_equal(kept.masks, whole.masks)


def test_another_fusion_changes_fused_and_weights_only(detector, split):
    torch.manual_seed(3)
    other = SegmentationNetwork(9, width=4).eval()
    torch.nn.init.normal_(other.reweight.weight)
    images = split.images.float() / 255
    detector.model.fusion = other
    with torch.no_grad():
        expected = detector.model(images)
    output = fuse_again(split.output, other)
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
    assert {fusion.skip for fusion in fusions.values()} == {config.fusion_skip}
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
    assert changed.threshold == pytest.approx(changed.maps(held_out)[1]["fused"].max().item())
    assert all(torch.equal(before[k], v) for k, v in detector.model.state_dict().items())
    loaded = Detector.load(changed.save(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(loaded.maps(held_out)[0]["fused"], changed.maps(held_out)[0]["fused"])


def test_a_fusion_that_its_configuration_does_not_describe_is_refused(detector):
    held_out = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for fusion in (WeightedSum(9), SegmentationNetwork(6, width=4), SegmentationNetwork(9, 4, skip=0.1)):
        with pytest.raises(ValueError, match="another fusion"):
            with_fusion(detector, fusion, tiny_config(), held_out)
