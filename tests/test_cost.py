"""The count of operations against a count by hand, layer by layer."""

import pytest
import torch
from builders import tiny_config, tiny_model
from torch import nn

from dmdd_lite.course.cost import image_operations, pair_operations


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
