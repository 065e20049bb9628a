"""Training: resumed runs, clear stops, the frozen teacher, an unopened test split, equal ways to compute."""

import math
import shutil

import pandas as pd
import pytest
import torch
from builders import networks_of, same_state, state_of, stop_at, tiny_config, tiny_trainer, train_tiny

from dmdd_lite import training
from dmdd_lite.backbones.networks import TeacherError
from dmdd_lite.data.problems import DataError
from dmdd_lite.data.training import load_training_data
from dmdd_lite.losses import aim_loss, cosine_distance, flat_distance, ngm_loss, resize_mask
from dmdd_lite.pairs import Pairs, alter, step_generator
from dmdd_lite.training import Trainer, TrainingError, learning_rate_factor


@pytest.fixture
def only_train(root, tmp_path):
    """The same category with nothing but train/good."""
    shutil.copytree(root / "lever" / "train", tmp_path / "only" / "lever" / "train")
    return tmp_path / "only"


def same_run(one, other) -> bool:
    """The same weights and thresholds bit by bit, the same losses."""
    pd.testing.assert_frame_equal(one.history, other.history)
    assert one.detector.thresholds == other.detector.thresholds
    return same_state(networks_of(one.detector), networks_of(other.detector))


def assert_near(one, other):
    states = (run.detector.model.state_dict() for run in (one, other))
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def data(root):
    """Six images to train on and one held out."""
    return load_training_data(tiny_config(), root, "lever", progress=False)


def test_a_run_depends_on_the_seed_and_not_on_the_test_split_nor_changes_the_teacher(
    whole, only_train, teacher
):
    assert same_run(train_tiny(only_train), whole)
    assert same_state(teacher.network, whole.detector.model.teacher.network)
    assert list(whole.history["iteration"]) == list(range(8))
    student = [True] * 6 + [False] * 2
    for name in ("ngm", "aim", "aim_inside", "aim_outside"):
        assert whole.history[name].notna().tolist() == student
    assert whole.history["msn"].isna().tolist() == student
    other = train_tiny(only_train, seed=1)
    assert not same_state(*(dict(run.detector.model.student.named_parameters()) for run in (whole, other)))


def interrupt(root, folder, stop):
    """A run stopped after iteration `stop`; its checkpoint lies in `folder`."""
    with pytest.raises(KeyboardInterrupt):
        train_tiny(root, folder, 1, stop_at(stop + 1))


@pytest.mark.parametrize("stop", [1, 6, 7])  # in stage 1, between the stages, in stage 2
def test_resumed_equals_uninterrupted(root, tmp_path, whole, capsys, stop):
    interrupt(root, tmp_path, stop)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == stop
    assert same_run(train_tiny(root, tmp_path), whole)
    assert f"{tmp_path}: resumes from iteration {stop}" in capsys.readouterr().out


def test_a_finished_run_is_loaded_and_says_so(root, tmp_path, whole, monkeypatch, capsys):
    first = train_tiny(root, tmp_path)
    assert capsys.readouterr().out.count("1 held-out good image: expect about 1 false alarm in 2 good") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "training.json"]
    monkeypatch.setattr(Trainer, "step", None)
    again = train_tiny(root, tmp_path)
    assert "loaded, trained before" in capsys.readouterr().out
    assert same_run(again, whole)
    assert first.seconds == again.seconds


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """A stopped and a finished run; tests change copies of it."""
    folder = tmp_path_factory.mktemp("runs")
    interrupt(root, folder / "stopped", 1)
    train_tiny(root, folder / "finished")
    return folder


def outdated(file):
    """As a version wrote it that had other fields."""
    if file.suffix == ".json":
        file.write_text('{"format": 5}')
    else:
        torch.save({**torch.load(file, weights_only=True), "format": 5, "config": {"msn_skip": 0.7}}, file)


