"""The detector: every kind of input, what is saved, and files that do not fit."""

import json

import numpy as np
import pytest
import torch
from builders import random_images, some_samples, tiny_model, train_tiny, tree
from PIL import Image
from safetensors.torch import load_file, save_file

from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import Detector, DetectorError
from dmdd_lite.evaluation import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two good and a few defective images of 80 px."""
    return some_samples(tmp_path_factory.mktemp("s"), "lever", size=80)


@pytest.fixture
def saved(detector, tmp_path):
    return detector.save(tmp_path / "saved")


def assert_same(a, b):
    assert a.score == pytest.approx(b.score, abs=1e-6)
    np.testing.assert_allclose(a.fused, b.fused, atol=1e-6)


def test_path_pil_array_and_list_agree(detector, folder):
    path = folder / "test/good/000.png"
    image, one = Image.open(path).convert("RGB"), detector.predict(path)
    assert (one.path, one.fused.shape) == (path, (80, 80))
    for source in (str(path), image, np.asarray(image), np.float64(np.asarray(image)) / 255):
        assert_same(detector.predict(source), one)
    assert_same(detector.predict([image, path])[1], one)


def test_a_folder_in_order_is_as_each_image_and_as_an_evaluation(detector, folder):
    found = detector.predict(folder / "test", batch_size=3)
    category = open_category(folder.parent, "lever")
    scored = evaluate(detector, category, progress=False).scores["plus"]
    scores = {test.path: score for test, score in zip(category.test, scored, strict=True)}
    assert [p.path for p in found] == sorted((folder / "test").rglob("*.png"))
    for prediction in found:
        assert_same(prediction, detector.predict(prediction.path))
        assert prediction.score == pytest.approx(scores[prediction.path], abs=1e-5)


def test_stream_holds_a_batch_at_a_time(detector, folder, monkeypatch):
    calls, maps = [], detector.maps
    monkeypatch.setattr(detector, "maps", lambda batch: calls.append(len(batch)) or maps(batch))
    next(detector.stream(sorted((folder / "test").rglob("*.png")), batch_size=2))
    assert calls == [2]


@pytest.mark.parametrize("changes, name", [({}, "plus"), ({"position_maps": False}, "fused")])
def test_score_is_the_maximum_of_the_smoothed_map_and_decides(changes, name):
    model, image = tiny_model(**changes), random_images(1)[0].permute(1, 2, 0).numpy()
    prediction = Detector(model).predict(image)
    assert prediction.map_name == name
    assert prediction.score == pytest.approx(prediction.map.max(), abs=1e-6)
    assert np.array_equal(prediction.map, prediction.fused) == (name == "fused")
    for threshold in (0.9 * prediction.score, 1.1 * prediction.score):
        decided = Detector(model, threshold).predict(image).is_anomalous
        assert decided == (prediction.score > threshold)


@pytest.mark.parametrize("changes, of_scores", [({}, max), ({"threshold_quantile": 0.5}, np.median)])
def test_threshold_is_the_quantile_of_held_out_scores(changes, of_scores):
    held_out = random_images(4)
    detector = Detector.calibrated(tiny_model(**changes), held_out)
    scores = [detector.predict(image.permute(1, 2, 0).numpy()).score for image in held_out]
    assert detector.threshold == pytest.approx(of_scores(scores), abs=1e-6)


def test_saved_and_loaded_predicts_the_same_without_the_hub(detector, saved, folder, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    loaded = Detector.load(saved, "cpu")
    assert (loaded.threshold, loaded.config) == (0.125, detector.config)
    assert sorted(tree(saved)) == ["config.json", "model.safetensors"]
    for a, b in zip(loaded.predict(folder / "test"), detector.predict(folder / "test"), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.fused, b.fused)


def break_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_a_tensor_too_many_is_named(saved):
    break_weights(saved, lambda state: state.update(extra=torch.ones(2)))
    with pytest.raises(DetectorError, match="extra"):
        Detector.load(saved, "cpu")


def test_weights_of_another_training_are_noticed(saved):
    """As after a kill between the two files of a save over another detector. Those saved before name none."""
    break_weights(saved, lambda state: state["msn.gain"].add_(1))
    with pytest.raises(DetectorError, match=r"config\.json was written for; both files must come from"):
        Detector.load(saved, "cpu")
    settings = json.loads((saved / "config.json").read_text())
    del settings["sha256"]
    (saved / "config.json").write_text(json.dumps(settings))
    loaded = Detector.load(saved, "cpu").model.state_dict()["msn.gain"]
    assert torch.equal(loaded, load_file(saved / "model.safetensors")["msn.gain"])


def test_save_is_atomic(detector, saved, monkeypatch):
    before = tree(saved)
    monkeypatch.setattr("dmdd_lite.detector.save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detector.save(saved)
    assert tree(saved) == before


def test_without_held_out_images_the_training_ones_count_as_new_ones(root):
    """Statistics of positions leave each image out, so that its level is that of an image never seen."""
    levels = train_tiny(root, holdout=0.0, iterations=2).detector.model.calibration.level[-3:]
    assert (levels > -1.0).all(), levels  # in-sample they would be near log(FLOOR), -3
