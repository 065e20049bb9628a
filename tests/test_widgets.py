"""The explorer: what it measures by known answers, its controls without a front end, and without controls."""

import base64
import io
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest
import torch
from builders import save_image, some_samples, tiny_config
from matplotlib.figure import Figure
from PIL import Image

from dmdd_lite import widgets
from dmdd_lite.data import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.explorer import Explorer, pictures
from dmdd_lite.explorer import view as views
from dmdd_lite.explorer.model import CACHED, WHOLE
from dmdd_lite.images import DataError, load_images
from dmdd_lite.losses import stack_maps
from dmdd_lite.model import MAP_NAMES, build_model
from dmdd_lite.teacher import build_teacher


@pytest.fixture(scope="module")
def detector():
    config = tiny_config()
    return Detector(build_model(config, build_teacher("test_resnet", "random")), threshold=0.125)


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


def show(explorer, index: int, values: np.ndarray, truth: np.ndarray | None, name="plus"):
    """Put a map and a ground truth of a test's choice in the place of the predicted ones."""
    seen = explorer.see(index)
    explorer._seen[index] = seen._replace(maps={**seen.maps, (name, 0): values}, truth=truth)


def png(array) -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


# ---- the model ----------------------------------------------------------------------------------------


def test_maps_are_the_detectors_own(shared, detector, category):
    scored = evaluate(detector, category, progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(shared.scores(name), scored.scores[name], atol=1e-5)
        for index in range(len(category.test)):
            np.testing.assert_allclose(shared.anomaly_map(index, name), scored.maps[name][index], atol=1e-5)
    assert np.array_equal(shared.see(4).truth, scored.masks[4])
    assert not shared.see(0).truth.any()


@pytest.mark.parametrize("name", [name for name in MAP_NAMES if name not in WHOLE])
def test_the_scales_add_up(shared, name):
    """Interpolation and smoothing are linear."""
    parts = [shared.anomaly_map(3, name, scale) for scale in (1, 2, 3)]
    whole = np.mean(parts, axis=0) if name == "position" else sum(parts)
    np.testing.assert_allclose(whole, shared.anomaly_map(3, name), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_maps_at_a_single_scale_by_their_formulas(detector, category, scale):
    config = detector.config.replace(smoothing_sigma=0.0)
    model = build_model(config, detector.model.teacher)
    explorer = Explorer(Detector(model), category, progress=False)
    output = explorer.detector.output(load_images([category.test[3].path], 64, None))
    normality, abnormality, position = (
        stack_maps((maps[scale - 1],), (64, 64))[0, 0]
        for maps in (output.normality, output.abnormality, [(1 + d / 0.05).log() for d in output.position])
    )
    expected = {"normality": normality, "position": position, "sum": normality + abnormality}
    for name, values in expected.items():
        found = torch.from_numpy(explorer.anomaly_map(3, name, scale))
        torch.testing.assert_close(found, values.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"branches": ("abnormality",)}, ("plus", "fused", "abnormality", "sum", "position")),
        ({"branches": ("normality",), "position_maps": False}, ("fused", "normality", "sum")),
        ({"position_maps": False}, ("fused", "normality", "abnormality", "sum")),
    ],
    ids=["abnormality and position", "normality", "branches"],
)
def test_models_that_lack_a_kind_of_map(detector, category, changes, names):
    model = build_model(detector.config.replace(**changes), detector.model.teacher)
    explorer = Explorer(Detector(model), category, progress=False)
    assert explorer.names == names
    assert set(explorer.see(2).maps) == {(n, k) for n in names for k in range(4) if n not in WHOLE or not k}
    branch = model.config.branches[0]
    if len(model.config.branches) == 1:
        np.testing.assert_allclose(explorer.anomaly_map(2, "sum", 2), explorer.anomaly_map(2, branch, 2))
    for distance in explorer.distances(2, 40, 70):
        known = {name for name in distance._fields[1:] if getattr(distance, name) is not None}
        assert known == set(names) - {*WHOLE, "sum"}
    pytest.importorskip("ipywidgets")
    view = widgets.ExplorerView(explorer, 2)
    assert tuple(name for _, name in view.map.options) == names
    assert ("position" in view.table.value) == ("position" in names)
    for name in names:
        view.map.value = name
        assert isinstance(view.figure(), Figure)


def test_an_evaluation_is_not_scored_again(detector, category, monkeypatch):
    scored = evaluate(detector, category, progress=False)
    calls, maps = [], detector.maps
    monkeypatch.setattr(detector, "maps", lambda batch: calls.append(len(batch)) or maps(batch))
    explorer = Explorer(detector, scored, progress=False)
    assert np.array_equal(explorer.scores("sum"), scored.scores["sum"])
    assert calls == []
    again = Explorer(detector, category, progress=False)
    np.testing.assert_allclose(explorer.scores("sum", 2), again.scores("sum", 2), atol=1e-6)


