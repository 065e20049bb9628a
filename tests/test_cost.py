"""The count of operations against a count by hand, layer by layer."""

import pytest
import torch
from builders import tiny_config
from torch import nn

from dmdd_lite.cost import convolution_rate, image_operations, pair_operations
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher


def test_teacher_operations_are_those_of_its_convolutions():
    config = tiny_config()
    teacher, counted = build_teacher(config.teacher, config.teacher_weights), []

    def count(layer, inputs, output):
        counted.append(2 * output.numel() * layer.weight[0].numel())

    for layer in teacher.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    teacher(torch.rand(2, 3, 64, 64))
    assert pair_operations(config).teacher == sum(counted)


@pytest.mark.parametrize("channels", [100, 40, 0])
def test_image_operations_are_those_of_convolutions_and_of_the_positions_products(channels):
    config = tiny_config(position_channels=channels or 1, position_maps=channels > 0)
    model, counted = build_model(config, build_teacher(config.teacher, config.teacher_weights)).eval(), []

    def count(layer, inputs, output):
        operations = 2 * layer.weight[0].numel()  # for each value of the output; transposed, of the input
        counted.append(operations * (inputs[0] if layer.transposed else output).numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    if channels:
        widths, looks = model.teacher.info.channels, 8
        counted.append(2 * sum(widths) * looks)  # the overall look
        for k, stride in enumerate(model.teacher.info.strides):
            wide = sum(widths[: k + 1])
            kept = min(wide, channels * (2 + k) // 2)
            mixing = wide * kept if kept < wide else 0
            products = kept * kept + kept * looks + mixing  # with the precision, the slope, the mixture
            counted.append(2 * (64 // stride) ** 2 * products)
    assert image_operations(config) == sum(counted)


def test_operations_grow_with_the_area_and_the_parts():
    small, large = pair_operations(tiny_config()), pair_operations(tiny_config(image_size=128))
    assert large.total == pytest.approx(4 * small.total, rel=0.02)
    decoder = tiny_config(student="decoder")
    deeper = decoder.replace(student_blocks=(2, 2, 2))
    assert pair_operations(deeper).student > 1.2 * pair_operations(decoder).student
    assert small.total == small.teacher + small.student + small.fusion


def test_a_pair_costs_what_its_stage_takes():
    """The student is not trained in the fusion's stage, nor the fusion in the student's."""
    none, half, all_ = (pair_operations(tiny_config(fusion_start=share)) for share in (0.0, 0.5, 1.0))
    assert none.teacher == half.teacher == all_.teacher
    assert all_.fusion == 0 < none.fusion
    assert 2 * none.student < all_.student < 4 * none.student  # backward is about twice forward
    assert half.student == pytest.approx((none.student + all_.student) / 2, abs=1)
    assert half.fusion == pytest.approx(none.fusion / 2, abs=1)


def test_rate_is_operations_over_time(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("dmdd_lite.cost.time.perf_counter", lambda: float(next(clock)))
    assert convolution_rate() == 2 * 8 * 128 * 64 * 64 * 128 * 9
