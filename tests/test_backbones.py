"""Teachers of every family: three features of strides 4, 8, 16, whatever timm's network gives and takes."""

from fractions import Fraction

import pytest
import timm
import torch
from builders import random_images, some_samples, tiny_config, train_tiny
from safetensors.torch import save_file
from torch import nn

from dmdd_lite.backbones.adapters import STRIDES, Adapter, Cut, choose_cut, given_cut
from dmdd_lite.backbones.networks import TeacherError, prepare, untrained_network
from dmdd_lite.detector import Detector
from dmdd_lite.student import build_student
from dmdd_lite.teacher import build_teacher, empty_teacher

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
VIT = {"embed_dim": 48, "depth": 4, "num_heads": 2}
DINO = ("vit_small_patch14_dinov2", VIT)
FAMILIES = [  # each made small, where timm has no small one
    ("swin_tiny_patch4_window7_224", SWIN),
    ("swinv2_tiny_window8_256", SWIN),
    ("swinv2_cr_tiny_224", SWIN),
    ("test_maxvit", {}),
    ("test_coatnet", {}),
    ("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 1, 1, 1), "img_size": 64}),
    ("efficientformerv2_s0", {"img_size": 64}),
    ("legacy_xception", {}),
    ("test_mambaout", {}),
    ("levit_128s", {"img_size": 64}),
    ("test_vit", {}),
    ("deit_tiny_distilled_patch16_224", VIT),
    DINO,
    ("vit_small_patch16_dinov3", VIT),
]


@pytest.mark.parametrize("name, options", FAMILIES, ids=[name for name, _ in FAMILIES])
def test_every_family(name, options):
    """Teacher and student have the same features, the student learns, and a saved teacher is built again."""
    config = tiny_config(teacher=name, teacher_options=options)
    teacher = build_teacher(name, "random", options, 3, 64)
    assert isinstance(teacher.network, Adapter)
    features = teacher(IMAGES)
    student = build_student(config, teacher.info)
    images = IMAGES.to(memory_format=torch.channels_last)
    answers = student.to(memory_format=torch.channels_last).hidden(images, features)
    for k, (feature, answer) in enumerate(zip(features, answers, strict=True)):
        assert feature.shape == answer.shape == (2, teacher.info.channels[k], *(64 // STRIDES[k],) * 2)
        assert feature.std() > 1e-3
    sum((answer * torch.randn_like(answer)).mean() for answer in answers).backward()
    moved = [p.grad.abs().sum() > 0 for p in student.network.parameters() if p.grad is not None]
    assert sum(moved) > len(list(student.network.parameters())) / 5  # not those that start behind a zero
    assert not any(m.p for m in student.modules() if isinstance(m, nn.Dropout))
    copy = empty_teacher(name, options, 64)
    assert copy.info == teacher.info
    copy.load_state_dict(teacher.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(copy(IMAGES), features, strict=True))


@pytest.mark.parametrize("name, options", [("test_mambaout", {}), DINO])
def test_training_saving_and_loading(tmp_path, name, options):
    some_samples(tmp_path, "lever", train=4)
    trained = train_tiny(
        tmp_path, None, teacher=name, teacher_options=options, iterations=4, msn_iterations=1
    )
    detector = Detector.load(trained.detector.save(tmp_path / "detector"), "cpu")
    before, after = (d.maps(random_images(2))[0] for d in (trained.detector, detector))
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- which features, and how they are made ----------------------------------------------------------


@pytest.mark.parametrize(
    "strides, cut",
    [
        ((2, 4, 8, 16, 32), Cut((1, 2, 3), (0, 1, 2))),
        ((4, 8, 16, 16), Cut((0, 1, 2), (0, 1, 2))),
        ((8, 16, 32), Cut((0, 1), (0, 0, 1))),
        ((2, 8, 32), Cut((0, 1), (0, 1, 1))),
        ((16, 32, 64), Cut((0,), (0, 0, 0))),
        ((16,) * 12, Cut((2, 5, 8), (0, 1, 2))),
        ((14,) * 24, Cut((5, 11, 17), (0, 1, 2), Fraction(7, 8))),
        ((7, 14, 14, 14), Cut((0, 1), (0, 0, 1), Fraction(7, 8))),
    ],
)
def test_choice_of_features(strides, cut):
    assert choose_cut(strides) == cut


def test_features_chosen_by_hand():
    assert prepare("test_vit", {"out_indices": (1, 3, -1)})[0] == Cut((1, 3, 5), (0, 1, 2))
    for strides in ((2, 4, 8), (16, 16), (12, 12, 17)):
        with pytest.raises(ValueError, match="strides"):
            given_cut(range(len(strides)), strides)


def test_tokens_become_a_pyramid():
    """Those of three blocks: repeated bilinearly where there are too few, averaged where there are many."""
    teacher = build_teacher("test_vit", "random", None, 0, 96)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    network, features = teacher.network.network, teacher(images)
    tokens = network((images - teacher.mean) / teacher.std)
    assert torch.equal(features[2], tokens[2])
    assert [t.shape[-1] for t in tokens] == [6, 6, 6]
    for feature, grid, stride in zip(features, tokens, STRIDES, strict=True):
        size = (96 // stride,) * 2
        expected = nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)
        assert torch.equal(feature, expected)
    fine = Adapter(nn.Identity(), Cut((0,), (0, 0, 0)))
    fine.network.forward = lambda x: [x[..., ::4, ::4]]
    assert torch.equal(fine(images)[2], nn.functional.avg_pool2d(images[..., ::4, ::4], 4))


def test_layout_is_read_from_the_network():
    teacher = build_teacher("test_mambaout", "random")
    inner = teacher.network.network((IMAGES - teacher.mean) / teacher.std)
    assert [tuple(f.shape[1:]) for f in inner] == [(16, 16, 16), (8, 8, 32), (4, 4, 48)]
    found = zip(teacher(IMAGES), inner, strict=True)
    assert all(torch.equal(f, i.permute(0, 3, 1, 2)) for f, i in found)


def test_patches_of_14_are_made_16():
    cut, options = prepare(*DINO, 96)
    assert (cut.scale, options["img_size"]) == (Fraction(14, 16), 84)
    teacher = build_teacher(DINO[0], "random", VIT, 0, 96)
    assert teacher.network.side == (84, 84)
    seen = []
    teacher.network.network.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    teacher(torch.rand(1, 3, 96, 96))
    images, tokens = seen[0]
    assert (images.shape[-1], tokens[0].shape[-1]) == (84, 6)


def test_input_sizes():
    """Of the images where timm adapts the weights, else the network's own, and any that is asked for."""
    assert prepare("test_vit", None, 96)[1]["img_size"] == 96
    assert prepare("test_vit", None, (96, 160))[1]["img_size"] == (96, 160)
    assert prepare("hiera_tiny_224", None, 96)[1]["img_size"] == 224
    assert prepare("hiera_tiny_224", {"img_size": 64}, 96)[1]["img_size"] == 64
    assert "img_size" not in prepare("test_mambaout", None, 96)[1]
    assert [f.shape[-1] for f in build_teacher("test_vit", "random", None, 0, 96)(IMAGES)] == [16, 8, 4]


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "mobilenetv2_050", "test_convnext"])
def test_convolutional_networks_stay_as_they_are(name):
    assert not isinstance(untrained_network(name), Adapter)


def test_windows_that_fit_no_small_image():
    with pytest.raises(TeacherError, match=r"takes no images of 64 .*work: resnet18, wide_res.*, mobilenet"):
        build_teacher("halonet26t", "random", None, 0, 64)
    assert untrained_network("halonet26t", None, 128).side == (128, 128)


# ---- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, saved",
    [
        ("test_vit", {}, 64),
        ("test_vit", {}, 96),
        ("test_coatnet", {}, 96),
        ("swin_tiny_patch4_window7_224", SWIN, 224),
        (*DINO, 56),
        ("hiera_tiny_224", {"embed_dim": 24, "stages": (1, 1, 1, 1), "img_size": 64}, 64),
    ],
)
def test_weights_of_a_file(tmp_path, name, options, saved):
    """Of a whole model of timm, of another input size too, whose tables timm resizes."""
    plain = {key: value for key, value in options.items() if key != "img_size"}
    whole = timm.create_model(name, **plain, img_size=saved).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    teacher, again = (
        build_teacher(name, str(tmp_path / "weights.safetensors"), options, seed, 64) for seed in (0, 1)
    )
    assert teacher.sha256 == again.sha256 != "random"  # nothing is left to chance
    if teacher.network.side == (saved, saved):
        images = torch.rand(1, 3, saved, saved, generator=torch.Generator().manual_seed(0))
        images = (images - teacher.mean) / teacher.std
        indices = list(prepare(name, options, 64)[0].indices)
        with torch.no_grad():
            expected = whole.forward_intermediates(images, indices=indices, intermediates_only=True)
        for one, other in zip(teacher.network.network(images), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_weights_that_fit_one_size_only(tmp_path):
    small = {"embed_dim": 24, "stages": (1, 1, 1, 1)}
    state = timm.create_model("hiera_tiny_224", **small, img_size=64).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(TeacherError, match=r"fit only images of their own size.*img_size.*work: resnet18"):
        build_teacher("hiera_tiny_224", str(tmp_path / "weights.safetensors"), small, 0, 64)


def test_weights_of_another_network(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(TeacherError, match=r"do not belong to 'test_vit2'.*tensors are missing"):
        build_teacher("test_vit2", str(tmp_path / "weights.safetensors"), None, 0, 64)
