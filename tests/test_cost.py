"""The count of operations against a count by hand, layer by layer; sizes, and the time that follows."""

import pytest
import torch
from builders import tiny_config, tiny_detector, tiny_model
from torch import nn

from dmdd_lite.course.cost import image_operations, minutes, pair_operations, sizes


def counted(network, images) -> int:
    """Operations of its convolutions: for each value of the output; transposed, of the input."""
    found = []

    def count(layer, inputs, output):
        values = (inputs[0] if layer.transposed else output).numel()
        found.append(2 * layer.weight[0].numel() * values)

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(images)
    return sum(found)


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_operations_are_those_of_convolutions(student):
    config = tiny_config(student=student)
    model = tiny_model(student=student).eval()
    assert image_operations(config) == counted(model, torch.rand(1, 3, 64, 64))
    pair, student_only = pair_operations(config), pair_operations(config.replace(msn_iterations=0))
    assert pair.teacher == counted(tiny_model().teacher, torch.rand(2, 3, 64, 64))
    assert student_only.msn == 0 < pair.msn
    assert pair.total == pair.teacher + pair.student + pair.msn


def test_sizes_are_those_of_the_tensors_and_the_file(tmp_path):
    config = tiny_config()
    found = sizes(config)
    file = (tiny_detector().save(tmp_path) / "model.safetensors").stat().st_size
    assert found.detector == pytest.approx(file, rel=0.02)  # and a header
    weights = sum(value.numel() for value in tiny_model().student.state_dict().values())
    assert found.checkpoint == pytest.approx(
        3 * 4 * weights, rel=0.02
    )  # counters of batch norms have 8 bytes
    twice = config.replace(batch_size=2 * config.batch_size, image_size=2 * config.image_size)
    assert sizes(twice).activations == pytest.approx(8 * found.activations, rel=0.02)


def test_minutes_follow_from_pairs_and_the_assumed_rate():
    table = minutes(10**12, 16, ("bottle", "cable"))
    assert table["pairs"].tolist() == [80_000, 160_000]
    assert table["PFLOP"].tolist() == [80, 160]
    assert table.loc["bottle", "T4 float32"] == pytest.approx(80e15 / (0.4 * 8.1e12) / 60)
