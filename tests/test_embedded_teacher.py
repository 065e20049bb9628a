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


@pytest.fixture
def small(tool, monkeypatch):
    """Fewer and smaller pictures, a checkpoint every two iterations."""
    for name, value in {"SIZE": 32, "BATCH": 4, "MATERIALS": 8, "EVERY": 2}.items():
        monkeypatch.setattr(tool, name, value)
    return tool


def rng(number=0):
    return step_generator(0, "patchwork", number)


def test_a_patchwork_shows_the_materials_that_it_names(tool, monkeypatch):
    """Materials of one colour each, no light and no noise: every pixel tells whose it is."""
    parameters = tool.material_parameters(8, 0)
    greys = torch.linspace(0.1, 0.9, 8).view(8, 1, 1, 1, 1).expand(8, 2, 3, 1, 1)
    parameters |= {"colours": greys, "grain": torch.zeros(8, 1, 1, 1)}
    monkeypatch.setattr(tool, "CHANGED", 1.0)
    monkeypatch.setattr(tool, "photometric", lambda pictures, rng: pictures)
    pictures, kinds, shown = tool.patchwork(parameters, 16, 32, rng())
    assert (shown.sum(1) == 1).all()
    expected = (greys[:, 0, 0, 0, 0][kinds][:, :, None, None] * shown).sum(1, keepdim=True)
    assert (pictures - expected).abs().max() < 0.15  # seven times the noise of the last step
    assert (pictures - expected).std() < 0.03
    assert shown.mean((0, 2, 3)).min() > 0.15  # no piece is always covered


def test_pictures_are_new_each_time_and_the_same_for_the_same_iteration(tool):
    parameters = tool.material_parameters(8, 0)
    first, again, other = (tool.patchwork(parameters, 4, 32, rng(i))[0] for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.05
    assert first.shape == (4, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    kinds = torch.zeros(2, dtype=torch.long)
    one, two = tool.render_materials(parameters, kinds, 32, rng())
    assert not torch.equal(one, two)  # the same material


def test_light_contrast_and_colours_say_nothing(tool):
    """One grating many times over: its mean and its contrast lie far apart afterwards, its period stays, a
    third is grey."""
    wave = torch.sin(2 * torch.pi * torch.arange(32) / 8) / 4
    picture = (0.5 + wave * torch.tensor([0.5, 1, 0.8])[:, None])[:, None].expand(600, 3, 32, 32)
    shown = tool.photometric(picture, rng())
    means, spreads = shown.mean((1, 2, 3)), shown.std((1, 2, 3))
    assert means.std() > 0.1
    assert spreads.quantile(0.9) > 2 * spreads.quantile(0.1)
    grey = (shown - shown.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-5
    assert 0.25 < grey.float().mean() < 0.36
    strength = torch.fft.rfft(shown.mean((1, 2))).abs()[:, 3:]  # uneven light lies below
    assert (strength.argmax(1) == 1).float().mean() > 0.95


def test_the_loss_is_the_mean_cross_entropy_over_pixels(tool):
    """Every pixel of a cell against its own material, by PyTorch's cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 2, 3, generator=generator)
    kinds = torch.tensor([[0, 4, 2], [1, 1, 3]])
    winner = torch.randint(3, (2, 8, 12), generator=generator)
    shown = torch.nn.functional.one_hot(winner, 3).permute(0, 3, 1, 2).float()
    of_pixel = torch.stack([kinds[i][winner[i]] for i in range(2)])
    large = logits.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = torch.nn.functional.cross_entropy(large, of_pixel)
    assert torch.allclose(tool.dense_loss(logits, kinds, shown), expected, atol=1e-6)


def test_an_interrupted_training_ends_in_the_same_teacher(small, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    arguments = ["--iterations", "5", "--checkpoint", str(tmp_path / "run.pt")]
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    small.main([*arguments[:2], "--checkpoint", str(tmp_path / "other.pt"), "--out", str(whole)])
    dense, calls = small.dense_loss, []

    def stop(*given):
        calls.append(1)
        if len(calls) > 9:  # three scales an iteration
            raise KeyboardInterrupt
        return dense(*given)

    monkeypatch.setattr(small, "dense_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        small.main([*arguments, "--out", str(resumed)])
    assert not resumed.exists()
    monkeypatch.setattr(small, "dense_loss", dense)
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


def test_the_shipped_weights_say_where_they_come_from(tool):
    """And are small enough to ship."""
    path = PACKAGE / EMBEDDED["file"]
    assert path.stat().st_size <= 6e6
    with safe_open(path, "pt") as file:
        told = file.metadata()
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    assert told["licence"] == "Apache-2.0"
    assert told["seed"] == "0"
    assert told["batch"] == str(tool.BATCH)
    assert f"{tool.MATERIALS} materials" in told["training data"]
