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
    if channels == 100:
        teacher = tiny_model().teacher
        assert pair_operations(config).teacher == counted(teacher, torch.rand(2, 3, 64, 64))


def test_a_pair_costs_what_its_stage_takes():
    """The student is not trained in the fusion's stage, nor the fusion in the student's."""
    none, half, all_ = (pair_operations(tiny_config(msn_start=share)) for share in (0.0, 0.5, 1.0))
    assert none.teacher == half.teacher == all_.teacher
    assert all_.msn == 0 < none.msn
    assert 2 * none.student < all_.student < 4 * none.student  # backward is about twice forward
    assert half.student == pytest.approx((none.student + all_.student) / 2, abs=1)
    assert half.msn == pytest.approx(none.msn / 2, abs=1)
    assert half.total == half.teacher + half.student + half.msn
    large = pair_operations(tiny_config(image_size=128))
    assert large.total == pytest.approx(4 * half.total, rel=0.02)
