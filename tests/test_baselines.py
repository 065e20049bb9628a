"""The baselines' script without anomalib: a stand-in model sees our features; results are kept or refused."""

import json
import sys
from importlib import import_module, metadata
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dmdd_lite.data.images import load_images
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks
from dmdd_lite.evaluation import METRICS
from dmdd_lite.metrics import evaluate_maps

FAKE = "anomalib.models.image.padim.torch_model"


@pytest.fixture(scope="module")
def baselines(scripts):
    return import_module("baselines")


class FarFromTheMean(nn.Module):
    """In the place of anomalib's PadimModel: the distance to the mean feature of the training images."""

    def __init__(self, backbone, layers, n_features):
        super().__init__()
        extractor = sys.modules[FAKE].TimmFeatureExtractor  # as anomalib calls its own class
        self.extractor = extractor(backbone=backbone, layers=layers, pre_trained=True).eval()
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


@pytest.fixture
def fake(monkeypatch, baselines):
    """A package anomalib that has nothing but the stand-in."""
    parts = FAKE.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module, version = sys.modules[FAKE], metadata.version
    module.PadimModel, module.TimmFeatureExtractor = FarFromTheMean, None
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "anomalib" else version(name))
    return module


@pytest.fixture
def words(root, tmp_path) -> list[str]:
    teacher = "--teacher test_resnet --teacher-weights random --image-size 64 --device cpu --baselines padim"
    return [*teacher.split(), "--data", f"bracket={root}/lever", "--out", str(tmp_path)]


def test_a_peer_sees_the_teachers_features_and_is_scored_by_our_metrics(
    baselines, fake, teacher, root, tmp_path, words, capsys
):
    assert baselines.main([*words, "--seeds", "0", "3"]) == 0
    found = json.loads((tmp_path / "padim_bracket_seed3.json").read_text())
    assert fake.TimmFeatureExtractor is None  # put back
    category = open_category(root, "lever")
    good = load_images(category.train, 64, None).float() / 255
    test = load_images([image.path for image in category.test], 64, None).float() / 255
    mean = teacher(good)[0].mean(0, keepdim=True)
    maps = nn.functional.interpolate((teacher(test)[0] - mean).norm(dim=1, keepdim=True), (64, 64))[:, 0]
    masks = load_masks(category.test, 64, None).numpy()
    expected = evaluate_maps(maps.numpy(), masks, maps.amax((1, 2)).numpy(), np.array(category.labels))
    assert found["metrics"]["map"] == pytest.approx(expected, abs=1e-4)
    assert (found["row"], found["seed"], found["category"]) == ("padim", 3, "lever")
    assert f"{100 * found['metrics']['map']['aupro']:.2f}" in capsys.readouterr().out


def test_what_is_there_is_kept_and_other_settings_are_refused_by_name(baselines, tmp_path, words, capsys):
    """A result of other hands, with numbers that a new run would not have; no anomalib is needed."""
    options = baselines.parse(words)
    (config,) = baselines.configurations(options)
    zones = {"map": {"centre": 0.25, "edge": None, "rim": 0.0}}
    values = {"seed": 0, "metrics": {"map": dict.fromkeys(METRICS, 0.5)}, "zones": zones, "seconds": 7.0}
    settings = baselines.settings_of("padim", options.data[0], config, options)
    file = tmp_path / "padim_bracket_seed0.json"
    file.write_text(json.dumps({**settings, **values}))
    assert baselines.main(words) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert row == ["padim", "1", "50.00", "50.00", "50.00", "50.00", "-", "25.00", "7"]
    assert baselines.main([*words, "--iterations", "9"]) == 0  # STFPM's alone
    assert baselines.main([*words, "--features", "9"]) == 2
    assert "made with other settings (features: 100 -> 9)" in capsys.readouterr().err
    file.write_text("[]")
    assert baselines.main(words) == 2
    assert "padim_bracket_seed0.json is not a result file" in capsys.readouterr().err
