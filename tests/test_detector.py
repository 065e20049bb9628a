"""The detector: every kind of input, what is saved, and files that do not fit."""

import dataclasses

import numpy as np
import pytest
import torch
from builders import random_images, some_samples, tiny_detector, tiny_model, train_tiny, tree
from PIL import Image
from safetensors.torch import load_file, save_file

from dmdd_lite.data.layout import open_category
from dmdd_lite.data.problems import DataWarning
from dmdd_lite.detector import Detector, DetectorError
from dmdd_lite.evaluation import evaluate
from dmdd_lite.explorer.model import Explorer
from dmdd_lite.facts import Facts
from dmdd_lite.tiling import edge_ramp


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


@pytest.mark.parametrize("changes", [{}, {"student": "decoder"}, {"teacher": "test_vit"}], ids=str)
def test_an_oblong_input(root, tmp_path, changes):
    """Trained, saved, loaded: maps in the input's size, and in the image's own; tiles in its proportions."""
    train_tiny(root, tmp_path, image_size=[64, 96], **changes)
    detector = Detector.load(tmp_path / "detector", "cpu")
    assert detector.config.image_size == (64, 96)
    image = random_images(1, 150)[0, :, :70].permute(1, 2, 0).numpy()
    whole, tiled = detector.predict(image), detector.predict(image, tile=64, overlap=16)
    assert {values.shape for values in whole.maps.values()} == {(64, 96)}
    assert whole.map.shape == tiled.map.shape == (70, 150)
    found = evaluate(detector, open_category(root, "lever"), progress=False)
    assert found.masks.shape == found.maps["plus"].shape == (len(found.labels), 64, 96)
    seen = Explorer(detector, found, progress=False).see(0)
    assert seen.truth.shape == seen.maps["plus", 0].shape == (64, 96)
    one = detector.predict(random_images(1, 96)[0, :, :64].permute(1, 2, 0).numpy())
    same = detector.predict(random_images(1, 96)[0, :, :64].permute(1, 2, 0).numpy(), tile=64, overlap=16)
    np.testing.assert_allclose(same.plus, one.plus, atol=1e-6)


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


@pytest.mark.parametrize("changes, name", [({}, "plus"), ({"plus": None}, "fused")])
def test_score_is_the_maximum_of_the_smoothed_map_and_decides(changes, name):
    detector, image = tiny_detector(**changes), random_images(1)[0].permute(1, 2, 0).numpy()
    prediction = detector.predict(image)
    assert prediction.map_name == name
    assert prediction.score == pytest.approx(prediction.map.max(), abs=1e-6)
    assert np.array_equal(prediction.map, prediction.fused) == (name == "fused")
    assert (prediction.plus is None) == (name == "fused")
    for threshold in (0.9 * prediction.score, 1.1 * prediction.score):
        thresholds = {**dict.fromkeys(detector.thresholds, 2.0), name: threshold}
        decided = Detector(detector.model, detector.plus, Facts(thresholds)).predict(image).is_anomalous
        assert decided == (prediction.score > threshold)


def test_the_fused_map_is_the_same_with_and_without_dmdd_plus(detector):
    alone = Detector(tiny_model(plus=None))
    with_plus, without = (d.maps(random_images(3)) for d in (detector, alone))
    for name in ("fused", "normality", "abnormality", "sum"):
        assert torch.equal(with_plus[0][name], without[0][name])
        assert torch.equal(with_plus[1][name], without[1][name])
    assert set(with_plus[0]) - set(without[0]) == {"plus", "position"}


def test_thresholds_are_the_highest_held_out_scores_of_every_map():
    held_out, untrained = random_images(9), tiny_detector()
    detector = Detector.calibrated(untrained.model, untrained.plus, held_out, Facts(depth=8))
    found = [detector.predict(image.permute(1, 2, 0).numpy()) for image in held_out]
    for name, threshold in detector.thresholds.items():
        assert threshold == pytest.approx(max(p.scores[name] for p in found), rel=1e-5)
        pixels = np.quantile(np.stack([p.maps[name] for p in found]), 0.999)
        assert detector.pixel_thresholds[name] == pytest.approx(pixels, rel=1e-4)
    assert detector.threshold == detector.thresholds["plus"] == found[0].threshold
    assert detector.facts.expectation.startswith(
        "threshold from 9 held-out good images: expect about 1 false alarm in 10"
    )


