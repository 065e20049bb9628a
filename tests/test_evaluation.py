"""Evaluation, result files and tables: known numbers in, known numbers out."""

import itertools
import json
import threading

import numpy as np
import pytest
import torch
from builders import some_samples, tiny_config

from dmdd_lite import evaluation
from dmdd_lite.data import load_masks, open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import METRICS, MVTEC_CATEGORIES, collect_results, compare_with_paper, results_table
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.model import MAP_NAMES, build_model
from dmdd_lite.teacher import build_teacher
from dmdd_lite.training import Training


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = some_samples(tmp_path_factory.mktemp("s"), "pcb", good=3).parent
    detector = Detector(build_model(tiny_config(seed=3), build_teacher("test_resnet", "random")), 0.25)
    return detector, evaluation.evaluate(detector, open_category(root, "pcb"), batch_size=3, progress=False)


def test_metrics_are_those_of_the_maps_it_returns(scored):
    detector, found = scored
    assert found.labels.tolist() == [test.defect != "good" for test in found.category.test]
    assert np.array_equal(found.masks.any((1, 2)), found.labels)
    for name in MAP_NAMES:
        assert np.array_equal(found.scores[name], found.maps[name].max((1, 2)))
        expected = evaluate_maps(found.maps[name], found.masks, found.scores[name], found.labels)
        assert found.metrics[name] == expected
    np.testing.assert_allclose(
        found.maps["sum"], found.maps["normality"] + found.maps["abnormality"], atol=1e-5
    )
    own = detector.maps(torch.from_numpy(found.images))[1]["fused"]
    np.testing.assert_allclose(found.scores["fused"], own, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, None, 100])
