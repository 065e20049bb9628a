"""The explorer: what it measures by known answers, its controls without a front end, and without controls."""

import base64
import io
import sys
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch
from builders import save_image, some_samples, tiny_detector
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


# ---- the model ----------------------------------------------------------------------------------------


def test_maps_are_the_detectors_own_and_an_evaluation_is_not_scored_again(
    shared, detector, category, monkeypatch
):
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
        n, a, p = (
            stack_maps((m[scale],), (64, 64))[0, 0] for m in (output.normality, output.abnormality, logs)
        )
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
    pytest.importorskip("ipywidgets")
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


def test_precision_and_recall_by_counting(shared):
    for index in range(len(shared.items)):
        values, truth = shared.anomaly_map(index, "sum"), shared.see(index).truth
        threshold = float(np.median(values))
        reading = shared.read(index, threshold, "sum")
        hits = (truth & (values > threshold)).sum()
        assert reading.precision == hits / (values > threshold).sum()
        assert reading.recall == (hits / truth.sum() if truth.any() else None)
    none = shared.read(0, 1e9, "sum")
    assert (none.regions, none.precision) == (0, None)


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


def test_without_labels_the_decision_counts(detector, folder):
    explorer = Explorer(detector, folder, progress=False)
    assert [item.name for item in explorer.items] == ["a.png", "b.png", "deep/c.png"]
    middle = float(np.sort(explorer.scores("plus"))[1])
    explorer.detector = Detector(detector.model, detector.plus, Facts({"plus": middle}))
    assert [explorer.is_bad(i) for i in range(3)] == (explorer.scores("plus") > middle).tolist()
    reading = explorer.read(0, 0.0)
    assert (reading.precision, reading.recall) == (None, None)
    assert explorer.see(0).size == (90, 40)


def test_no_images_and_no_source(detector, tmp_path):
    with pytest.raises(DataError, match="no images"):
        widgets.explore(detector, tmp_path)
    with pytest.raises(TypeError, match="not int"):
        widgets.explore(detector, 3)


# ---- the controls -------------------------------------------------------------------------------------


@pytest.fixture
def view(explorer):
    pytest.importorskip("ipywidgets")
    return widgets.ExplorerView(explorer, 4)


def test_reading_follows_the_threshold_which_starts_at_the_detectors(view, explorer, detector):
    assert view.threshold.value == detector.threshold
    steps = (view.threshold.value - view.threshold.min) / view.threshold.step
    assert steps == pytest.approx(round(steps), abs=1e-6), "the browser would round it"
    shown = explorer.see(4)
    maps = {**shown.maps, ("plus", 0): np.eye(64, dtype=np.float32) * 0.5}
    explorer._seen[4] = shown._replace(maps=maps, truth=np.ones((64, 64), bool))
    view.threshold.value = 0.3
    assert "1, 1.56 % of the image" in view.reading.value
    assert "100.0 %" in view.reading.value
    view.threshold.value = 0.6
    assert "0, 0.00 % of the image" in view.reading.value
    view.reset.click()
    assert view.threshold.value == detector.threshold


def test_images_by_score_arrows_and_neighbours(view, explorer):
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


def png(array) -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


def upload(view, name: str, content: bytes):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    view.upload.value = ({**file, "last_modified": datetime.now()},)


def test_an_upload_is_shown_without_ground_truth(view, explorer, detector):
    image = np.random.default_rng(1).integers(0, 255, (30, 50, 3), np.uint8)
    upload(view, "<new>.png", png(image))
    assert view.image.value == len(explorer.items) - 1 == view.image.options[0][1]
    assert explorer.scores()[-1] == pytest.approx(detector.predict(image).score, abs=1e-5)
    assert view.reading.value.count("no ground truth") == 2
    assert "&lt;new&gt;.png added" in view.message.value
    assert (view.x.max, view.y.max) == (49, 29)
    view.map.value = "sum"
    view.scale.value = 1
    assert len(explorer.scores("sum", 1)) == len(explorer.items)


@pytest.mark.parametrize("content", [b"no image", png(np.zeros((64, 64, 3), np.uint8))[:60], b""])
def test_a_broken_upload_is_one_line(view, explorer, content):
    before = view.picture.value
    upload(view, "part.png", content)
    assert "part.png: not a readable PNG" in view.message.value
    assert len(explorer.items) == explorer.count
    assert (view.picture.value, view.upload.value) == (before, ())


# ---- with and without a front end -----------------------------------------------------------------------


def test_controls_and_a_picture_in_one_output_but_in_colab(view, monkeypatch):
    bundle = view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).width > 800
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert "image/png" not in view._repr_mimebundle_()


@pytest.mark.parametrize("missing", ["", "kernel", "ipywidgets", "IPython"])
def test_controls_in_a_kernel_and_a_figure_elsewhere(detector, category, monkeypatch, capsys, missing):
    if missing != "kernel":
        monkeypatch.setattr("IPython.get_ipython", lambda: type("Shell", (), {"kernel": True}))
    if missing in ("ipywidgets", "IPython"):
        monkeypatch.setitem(sys.modules, missing, None)
    shown = widgets.explore(detector, category, start=4, progress=False)
    assert ("pip install ipywidgets" in capsys.readouterr().out) == (missing == "ipywidgets")
    if missing:
        assert "recall" in " ".join(text.get_text() for text in shown.texts)
    else:
        assert shown.image.value == 4
