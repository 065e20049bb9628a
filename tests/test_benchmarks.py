"""The benchmarks on tiny settings: what they write is complete and adds up; all of them in one, resumable."""

import itertools
import json
import math
import mmap
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import tiny_config

ROOT = Path(__file__).parent.parent
OPTIONS = SimpleNamespace(  # run_all's defaults
    peer=None,
    data="data/mvtec_ad/bottle",
    textures="data/dtd/images",
    teacher_weights="mobilenetv2_100.safetensors",
)
TEACHER = "--teacher test_resnet --size 64 --device cpu"


def measured(tmp_path, script: str, arguments: str) -> tuple[dict, str]:
    """The JSON and the printed text of a script's run."""
    path = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments.split(), "--out", path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert shlex.split(found["command"]) == ["python", f"benchmarks/{script}", *arguments.split()]
    assert found["device"].startswith("cpu")
    assert found["threads"] == 1
    assert {"torch", "dmdd-lite"} <= set(found["versions"])
    return found, done.stdout


def numbers(values, place=()) -> dict[tuple, float]:
    """Every number of nested dictionaries and lists, by its place."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        return {k: v for name, value in items for k, v in numbers(value, (*place, name)).items()}
    return {place: values} if isinstance(values, int | float) else {}


def assert_positive(values, but=("above_start_gb", "mb", "difference", "student and step", "seed")):
    """All finite and above 0: memory beyond the start may be none, a remainder of two timings anything."""
    for place, value in numbers(values).items():
        assert math.isfinite(value), place
        assert value > 0 or place[-1] in but, place


@pytest.mark.slow
def test_training_step_beside_another_checkout(tmp_path):
    from dmdd_lite.config import Config
    from dmdd_lite.cost import pair_operations

    arguments = f"{TEACHER} --batch 2 --images 4 --iterations 4 --turns 2 --precision float32"
    arguments += f" --set student_blocks=[1,1,1],fusion_width=4 --peer {ROOT} --variant less:student_width=16"
    found, text = measured(tmp_path, "training_step.py", arguments)
    assert_positive(found)
    assert list(found["ways"]) == ["peer", "less"]
    less = found["ways"]["less"]
    # as narrow as the variant, with the stages of a long training
    pair = pair_operations(tiny_config(fusion_start=Config().fusion_start, iterations=5000))
    assert less["floor"]["operations"] == 2 * pair.total
    assert less["floor"]["computed"] == 2 * (pair.total - pair.teacher // 2)
    assert sum(less["parts"].values()) == pytest.approx(less["seconds"])
    assert less["times_first"] == pytest.approx(found["ways"]["peer"]["seconds"] / less["seconds"])
    for row in ("peer: ", "less: ", "synthesis", "teacher", "fusion (MSN)", "student and step", "floor"):
        assert f"\n{row}" in text or f"\n    {row}" in text


@pytest.mark.slow
def test_inference(tmp_path):
    found, text = measured(tmp_path, "inference.py", f"{TEACHER} --batches 1 2 --repeat 1")
    assert_positive(found)
    ways = found["ways"]
    assert list(ways) == ["dmdd-lite"]  # anomalib has no such backbone
    for batch, values in ways["dmdd-lite"].items():
        product = values["images_per_second"] * values["milliseconds"]
        assert product == pytest.approx(1000 * int(batch))
        assert f"batch   {batch}  dmdd-lite" in text


@pytest.mark.slow
def test_metrics(tmp_path):
    found, text = measured(tmp_path, "metrics.py", "--maps 8 --size 64 --repeat 1")
    assert_positive(found)
    rows = found["rows"]
    peers = {name: row for name, row in rows.items() if "peer_of" in row}
    for name, row in peers.items():
        assert row["value"] - row["difference"] == pytest.approx(rows[row["peer_of"]]["value"])
        assert abs(row["difference"]) < (0.05 if "200 thresholds" in name else 1e-6)
        assert f"| {row['peer_of']}: {name} |" in text
    assert {row["peer_of"] for row in peers.values()} == {
        "pixel_auroc",
        "pixel_ap",
        "aupro",
        "aupro_per_image",
    }


@pytest.mark.slow
def test_synthesis(tmp_path):
    found, text = measured(tmp_path, "synthesis.py", "--batch 2 --size 64 --repeat 1 --device cpu")
    assert_positive(found)
    assert "pairs" in text


@pytest.mark.slow
def test_a_whole_run_beside_itself_on_another_machine(tmp_path, root, scripts, monkeypatch):
    import whole_run

    fields = "student_blocks=[1,1,1],student_width=16,fusion_width=4"
    arguments = f"--data {root}/lever --teacher test_resnet --teacher-weights random --size 64"
    arguments += f" --iterations 6 --batch 2 --device cpu --set {fields}"
    found, text = measured(tmp_path, "whole_run.py", arguments)
    assert found["reference"] == {}  # the committed one is of another configuration
    assert "not compared" in text
    both = found["precision"]
    assert both["images"] == 5
    assert 0 < both["map_difference"] < 0.2  # bf16 has 8 bits of mantissa
    assert both["metrics"]["float32"] != both["metrics"]["bf16"]
    other = {**found, "device": "cpu: another", "minutes": 7.5}
    (tmp_path / "other.json").write_text(json.dumps(other))
    reference = whole_run.reference_of(tmp_path / "other.json", found)
    assert reference == {"device": "cpu: another", "minutes": 7.5, "metrics": found["metrics"]}
    whole_run.report({**found, "reference": reference})


def test_the_committed_run_is_of_the_command_that_is_compared_with_it(scripts):
    """Else a GPU's numbers would stand alone."""
    import run_all
    import whole_run

    from dmdd_lite.config import Config

    words = run_all.steps("gpu", "cuda", OPTIONS)["whole_run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        config = whole_run.config_of(whole_run.parse())
    known = json.loads(whole_run.REFERENCE.read_text(encoding="utf-8"))
    assert Config.from_dict(known["config"]) == config
    assert known["category"] == Path(OPTIONS.data).name


GOOD = """
import json, os, sys
out = sys.argv[sys.argv.index("--out") + 1]
with open(os.path.join(os.path.dirname(__file__), "ran.txt"), "a") as file:
    file.write(os.path.basename(out) + "\\n")
rows = {name: {"seconds": s, "value": 0.5, "mb": 1.0} for name, s in (("aupro", 0.1), ("RD4AD", 2.0))}
rows["RD4AD"] |= {"peer_of": "aupro", "times_ours": 20.0}
words = [word for word in sys.argv[1:] if word not in ("--out", out)]
found = {"command": " ".join(["python", "benchmarks/good.py", *words]), "device": os.environ["DEVICE"]}
found |= {"threads": 1, "versions": {"torch": "2"}, "goals": {"times_faster": 5}, "rows": rows}
json.dump(found, open(out, "w"))
"""


@pytest.fixture
def run_all(scripts, tmp_path, monkeypatch):
    """A call of run_all with arguments, on stand-ins for its scripts; `run_all.ran` lists what they wrote."""
    import run_all

    from dmdd_lite.utils import describe, resolve_device

    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("raise ValueError('broken on purpose')")
    chosen = {"metrics": ["good.py", "--maps", "3"], "scaling": ["bad.py"], "metrics_2": ["good.py"]}
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "steps", lambda *_: chosen)
    monkeypatch.setenv("DEVICE", describe(resolve_device("cpu"))["device"])

    def call(*arguments):
        words = ["run_all.py", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        run_all.main()

    call.ran = lambda: (tmp_path / "ran.txt").read_text().split()
    call.chosen = chosen
    return call


def test_a_failing_step_stops_no_other_and_is_named(run_all, tmp_path):
    with pytest.raises(SystemExit, match="scaling failed: ValueError: broken on purpose"):
        run_all()
    assert run_all.ran() == ["metrics.json", "metrics_2.json"]
    text = (tmp_path / "out/summary.md").read_text()
    assert text.count("| AUPRO | 0.100 s, 0.500000, 1 MB | at least 5 x: reached | RD4AD: 2.000 s") == 2


def test_what_is_there_is_kept_unless_the_command_changed_or_it_is_asked_again(run_all, capsys):
    del run_all.chosen["scaling"]
    run_all()
    run_all()
    assert run_all.ran() == ["metrics.json", "metrics_2.json"]
    assert capsys.readouterr().out.count("kept, ") == 2
    run_all.chosen["metrics"][-1] = "4"
    run_all()
    assert run_all.ran()[2:] == ["metrics.json"]
    run_all("--again")
    assert run_all.ran()[3:] == ["metrics.json", "metrics_2.json"]


def test_what_the_time_does_not_suffice_for_is_named_and_done_by_the_next_call(run_all):
    del run_all.chosen["scaling"]
    with pytest.raises(SystemExit, match="metrics failed: not started: the time is used up"):
        run_all("--minutes", "1e-9")
    run_all()
    assert run_all.ran() == ["metrics.json", "metrics_2.json"]


def test_results_of_another_device_are_not_kept(run_all, monkeypatch):
    del run_all.chosen["scaling"]
    monkeypatch.setenv("DEVICE", "cuda: NVIDIA H200")
    run_all()
    run_all()
    assert len(run_all.ran()) == 4


def test_a_step_that_takes_too_long_ends_with_what_it_started(scripts, tmp_path):
    import measure

    (tmp_path / "slow.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(measure.ScriptError, match="longer than 2 s"):
        measure.run_step([str(tmp_path / "slow.py"), str(tmp_path / "child.txt")], limit=2)
    state = Path(f"/proc/{(tmp_path / 'child.txt').read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the step's own process still runs")


def test_a_way_that_fails_has_no_more_turns(scripts):
    import measure

    def fail():
        raise measure.ScriptError("out of memory")

    numbers = iter(range(9))
    runs = measure.take_turns({"a": lambda: {"run": next(numbers)}, "b": fail}, 2)
    assert runs == {"a": [{"run": 0}, {"run": 1}], "b": [{"error": "out of memory"}]}


def test_fields_of_a_variant(scripts):
    import measure

    read = measure.read_fields(['compile=true,student_blocks=[1,2,3],teacher="x"', "", "iterations=5"])
    assert read == {"compile": True, "student_blocks": [1, 2, 3], "teacher": "x", "iterations": 5}
    with pytest.raises(ValueError, match="'teacher=x' is not FIELD=JSON"):
        measure.read_fields(["teacher=x"])


def touch(size: int):
    """Use so many bytes for a moment, straight from the system: malloc may keep what was freed before."""
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, 1_000_000):
            memory[start : start + 1_000_000] = bytes(1_000_000)


def test_peak_memory_is_that_of_the_block(scripts):
    import measure
    import torch

    touch(320_000_000)  # freed before the block
    with measure.peak_memory(torch.device("cpu")) as memory:
        touch(80_000_000)
    if sys.platform == "linux":
        assert 0.07 < memory["above_start_gb"] < 0.12
    assert memory["process_gb"] > memory["above_start_gb"]


def test_every_setting_names_fields_and_sizes_that_exist(scripts):
    import measure
    import run_all

    from dmdd_lite.config import Config

    for settings in run_all.SETTINGS:
        chosen = run_all.steps(settings, "cpu", OPTIONS)
        assert {"training_step", "inference", "synthesis"} <= set(chosen)
        assert ({"metrics", "scaling"} <= set(chosen)) == (settings != "gpu")
        for name, command in chosen.items():
            variants = [b for a, b in itertools.pairwise(command) if a == "--variant"]
            for variant in variants:
                Config(**measure.read_fields([variant.partition(":")[2]]))
            assert len(variants) >= (3 if name == "scaling" else 0)


def test_all_of_mvtec_from_the_fastest_configuration(scripts):
    import summary

    ways = {
        "peer": {"iterations_per_second": 900.0, "batch": 16},
        "plain": {"iterations_per_second": 20.0, "batch": 16},
        "compiled": {"iterations_per_second": 30.0, "batch": 16},
        "broken": {"error": "no compiler"},
    }
    tested = {"device": "cuda: NVIDIA H200", "ways": {"ours": {"32": {"images_per_second": 1725.0}}}}
    row = summary.mvtec([{"ways": ways}], tested)
    assert row.value.startswith(
        "47.2 minutes: 47.2 for 85000 iterations of batch 16 (compiled), 0.02 for 1725"
    )
    assert row.goal == "at most 60: reached"