def test_the_batch_size_changes_nothing(scored, batch_size):
    detector, expected = scored
    found = evaluation.evaluate(detector, expected.category, batch_size, progress=False)
    for name in MAP_NAMES:
        np.testing.assert_allclose(found.maps[name], expected.maps[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.scores[name], expected.scores[name], rtol=1e-4, atol=1e-5)


def test_metrics_side_by_side_are_those_one_after_the_other(scored, monkeypatch):
    detector, expected = scored
    together, calls = threading.Barrier(2), itertools.count()  # lets nobody through who comes alone

    def pairwise(*arguments):
        if next(calls) < len(MAP_NAMES) // 2 * 2:  # the last of an odd number has nobody to come with
            together.wait(30)
        return evaluate_maps(*arguments)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(evaluation, "evaluate_maps", pairwise)
    found = evaluation.evaluate(detector, expected.category, 3, progress=False)
    assert list(found.metrics) == list(MAP_NAMES)
    assert found.metrics == expected.metrics
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(evaluation, "evaluate_maps", evaluate_maps)
    assert evaluation.evaluate(detector, expected.category, 3, progress=False).metrics == expected.metrics


def test_a_log_tells_when_the_device_has_done_its_part(scored, monkeypatch, capsys):
    detector, expected = scored
    for parameter in detector.model.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    read = []

    def masks_after(*arguments, **options):
        assert all(parameter.grad is None for parameter in detector.model.parameters())
        read.append(capsys.readouterr().out)
        return load_masks(*arguments, **options)

    monkeypatch.setattr(evaluation, "load_masks", masks_after)
    monkeypatch.setenv("DMDD_PROGRESS", "lines")
    evaluation.evaluate(detector, expected.category)
    assert read == [f"{evaluation.SCORING} of {len(expected.labels)} images\n"]
    monkeypatch.setenv("DMDD_PROGRESS", "none")
    evaluation.evaluate(detector, expected.category)
    assert read[1:] == [""]


def test_result_file(scored, tmp_path):
    detector, found = scored
    training = Training(detector, None, 12.34, 5.678)
    path = evaluation.write_result(tmp_path, found, detector, training)
    assert path.name == "pcb_seed3.json"
    values = json.loads(path.read_text())
    assert set(values["metrics"]) == set(MAP_NAMES)
    for metrics in values["metrics"].values():
        assert set(metrics) == set(METRICS)
        assert all(0 <= value <= 1 for value in metrics.values())
    assert values["config"] == detector.config.to_dict()
    assert (values["seconds"], values["images_per_second"]["training_pairs"]) == (12.3, 5.68)
    assert torch.__version__.startswith(values["versions"]["torch"])
    assert values["protocol"].startswith("last")
    assert values["peak_memory_mb"] > 10
    frame = collect_results(tmp_path)
    assert frame["map"].tolist() == list(MAP_NAMES)
    assert frame.set_index("map").loc["fused", "aupro"] == values["metrics"]["fused"]["aupro"]


def test_ranking_puts_the_best_outlined_first(scored):
    _, found = scored
    masks = found.masks.astype(np.float32)
    defective = np.flatnonzero(found.labels)
    noise = np.random.default_rng(0).random(masks.shape, np.float32)
    share = np.zeros(len(masks), np.float32)
    share[defective] = [*np.linspace(0.05, 0.4, len(defective) - 1), 1.0]  # the last is outlined perfectly
    maps = {"fused": share[:, None, None] * masks + (1 - share[:, None, None]) * noise}
    ranked = evaluation.rank_anomalous(evaluation.Evaluation(**{**vars(found), "maps": maps}))
    assert ranked[0] == defective[-1]
    assert sorted(ranked) == defective.tolist()


def test_curves_end_where_the_metrics_say(scored):
    _, found = scored
    for name, curve in evaluation.curves(found).items():
        assert np.trapezoid(curve["roc"][1], curve["roc"][0]) == pytest.approx(curve["auroc"])
        assert curve["pro"][0][-1] == pytest.approx(1)
        assert curve["aupro"] == found.metrics[name]["aupro"]


def write(folder, category, seed, value):
    metrics = {name: dict.fromkeys(METRICS, value) for name in MAP_NAMES}
    values = {"category": category, "seed": seed, "metrics": metrics, "seconds": 1}
    (folder / f"{category}_seed{seed}.json").write_text(json.dumps(values))


def test_table_of_means_over_seeds_then_categories(tmp_path):
    for category, seed, value in (("nut", 0, 0.90), ("nut", 1, 0.92), ("cup", 0, 0.5)):
        write(tmp_path, category, seed, value)
    table = results_table(collect_results(tmp_path))
    assert table.loc["nut", "aupro"] == "91.00 ± 1.41"
    assert table.loc["cup", "aupro"] == "50.00"
    assert table.loc["mean of 2", "aupro"] == "70.50"
    assert table["seeds"].tolist() == [1, 2, 3]


def test_the_difference_to_the_paper_needs_all_fifteen_categories(tmp_path):
    for category in MVTEC_CATEGORIES[:-1]:
        write(tmp_path, category, 0, 0.95)
    write(tmp_path, "nut", 0, 0.1)
    partial = compare_with_paper(collect_results(tmp_path))
    assert set(partial["difference"]) == {"-"}
    assert "14 of 15" in partial.loc["aupro", "ours covers"]
    write(tmp_path, MVTEC_CATEGORIES[-1], 0, 0.95)
    whole = compare_with_paper(collect_results(tmp_path))
    assert whole.loc["aupro", ["paper", "ours", "difference"]].tolist() == ["96.13", "95.00", "-1.13"]
    assert whole.loc["pixel_auroc", "difference"] == "-3.85"
    assert whole.loc["image_auroc", ["paper", "difference"]].tolist() == ["not stated", "-"]


def test_empty_folder_and_a_file_that_is_no_result(tmp_path):
    assert collect_results(tmp_path).empty
    (tmp_path / "nut_seed0.json").write_text('{"metrics": 3}')
    with pytest.raises(ValueError, match=r"nut_seed0\.json is not a result file"):
        collect_results(tmp_path)
