"""An MSN trained and scored beside a finished student: the same as in a training of the package."""

import pytest
import torch
from builders import make_category, some_samples, tiny_config, train_tiny

from dmdd_lite.course.msn_comparison import keep_distances, score_map, train_msns
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.training import load_training_data
from dmdd_lite.evaluation import evaluate
from dmdd_lite.model import build_model
from dmdd_lite.msn import MSN


@pytest.mark.parametrize("textures", [False, True])
def test_a_new_msn_has_the_losses_of_the_training_of_the_package(tmp_path, textures):
    some_samples(tmp_path, "lever", train=4)
    trained = train_tiny(tmp_path, iterations=16, plus=None)
    model, data = trained.detector.model, load_training_data(tiny_config(plus=None), tmp_path, "lever")
    model.calibrate(data.images)  # as stage 2 begins
    network = build_model(model.config, model.teacher).msn
    losses = torch.tensor(train_msns(model, [MSN(), network], data, textures))[:, 1]
    expected = torch.tensor(trained.history["msn"].dropna().tolist())
    assert len(losses) == len(expected) == 4
    assert torch.allclose(losses, expected, rtol=1e-4) is not textures


def test_kept_maps_are_scored_as_in_an_evaluation(detector, tmp_path):
    make_category(tmp_path)
    category = open_category(tmp_path, "nut")
    found = evaluate(detector, category, progress=False)
    images = torch.from_numpy(found.images)
    distances = keep_distances(detector, images, batch=2)
    output = detector.output(images)[0]
    for kept, expected in zip(distances, (*output.normality, *output.abnormality), strict=True):
        torch.testing.assert_close(kept, expected, atol=1e-4, rtol=1e-4)
    scored = score_map(output.fused.logit(), category, found.masks, detector.config)
    expected = found.metrics["fused"]
    assert {name: scored[name] for name in expected} == pytest.approx(expected, rel=1e-3)