@pytest.mark.parametrize("kind, file, other, broken", [
    ("stopped", "checkpoint.pt", r"checkpoint\.pt: .*aim_weight: 1\.0 -> 3\.0.*delete it",
     r"checkpoint\.pt is not usable"),
    ("finished", "training.json", r"training\.json: it is of another run \(aim_weight: 1\.0 -> 3\.0\)",
     r"training\.json is not usable \(KeyError"),
])  # fmt: skip
def test_another_an_older_or_a_broken_run_is_refused_by_name(root, runs, tmp_path, kind, file, other, broken):
    folder = shutil.copytree(runs / kind, tmp_path / "run")
    with pytest.raises(TrainingError, match=other):
        train_tiny(root, folder, aim_weight=3.0)
    outdated(folder / file)
    with pytest.raises(TrainingError, match=r"another version of dmdd-lite.* delete it"):
        train_tiny(root, folder)
    (folder / file).write_text("{}")
    with pytest.raises(TrainingError, match=broken):
        train_tiny(root, folder)


@pytest.mark.parametrize("loss, sound, told", [
    ("ngm_loss", 4, "L_NGM is nan at iteration 2: lower learning_rate"),
    ("msn_loss", 1, "L_MSN is nan at iteration 7: lower msn_learning_rate"),
])  # fmt: skip
def test_nan_stops_with_a_remedy_and_keeps_the_checkpoint(root, tmp_path, monkeypatch, loss, sound, told):
    """After so many sound calls of the loss, the other ones are NaN."""
    real, calls = getattr(training, loss), []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) > sound else 1)

    monkeypatch.setattr(training, loss, broken)
    with pytest.raises(TrainingError, match=told):
        train_tiny(root, tmp_path, every=1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert f"at iteration {state['iteration']}:" in told
    assert all(v.isfinite().all() for v in state["networks"]["student"].values())


@pytest.mark.parametrize("changes, category, device, message", [
    ({}, "cat", "cpu", "no category named 'cat'.*lever"), ({}, "lever", "cuda:77", "'cuda:77' is not usable"),
    ({"teacher_weights": "nowhere.pth"}, "lever", "cpu", "nowhere.pth cannot be read: there is no such"),
    ({"teacher": "no_such_net"}, "lever", "cpu", "timm has no model"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(root, tmp_path, changes, category, device, message):
    with pytest.raises((DataError, TeacherError, ValueError), match=message):
        training.train(tiny_config(**changes), root, category, "", tmp_path / "run", device, progress=False)
    assert not (tmp_path / "run").exists()


def test_plain_distillation_fits_the_normal_view_alone(data):
    trainer = tiny_trainer(data, branches=("normality",), pairs=False, msn_iterations=0)
    pairs, seen = trainer.pairs.batch(0), []
    trainer.model.student.register_forward_hook(lambda *_: seen.append(_[2].normality))
    losses, features = trainer.student_losses(pairs), trainer.model.teacher(pairs.normal)
    expected = sum(flat_distance(n, t) for n, t in zip(seen[0], features, strict=True))
    assert losses.ngm.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (len(seen), losses.aim.item()) == (1, 0)
    assert math.isnan(losses.msn)


def test_stage_2_starts_at_the_levels_of_the_training_images_and_sees_alterations(data):
    """Logarithms of their maps are 0 on average; the MSN is shown altered views instead of textures."""
    trainer = tiny_trainer(data)
    trainer.iteration = 6
    trainer._finish_student()
    model, pairs, seen = trainer.model, trainer.pairs.batch(1), []
    with torch.no_grad():
        levels = model(data.images.float() / 255).inputs.maps.mean((0, 2, 3))
    torch.testing.assert_close(levels, torch.zeros(6), rtol=0, atol=1e-4)
    model.msn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.msn_losses(pairs)
    altered = alter(pairs.normal, pairs.mask, step_generator(trainer.config.seed, "alterations", 6))
    for found, view in zip(seen.pop().chunk(2), (pairs.normal, altered), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, trainer.model(view).inputs.maps, rtol=1e-3, atol=1e-3)


def test_the_student_learns_before_the_msn_and_is_left_alone_by_it(data):
    """Weights and batch norm's statistics of either network change in its own stage only."""
    trainer = tiny_trainer(data)
    networks = trainer.model.student, trainer.model.msn
    for steps in (6, 2):
        before = [state_of(network) for network in networks]
        for _ in range(steps):
            losses = trainer.step()
        changed = [not same_state(a, b) for a, b in zip(before, networks, strict=True)]
        assert changed == [steps == 6, steps == 2]
        assert [math.isfinite(loss) for loss in losses[:3]] == [steps == 6, steps == 6, steps == 2]


def test_learning_rate_warms_up_then_falls_to_zero_in_either_stage():
    config = tiny_config(iterations=800)
    for stage, warm in ((range(600), 30), (range(600, 800), 10)):
        factors = [learning_rate_factor(config, i) for i in stage]
        assert factors[: warm + 1] == pytest.approx([*(k / warm for k in range(1, warm + 1)), 1.0])
        assert factors[warm:] == sorted(factors[warm:], reverse=True)
        assert 0 < factors[-1] < 0.001


def test_one_repeated_batch_is_learned(data):
    """A departs inside and stays near outside, N restores: where these fail, so would any training."""
    trainer = tiny_trainer(data, iterations=160, msn_iterations=0, batch_size=4)
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    normal, mask = torch.nn.functional.interpolate(noise[:, :, :8, :8], (64, 64)), torch.zeros(4, 64, 64)
    mask[:, :32, :32] = 1
    pairs = Pairs(normal, torch.where(mask[:, None] > 0, noise, normal), mask)
    trainer.known.kept = None  # its normal images are none of these
    trainer.pairs.batch = lambda iteration: pairs
    losses = [trainer.step() for _ in range(160)]
    assert losses[-1].aim_inside < losses[0].aim_inside / 5
    with torch.no_grad():
        normal, seen = trainer.model.teacher(pairs.normal), trainer.model.teacher(pairs.anomalous)
        output = trainer.model.student(pairs.anomalous, seen)
    for n, a, good, own in zip(*output, normal, seen, strict=True):
        distance, share = cosine_distance(a, own), resize_mask(pairs.mask, a.shape[2:])
        assert distance[share >= 0.99].mean() > 0.9
        assert distance[share <= 0.01].mean() < 0.1
        assert cosine_distance(n, good)[share >= 0.99].mean() < 0.2


def test_kept_features_are_the_teachers(root, whole, data):
    trainer = tiny_trainer(data, feature_memory=1.0)
    assert [len(scale) for scale in trainer.known.kept] == [len(data.images)] * 3
    pairs = trainer.pairs.batch(2)
    kept = trainer.teacher_features(list(pairs[:2]), 2)
    for found, view in zip(kept, pairs[:2], strict=True):
        torch.testing.assert_close(found, trainer.model.teacher(view))
    ngm = trainer.student_losses(pairs).ngm.item()
    assert trainer.student_losses(pairs, 2).ngm.item() == pytest.approx(ngm, rel=1e-4)
    assert tiny_config().feature_memory > 0
    assert_near(train_tiny(root, feature_memory=0.0), whole)


def test_gradients_view_by_view_are_those_of_all_losses_at_once(data):
    """Against the losses' formulas, their sum differentiated in one piece."""
    together, apart = (tiny_trainer(data, aim_weight=0.7) for _ in range(2))
    pairs, model = together.pairs.batch(0), together.model
    normal, ngm, aim = model.teacher(pairs.normal), 0.0, 0.0
    for view, mask in ((pairs.normal, torch.zeros_like(pairs.mask)), (pairs.anomalous, pairs.mask)):
        seen = model.teacher(view)
        normality, abnormality = model.student(view, seen)
        ngm = ngm + ngm_loss(normality, normal, mask)
        aim = aim + aim_loss(abnormality, seen, mask).total
    (ngm + 0.7 * aim).backward()
    found = apart.student_losses(pairs)
    torch.testing.assert_close(torch.stack(found[:2]), torch.stack((ngm, aim)).detach())
    for one, other in zip(apart.model.student.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_compiled_networks_learn_the_same(root, whole, monkeypatch):
    compiled, compiler = [], torch.compile

    def traced(network):
        compiled.append(network)
        return compiler(network, backend="aot_eager")  # the whole way but for the code generator

    monkeypatch.setattr(torch, "compile", traced)
    assert_near(train_tiny(root, compile=True), whole)
    assert len(compiled) == 2
