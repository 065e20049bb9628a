"""All benchmarks in one command: a JSON file for each, and a table of what came out.

    python benchmarks/run_all.py                   # or make benchmarks
    python benchmarks/run_all.py --settings gpu    # at most 8 minutes on one card; without make or pip
    python benchmarks/run_all.py --settings tiny   # a minute on a CPU, to see that everything runs

`gpu` measures the full-size networks (WideResNet-50-2, 256 px, batch 16) and a whole run on MVTec AD's bottle
with ImageNet weights, beside the same run on a CPU (cpu_run.json); `cpu` takes networks that a CPU trains in
minutes. The whole run needs --data, --textures and --teacher-weights; their defaults are the paths of README.
Every step runs in a process of its own. What was measured before, by the same command on the same device, is
kept (`--again` measures it anew), so that an interrupted call goes on where it was; a step that fails stops
no other.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import measure
from summary import summary

from dmdd_lite.utils import describe, resolve_device, write_atomically

FOLDER = Path(__file__).resolve().parent

#: what differs between machines: the network of each step, and how often it is measured
SETTINGS = {
    "gpu": {
        "network": "--teacher wide_resnet50_2 --size 256",
        "batch": 16,
        "training": "--iterations 100",
        "variants": {
            "training_step": ["plain:", "least_memory:feature_memory=0.0"],
            "training_step_compiled": ["compiled:compile=true"],  # apart: compiling may take minutes, or fail
        },
        "inference": [
            "--teacher wide_resnet50_2 --size 256 --batches 1 32 --repeat 30 --precision bf16",
            "--teacher wide_resnet50_2 --size 256 --batches 1 32 --repeat 30 --precision float32",
        ],
        "whole_run": "--size 256 --iterations 300 --batch 8",
        "synthesis": "--batch 64 --size 256 --repeat 3",
        "minutes": 8,
    },
    "cpu": {
        "network": "--teacher mobilenetv2_100 --size 256",
        "batch": 8,
        "training": "--iterations 10",
        "variants": {"training_step": ["plain:"]},
        "inference": [
            "--teacher mobilenetv2_100 --size 256 --batches 1 8 --repeat 5",
            "--teacher wide_resnet50_2 --size 256 --batches 1 8 --repeat 3",  # which has a baseline
        ],
        "scaling": "--iterations 6 --turns 3",
        "sizes": (128, 256, 384),
        "batches": (2, 4),
        "synthesis": "--batch 64 --size 256 --repeat 3",
        "metrics": "--maps 83 --size 256 --repeat 3",
    },
    "tiny": {
        "network": "--teacher test_resnet --size 64 --images 4 --set student_blocks=[1,1,1]",
        "batch": 2,
        "training": "--iterations 2 --turns 1",
        "variants": {"training_step": ["plain:"]},
        "inference": ["--teacher test_resnet --size 64 --batches 1 2 --repeat 1"],
        "scaling": "--iterations 2 --turns 1",
        "sizes": (64, 96),
        "batches": (4,),
        "synthesis": "--batch 2 --size 64 --repeat 1",
        "metrics": "--maps 8 --size 64 --repeat 1",
    },
}


#: of the weights file of the whole run, timm's mobilenetv2_100 as converted from TensorFlow
MOBILENET = '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'


def steps(settings: str, device: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """Script and arguments by the name of the step: what matters most comes first."""
    chosen = SETTINGS[settings]
    network = [*chosen["network"].split(), "--batch", str(chosen["batch"]), "--device", device]
    found = {}
    for name, variants in chosen["variants"].items():
        found[name] = ["training_step.py", *network, *chosen["training"].split()]
        found[name] += [part for text in variants for part in ("--variant", text)]
    if options.baseline:
        found["training_step"] += ["--baseline", str(options.baseline.resolve())]
    for number, text in enumerate(chosen["inference"]):
        name = f"inference_{number + 1}" if number else "inference"
        found[name] = ["inference.py", *text.split(), "--device", device]
    if "whole_run" in chosen:
        found["whole_run"] = whole_run(chosen["whole_run"].split(), device, options)
    found["synthesis"] = ["synthesis.py", *chosen["synthesis"].split(), "--device", device]
    if "metrics" in chosen:
        found["metrics"] = ["metrics.py", *chosen["metrics"].split()]
    if "scaling" in chosen:
        found["scaling"] = ["training_step.py", *network, *chosen["scaling"].split(), "--no-parts"]
        found["scaling"] += scaling_variants(chosen)
    if "training_step_compiled" in found:  # last: what it takes is least known
        found["training_step_compiled"] = found.pop("training_step_compiled")
    return found


def whole_run(words: list[str], device: str, options: argparse.Namespace) -> list[str]:
    """The step that trains and tests on real images, beside the same on a CPU."""
    words = ["whole_run.py", *words, "--device", device, "--data", options.data]
    words += ["--textures", options.textures, "--teacher", "mobilenetv2_100"]
    return [*words, "--teacher-weights", options.teacher_weights, "--set", f"teacher_options={MOBILENET}"]


def scaling_variants(chosen: dict) -> list[str]:
    """Arguments for sizes at the usual batch and batches at the usual size, which itself comes first."""
    words = chosen["network"].split()
    size, batch = int(words[words.index("--size") + 1]), chosen["batch"]
    pairs = [(size, batch), *((s, batch) for s in chosen["sizes"] if s != size)]
    pairs += [(size, b) for b in chosen["batches"] if b != batch]
    return [
        part for s, b in pairs for part in ("--variant", f"{s} px, batch {b}:image_size={s},batch_size={b}")
    ]


def kept(path: Path, command: list[str], devices: set[str]) -> bool:
    """Whether the file holds the result of this very command on one of these devices."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = found.get("command") == measure.command_line(command[0], command[1:])
    return same and found.get("device") in devices