def test_deep_images_are_read_at_the_depth_of_the_training_images(detector, folder, tmp_path):
    eight = np.asarray(Image.open(folder / "test/good/000.png").convert("L"))
    deep, twelve = eight.astype(np.uint16) * 16, Detector(detector.model, detector.plus, Facts(depth=12))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    one, loaded = detector.predict(eight), Detector.load(twelve.save(tmp_path / "saved"), "cpu")
    for source in (deep, tmp_path / "deep.png", deep.astype(np.int32)):
        assert_same(loaded.predict(source), one)
        assert loaded.predict(source).overlay(source) == one.overlay(eight)
    Image.fromarray(deep * 2).save(tmp_path / "bright.png")
    with pytest.warns(DataWarning, match=r"^1 image with values above 4095.*: .*bright\.png; no training"):
        loaded.predict([eight, tmp_path / "bright.png"])


def test_saved_and_loaded_predicts_the_same_without_the_hub(detector, saved, folder, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    facts = dataclasses.replace(detector.facts, held_out=6, made_from={"teacher": "0"})
    known = Detector(detector.model, detector.plus, facts)
    loaded = Detector.load(known.save(saved), "cpu")
    assert (loaded.thresholds, loaded.config) == (detector.thresholds, detector.config)
    assert (loaded.held_out, loaded.made_from) == (6, {"teacher": "0"})
    assert sorted(tree(saved)) == ["config.json", "model.safetensors"]
    for a, b in zip(loaded.predict(folder / "test"), detector.predict(folder / "test"), strict=True):
        assert a.score == b.score
        assert np.array_equal(a.fused, b.fused)


def test_weights_of_another_training_are_noticed(saved):
    """As after a kill between the two files of a save over another detector."""
    state = load_file(saved / "model.safetensors")
    save_file({**state, "dmdd.msn.gain": state["dmdd.msn.gain"] + 1}, saved / "model.safetensors")
    with pytest.raises(DetectorError, match=r"config\.json was written for; both files must come from"):
        Detector.load(saved, "cpu")


# ---- tiles --------------------------------------------------------------------------------------------


def test_one_tile_is_the_image(detector):
    image = random_images(1)[0].permute(1, 2, 0).numpy()  # 64 px, the detector's size
    whole, tiled = detector.predict(image), detector.predict(image, 8, 64, 16)
    for name, values in whole.maps.items():
        np.testing.assert_allclose(tiled.maps[name], values, atol=1e-6)
    assert tiled.score == pytest.approx(whole.score, abs=1e-6)


def test_maps_are_weighted_means_of_those_of_the_tiles(detector):
    image = torch.cat(list(random_images(2)), dim=2)[:, :60, :100].permute(1, 2, 0).numpy()
    found = detector.predict(image, 1, 64, 16)
    padded = np.pad(image, ((0, 4), (0, 0), (0, 0)), mode="symmetric")
    ramp, total, weight = edge_ramp(64, 16).numpy(), np.zeros((64, 100)), np.zeros((64, 100))
    for x in (0, 36):
        total[:, x : x + 64] += np.outer(ramp, ramp) * detector.predict(padded[:, x : x + 64].copy()).plus
        weight[:, x : x + 64] += np.outer(ramp, ramp)
    np.testing.assert_allclose(found.plus, (total / weight)[:60], atol=1e-5)
    assert found.size == (60, 100)
    assert found.score == found.plus.max()


def test_impossible_tiles_are_refused(detector):
    for tile, overlap in ((64, 64), (64, -1)):
        with pytest.raises(ValueError, match="overlap must be from 0 to below tile"):
            detector.predict(np.zeros((80, 80), np.uint8), 8, tile, overlap)
