"""Training the MSN again on a student that was trained before: benchmarks/refit.py."""

from importlib import import_module

import pandas as pd
import pytest
from builders import networks_of, same_state, tiny_config, train_tiny

from dmdd_lite.config import Config


@pytest.fixture(scope="module")
def refit(scripts):
    return import_module("refit")


@pytest.mark.parametrize("change", [
    {"msn_attention": ("self",), "plain_weight": 0.1, "smoothing_sigma": 2.0},
    {"plus": {"channels": 5, "context": 0}}, {"plus": None}, {"iterations": 7, "msn_iterations": 1},
    {"iterations": 6, "msn_iterations": 0},
])  # fmt: skip
def test_a_detector_refitted_is_that_of_a_whole_training(root, refit, whole, change):
    expected = train_tiny(root, **change)
    config = tiny_config(**change)
    found = refit.refit(whole.detector, config, root, "lever", device="cpu", progress=False)
    assert same_state(networks_of(expected.detector), networks_of(found.detector))
    assert expected.detector.thresholds == found.detector.thresholds
    learned = expected.history[expected.history["iteration"] >= 6].reset_index(drop=True)
    pd.testing.assert_frame_equal(learned, found.history, check_dtype=len(learned) > 0)


@pytest.mark.parametrize("change, told", [
    ({"aim_weight": 3.0}, "aim_weight: 1.0 -> 3.0"), ({"iterations": 60}, "student_iterations: 6 -> 45"),
    ({"msn_iterations": 0, "seed": 1}, "seed: 0 -> 1; student_iterations: 6 -> 8"),
])  # fmt: skip
def test_nothing_is_refitted_for_another_student(root, refit, whole, change, told):
    with pytest.raises(ValueError, match=rf"another student than the detector's \({told}\)"):
        refit.refit(whole.detector, tiny_config(**change), root, "lever", progress=False)


def test_what_makes_another_student_is_told(refit):
    assert refit.student_differences(Config(), Config(plus=None, plain_weight=0.0, msn_iterations=5000)) == [
        "student_iterations: 4800 -> 3750"
    ]
    same = {"iterations": 4900, "msn_iterations": 100, "msn_attention": (), "smoothing_sigma": 2.0}
    assert refit.student_differences(Config(), Config(**same)) == []
    assert refit.student_differences(Config(), Config(prior=False)) == ["prior: True -> False"]