def test_regions_precision_and_recall_of_drawn_squares(explorer):
    values, truth = np.zeros((64, 64), np.float32), np.zeros((64, 64), bool)
    values[2:6, 2:6] = 0.9  # 16 pixels, 8 of them in the truth
    values[6:8, 6:8] = 0.8  # touches the first at a corner: one region
    values[40:44, 40:45] = 0.5  # 20 pixels, another region
    truth[2:6, 4:12] = True  # 32 pixels
    show(explorer, 1, values, truth)
    both, high = explorer.read(1, 0.4), explorer.read(1, 0.6)
    assert (both.regions, high.regions) == (2, 1)
    assert (both.precision, high.precision) == (8 / 40, 8 / 20)
    assert both.recall == high.recall == 8 / 32
    assert both.share == 40 / 64**2
    none = explorer.read(1, 0.9)  # above is more than equal
    assert (none.regions, none.precision, none.recall) == (0, None, 0)


def test_precision_and_recall_by_counting(shared):
    for index in range(len(shared.items)):
        threshold = float(np.median(shared.anomaly_map(index, "sum")))
        reading = shared.read(index, threshold, "sum")
        pairs = list(zip(shared.anomaly_map(index, "sum").flat, shared.see(index).truth.flat, strict=True))
        hits = sum(value > threshold and bool(true) for value, true in pairs)
        assert reading.precision == hits / sum(value > threshold for value, _ in pairs)
        actual = sum(bool(true) for _, true in pairs)
        assert reading.recall == (hits / actual if actual else None)


def test_distances_are_the_cells_of_the_detectors_output(shared, detector, category):
    prediction = detector.predict(category.test[5].path)
    for x, y in ((0, 0), (79, 79), (13, 70)):
        found = shared.distances(5, x, y)
        assert [d.scale for d in found] == ["stride 4", "stride 8", "stride 16"]
        position = detector.output(load_images([category.test[5].path], 64, None)).position
        scales = zip(found, prediction.normality, prediction.abnormality, position, strict=True)
        for distance, n, a, p in scales:
            cell = y // (80 // len(n)), x // (80 // len(n))
            assert distance.normality == pytest.approx(float(n[cell]), abs=1e-5)
            assert distance.abnormality == pytest.approx(float(a[cell]), abs=1e-5)
            assert distance.position == pytest.approx(float(p[0][cell]), rel=1e-4)
    with pytest.raises(IndexError, match="outside the image of 80 x 80"):
        shared.distances(5, 80, 0)


def test_neighbours_are_sorted_and_of_their_kind(shared, category):
    scores = shared.scores()
    for index in range(len(scores)):
        for found, label in zip(shared.neighbours(index, count=99), (False, True), strict=True):
            of_kind = [i for i, bad in enumerate(category.labels) if bad == label and i != index]
            assert sorted(found) == of_kind
            far = [abs(scores[i] - scores[index]) for i in found]
            assert far == sorted(far)
    assert [len(found) for found in shared.neighbours(0, count=2)] == [2, 2]


def test_without_labels_the_decision_counts(detector, folder):
    explorer = Explorer(detector, folder, progress=False)
    assert [item.name for item in explorer.items] == ["a.png", "b.png", "deep/c.png"]
    middle = float(np.sort(explorer.scores("plus"))[1])
    explorer.detector = Detector(detector.model, threshold=middle)
    good, bad = explorer.neighbours(0, count=9)
    assert [explorer.is_bad(i) for i in range(3)] == (explorer.scores("plus") > middle).tolist()
    assert sorted([0, *good, *bad]) == [0, 1, 2]
    reading = explorer.read(0, 0.0)
    assert (reading.precision, reading.recall) == (None, None)
    assert explorer.see(0).size == (90, 40)
    assert len(explorer.distances(0, 89, 39)) == 3


def test_thresholds_start_where_the_rule_says(shared, detector, category):
    assert shared.threshold("plus") == detector.threshold
    good = shared.scores("normality", 2)[~category.labels]
    assert shared.threshold("normality", 2) == pytest.approx(good.max())
    low, high = shared.limits("normality", 2)
    assert low <= good.max() <= high


def test_memory_is_bounded_and_forgetting_changes_nothing(explorer):
    first = explorer.anomaly_map(0).copy()
    explorer.items *= 3
    for index in range(CACHED + 2):
        explorer.see(index)
    assert len(explorer._seen) == CACHED
    assert 0 not in explorer._seen
    np.testing.assert_allclose(explorer.anomaly_map(0), first, atol=1e-6)


