"""Training: resumed runs, atomic checkpoints, clear stops, the frozen teacher, an unopened test split."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy
import pandas as pd
import pytest
import torch
from builders import tiny_config

from dmdd_lite import trainer as trainer_module
from dmdd_lite import training
from dmdd_lite.alterations import alter
from dmdd_lite.data import DataError
from dmdd_lite.losses import flat_distance
from dmdd_lite.model import build_model
from dmdd_lite.synthesis import step_generator
from dmdd_lite.teacher import TeacherError, build_teacher
from dmdd_lite.training import (
    PairSource,
    Trainer,
    TrainingError,
    learning_rate_factor,
    load_training_data,
    train,
)


@pytest.fixture
def only_train(root, tmp_path):
    """The same category with nothing but train/good."""
    shutil.copytree(root / "lever" / "train", tmp_path / "only" / "lever" / "train")
    return tmp_path / "only"


def weights(detector):
    return detector.model.state_dict()


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def make_trainer(root, config):
    teacher = build_teacher(config.teacher, config.teacher_weights)
    data = training.load_training_data(config, root, "lever", progress=False)
    return Trainer(config, build_model(config, teacher), data)


def test_the_training_call_never_opens_the_test_split(only_train):
    result = train(tiny_config(), only_train, "lever", device="cpu", progress=False)
    assert list(result.history["iteration"]) == list(range(6))
    student = [True] * 3 + [False] * 3
    for name in ("ngm", "aim", "aim_inside", "aim_outside"):
        assert result.history[name].notna().tolist() == student
    assert result.history["msn"].isna().tolist() == student
    assert result.pairs_per_second > 0


def test_same_seed_same_weights(root):
    same = [train(tiny_config(seed=s), root, "lever", device="cpu", progress=False) for s in (0, 0, 1)]
    assert_same_weights(weights(same[0].detector), weights(same[1].detector))
    assert same[0].detector.threshold == same[1].detector.threshold
    fc = [w for w in weights(same[2].detector) if w.startswith("student") and w.endswith("weight")]
    assert any(not torch.equal(weights(same[0].detector)[k], weights(same[2].detector)[k]) for k in fc)


def interrupt(root, folder, stop):
    """A run stopped before iteration `stop`; its checkpoint lies in `folder`."""
    steps = Trainer.step

    def interrupted(self):
        if self.iteration == stop:
            raise KeyboardInterrupt
        return steps(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), root, "lever", "", folder, "cpu", checkpoint_every=1, progress=False)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_resumed_equals_uninterrupted(root, tmp_path, capsys, stop):
    whole = train(tiny_config(), root, "lever", device="cpu", progress=False)
    interrupt(root, tmp_path, stop)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == stop
    resumed = train(tiny_config(), root, "lever", "", tmp_path, "cpu", progress=False)
    assert_same_weights(weights(whole.detector), weights(resumed.detector))
    pd.testing.assert_frame_equal(whole.history, resumed.history)
    assert f"{tmp_path}: goes on from iteration {stop}" in capsys.readouterr().out


def test_a_finished_run_is_loaded_and_says_so(root, tmp_path, monkeypatch, capsys):
    first = train(tiny_config(), root, "lever", "", tmp_path, "cpu", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "training.json"]
    monkeypatch.setattr(Trainer, "step", None)
    again = train(tiny_config(), root, "lever", "", tmp_path, "cpu", progress=False)
    assert "loaded, trained before" in capsys.readouterr().out
    assert_same_weights(weights(first.detector), weights(again.detector))
    pd.testing.assert_frame_equal(first.history, again.history)
    assert (first.detector.threshold, first.seconds) == (again.detector.threshold, again.seconds)


def test_another_or_a_broken_finished_run_is_refused_by_name(root, tmp_path):
    train(tiny_config(iterations=2), root, "lever", "", tmp_path, "cpu", progress=False)
    with pytest.raises(TrainingError, match=r"another finished run \(aim_weight: 1\.0 -> 3\.0\); delete it"):
        train(tiny_config(iterations=2, aim_weight=3), root, "lever", "", tmp_path, "cpu", progress=False)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"training\.json is not a training's record"):
        train(tiny_config(iterations=2), root, "lever", "", tmp_path, "cpu", progress=False)


def test_plain_distillation_fits_the_normal_view_alone(root):
    config = tiny_config(branches=("normality",), pairs=False, fusion_start=1.0)
    teacher = build_teacher(config.teacher, config.teacher_weights)
    trainer = Trainer(config, build_model(config, teacher), load_training_data(config, root, "lever"))
    model, pairs = copy.deepcopy(trainer.model), trainer.pairs.batch(0)
    for decoupling, f in zip(model.student.decouple, teacher(trainer.data.images.float() / 255), strict=True):
        torch.testing.assert_close(decoupling.prior, f.mean(0, keepdim=True))
    losses = trainer.losses(pairs)
    features = teacher(pairs.normal)
    student = model.student(pairs.normal, features)
    expected = sum(flat_distance(n, t) for n, t in zip(student.normality, features, strict=True))
    assert losses.ngm.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (losses.aim.item(), student.abnormality) == (0, ())
    assert torch.isnan(losses.msn)


@pytest.mark.parametrize("branch", ["normality", "abnormality"])
def test_one_branch_alone_trains_and_predicts(root, tmp_path, branch):
    result = train(tiny_config(branches=(branch,)), root, "lever", "", tmp_path, "cpu", progress=False)
    trained = {name for name in ("ngm", "aim") if (result.history[name] > 0).any()}
    assert trained == {{"normality": "ngm", "abnormality": "aim"}[branch]}
    prediction = result.detector.predict(next((root / "lever/test/good").glob("*.png")))
    other = {"normality": "abnormality", "abnormality": "normality"}[branch]
    assert len(getattr(prediction, branch)) == 3
    assert getattr(prediction, other) == ()


def test_checkpoint_killed_in_the_middle_of_writing_leaves_the_previous_one(root, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal, sys, torch
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from builders import tiny_config
        from dmdd_lite.training import train
        save, calls = torch.save, []
        def dying(state, file):
            calls.append(file)
            save(state, file)
            if len(calls) == 3:
                file.truncate(file.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        torch.save = dying
        torch.set_num_threads({torch.get_num_threads()})
        train(tiny_config(), {str(root)!r}, "lever", "", {str(tmp_path)!r}, "cpu", 1, False)
    """)
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2
    resumed = train(tiny_config(), root, "lever", "", tmp_path, "cpu", progress=False)
    whole = train(tiny_config(), root, "lever", device="cpu", progress=False)
    assert_same_weights(weights(whole.detector), weights(resumed.detector))


