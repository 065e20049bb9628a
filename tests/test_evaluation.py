"""Evaluation, result files and tables: known numbers in, known numbers out."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from builders import disc, make_category, save_image, some_samples, tiny_config, tiny_detector

from dmdd_lite import evaluation, tables
from dmdd_lite.config import MVTEC_CATEGORIES
from dmdd_lite.course.plots.results import plot_roc_and_pro
from dmdd_lite.data.fingerprints import digest
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import read_mask
from dmdd_lite.data.problems import DataWarning
from dmdd_lite.detector import MAP_NAMES, Detector
from dmdd_lite.evaluation import METRICS
from dmdd_lite.facts import Facts
from dmdd_lite.metrics import evaluate_maps, image_auroc
from dmdd_lite.reproduce.reference import category_table, load_reference
from dmdd_lite.reproduce.report import conclude
from dmdd_lite.tables import collect_results, compare_with_paper, results_table
from dmdd_lite.training import Training

UNTRAINED = Training(None, None, 1, 1)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = some_samples(tmp_path_factory.mktemp("s"), "pcb", good=3).parent
    detector = tiny_detector(seed=3)
    return detector, evaluation.evaluate(detector, open_category(root, "pcb"), batch_size=3, progress=False)


def test_metrics_are_those_of_the_maps_it_returns(scored):
    detector, found = scored
    assert found.labels.tolist() == [test.defect != "good" for test in found.category.test]
    assert np.array_equal(found.masks.any((1, 2)), found.labels)
    for name in MAP_NAMES:
        assert np.array_equal(found.scores[name], found.maps[name].max((1, 2)))
        given = found.maps[name], found.masks, found.scores[name], found.labels
        assert found.metrics[name] == evaluate_maps(*given)
        decided = evaluate_maps(*given, detector.thresholds[name])
        assert found.metrics[name] | found.decisions[name] == pytest.approx(decided, nan_ok=True)
    own = detector.maps(torch.from_numpy(found.images))[1]["fused"]
    np.testing.assert_allclose(found.scores["fused"], own, rtol=1e-4)


def test_result_file(scored, tmp_path):
    detector, found = scored
    path = tables.write_result(tmp_path, found, detector, Training(detector, None, 12.34, 5.678))
    assert path.name == "pcb_seed3.json"
    values = json.loads(path.read_text())
    assert values["metrics"] == found.metrics
    assert (values["warnings"], values["full_size"], values["mask_rule"]) == ([], False, "auto")
    assert values["config"] == detector.config.to_dict()
    assert (values["seconds"], values["images_per_second"]["training_pairs"]) == (12.3, 5.68)
    assert values["protocol"].startswith("last")
    for name, decided in values["decisions"].items():
        precision = decided["image_precision"]
        assert (precision is None) == (found.scores[name].max() <= detector.thresholds[name])
        assert decided["best_pixel_f1"] == found.decisions[name]["best_pixel_f1"]
    counts = {kind: len(hashes) for kind, hashes in values["files"].items()}
    category = found.category
    assert counts == {"images": len(category.train), "test": len(category.test), "masks": found.labels.sum()}
    frame = collect_results(tmp_path)
    assert frame["map"].tolist() == list(MAP_NAMES)
    assert frame.set_index("map").loc["fused", "aupro"] == values["metrics"]["fused"]["aupro"]


def test_no_result_of_a_detector_of_other_training_images(scored, tmp_path):
    detector, found = scored
    other = Detector(detector.model, detector.plus, Facts(held_out=6, made_from={"images": "0"}))
    training = Training(other, None, 12.34, 5.678)
    with pytest.raises(ValueError, match="pcb: the training images are not those of the detector; train it"):
        tables.write_result(tmp_path, found, other, training)
    other.made_from["images"] = digest(found.files["images"])
    values = json.loads(tables.write_result(tmp_path, found, other, training).read_text())
    assert (values["held_out"], values["files"]) == (6, found.files)


def test_pixels_at_full_size_are_those_of_maps_resized_to_the_original_masks(tmp_path):
    """Of masks and images of different sizes; images without a mask count for image metrics only."""
    folder = make_category(tmp_path, count=4)
    for i, name in enumerate(sorted((folder / "ground_truth/hole").iterdir())[1:], start=2):
        save_image(name, disc().repeat(i, 0).repeat(i, 1))
    (folder / "ground_truth/hole/000_mask.png").unlink()
    detector = tiny_detector(plus=None)
    with pytest.warns(DataWarning, match="1 defective image without a mask"):
        category = open_category(tmp_path, "nut")
    whole = evaluation.evaluate(detector, category, progress=False, full_size=True)
    small = evaluation.evaluate(detector, category, progress=False)
    known, tests = category.outlined, np.array(category.test)[category.outlined]
    masks = [read_mask(test.mask).numpy() if test.mask else np.zeros((16, 16), bool) for test in tests]
    assert {mask.shape for mask in masks} == {(16, 16), (32, 32), (48, 48), (64, 64)}
    small_maps = torch.from_numpy(whole.maps["fused"][known])[:, None]
    pairs = zip(small_maps.split(1), masks, strict=True)
    maps = [F.interpolate(one, mask.shape, mode="bilinear")[0, 0].numpy() for one, mask in pairs]
    scores, labels = whole.scores["fused"], whole.labels
    compared = ((whole, maps, masks), (small, small.maps["fused"][known], small.masks[known]))
    for found, *pixels in compared:
        expected = evaluate_maps(*pixels, scores[known], labels[known])
        assert found.metrics["fused"] == expected | {"image_auroc": image_auroc(scores, labels)}
    written = json.loads(tables.write_result(tmp_path, whole, detector, UNTRAINED).read_text())
    assert (written["full_size"], written["warnings"]) == (True, list(category.warnings))


IMAGES = {"image_auroc", "image_precision", "image_recall", "image_f1", "false_alarm_rate"}
PIXELS = {"pixel_auroc", "pixel_ap", "aupro", "aupro_per_image", "best_pixel_f1"}


@pytest.mark.parametrize("gone, told, known", [
    (["test/hole", "ground_truth"], "no defective test images: of all metrics", {"false_alarm_rate"}),
    (["test/good"], "no good test images: no image_auroc", {"image_recall"} | PIXELS),
    (["ground_truth"], "3 defective images without a mask", IMAGES),
])  # fmt: skip
def test_what_a_test_set_lacks_is_told_and_the_rest_is_measured(tmp_path, gone, told, known):
    folder = make_category(tmp_path / "data", defects=("hole",))
    for part in gone:
        shutil.rmtree(folder / part)
    with pytest.warns(DataWarning, match=told):
        category = open_category(tmp_path / "data", "nut")
    detector = tiny_detector({"fused": -1.0}, plus=None)  # every image is called anomalous
    found = evaluation.evaluate(detector, category, progress=False)
    plot_roc_and_pro(evaluation.curves(found))
    values = json.loads(tables.write_result(tmp_path, found, detector, UNTRAINED).read_text())
    measured = values["metrics"]["fused"] | values["decisions"]["fused"]
    assert {name for name, value in measured.items() if value is not None} == known
    assert {measured[name] for name in ("image_recall", "false_alarm_rate")} <= {1, None}
    assert evaluation.rank_anomalous(found) == [] or "aupro" in known
    assert (results_table(collect_results(tmp_path)).loc["nut", "aupro"] == "-") == ("aupro" not in known)
    assert "nan" not in conclude(tmp_path, {}) + (tmp_path / "results.md").read_text()


def write(folder, category, seed, value, files=None, **changes):
    metrics = {name: dict.fromkeys(METRICS, value) for name in MAP_NAMES}
    values = {"category": category, "seed": seed, "metrics": metrics, "seconds": 1, "files": files or {}}
    values["config"] = tiny_config(seed=seed, **changes).to_dict()
    (folder / f"{category}_seed{seed}.json").write_text(json.dumps(values))


@pytest.mark.parametrize("category, changes, told", [
    ("nut", {"learning_rate": 0.5}, "learning_rate: 0.005 -> 0.5"),
    ("cup", {"iterations": 9}, "iterations: 8 -> 9"),
    ("nut", {"files": {"masks": "1", "test": "0"}}, "the masks differ"),
    ("cup", {"files": {"teacher": "1"}}, "the teacher's weights differ"),
])  # fmt: skip
def test_runs_of_other_settings_or_files_are_never_averaged(tmp_path, category, changes, told):
    files = {"masks": "0", "test": "0", "teacher": "0"}
    write(tmp_path, "nut", 0, 0.9, files)
    write(tmp_path, "cup", 0, 0.9, {"masks": "2", "teacher": "0"})
    assert len(collect_results(tmp_path)) == 2 * len(MAP_NAMES)
    write(tmp_path, category, 1, 0.9, **{"files": files if category == "nut" else {}, **changes})
    told = rf"{category}_seed1\.json is no run of the same kind as .*\({told}\)"
    with pytest.raises(ValueError, match=told):
        collect_results(tmp_path)


def test_means_over_seeds_then_categories_of_the_published_iterations(tmp_path):
    for category, seed, value in (("bottle", 0, 0.90), ("bottle", 1, 0.92), ("cable", 0, 0.5)):
        write(tmp_path, category, seed, value, iterations=10_000 if category == "cable" else 5000)
    table = results_table(collect_results(tmp_path))
    assert table["aupro"].to_dict() == {"bottle": "91.00 ± 1.41", "cable": "50.00", "mean of 2": "70.50"}
    assert table["seeds"].tolist() == [2, 1, 3]
    write(tmp_path, "cable", 1, 0.9, iterations=5000)
    with pytest.raises(ValueError, match="iterations: 10000 -> 5000"):
        collect_results(tmp_path)


def test_the_difference_to_the_paper_needs_all_fifteen_categories(tmp_path):
    for category in MVTEC_CATEGORIES[:-1]:
        write(tmp_path, category, 0, 0.95)
    write(tmp_path, "nut", 0, 0.1)
    partial = compare_with_paper(collect_results(tmp_path))
    assert set(partial["difference"]) == {"-"}
    assert "14 of 15" in partial.loc["aupro", "DMDD covers"]
    write(tmp_path, MVTEC_CATEGORIES[-1], 0, 0.95)
    whole = compare_with_paper(collect_results(tmp_path))
    assert whole.loc["aupro", ["paper", "DMDD", "difference"]].tolist() == ["96.13", "95.00", "-1.13"]
    assert whole.loc["image_auroc", ["paper", "difference"]].tolist() == ["not stated", "-"]


def results_of(categories) -> pd.DataFrame:
    """Ours: 0.9 + 0.01 seed everywhere."""
    columns = {"category": np.repeat(categories, 2), "seed": [0, 1] * len(categories), "map": "fused"}
    return pd.DataFrame(columns | dict.fromkeys(METRICS, [0.9, 0.91] * len(categories)))


@pytest.mark.parametrize("method, category, expected", [
    ("DMDD", "mean", (None, 98.85, 96.13)), ("RD4AD re-run", "transistor", (96.2, 92.3, 78.3)),
    ("CDO", "toothbrush", (96.67, 98.99, 91.37)), ("DRAEM (BaoIAD)", "mean", (96.77, 92.59, 85.36)),
])  # fmt: skip
def test_numbers_as_published(method, category, expected):
    row = load_reference().query("method == @method and category == @category")
    found = row[["image_auroc", "pixel_auroc", "aupro"]].to_numpy(float).squeeze()
    np.testing.assert_array_equal(found, np.array(expected, float))


def test_every_method_tells_its_protocol_and_the_paper_has_no_more_than_its_abstract():
    reference = load_reference()
    assert reference.groupby("method")["protocol"].first().notna().all()
    paper = reference.query("method == 'DMDD'")
    assert len(paper) == 1
    for metric, value in tables.PAPER.items():
        assert paper[metric].item() == pytest.approx(100 * value)


def test_baselines_are_averaged_over_our_categories_and_the_paper_waits_for_all_fifteen():
    part = category_table(results_of(("cable", "toothbrush")))
    assert part["CDO image/pixel/PRO"][1:].tolist() == ["96.67/98.99/91.37", "98.12/98.25/91.71"]
    assert set(part["DMDD (paper) pixel/PRO"]) == {"-"}
    whole = category_table(results_of(MVTEC_CATEGORIES))
    assert whole.loc["mean of 15", "DMDD (paper) pixel/PRO"] == "98.85/96.13"
    assert whole.loc["pill", "ours image_auroc"] == "90.50 ± 0.71"
    other = category_table(results_of(("cable", "pcb")))  # which baselines do not have
    assert set(other.loc[["pcb", "mean of 2"], "CDO image/pixel/PRO"]) == {"-"}