def test_a_limit_spreads_over_the_folder_and_a_category_is_recognised(detector, category, folder):
    few = Explorer(detector, category, limit=3, progress=False)
    names = [f"{t.defect}/{t.path.name}" for t in category.test]
    assert [item.name for item in few.items] == [names[0], names[2], names[-1]]
    assert len(names) == few.left_out + 3 == 6
    whole = Explorer(detector, category.root / category.name, progress=False)
    assert [item.name for item in whole.items] == names
    assert whole.items[-1].mask == category.test[-1].mask


def test_no_images_and_no_source(detector, tmp_path):
    with pytest.raises(DataError, match="no images"):
        widgets.explore(detector, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        widgets.explore(detector, tmp_path / "none")
    with pytest.raises(TypeError, match="not int"):
        widgets.explore(detector, 3)


# ---- pictures -----------------------------------------------------------------------------------------


def test_blend_from_the_picture_to_the_map():
    rng = np.random.default_rng(0)
    picture, heat = rng.integers(0, 255, (8, 8, 3), np.uint8), rng.random((8, 8))
    assert np.array_equal(pictures.blend(picture, heat, 0), picture)
    alone = pictures.blend(picture, heat, 1)
    assert np.array_equal(alone, pictures.blend(255 - picture, heat, 1))
    mixed = pictures.blend(picture, np.eye(8), 0.5)
    kept = np.abs(np.int16(mixed) - picture).sum(-1)
    palette = pictures.blend(picture, np.eye(8), 1)
    off = np.abs(np.int16(palette) - picture).sum(-1)
    assert (kept / off)[~np.eye(8, dtype=bool)].mean() == pytest.approx(0.25, abs=0.02)
    assert (kept / off)[np.eye(8, dtype=bool)].mean() == pytest.approx(0.71, abs=0.03)


def test_outline_lies_on_the_border_only():
    picture, mask = np.full((60, 60, 3), 100, np.uint8), np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    drawn = pictures.outline(picture, mask, pictures.TRUTH)
    far = np.abs(np.indices(mask.shape) - 29.5).max(0) - 10  # pixels from the border, less than 0 inside
    assert np.abs(np.int16(drawn) - picture)[np.abs(far) > 6].max() <= 2
    assert np.abs(np.int16(drawn[30, 20]) - pictures.TRUTH).max() < 60
    assert pictures.outline(picture, ~mask & mask, pictures.TRUTH) is picture


def test_cross_hair_points_at_the_pixel_and_leaves_it_free():
    picture = np.zeros((50, 100, 3), np.uint8)
    drawn = pictures.cross_hair(picture, 0.7, 0.2)
    assert not picture.any()
    assert tuple(drawn[10, 5]) == tuple(drawn[45, 70]) == pictures.PICKED
    assert not drawn[8:13, 68:73].any()
    for x, y in ((0, 0), (1, 1)):
        assert pictures.cross_hair(picture, x, y).any()


# ---- the controls -------------------------------------------------------------------------------------


@pytest.fixture
def view(explorer):
    pytest.importorskip("ipywidgets")
    return widgets.ExplorerView(explorer, 4)


def decoded(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.value)))


def test_the_threshold_moves_the_outline(view, explorer):
    seen = []
    for quantile in (0.5, 0.9):
        view.threshold.value = float(np.quantile(explorer.anomaly_map(4), quantile))
        seen.append(view.picture.value)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("control, value", [("blend", 0.1), ("map", "sum"), ("image", 2), ("x", 3), ("y", 3)])
def test_every_control_changes_the_picture(view, control, value):
    before = view.picture.value
    getattr(view, control).value = value
    assert view.picture.value != before


def test_picture_is_the_blend_with_outlines(view, explorer):
    drawn = pictures.blended(explorer, 4, "plus", 0, view.threshold.value, view.blend.value)
    where = (view.x.value + 0.5) / 80, (view.y.value + 0.5) / 80
    assert np.array_equal(decoded(view.picture), pictures.cross_hair(drawn, *where))


def test_the_image_is_drawn_anew_when_it_or_the_pixel_changes(view, explorer):
    first = view.original.value
    view.threshold.value = 0.5
    assert view.original.value == first
    view.x.value = 2
    moved = view.original.value
    assert moved != first
    view.image.value = 0
    view.image.value = 4  # and the cross-hair at its peak again
    assert view.original.value == first


