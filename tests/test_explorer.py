"""The explorer: what it measures by known answers, its controls without a front end, and without controls."""

import base64
import io
import sys
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from builders import encoded, save_image, some_samples, tiny_detector
from matplotlib.figure import Figure
from PIL import Image

from dmdd_lite import explorer as widgets
from dmdd_lite.data.images import load_images
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.problems import DataError
from dmdd_lite.detector import MAP_NAMES, Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.explorer import Explorer
from dmdd_lite.explorer.model import WHOLE
from dmdd_lite.facts import Facts
from dmdd_lite.losses import stack_maps


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    """Three good and three defective images of 80 px."""
    root = tmp_path_factory.mktemp("samples")
    some_samples(root, "lever", size=80, train=1, good=3)
    return open_category(root, "lever")


@pytest.fixture(scope="module")
def shared(detector, category):
    return Explorer(detector, category, progress=False)


@pytest.fixture
def explorer(detector, category):
    """One of its own, for tests that change it."""
    return Explorer(detector, category, progress=False)


@pytest.fixture
def folder(tmp_path):
    """Wide images without masks, one in a sub-folder."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "deep/c.png"):
        save_image(tmp_path / name, rng.integers(0, 255, (40, 90, 3), np.uint8))
    return tmp_path


def test_maps_are_the_detectors_own_and_evaluations_are_kept(shared, detector, category, monkeypatch):
    scored = evaluate(detector, category, progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(shared.scores(name), scored.scores[name], atol=1e-5)
        np.testing.assert_allclose(shared.anomaly_map(4, name), scored.maps[name][4], atol=1e-5)
    assert np.array_equal(shared.see(4).truth, scored.masks[4])
    assert not shared.see(0).truth.any()
    unknown = replace(category, test=(category.test[0], replace(category.test[4], mask=None)))
    assert Explorer(detector, unknown, progress=False).see(1).truth is None
    monkeypatch.setattr(detector, "maps", None)
    assert np.array_equal(Explorer(detector, scored, progress=False).scores("sum"), scored.scores["sum"])


def test_maps_of_a_scale_by_their_formulas_add_up(category, detector):
    """Interpolation and smoothing are linear."""
    explorer = Explorer(tiny_detector(smoothing_sigma=0.0), category, progress=False)
    output, plus = explorer.detector.output(load_images([category.test[3].path], 64, None))
    logs = [(1 + d / 0.05).log() for d in plus.position]
    for scale in range(3):
        kinds = output.normality, output.abnormality, logs
        n, a, p = (stack_maps((m[scale],), (64, 64))[0, 0] for m in kinds)
        for name, values in {"normality": n, "position": p, "sum": n + a}.items():
            found = torch.from_numpy(explorer.anomaly_map(3, name, scale + 1))
            torch.testing.assert_close(found, values.detach(), rtol=1e-4, atol=1e-5)
    for name in set(MAP_NAMES) - set(WHOLE):
        parts = np.sum([explorer.anomaly_map(3, name, scale) for scale in (1, 2, 3)], axis=0)
        whole = explorer.anomaly_map(3, name) * (3 if name == "position" else 1)
        np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("changes, names", [
    ({"branches": ("abnormality",)}, ("plus", "fused", "abnormality", "sum", "position")),
    ({"branches": ("normality",), "plus": None}, ("fused", "normality", "sum")),
    ({"plus": None}, ("fused", "normality", "abnormality", "sum")),
])  # fmt: skip
def test_models_that_lack_a_kind_of_map(category, changes, names):
    pytest.importorskip("anywidget")
    explorer = Explorer(tiny_detector(**changes), category, progress=False)
    assert explorer.names == names
    for distance in explorer.distances(2, 40, 70):
        known = {name for name in distance._fields[1:] if getattr(distance, name) is not None}
        assert known == set(names) - {*WHOLE, "sum"}
    view = widgets.ExplorerView(explorer, 2)
    assert ("position" in view.table.value) == ("position" in names)
    for _, name in view.map.options:
        view.map.value = name
        assert isinstance(view.figure(), Figure)
        assert set(view.canvas.names) == {*names} - {"sum"} | {name}


def test_precision_and_recall_by_counting(shared):
    for index in range(len(shared.items)):
        values, truth = shared.anomaly_map(index, "sum"), shared.see(index).truth
        threshold = float(np.median(values))
        reading, hits = shared.read(index, threshold, "sum"), (truth & (values > threshold)).sum()
        assert reading.precision == hits / (values > threshold).sum()
        assert reading.recall == (hits / truth.sum() if truth.any() else None)
    none = shared.read(0, 1e9, "sum")
    assert (none.regions, none.precision) == (0, None)


def test_images_are_decided_by_their_threshold_whatever_the_outlines(detector, category):
    thresholds = {"plus": 0.5}, {"plus": 0.1, "fused": 0.2}
    explorer = Explorer(Detector(detector.model, detector.plus, Facts(*thresholds)), category, progress=False)
    starts = explorer.threshold(), explorer.pixel_threshold(), explorer.pixel_threshold("fused")
    assert starts == (0.5, 0.1, 0.2)
    for score in (0.49, 0.51):
        explorer.scores()[4] = score
        for threshold in (0.1, 0.9):
            reading = explorer.read(4, threshold)
            assert (reading.is_anomalous, reading.pixel_threshold) == (score > 0.5, threshold)


def test_a_scales_pixel_threshold_is_the_quantile_of_good_pixels(shared):
    """Nearly: of every fourth pixel of smooth maps."""
    for name in ("normality", "position"):
        pixels = np.stack([shared.anomaly_map(i, name, 2) for i in range(6) if not shared.is_bad(i)])
        expected, spread = np.quantile(pixels, 0.999), float(np.ptp(pixels))
        assert shared.pixel_threshold(name, 2) == pytest.approx(expected, abs=0.05 * spread)
        assert shared.pixel_threshold(name, 2) < shared.threshold(name, 2)


def test_distances_are_the_cells_of_the_detectors_output(shared, detector, category):
    output, plus = detector.output(load_images([category.test[5].path], 64, None))
    for x, y in ((0, 0), (79, 79), (13, 70)):
        kinds = output.normality, output.abnormality, plus.position
        for distance, *maps in zip(shared.distances(5, x, y), *kinds, strict=True):
            cell = y * len(maps[0][0]) // 80, x * len(maps[0][0]) // 80
            assert distance[1:] == pytest.approx([m[0][cell].item() for m in maps], rel=1e-4)
    with pytest.raises(IndexError, match="outside the image of 80 x 80"):
        shared.distances(5, 80, 0)


def test_neighbours_are_sorted_and_of_their_kind(shared, category):
    scores = shared.scores()
    for found, label in zip(shared.neighbours(2, count=99), (False, True), strict=True):
        of_kind = [i for i, bad in enumerate(category.labels) if bad == label and i != 2]
        assert found == sorted(of_kind, key=lambda i: abs(scores[i] - scores[2]))


def test_without_labels_the_decision_counts(detector, folder, tmp_path_factory):
    explorer = Explorer(detector, folder, progress=False)
    assert [item.name for item in explorer.items] == ["a.png", "b.png", "deep/c.png"]
    middle = float(np.sort(explorer.scores("plus"))[1])
    explorer.detector = Detector(detector.model, detector.plus, Facts({"plus": middle}))
    assert [explorer.is_bad(i) for i in range(3)] == (explorer.scores("plus") > middle).tolist()
    reading = explorer.read(0, 0.0)
    assert (reading.precision, reading.recall, explorer.see(0).size) == (None, None, (90, 40))
    with pytest.raises(DataError, match="no images"):
        widgets.explore(detector, tmp_path_factory.mktemp("empty"))
    with pytest.raises(TypeError, match="not int"):
        widgets.explore(detector, 3)


@pytest.fixture
def view(explorer):
    pytest.importorskip("anywidget")
    return widgets.ExplorerView(explorer, 4)


def drawn(canvas, name: str) -> np.ndarray:
    """A map as the browser knows it."""
    entry = canvas.maps[name]
    raw = np.frombuffer(entry["values"], "<u2").reshape(canvas.shape)
    return entry["low"] + raw / 65535 * (entry["high"] - entry["low"])


def test_the_browser_is_sent_the_image_and_its_maps(view, explorer):
    canvas, seen = view.canvas, explorer.see(4)
    assert canvas.names == ["normality", "abnormality", "position", "fused", "plus"]
    for name in canvas.names:
        np.testing.assert_allclose(drawn(canvas, name), seen.maps[name, 0], atol=1e-4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(canvas.image))), seen.picture)
    assert np.array_equal(np.frombuffer(canvas.truth, bool).reshape(canvas.shape), seen.truth)
    assert (canvas.size, canvas.chosen) == ([80, 80], "plus")
    view.scale.value = 3
    assert canvas.maps["normality"]["title"] == "Normality, stride 16"
    np.testing.assert_allclose(drawn(canvas, "normality"), seen.maps["normality", 3], atol=1e-4)
    np.testing.assert_allclose(drawn(canvas, "fused"), seen.maps["fused", 0], atol=1e-4)


def test_the_outline_starts_at_the_pixel_threshold_and_the_decision_stays(view, explorer, detector):
    image, pixels = explorer.detector.thresholds["plus"], {"plus": 0.25, "sum": 0.4}
    explorer.detector = Detector(detector.model, detector.plus, Facts({"plus": image}, pixels))
    view.map.value = "sum"
    low, high = explorer.limits("sum")
    assert view.canvas.threshold == min(max(0.4, low), high)
    view.map.value = "plus"
    assert view.canvas.threshold == view.canvas.maps["plus"]["start"] == 0.25
    shown = explorer.see(4)
    maps = {**shown.maps, ("plus", 0): np.eye(64, dtype=np.float32) * 0.5}
    explorer._seen[4] = shown._replace(maps=maps, truth=np.ones((64, 64), bool))
    verdict = "anomalous" if explorer.scores()[4] > image else "good"
    for threshold, found in ((0.3, "1, 1.56 % of the image"), (0.6, "0, 0.00 % of the image")):
        view.canvas.threshold = threshold
        assert found in view.reading.value
        assert f">{verdict}</span>" in view.reading.value


def test_what_is_chosen_in_the_pictures_and_the_lists(view, explorer):
    view.canvas.chosen = "fused"
    assert view.map.value == "fused"
    for y, told in ((70, "Pixel (7, 70)"), (90, "Pixel (7, 79)")):  # clicked when a larger image was there
        view.canvas.pixel = [7, y]
        assert told in view.table.value
    before, sent = view.canvas.threshold, view.canvas.maps
    view.canvas.threshold = before + 0.1
    view.image.value = 1
    assert view.canvas.threshold == before + 0.1, "a threshold is kept from image to image"
    assert view.canvas.maps != sent
    order = [index for _, index in view.image.options]
    assert order == np.argsort(-explorer.scores(), kind="stable").tolist()
    view.image.value = order[0]
    view.forth.click()
    assert view.image.value == order[1]
    view.back.click()
    view.back.click()
    assert view.image.value == order[-1]
    view.go[0].click()
    assert view.image.value == explorer.neighbours(order[-1])[0][0]


def upload(view, name: str, content: bytes):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    view.upload.value = ({**file, "last_modified": datetime.now()},)


def test_an_upload_is_shown_without_ground_truth(view, explorer, detector):
    image = np.random.default_rng(1).integers(0, 255, (30, 50, 3), np.uint8)
    upload(view, "<new>.png", encoded(image, "PNG"))
    assert view.image.value == len(explorer.items) - 1 == view.image.options[0][1]
    assert explorer.scores()[-1] == pytest.approx(detector.predict(image).score, abs=1e-5)
    assert view.reading.value.count("no ground truth") == 2
    assert "&lt;new&gt;.png added" in view.message.value
    assert (view.canvas.size, view.canvas.truth) == ([50, 30], b"")
    view.map.value = "sum"
    view.scale.value = 1
    assert len(explorer.scores("sum", 1)) == len(explorer.items)


@pytest.mark.parametrize("content", [b"no image", encoded(np.zeros((64, 64, 3), np.uint8), "PNG")[:60], b""])
def test_a_broken_upload_is_one_line(view, explorer, content):
    before = view.canvas.image
    upload(view, "part.png", content)
    assert "part.png: not a readable PNG" in view.message.value
    assert len(explorer.items) == explorer.count
    assert (view.canvas.image, view.upload.value) == (before, ())


def test_controls_and_a_picture_in_one_output_but_in_colab(view, monkeypatch):
    from IPython.core.formatters import IPythonDisplayFormatter

    bundle = view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width > 800
    formatter, shown = IPythonDisplayFormatter(), []
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert not formatter(view)
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert formatter(view)
    assert shown == [view.widget]


@pytest.mark.parametrize("missing", ["", "kernel", "anywidget", "IPython"])
def test_controls_in_a_kernel_and_a_figure_elsewhere(detector, category, monkeypatch, capsys, missing):
    if missing != "kernel":
        monkeypatch.setattr("IPython.get_ipython", lambda: type("Shell", (), {"kernel": True}))
    if missing in ("anywidget", "IPython"):
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delitem(sys.modules, "dmdd_lite.explorer.canvas", raising=False)
        monkeypatch.delattr("dmdd_lite.explorer.canvas", raising=False)
    shown = widgets.explore(detector, category, start=4, progress=False)
    assert ("pip install 'dmdd-lite[notebooks]'" in capsys.readouterr().out) == (missing == "anywidget")
    if missing:
        told = " ".join(text.get_text() for text in shown.texts)
        assert "recall" in told
        assert "still picture" in told
    else:
        assert shown.image.value == 4
