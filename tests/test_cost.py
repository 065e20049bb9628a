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


@pytest.mark.parametrize("channels", [100, 40, 0])
def test_operations_are_those_of_convolutions_and_of_the_positions_products(channels):
    config = tiny_config(position_channels=channels or 1, position_maps=channels > 0)
    model = tiny_model(**config.to_dict()).eval()
    products, widths, looks = 0, model.teacher.info.channels, 8
    if channels:
        products = sum(widths) * looks  # the overall look
        for k, stride in enumerate(model.teacher.info.strides):
            wide = sum(widths[: k + 1])
            kept = min(wide, channels * (2 + k) // 2)
            mixing = wide * kept if kept < wide else 0
            products += (64 // stride) ** 2 * (kept * kept + kept * looks + mixing)
    assert image_operations(config) == counted(model, torch.rand(1, 3, 64, 64)) + 2 * products
    pair, student_only = pair_operations(config), pair_operations(config.replace(msn_start=1.0))
    assert pair.teacher == counted(tiny_model().teacher, torch.rand(2, 3, 64, 64))
    assert student_only.msn == 0 < pair.msn
    assert pair.total == pair.teacher + pair.student + pair.msn