class Limits(NamedTuple):
    """Seconds that a step may take, and when all must have ended (of time.perf_counter)."""

    step: float
    end: float


def run_steps(
    chosen: dict[str, list[str]], out: Path, devices: set[str], again: bool, limits: Limits
) -> dict:
    """Run what is not there yet. Returns what failed: the error by the name of the step."""
    failed = {}
    for number, (name, command) in enumerate(chosen.items(), start=1):
        path = out / f"{name}.json"
        if not again and kept(path, command, devices):
            print(f"[{number}/{len(chosen)}] {name}: kept, {path}", flush=True)
            continue
        print(f"[{number}/{len(chosen)}] {measure.command_line(command[0], command[1:])}", flush=True)
        began = time.perf_counter()
        limit = min(limits.step, limits.end - began)
        if limit <= 0:
            failed[name] = "not started: the time is used up"
            print(f"  {failed[name]}")
            continue
        call = [str(FOLDER / command[0]), *command[1:], "--out", str(path)]
        try:
            measure.run_step(call, limit)
        except measure.ScriptError as error:
            failed[name] = str(error)
            print(f"  failed: {error}")
        print(f"  {time.perf_counter() - began:.0f} s\n", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder of the results")
    parser.add_argument("--settings", choices=SETTINGS, help="by default those that fit the device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--baseline", type=Path, help="another checkout whose training step to compare")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a step may take (default 300)")
    parser.add_argument("--minutes", type=float, help="that all may take (default: 8 with --settings gpu)")
    parser.add_argument("--data", default="data/mvtec_ad/bottle", help="category of the whole run")
    parser.add_argument("--textures", default="data/dtd/images", help="folder of its anomaly textures")
    parser.add_argument(
        "--teacher-weights", default="mobilenetv2_100.safetensors", help="its ImageNet weights"
    )
    options = parser.parse_args()
    device, began = resolve_device(options.device), time.perf_counter()
    settings = options.settings or ("gpu" if device.type == "cuda" else "cpu")
    chosen = steps(settings, str(device), options)
    minutes = options.minutes or SETTINGS[settings].get("minutes", math.inf)
    limits = Limits(options.limit, began + 60 * minutes)
    devices = {describe(resolve_device(name))["device"] for name in ("cpu", str(device))}
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = run_steps(chosen, out, devices, options.again, limits)
    results = {
        name: json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in chosen
        if name not in failed
    }
    text = summary(results)
    write_atomically(out / "summary.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\n{text}\n{(time.perf_counter() - began) / 60:.1f} minutes; {out / 'summary.md'}")
    if failed:
        told = "\n".join(f"{name} failed: {error}" for name, error in failed.items())
        raise SystemExit(f"{told}\nthe same command tries again what failed")


if __name__ == "__main__":
    main()
