"""The benchmarks on tiny settings: what they write adds up, is kept, and is not mixed with other settings."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from builders import networks_of, same_state, square_pairs, tiny_config, tiny_model, train_tiny

from dmdd_lite.course.cost import pair_operations
from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.losses import cosine_distance
from dmdd_lite.utils import describe, resolve_device

ROOT = Path(__file__).parent.parent
TEACHER = "--teacher test_resnet --size 64 --device cpu"
TINY = "--teacher test_resnet --teacher-weights random --image-size 64 --device cpu"


def measured(tmp_path, script: str, arguments: str) -> tuple[dict, str]:
    """The JSON of a script's run and the printed text."""
    path = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments.split(), "--out", path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert shlex.split(found["command"]) == ["python", f"benchmarks/{script}", *arguments.split()]
    assert (found["device"][:3], found["threads"]) == ("cpu", 1)
    return found, done.stdout


@pytest.mark.slow
def test_training_step_of_two_configurations(tmp_path):
    arguments = f"{TEACHER} --batch 2 --images 4 --iterations 4 --turns 1 --precision float32"
    arguments += ' --set prior=false --variant first: --variant less:student="decoder"'
    ways = measured(tmp_path, "training_step.py", arguments)[0]["ways"]
    assert list(ways) == ["first", "less"]
    # as the variant, with the stages of a long training
    pair = pair_operations(tiny_config(student="decoder", prior=False, iterations=5000))
    floor, less = ways["less"]["floor"], ways["less"]
    assert (floor["operations"], floor["computed"]) == (2 * pair.total, 2 * (pair.total - pair.teacher // 2))
    assert sum(less["parts"].values()) == pytest.approx(less["seconds"])
    assert less["times_first"] == pytest.approx(ways["first"]["seconds"] / less["seconds"])


@pytest.mark.slow
def test_inference(tmp_path):
    arguments = f"{TEACHER} --batches 1 2 --repeat 1 --turns 1 --set plus={{}}"
    ways = measured(tmp_path, "inference.py", arguments)[0]["ways"]
    assert list(ways) == ["dmdd-lite"]  # anomalib has no such backbone
    for batch, values in ways["dmdd-lite"].items():
        assert values["images_per_second"] * values["milliseconds"] == pytest.approx(1000 * int(batch))
        assert sum(values["parts"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_a_whole_run_beside_itself_on_another_machine(tmp_path, root, scripts):
    arguments = f"--data {root}/lever --teacher test_resnet --teacher-weights random --size 64 --iterations 6"
    found, text = measured(tmp_path, "whole_run.py", f"{arguments} --batch 2 --device cpu")
    assert found["reference"] == {}  # the committed one is of another configuration
    assert "not compared" in text
    assert 0 < found["precision"]["map_difference"] < 0.2  # bf16 has 8 bits of mantissa
    other = {**found, "device": "cpu: another", "minutes": 7.5}
    (tmp_path / "other.json").write_text(json.dumps(other))
    reference = import_module("whole_run").reference_of(tmp_path / "other.json", found)
    assert reference == {"device": "cpu: another", "minutes": 7.5, "metrics": found["metrics"]}


# ---- all of them --------------------------------------------------------------------------------------

GOOD = """
import json, os, sys
out = sys.argv[sys.argv.index("--out") + 1]
with open(os.path.join(os.path.dirname(__file__), "ran.txt"), "a") as file:
    file.write(os.path.basename(out)[-6] + "\\n")
words = [word for word in sys.argv[1:] if word not in ("--out", out)]
found = {"command": " ".join(["python", "benchmarks/good.py", *words]), "device": os.environ["DEVICE"]}
found |= {"threads": 1, "versions": {"torch": "2"}, "table": [["AUPRO", "0.5 s", "RD4AD: 2 s", "4.0"]]}
json.dump(found, open(out, "w"))
"""


def test_a_failing_step_stops_no_other_and_what_is_there_is_kept(scripts, tmp_path, monkeypatch):
    """With stand-ins for the scripts, which tell that they ran."""
    all_runs = import_module("run_all")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("raise ValueError('broken on purpose')")
    chosen = {"metrics": ["good.py", "--maps", "3"], "scaling": ["bad.py"], "metrics_b": ["good.py"]}
    monkeypatch.setattr(all_runs, "FOLDER", tmp_path)
    monkeypatch.setattr(all_runs, "steps", lambda *_: chosen)
    monkeypatch.setenv("DEVICE", describe(resolve_device("cpu"))["device"])

    def ran(*arguments):
        words = ["run_all.py", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        all_runs.main()
        return (tmp_path / "ran.txt").read_text().split()

    with pytest.raises(SystemExit, match="metrics failed: not started: the time is used up"):
        ran("--minutes", "1e-9")
    with pytest.raises(SystemExit, match="scaling failed: ValueError: broken on purpose"):
        ran()
    text = (tmp_path / "out/summary.md").read_text()
    assert text.count("| AUPRO | 0.5 s | RD4AD: 2 s | 4.0 |") == 2
    del chosen["scaling"]
    assert ran() == ["s", "b"]
    chosen["metrics"][-1] = "4"  # another command
    assert ran() == ["s", "b", "s"]
    monkeypatch.setenv("DEVICE", "cuda: NVIDIA H200")
    assert len(ran("--again")) == 3 + 2
    assert len(ran()) == 5 + 2  # of another device


# ---- scripts that make tables -------------------------------------------------------------------------


@pytest.fixture
def words(root, tmp_path) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(tmp_path)]


def test_baselines_that_are_there_are_kept_and_other_settings_refused(scripts, tmp_path, words, capsys):
    """A result of other hands, with numbers that a new run would not have; no anomalib is needed."""
    baselines, words = import_module("baselines"), [*words, "--baselines", "padim"]
    options = baselines.parse(words)
    (config,) = baselines.configurations(options)
    zones = {"map": {"centre": 0.25, "edge": None, "rim": 0.0}}
    values = {"seed": 0, "metrics": {"map": dict.fromkeys(METRICS, 0.5)}, "zones": zones, "seconds": 7.0}
    settings = baselines.settings_of("padim", options.data[0], config, options)
    (tmp_path / "padim_bracket_seed0.json").write_text(json.dumps({**settings, **values}))
    assert baselines.main(words) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert row == ["padim", "1", "50.00", "50.00", "50.00", "50.00", "-", "25.00", "7"]
    assert baselines.main([*words, "--features", "9"]) == 2
    assert "made with other settings (features: 100 -> 9)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_curve_ends_at_the_unwatched_training(scripts, root, tmp_path, words, capsys, monkeypatch):
    protocols = import_module("protocols")
    words += ["--iterations", "5", "--batch-size", "2", "--set", 'precision="float32"', "--seeds", "3"]
    assert protocols.main([*words, "--every", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    found = json.loads((tmp_path / "bracket_seed3.json").read_text())
    assert [line["iteration"] for line in found["curve"]] == [2, 4, 5]
    detector = train_tiny(root, iterations=5, seed=3).detector
    expected = evaluate(detector, open_category(root, "lever"), progress=False).metrics["fused"]
    assert {key: found["protocols"]["last"][key] for key in METRICS} == expected
    assert f"| {100 * expected['image_auroc']:.2f} / " in shown
    monkeypatch.setattr(protocols, "train", None)  # what is there is not made again
    assert protocols.main([*words, "--every", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == shown
    assert protocols.main([*words, "--every", "1"]) == 2
    assert "bracket_seed3.json was made with other settings (every: 2 -> 1)" in capsys.readouterr().err


@torch.no_grad()
def test_distances_of_the_branches_equal_loops_over_cells(scripts):
    branches, model, pairs = import_module("branches"), tiny_model().eval(), square_pairs()
    normal, seen = model.teacher(pairs.normal), model.teacher(pairs.anomalous)
    table = branches.pair_table(branches.PairViews(model, pairs), tuple(f[:1] for f in normal))
    clean, damaged = model.student(pairs.normal, normal), model.student(pairs.anomalous, seen)
    for k, stride in enumerate((4, 8, 16)):
        n, t, own, a = normal[k], seen[k], damaged.normality[k], damaged.abnormality[k]
        inside = {"A_T_in": (a, t), "N_Tn_in": (own, n), "A_N_in": (a, own), "T_Tn_in": (t, n)}
        found = {name: [] for name in (*inside, "A_T_out")}
        for b, y, x in itertools.product(range(2), range(64 // stride), range(64 // stride)):
            share = pairs.mask[b, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride].mean()
            pairs_here = {0.0: {"A_T_out": (a, t)}, 1.0: inside}.get(share.item(), {})
            for name, (p, q) in pairs_here.items():
                found[name].append(1 - torch.cosine_similarity(p[b, :, y, x], q[b, :, y, x], dim=0))
        for name, values in found.items():
            assert table.loc[stride, name] == pytest.approx(torch.stack(values).mean().item(), abs=1e-4), name
        of_clean = cosine_distance(clean.normality[k], n).mean().item()
        assert table.loc[stride, "N_clean"] == pytest.approx(of_clean, abs=1e-4)


# ---- an MSN trained again on a student that was trained before ----------------------------------------


@pytest.mark.parametrize("change", [
    {"msn_attention": ("self",), "plain_weight": 0.1, "smoothing_sigma": 2.0},
    {"plus": {"channels": 5, "context": 0}}, {"plus": None}, {"iterations": 7, "msn_iterations": 1},
    {"iterations": 6, "msn_iterations": 0},
])  # fmt: skip
def test_a_detector_refitted_is_that_of_a_whole_training(scripts, root, whole, change):
    expected = train_tiny(root, **change)
    config = tiny_config(**change)
    found = import_module("refit").refit(whole.detector, config, root, "lever", device="cpu", progress=False)
    assert same_state(networks_of(expected.detector), networks_of(found.detector))
    assert expected.detector.thresholds == found.detector.thresholds
    learned = expected.history[expected.history["iteration"] >= 6].reset_index(drop=True)
    pd.testing.assert_frame_equal(learned, found.history, check_dtype=len(learned) > 0)


@pytest.mark.parametrize("change, told", [
    ({"aim_weight": 3.0}, "aim_weight: 1.0 -> 3.0"), ({"iterations": 60}, "student_iterations: 6 -> 45"),
    ({"msn_iterations": 0, "seed": 1}, "seed: 0 -> 1; student_iterations: 6 -> 8"),
])  # fmt: skip
def test_nothing_is_refitted_for_another_student(scripts, root, whole, change, told):
    with pytest.raises(ValueError, match=rf"another student than the detector's \({told}\)"):
        import_module("refit").refit(whole.detector, tiny_config(**change), root, "lever", progress=False)
