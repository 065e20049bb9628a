"""The tool that trains the embedded teacher: what it draws, what it asks for, and that it goes on."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dmdd_lite import device
from dmdd_lite.synthesis import step_generator
from dmdd_lite.teacher import EMBEDDED, build_teacher

PACKAGE = Path(sys.modules["dmdd_lite"].__file__).parent


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE.parent / "tools")
        import train_embedded_teacher

        yield train_embedded_teacher


@pytest.fixture(scope="module")
def pictures(tool):
    return sys.modules["patchworks"]


@pytest.fixture
def small(tool, monkeypatch):
    """Fewer and smaller pictures, a checkpoint every two iterations."""
    for name, value in {"SIZE": 32, "BATCH": 4, "EVERY": 2}.items():
        monkeypatch.setattr(tool, name, value)
    return tool


def rng(number=0):
    return step_generator(0, "patchwork", number)


def test_every_piece_of_a_patchwork_is_one_of_those_given(pictures):
    """Pieces of one value each: every pixel has one of them, the first is always there, the others each in
    half of the pictures."""
    values = torch.linspace(0, 1, pictures.PIECES)
    pieces = values.view(1, -1, 1, 1, 1).expand(200, -1, 3, 32, 32)
    shown = pictures.patch(pieces, rng())
    there = (shown[:, :1] == values.view(1, -1, 1, 1)).float()
    assert (there.sum(1) == 1).all()
    assert (shown == shown[:, :1]).all()
    seen = there.amax((2, 3)).mean(0)
    assert seen[0] > 0.9
    assert ((seen[1:] > 0.35) & (seen[1:] < 0.6)).all()


def test_pictures_are_new_each_time_and_the_same_for_the_same_iteration(pictures):
    first, again, other = (pictures.patchworks(4, 32, rng(i)) for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.05
    assert first.shape == (4, 3, 32, 32)
    parameters = pictures.material_parameters(1, rng())
    twice = {name: torch.cat([value, value]) for name, value in parameters.items()}
    one, two = pictures.render_materials(twice, 32, rng())
    assert not torch.equal(one, two)  # the same material
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_maps_say_where_the_second_view_was_taken(pictures, monkeypatch):
    """Of a picture that changes slowly, the second view is the first where the map leads."""
    monkeypatch.setattr(pictures, "relight", lambda pictures, rng: pictures)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    wave = torch.stack([torch.sin(3 * x + y), torch.cos(2 * y), torch.sin(x * y)])
    (first, second), maps = (part for part in pictures.two_views(wave.expand(1, 3, 64, 64), rng(3)))
    assert torch.equal(first, wave)
    for i, j in ((24, 40), (30, 18), (40, 24)):  # row, column
        here = torch.tensor([(2 * j + 1) / 64 - 1, (2 * i + 1) / 64 - 1, 1.0])
        there = maps[0] @ here
        assert there.abs().max() < 1
        column, row = (((there + 1) * 64 - 1) / 2).tolist()
        found = first[:, round(row), round(column)]
        assert (found - second[:, i, j]).abs().max() < 0.1
        assert (first[:, i, j] - second[:, i, j]).abs().max() > 0.1
    zooms = pictures.two_views(torch.zeros(300, 3, 8, 8), rng())[1][:, :, :2].det().sqrt().log2()
    assert zooms.abs().max() <= pictures.ZOOM
    assert zooms.std() > 0.2


def test_light_contrast_and_colours_say_nothing(pictures):
    """One grating many times over: its mean and its contrast lie far apart afterwards, its period stays, a
    third is grey."""
    wave = torch.sin(2 * torch.pi * torch.arange(32) / 8) / 4
    picture = (0.5 + wave * torch.tensor([0.5, 1, 0.8])[:, None])[:, None].expand(600, 3, 32, 32)
    shown = pictures.photometric(picture, rng())
    means, spreads = shown.mean((1, 2, 3)), shown.std((1, 2, 3))
    assert means.std() > 0.1
    assert spreads.quantile(0.9) > 2 * spreads.quantile(0.1)
    grey = (shown - shown.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-5
    assert 0.25 < grey.float().mean() < 0.36
    strength = torch.fft.rfft(shown.mean((1, 2))).abs()[:, 3:]  # uneven light lies below
    assert (strength.argmax(1) == 1).float().mean() > 0.95


@pytest.mark.parametrize("turned", [False, True])
def test_the_loss_is_the_cross_entropy_of_finding_the_same_place(tool, turned):
    """Cell by cell against all others, in both directions; half a turn brings cell k to the place of the last
    but k."""
    features = torch.randn(4, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    sign = -1.0 if turned else 1.0
    maps = torch.tensor([[sign, 0, 0], [0, sign, 0]]).expand(2, 2, 3)
    found = tool.matched_loss(features, maps, torch.randperm(40))
    cells = features / features.norm(dim=1, keepdim=True)
    first, second = (part.flatten(2) for part in (cells[:2], cells[2:]))
    first = first.flip(2) if turned else first
    first, second = (list(part.transpose(1, 2).reshape(-1, 5)) for part in (first, second))
    expected = 0.0
    for one, other in ((first, second), (second, first)):
        for k, cell in enumerate(one):
            likeness = torch.stack([cell @ o / tool.TEMPERATURE for o in other])
            expected -= likeness.log_softmax(0)[k] / len(one) / 2
    assert torch.allclose(found, expected, atol=1e-5)


def test_places_that_the_first_view_does_not_show_are_not_asked_for(tool, monkeypatch):
    """The second view is shifted by half of a picture: its right half may hold anything."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 5, 4, 4, generator=generator)
    maps = torch.tensor([[1.0, 0, 1], [0, 1, 0]]).expand(2, 2, 3)
    order = torch.randperm(32, generator=generator)
    found = tool.matched_loss(features, maps, order)
    changed = features.clone()
    changed[2:, :, :, 2:] = 7
    assert torch.equal(tool.matched_loss(changed, maps, order), found)
    changed[2:, :, :, :2] = 7
    assert not torch.isclose(tool.matched_loss(changed, maps, order), found)
    monkeypatch.setattr(tool, "CELLS", 1)  # one alone cannot be missed
    assert tool.matched_loss(features, maps, order) == 0


