"""Evaluation, result files and tables: known numbers in, known numbers out."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import disc, make_category, save_image, some_samples, tiny_detector

from dmdd_lite import evaluation
from dmdd_lite.course.plots import plot_roc_and_pro
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import read_mask
from dmdd_lite.data.problems import DataWarning
from dmdd_lite.detector import MAP_NAMES
from dmdd_lite.evaluation import METRICS, MVTEC_CATEGORIES, collect_results, compare_with_paper, results_table
from dmdd_lite.metrics import evaluate_maps, image_auroc
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
        expected = evaluate_maps(found.maps[name], found.masks, found.scores[name], found.labels)
        assert found.metrics[name] == expected
    own = detector.maps(torch.from_numpy(found.images))[1]["fused"]
    np.testing.assert_allclose(found.scores["fused"], own, rtol=1e-4)


def test_result_file(scored, tmp_path):
    detector, found = scored
    path = evaluation.write_result(tmp_path, found, detector, Training(detector, None, 12.34, 5.678))
    assert path.name == "pcb_seed3.json"
    values = json.loads(path.read_text())
    assert values["metrics"] == found.metrics
    assert (values["warnings"], values["full_size"], values["mask_rule"]) == ([], False, "auto")
    assert values["config"] == detector.config.to_dict()
    assert (values["seconds"], values["images_per_second"]["training_pairs"]) == (12.3, 5.68)
    assert values["protocol"].startswith("last")
    frame = collect_results(tmp_path)
    assert frame["map"].tolist() == list(MAP_NAMES)
    assert frame.set_index("map").loc["fused", "aupro"] == values["metrics"]["fused"]["aupro"]


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
    written = json.loads(evaluation.write_result(tmp_path, whole, detector, UNTRAINED).read_text())
    assert (written["full_size"], written["warnings"]) == (True, list(category.warnings))
    unknown = tuple(dataclasses.replace(test, mask=None) for test in category.test)  # nor any mask at all
    found = evaluation.evaluate(detector, dataclasses.replace(category, test=unknown), progress=False)
    evaluation.write_result(tmp_path, found, detector, UNTRAINED)
    plot_roc_and_pro(evaluation.curves(found))
    assert evaluation.rank_anomalous(found) == []
    assert results_table(collect_results(tmp_path)).loc["nut"].tolist()[2:] == ["-"] * 4


def write(folder, category, seed, value):
    metrics = {name: dict.fromkeys(METRICS, value) for name in MAP_NAMES}
    values = {"category": category, "seed": seed, "metrics": metrics, "seconds": 1}
    (folder / f"{category}_seed{seed}.json").write_text(json.dumps(values))


def test_table_of_means_over_seeds_then_categories(tmp_path):
    for category, seed, value in (("nut", 0, 0.90), ("nut", 1, 0.92), ("cup", 0, 0.5)):
        write(tmp_path, category, seed, value)
    table = results_table(collect_results(tmp_path))
    assert table["aupro"].to_dict() == {"nut": "91.00 ± 1.41", "cup": "50.00", "mean of 2": "70.50"}
    assert table["seeds"].tolist() == [1, 2, 3]


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
