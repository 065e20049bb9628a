"""The benchmarks on tiny settings: what they write is complete and adds up; all of them in one, resumable."""

import json
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from builders import tiny_config

from dmdd_lite.course.cost import pair_operations
from dmdd_lite.utils import describe, resolve_device

ROOT = Path(__file__).parent.parent
TEACHER = "--teacher test_resnet --size 64 --device cpu"


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
    arguments = f"{TEACHER} --batch 2 --images 4 --iterations 4 --turns 2 --precision float32"
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