def test_an_interrupted_training_ends_in_the_same_teacher(small, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    arguments = ["--iterations", "5", "--checkpoint", str(tmp_path / "run.pt")]
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    small.main([*arguments[:2], "--checkpoint", str(tmp_path / "other.pt"), "--out", str(whole)])
    matched, calls = small.matched_loss, []

    def stop(*given):
        calls.append(1)
        if len(calls) > 9:  # three scales an iteration
            raise KeyboardInterrupt
        return matched(*given)

    monkeypatch.setattr(small, "matched_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        small.main([*arguments, "--out", str(resumed)])
    assert not resumed.exists()
    monkeypatch.setattr(small, "matched_loss", matched)
    with pytest.raises(SystemExit, match=r"run\.pt is of another run \({'iterations': 5}\); delete it"):
        small.main(["--iterations", "6", *arguments[2:], "--out", str(resumed)])
    small.main([*arguments, "--out", str(resumed)])
    states = [build_teacher("embedded", str(path)).state_dict() for path in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("native", [False, True])
def test_it_trains_in_bf16_only_where_the_device_computes_in_it(small, tmp_path, monkeypatch, native):
    """Elsewhere bf16 is emulated, and several times slower than float32."""
    monkeypatch.setattr(device, "_computes_bf16", lambda kind: native)
    kinds = set()

    def note(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            kinds.add(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(note):
        files = [f"--checkpoint={tmp_path / 'run.pt'}", f"--out={tmp_path / 'teacher.safetensors'}"]
        small.main(["--iterations", "1", *files])
    assert kinds == {torch.bfloat16 if native else torch.float32}


def test_the_shipped_weights_are_what_the_tool_makes_without_options(tool):
    """By what they say of themselves; and they are small enough to ship."""
    path = PACKAGE / EMBEDDED["file"]
    assert path.stat().st_size <= 6e6
    with safe_open(path, "pt") as file:
        told = file.metadata()
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    assert told == tool.origin(tool.parse([]), float(told["minutes"]))
    assert told["licence"] == "Apache-2.0"
    assert told["seed"] == "0"
    assert "no photographs" in told["training data"]
    assert {"network", "pretext", "iterations", "batch", "minutes"} <= told.keys()
