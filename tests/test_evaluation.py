"""Evaluation, result files and tables: known numbers in, known numbers out."""

import json

import numpy as np
import pytest
import torch
from builders import some_samples, tiny_detector

from dmdd_lite import evaluation
from dmdd_lite.data.layout import open_category
from dmdd_lite.detector import MAP_NAMES
from dmdd_lite.evaluation import METRICS, MVTEC_CATEGORIES, collect_results, compare_with_paper, results_table
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.training import Training


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
    assert values["config"] == detector.config.to_dict()
    assert (values["seconds"], values["images_per_second"]["training_pairs"]) == (12.3, 5.68)
    assert values["protocol"].startswith("last")
    frame = collect_results(tmp_path)
    assert frame["map"].tolist() == list(MAP_NAMES)
    assert frame.set_index("map").loc["fused", "aupro"] == values["metrics"]["fused"]["aupro"]


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


def test_empty_folder_and_a_file_that_is_no_result(tmp_path):
    assert collect_results(tmp_path).empty
    (tmp_path / "nut_seed0.json").write_text('{"metrics": 3}')
    with pytest.raises(ValueError, match=r"nut_seed0\.json is not a result file"):
        collect_results(tmp_path)