def test_checkpoint_of_another_run_or_broken_is_refused_by_name(root, tmp_path):
    interrupt(root, tmp_path, 1)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: .*aim_weight: 1\.0 -> 3\.0.*delete it"):
        train(tiny_config(aim_weight=3), root, "lever", "", tmp_path, "cpu", progress=False)
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is not a usable checkpoint"):
        train(tiny_config(), root, "lever", "", tmp_path, "cpu", progress=False)


def test_other_training_images_are_noticed(root, only_train, tmp_path):
    interrupt(root, tmp_path / "stopped", 1)
    train(tiny_config(), root, "lever", "", tmp_path / "finished", "cpu", progress=False)
    next((only_train / "lever/train/good").glob("*.png")).unlink()
    for run in ("stopped", "finished"):
        with pytest.raises(TrainingError, match="images differ"):
            train(tiny_config(), only_train, "lever", "", tmp_path / run, "cpu", progress=False)


@pytest.mark.parametrize(
    "loss, sound, told",
    [("ngm_loss", 4, "L_NGM is nan at iteration 2: lower learning_rate"),
     ("fusion_loss", 1, "L_MSN is nan at iteration 4: lower fusion_learning_rate")],
)  # fmt: skip
def test_nan_stops_with_a_remedy_and_keeps_the_last_checkpoint(
    root, tmp_path, monkeypatch, loss, sound, told
):
    """After so many sound calls of the loss, the other ones are NaN."""
    real = getattr(trainer_module, loss)
    calls = []

    def broken(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) > sound else 1)

    monkeypatch.setattr(trainer_module, loss, broken)
    with pytest.raises(TrainingError, match=told):
        train(tiny_config(), root, "lever", "", tmp_path, "cpu", checkpoint_every=1, progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert f"at iteration {state['iteration']}:" in told
    assert all(v.isfinite().all() for v in state["student"].values())


def test_teacher_parameters_and_buffers_survive_training(root):
    config = tiny_config()
    before = build_teacher(config.teacher, "random").network.state_dict()
    model = train(config, root, "lever", device="cpu", progress=False).detector.model
    assert_same_weights(before, model.teacher.network.state_dict())
    plain = train(
        tiny_config(standardise="never"), root, "lever", device="cpu", progress=False
    ).detector.model
    assert_same_weights(build_teacher(config.teacher, "random").state_dict(), plain.teacher.state_dict())


def test_either_view_has_its_own_batch_statistics(root):
    """The student's output for the normal view does not depend on what the anomalous view holds."""
    trainer = make_trainer(root, tiny_config())
    pairs = trainer.pairs.batch(0)
    clean = pairs._replace(anomalous=pairs.normal, mask=torch.zeros_like(pairs.mask))
    seen = []
    trainer.model.student.register_forward_hook(lambda _, __, output: seen.append(output.normality[0]))
    trainer.losses(pairs)
    trainer.losses(clean)
    torch.testing.assert_close(seen[0], seen[2])
    assert not torch.equal(seen[1], seen[3])


def at_stage_2(root):
    """A trainer of a student that has not learned."""
    trainer = make_trainer(root, tiny_config(fusion_start=0.0))
    trainer.finish_student()
    return trainer


def test_the_levels_of_stage_2_are_those_of_the_training_images(root):
    """The logarithms of their maps are 0 on average."""
    model, images = (trainer := at_stage_2(root)).model, trainer.data.images.float() / 255
    with torch.no_grad():
        maps = model(images).maps
    torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)


