"""Student, fusion and the whole: shapes from any teacher, the frozen teacher, where fusion begins."""

import numpy as np
import pytest
import torch
from builders import tiny_config
from scipy import ndimage

from dmdd_lite.fusion import ATTENTIONS, SegmentationNetwork, fuse
from dmdd_lite.losses import aim_loss, ngm_loss
from dmdd_lite.model import MAP_NAMES, build_model, full_size_maps, image_scores, map_names, smooth
from dmdd_lite.student import DecoderStudent, Decoupling
from dmdd_lite.teacher import FeatureInfo, build_teacher


@pytest.fixture(scope="module")
def teacher():
    return build_teacher("test_resnet", "random")


@pytest.mark.parametrize("channels", [(24, 32, 96), (64, 128, 256), (256, 512, 1024)])
def test_decoder_takes_its_sizes_from_the_teacher(channels):
    student = DecoderStudent(FeatureInfo(channels, (4, 8, 16), (True,) * 3), blocks=(1, 1, 1), width=16)
    sizes = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16), strict=True)]
    output = student.eval()(None, tuple(torch.rand(size) for size in sizes))
    for branch in output:
        assert [tuple(f.shape) for f in branch] == sizes


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_a_student_of_one_branch_has_maps_of_it_alone(teacher, student, positions):
    config = tiny_config(student=student, branches=("abnormality",), position_maps=positions)
    output = build_model(config, teacher).eval()(torch.rand(1, 3, 64, 64))
    assert output.normality == ()
    assert len(output.position) == 3 * positions
    assert output.weights.shape == output.maps.shape == (1, 3, 16, 16)
    assert (output.plus is None) == (not positions)
    maps = full_size_maps(output, config)
    expected = ("fused", "abnormality", "sum", *["plus", "position"] * positions)
    assert tuple(maps) == map_names(config) == expected
    torch.testing.assert_close(maps["sum"], maps["abnormality"])


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_output_is_the_same_type_in_training_and_evaluation(teacher, student):
    model = build_model(tiny_config(student=student), teacher)
    images = torch.rand(2, 3, 64, 64)
    for output in (model.train()(images), model.eval()(images)):
        assert output.fused.shape == output.plus.shape == output.plain.shape == (2, 16, 16)
        assert output.weights.shape == output.maps.shape == (2, 6, 16, 16)
        for maps, most in ((output.normality, 2), (output.abnormality, 2), (output.position, np.inf)):
            assert [tuple(m.shape) for m in maps] == [(2, 16, 16), (2, 8, 8), (2, 4, 4)]
            assert all(m.min() >= 0 and m.max() <= most for m in maps)


