"""The peers' script without anomalib: a stand-in model sees our features; results are kept or refused."""

import json
import sys
from importlib import import_module, metadata
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dmdd_lite.data import load_masks, open_category
from dmdd_lite.evaluation import METRICS
from dmdd_lite.images import load_images
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.teacher import build_teacher

TEACHER = "--teacher test_resnet --teacher-weights random --image-size 64 --device cpu"


@pytest.fixture(scope="module")
def peers(scripts):
    return import_module("peers")


class FarFromTheMean(nn.Module):
    """In the place of anomalib's PadimModel: the distance to the mean feature of the training images."""

    def __init__(self, backbone, layers, n_features):
        super().__init__()
        # as anomalib calls its own class
        self.extractor = (
            sys.modules[FAKE].TimmFeatureExtractor(backbone=backbone, layers=layers, pre_trained=True).eval()
        )
        self.layer, self.seen, self.n_features = layers[0], [], n_features

    def forward(self, images):
        features = self.extractor(images)[self.layer]
        if self.training:
            self.seen.append(features)
            return features
        distance = (features - self.mean).norm(dim=1, keepdim=True)
        maps = nn.functional.interpolate(distance, images.shape[2:])
        return SimpleNamespace(anomaly_map=maps, pred_score=maps.amax((1, 2, 3)))

    def fit(self):
        self.mean = torch.cat(self.seen).mean(0, keepdim=True)


FAKE = "anomalib.models.image.padim.torch_model"


@pytest.fixture
def fake(monkeypatch, peers):
    """A package anomalib that has nothing but the stand-in."""
    module = ModuleType(FAKE)
    module.PadimModel, module.TimmFeatureExtractor = FarFromTheMean, None
    parts = FAKE.split(".")
    for depth in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
    monkeypatch.setitem(sys.modules, FAKE, module)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "anomalib" else version(name))
    return module


def arguments(root, out, *more) -> list[str]:
    return [*TEACHER.split(), "--data", f"bracket={root}/lever", "--out", str(out), *more]


def test_a_peer_sees_the_teachers_features_and_is_scored_by_our_metrics(peers, fake, root, tmp_path, capsys):
    assert peers.main(arguments(root, tmp_path, "--peers", "padim", "--seeds", "0", "3")) == 0
    found = json.loads((tmp_path / "padim_bracket_seed3.json").read_text())
    assert fake.TimmFeatureExtractor is None  # put back

    category, teacher = open_category(root, "lever"), build_teacher("test_resnet", "random")
    good = load_images(category.train, 64, None).float() / 255
    test = load_images([image.path for image in category.test], 64, None).float() / 255
    mean = teacher(good)[0].mean(0, keepdim=True)
    maps = nn.functional.interpolate((teacher(test)[0] - mean).norm(dim=1, keepdim=True), (64, 64))[:, 0]
    masks = load_masks(category.test, 64, None).numpy()
    expected = evaluate_maps(maps.numpy(), masks, maps.amax((1, 2)).numpy(), np.array(category.labels))
    assert found["metrics"]["map"] == pytest.approx(expected, abs=1e-4)
    assert (found["row"], found["seed"], found["category"]) == ("padim", 3, "lever")
    assert f"{100 * found['metrics']['map']['aupro']:.2f}" in capsys.readouterr().out


def write_finished(peers, out, words):
    """A result of other hands, with numbers that a new run would not have."""
    options = peers.parse(words)
    (config,) = peers.configurations(options)
    values = {
        **peers.settings_of("padim", options.data[0], config, options),
        "seed": 0,
        "metrics": {"map": dict.fromkeys(METRICS, 0.5)},
        "zones": {"map": {"centre": 0.25, "edge": None, "rim": 0.0}},
        "seconds": 7.0,
    }
    out.mkdir(exist_ok=True)
    (out / "padim_bracket_seed0.json").write_text(json.dumps(values))


def test_what_is_there_is_kept(peers, root, tmp_path, capsys):
    words = arguments(root, tmp_path, "--peers", "padim")
    write_finished(peers, tmp_path, words)
    assert peers.main(words) == 0  # and no anomalib was needed
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert row == ["padim", "1", "50.00", "50.00", "50.00", "50.00", "-", "25.00", "7"]


def test_other_settings_are_refused_by_name(peers, root, tmp_path, capsys):
    words = arguments(root, tmp_path, "--peers", "padim")
    write_finished(peers, tmp_path, words)
    assert peers.main([*words, "--iterations", "9"]) == 0  # STFPM's alone
    assert peers.main([*words, "--features", "9"]) == 2
    assert "made with other settings (features: 100 -> 9)" in capsys.readouterr().err
    (tmp_path / "padim_bracket_seed0.json").write_text("[]")
    assert peers.main(words) == 2
    assert "padim_bracket_seed0.json is not a result file" in capsys.readouterr().err


def test_without_anomalib_it_says_what_to_install(peers, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "anomalib", None)
    assert peers.main(arguments(root, tmp_path, "--peers", "padim")) == 2
    assert "pip install 'dmdd-lite[peers]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_untrained_student_is_the_teachers_network(peers):
    config = peers.Config(teacher="mobilenetv2_100", teacher_options={"mean": [0.5] * 3, "pad_type": "same"})
    network = peers.untrained_network(config.teacher, config.teacher_options)
    features = network.eval()(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(24, 16, 16), (32, 8, 8), (96, 4, 4)]