def test_reading_follows_the_threshold(view, explorer):
    show(explorer, 4, np.eye(64, dtype=np.float32) * 0.5, np.ones((64, 64), bool))
    view.threshold.value = 0.3
    assert "1, 1.56 % of the image" in view.reading.value
    assert "100.0 %" in view.reading.value
    view.threshold.value = 0.6
    assert "0, 0.00 % of the image" in view.reading.value
    assert "nothing above the threshold" in view.reading.value


def test_the_threshold_starts_at_the_detectors_and_comes_back(view, detector):
    assert view.threshold.value == detector.threshold
    steps = (view.threshold.value - view.threshold.min) / view.threshold.step
    assert steps == pytest.approx(round(steps), abs=1e-6), "the browser would round it"
    view.threshold.value = 0.5
    view.reset.click()
    assert view.threshold.value == detector.threshold


def test_fused_has_one_scale_and_other_maps_have_four(view, explorer):
    assert view.scale.disabled
    view.map.value = "normality"
    view.scale.value = 3
    assert view.threshold.value == pytest.approx(explorer.threshold("normality", 3))
    assert view.threshold.max == pytest.approx(explorer.limits("normality", 3)[1])
    view.map.value = "plus"
    assert (view.scale.value, view.scale.disabled) == (0, True)
    assert (view.threshold.value, view.threshold.max) == (explorer.detector.threshold, 1)


def test_the_pixel_starts_at_the_peak_and_its_distances_are_shown(view, explorer):
    row, column = np.unravel_index(explorer.anomaly_map(4).argmax(), (64, 64))
    assert (view.x.value * 64 // 80, view.y.value * 64 // 80) == (column, row)
    view.x.value = 11
    for distance in explorer.distances(4, 11, view.y.value):
        assert f"{distance.normality:.3f}" in view.table.value
        assert f"{distance.abnormality:.3f}" in view.table.value
        assert f"{distance.position:.3f}" in view.table.value


def test_images_by_score_arrows_and_neighbours(view, explorer):
    order = [index for _, index in view.image.options]
    assert order == np.argsort(-explorer.scores(), kind="stable").tolist()
    view.image.value = order[0]
    view.forth.click()
    assert view.image.value == order[1]
    view.back.click()
    view.back.click()
    assert view.image.value == order[-1]
    good, _ = explorer.neighbours(order[-1])
    view.go[0].click()
    assert view.image.value == good[0]


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
    assert max(explorer.neighbours(view.image.value)[0]) < explorer.count
    view.map.value = "sum"
    view.scale.value = 1
    assert len(explorer.scores("sum", 1)) == len(explorer.items)


@pytest.mark.parametrize(
    "content",
    [b"no image", png(np.zeros((64, 64, 3), np.uint8))[:60], b""],
    ids=["text", "cut short", "empty"],
)
def test_a_broken_upload_is_one_line(view, explorer, content):
    before = view.picture.value
    upload(view, "part.png", content)
    assert "part.png: not a readable PNG" in view.message.value
    assert "\n" not in view.message.value
    assert len(explorer.items) == explorer.count
    assert view.picture.value == before
    assert view.upload.value == ()


def test_uploads_of_both_versions_of_ipywidgets():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"12"}}
    eight = ({"name": "a.png", "content": memoryview(b"12")},)
    assert views.uploaded_files(seven) == views.uploaded_files(eight) == [("a.png", b"12")]


# ---- with and without a front end -----------------------------------------------------------------------


def test_controls_and_a_picture_in_one_output(view):
    bundle = view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.widget.model_id
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.width > 800
    assert "6 images" in bundle["text/plain"]


def test_colab_gets_the_controls_alone(view, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert "image/png" not in view._repr_mimebundle_()


def test_a_figure_without_a_kernel(detector, category):
    fig = widgets.explore(detector, category, start=4, progress=False)
    assert isinstance(fig, Figure)
    texts = " ".join(text.get_text() for text in fig.texts)
    assert "score" in texts
    assert "recall" in texts


class Kernel:
    kernel = True


@pytest.fixture
def in_kernel(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", Kernel)


def test_controls_in_a_kernel(detector, folder, in_kernel):
    view = widgets.explore(detector, folder, start=1, progress=False)
    assert isinstance(view, widgets.ExplorerView)
    assert view.image.value == 1


@pytest.mark.parametrize("missing", ["ipywidgets", "IPython"])
def test_a_figure_where_a_package_is_missing(detector, folder, in_kernel, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert isinstance(widgets.explore(detector, folder, progress=False), Figure)
    assert ("pip install ipywidgets" in capsys.readouterr().out) == (missing == "ipywidgets")


def test_importing_the_package_needs_no_ipywidgets():
    code = "import sys; sys.modules['ipywidgets'] = None; import dmdd_lite.widgets"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