def test_decoupling_sees_one_pixel_at_a_time_and_halves_have_equal_capacity():
    split = Decoupling(8, 5, rectified=False).eval()
    convolutions = [m for m in split.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * 2
    x = torch.rand(1, 8, 4, 4)
    both = split(x)
    assert [half.shape for half in both] == [(1, 5, 4, 4)] * 2
    for whole, alone in zip(both, split(x[:, :, 1:2, 2:3]), strict=True):
        torch.testing.assert_close(whole[:, :, 1:2, 2:3], alone)
    torch.nn.init.zeros_(convolutions[-1].weight[:5].data)  # of the first half alone
    normality, abnormality = split(x)
    assert normality.abs().max() < 1e-6
    assert torch.equal(abnormality, both[1])


def test_rectified_where_the_teacher_is():
    x = torch.randn(2, 8, 4, 4)
    assert min(half.min() for half in Decoupling(8, 5, True)(x)) >= 0
    assert min(half.min() for half in Decoupling(8, 5, False)(x)) < 0


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_steps_train_the_student_and_never_the_teacher(teacher, student):
    """Two steps: residual blocks of the encoder end in a norm that begins at zero, which the first moves."""
    model = build_model(tiny_config(student=student), teacher).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images = torch.rand(2, 3, 64, 64)
    features = model.teacher(images)
    mask = torch.ones(2, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        output = model.student(images, features)
        loss = ngm_loss(output.normality, features, mask) + aim_loss(output.abnormality, features, mask).total
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_fusion_never_trains_the_student(teacher):
    model = build_model(tiny_config(), teacher).train()
    model(torch.rand(2, 3, 64, 64)).fused.sum().backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert any(p.grad is not None for p in model.fusion.parameters())


@pytest.mark.parametrize("attention", [(), *((name,) for name in ATTENTIONS), tuple(ATTENTIONS)])
def test_untrained_fusion_is_an_increasing_function_of_the_mean(attention):
    network = SegmentationNetwork(attentions=attention)
    maps = torch.rand(3, 6, 16, 16) * 2
    output = network(maps)
    torch.testing.assert_close(output.weights, torch.ones_like(maps))
    assert network.gain > 0
    torch.testing.assert_close(output.logits, network.gain * maps.sum(1) / 6 + network.bias)


@pytest.mark.parametrize("skip", [0.0, 0.3, 1.0])
def test_the_fused_map_mixes_the_network_and_the_plain_mean_of_distances(teacher, skip):
    model = build_model(tiny_config(fusion_skip=skip), teacher).eval()
    torch.nn.init.normal_(model.fusion.reweight.weight)
    model.calibrate(torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 64))
        logits = model.fusion(output.maps).logits
    maps = [*output.normality, *output.abnormality]
    mean = sum(torch.nn.functional.interpolate(m[:, None], (16, 16), mode="bilinear")[:, 0] for m in maps) / 6
    plain = 10 * (mean - model.calibration.distance) - 3
    torch.testing.assert_close(output.plain, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.fused, ((1 - skip) * logits + skip * output.plain).sigmoid())
    torch.testing.assert_close(output.fused, fuse(logits, output.plain, skip))


def test_the_network_sees_nothing_where_no_map_does():
    """Its logit is a weighted mean of the maps: -3 where all of them are as on good images."""
    network = SegmentationNetwork()
    torch.nn.init.normal_(network.reweight.weight)
    maps = torch.rand(1, 6, 16, 16)
    maps[..., 4:8, 4:8] = 0
    assert torch.equal(network(maps).logits[..., 4:8, 4:8], torch.full((1, 4, 4), -3.0))


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_every_attention_learns(attention):
    network = SegmentationNetwork(attentions=(attention,))
    torch.nn.init.normal_(network.reweight.weight)
    network(torch.rand(2, 6, 16, 16)).weights.square().sum().backward()
    grads = [p.grad for p in network.attentions.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert sum(g.abs().sum() for g in grads) > 0


def test_full_size_maps_are_what_they_say(teacher):
    config = tiny_config(smoothing_sigma=0.0)
    model = build_model(config, teacher).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 64))
    maps = full_size_maps(output, config)
    assert tuple(maps) == MAP_NAMES == map_names(config)

    def enlarged(values):
        return torch.nn.functional.interpolate(values[:, None], (64, 64), mode="bilinear")[:, 0]

    torch.testing.assert_close(maps["normality"], sum(enlarged(m) for m in output.normality))
    torch.testing.assert_close(maps["sum"], maps["normality"] + maps["abnormality"])
    logs = [enlarged((1 + m / 0.05).log()) for m in output.position]
    torch.testing.assert_close(maps["position"], sum(logs) / 3)
    odds = (output.fused / (1 - output.fused)).log()
    torch.testing.assert_close(maps["fused"], enlarged(odds).sigmoid())
    torch.testing.assert_close(maps["plus"], enlarged(output.plus.logit()).sigmoid())
    smoothed = full_size_maps(output, config.replace(smoothing_sigma=8.0))
    torch.testing.assert_close(smoothed["fused"], smooth(enlarged(odds), 2.0).sigmoid())
    torch.testing.assert_close(smoothed["position"], smooth(maps["position"], 2.0))


def test_smoothing_equals_scipy():
    maps = torch.rand(2, 64, 64)
    expected = np.stack([ndimage.gaussian_filter(m, 4, mode="mirror", truncate=4) for m in maps.numpy()])
    np.testing.assert_allclose(smooth(maps, 4.0).numpy(), expected, atol=1e-5)
    assert smooth(maps, 0) is maps


def test_image_scores():
    maps = torch.arange(2 * 16.0).reshape(2, 4, 4)
    assert image_scores(maps, tiny_config()).tolist() == [15, 31]
    assert image_scores(maps, tiny_config(score_rule="top", score_top=2)).tolist() == [14.5, 30.5]
    everything = image_scores(maps, tiny_config(score_rule="top", score_top=999))
    torch.testing.assert_close(everything, maps.mean((1, 2)))


def test_same_seed_same_network(teacher):
    a, b, c = (build_model(tiny_config(seed=s), teacher).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