def test_the_fusion_sees_alterations_instead_of_textures(root):
    trainer = at_stage_2(root)
    pairs, seen = trainer.pairs.batch(1), []
    trainer.model.fusion.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.iteration = 1
    trainer.losses(pairs)
    altered = alter(pairs.normal, pairs.mask, step_generator(trainer.config.seed, "alterations", 1))
    for found, view in zip(seen.pop().chunk(2), (pairs.normal, altered), strict=True):
        with torch.no_grad():
            expected = trainer.model(view).maps
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_student_learns_before_the_fusion_and_is_left_alone_by_it(root):
    """Weights and batch norm's statistics of either network change in its own stage only."""
    trainer = make_trainer(root, tiny_config())
    networks = trainer.model.student, trainer.model.fusion

    def states():
        return [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]

    for _ in range(2):
        before = states()
        for _ in range(3):
            losses = trainer.step()
        changed = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in zip(before, states(), strict=True)]
        assert changed == [trainer.iteration == 3, trainer.iteration == 6]
        assert losses.ngm.isfinite() == losses.aim.isfinite() == (trainer.iteration == 3)
        assert losses.msn.isfinite() == (trainer.iteration == 6)


@pytest.mark.parametrize(
    "change",
    [
        {"fusion_attention": ("self",), "fusion_skip": 0.1, "smoothing_sigma": 2.0},
        {"position_channels": 5, "position_context": 0},
        {"position_maps": False},
        {"iterations": 12, "fusion_start": 0.25},
        {"fusion_start": 1.0, "iterations": 3},
    ],
)
def test_a_fusion_refitted_is_that_of_a_whole_training(root, change):
    first = train(tiny_config(), root, "lever", device="cpu", progress=False)
    config = tiny_config(**change)
    whole = train(config, root, "lever", device="cpu", progress=False)
    found = training.refit_fusion(first.detector, config, root, "lever", device="cpu", progress=False)
    assert_same_weights(weights(whole.detector), weights(found.detector))
    assert whole.detector.threshold == found.detector.threshold
    learned = whole.history[whole.history["iteration"] >= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(learned, found.history, check_dtype=len(learned) > 0)


def test_the_weight_of_plus_is_chosen_on_held_out_images(root):
    """64 good views and 64 altered ones, of images that training has not seen."""
    found = train(tiny_config(holdout=0.3), root, "lever", device="cpu", progress=False).detector
    model, data = found.model, make_trainer(root, tiny_config(holdout=0.3)).data
    batches = list(training.altered_maps(model, data.held_out, False))
    masks = torch.cat([mask for *_, mask in batches]).unflatten(0, (8, 2, 8))
    assert not masks[:, 0].any()
    assert masks[:, 1].flatten(2).any(2).float().mean() > 0.5
    with torch.no_grad():
        maps = model(data.held_out[torch.arange(8) % len(data.held_out)].float() / 255)
    torch.testing.assert_close(batches[0][0], maps.fused)
    chosen = model.plus.weight.item()
    assert model.plus.choose(iter(batches)) == pytest.approx(chosen)


def test_a_fusion_is_not_refitted_for_another_student(root):
    first = train(tiny_config(), root, "lever", device="cpu", progress=False)
    for change, told in (
        ({"aim_weight": 3.0}, "aim_weight: 1.0 -> 3.0"),
        ({"iterations": 60}, "student_iterations: 3 -> 30"),
        ({"fusion_start": 1.0, "seed": 1}, "seed: 0 -> 1; student_iterations: 3 -> 6"),
    ):
        with pytest.raises(ValueError, match=rf"another student than the detector's \({told}\)"):
            training.refit_fusion(first.detector, tiny_config(**change), root, "lever", progress=False)


def test_every_image_once_an_epoch(root):
    """7 images, one held out, batches of 4: any 6 consecutive places from a multiple of 6 hold each once."""
    data = training.load_training_data(tiny_config(), root, "lever", progress=False)
    assert (len(data.images), len(data.held_out)) == (6, 1)
    source = PairSource(tiny_config(batch_size=4), data)
    seen = torch.cat([(255 * source.batch(i).normal).round().byte() for i in range(3)])
    for epoch in seen.split(6):
        assert sorted(e.float().sum().item() for e in epoch) == sorted(
            i.float().sum().item() for i in data.images
        )


def test_pairs_do_not_depend_on_what_was_made_before(root):
    data = training.load_training_data(tiny_config(), root, "lever", progress=False)
    source = PairSource(tiny_config(), data)
    for i in range(3):
        source.batch(i)
    for a, b in zip(source.batch(5), PairSource(tiny_config(), data).batch(5), strict=True):
        assert torch.equal(a, b)


def test_streams_differ_by_purpose_and_step():
    draws = {
        tuple(torch.rand(2, generator=step_generator(s, p, i)).tolist())
        for s in range(2)
        for p in ("pairs", "order")
        for i in range(5)
    }
    assert len(draws) == 20


def test_learning_rate_warms_up_then_falls_to_zero():
    """In either stage."""
    config = tiny_config(iterations=200, fusion_start=0.5, warmup=0.1)
    for stage in (range(100), range(100, 200)):
        factors = [learning_rate_factor(config, i) for i in stage]
        assert factors[:11] == pytest.approx([*(k / 10 for k in range(1, 11)), 1.0])
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert 0 < factors[-1] < 0.001
        assert learning_rate_factor(config.replace(schedule="constant"), stage[-1]) == 1


@pytest.mark.parametrize(
    "changes, category, error, message",
    [
        ({}, "cat", DataError, "no category named 'cat'.*lever"),
        ({"teacher_weights": "nowhere.pth"}, "lever", TeacherError, "nowhere.pth do not exist"),
        ({"teacher": "no_such_net"}, "lever", TeacherError, "timm has no model"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(root, tmp_path, changes, category, error, message):
    with pytest.raises(error, match=message):
        train(tiny_config(**changes), root, category, "", tmp_path / "run", "cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_device_that_is_not_there(root):
    with pytest.raises(ValueError, match="device 'cuda:77' is not usable here"):
        train(tiny_config(), root, "lever", device="cuda:77", progress=False)


@pytest.mark.slow
def test_wide_resnet50_trains_and_predicts_at_256_px(root):
    """The paper's size: WideResNet-50-2, 256 px, untrained weights."""
    config = tiny_config(
        teacher="wide_resnet50_2",
        image_size=256,
        iterations=2,
        student_blocks=(),
        fusion_start=0.5,
        holdout=0.2,
    )
    result = train(config, root, "lever", device="cpu", progress=False)
    assert result.detector.model.teacher.info.channels == (256, 512, 1024)
    assert result.history["msn"].notna().tolist() == [False, True]
    prediction = result.detector.predict(next((root / "lever/test/good").glob("*.png")))
    assert prediction.fused.shape == (64, 64)
    assert [m.shape for m in prediction.normality] == [(64, 64), (32, 32), (16, 16)]


def test_kept_features_are_the_teachers(root):
    config = tiny_config(feature_memory=1.0)
    teacher = build_teacher(config.teacher, config.teacher_weights)
    data = load_training_data(config, root, "lever", progress=False)
    trainer = Trainer(config, build_model(config, teacher), data)
    assert [len(scale) for scale in trainer.known] == [len(data.images)] * 3
    pairs, index = trainer.pairs.batch(2), trainer.pairs.indices(2)
    kept, computed = trainer.teacher_features(list(pairs[:2]), index), teacher(pairs.normal)
    torch.testing.assert_close(kept[0], computed)
    torch.testing.assert_close(kept[1], teacher(pairs.anomalous))
    ngm = trainer.losses(pairs).ngm.item()
    assert trainer.losses(pairs, index).ngm.item() == pytest.approx(ngm, rel=1e-4)


def test_features_that_do_not_fit_are_computed_each_time(root):
    config = tiny_config(feature_memory=0.0)
    none = train(config, root, "lever", device="cpu", progress=False)
    kept = train(config.replace(feature_memory=1.0), root, "lever", device="cpu", progress=False)
    for name, weight in weights(none.detector).items():
        torch.testing.assert_close(weight, weights(kept.detector)[name], rtol=1e-3, atol=1e-4)


def test_bf16_stays_near_float32(root):
    low, full = (
        train(tiny_config(precision=p), root, "lever", device="cpu", progress=False)
        for p in ("bf16", "float32")
    )
    assert not torch.equal(*(r.detector.model.student.decouple[0].expand[-2].weight for r in (low, full)))
    numpy.testing.assert_allclose(low.history["ngm"], full.history["ngm"], rtol=0.05)
    image = next((root / "lever/test/good").glob("*.png"))
    a, b = low.detector.predict(image).fused, full.detector.predict(image).fused
    assert abs(a - b).mean() < 0.05


def gradients(trainer):
    networks = (trainer.model.student, trainer.model.fusion)
    return [p.grad.clone() for network in networks for p in network.parameters() if p.grad is not None]


def test_gradients_view_by_view_are_those_of_all_losses_at_once(root):
    config = tiny_config(fusion_start=1.0, aim_weight=0.7)
    together, apart = make_trainer(root, config), make_trainer(root, config)
    pairs = together.pairs.batch(0)
    losses = together.losses(pairs)
    (losses.ngm + 0.7 * losses.aim).backward()
    found = apart.losses(pairs, learn=True)
    torch.testing.assert_close(found[:2], losses[:2])
    assert len(gradients(apart)) == sum(1 for p in apart.model.student.parameters() if p.requires_grad)
    for one, other in zip(gradients(apart), gradients(together), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Reading(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operations after which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("start", [1.0, 0.0])
def test_an_iteration_reads_nothing_back_from_the_device(root, start):
    trainer = make_trainer(root, tiny_config(fusion_start=start, feature_memory=1.0))
    trainer.step()  # the first of stage 2 takes levels
    pairs, index = trainer.pairs.batch(1), trainer.pairs.indices(1)
    with Reading() as reading:
        trainer.pairs.batch = lambda *_: pairs
        trainer.pairs.indices = lambda _: index
        losses = trainer.step()
        assert reading.found == []
        assert (losses.ngm if start else losses.msn).item() > 0
    assert reading.found == ["_local_scalar_dense"]


def test_losses_are_read_late_and_in_order(root):
    trainer = make_trainer(root, tiny_config())
    reader, rows = training.LossReader(trainer), [trainer_module.Losses(*torch.rand(5)) for _ in range(5)]
    for iteration, row in enumerate(rows):
        reader.add(iteration, row)
        if iteration in (1, 2):
            reader.read()
    assert [row[0] for row in trainer.history] == [0, 1, 2]
    reader.read(everything=True)
    assert trainer.history == [[i, *torch.stack(row).tolist()] for i, row in enumerate(rows)]


def test_compiled_networks_learn_the_same(root, monkeypatch):
    plain = train(tiny_config(), root, "lever", device="cpu", progress=False)
    compiled, compiler = [], torch.compile

    def traced(network):
        compiled.append(network)
        return compiler(network, backend="aot_eager")  # the whole way but for the code generator

    monkeypatch.setattr(torch, "compile", traced)
    traced_too = train(tiny_config(compile=True), root, "lever", device="cpu", progress=False)
    assert len(compiled) == 3
    for name, weight in weights(plain.detector).items():
        torch.testing.assert_close(weight, weights(traced_too.detector)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("calls", [0, 10])  # at once; or in stage 2
def test_training_goes_on_without_a_compiler_that_fails(root, monkeypatch, calls):
    plain = train(tiny_config(), root, "lever", device="cpu", progress=False)
    left = iter(range(calls))

    def broken(network):
        def call(*inputs):
            output = network(*inputs)  # batch norm has counted these by now
            if next(left, None) is None:
                raise RuntimeError("no C++ compiler\nand a long trace")
            return output

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"compile=True fails here \(no C\+\+ compiler\); training without"):
        without = train(tiny_config(compile=True), root, "lever", device="cpu", progress=False)
    assert_same_weights(weights(plain.detector), weights(without.detector))
