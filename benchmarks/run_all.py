"""All benchmarks in one command: a JSON file for each, and a table of what came out.

    python benchmarks/run_all.py                   # or make benchmarks
    python benchmarks/run_all.py --settings gpu    # at most 8 minutes on one card; without make or pip
    python benchmarks/run_all.py --settings tiny   # a minute on a CPU, to see that everything runs

`gpu` measures the full-size networks (WideResNet-50-2, 256 px, batch 16) and a whole run on MVTec AD's bottle
with ImageNet weights, beside the same run on a CPU (cpu_run.json), for which it needs --data, --textures and
--teacher-weights. `cpu` takes smaller batches, and for most rows a smaller network. anomalib's
ReverseDistillation is measured beside, where it is installed.
Every step runs in a process of its own. What was measured before, by the same command on the same device, is
kept (`--again` measures it anew), so that an interrupted call goes on where it was; a step that fails stops
no other.
"""

import argparse
import json
import math
import time
from pathlib import Path

import measure
from reverse_distillation import NAME as BASELINE

from dmdd_lite.config import MVTEC_CATEGORIES, published_iterations
from dmdd_lite.utils import describe, resolve_device, write_atomically

FOLDER = Path(__file__).resolve().parent
TEST_IMAGES = 1725  # of MVTec AD's fifteen categories

WIDE, MOBILE, TINY = (f"--teacher {name}" for name in ("wide_resnet50_2", "mobilenetv2_100", "test_resnet"))

#: of the weights file of the whole run, timm's mobilenetv2_100 as converted from TensorFlow
NORMALISED = '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'

#: by kind of machine the script and the arguments of every step: what matters most comes first
SETTINGS = {
    "gpu": {
        "training_step": f"training_step.py {WIDE} --batch 16 --iterations 100 --turns 1 "
        "--variant plain: --variant least_memory:feature_memory=0.0",
        "inference": f"inference.py {WIDE} --batches 1 32 --repeat 30 --turns 1 --precision bf16",
        "inference_float32": f"inference.py {WIDE} --batches 1 32 --repeat 30 --turns 1 --precision float32",
        "whole_run": f"whole_run.py {MOBILE} --size 256 --iterations 300 --batch 8",
        # apart and last: compiling may take minutes, or fail
        "training_step_compiled": f"training_step.py {WIDE} --batch 16 --iterations 100 --turns 1 "
        "--variant compiled:compile=true",
    },
    "cpu": {
        "training_step_wide": f"training_step.py {WIDE} --batch 4 --iterations 2 --images 16",
        "inference_wide": f"inference.py {WIDE} --batches 1 8 --repeat 3 --precision bf16",
        "inference_wide_float32": f"inference.py {WIDE} --batches 1 8 --repeat 3 --precision float32",
        "inference_wide_plus": f"inference.py {WIDE} --batches 1 8 --repeat 3 --precision bf16 "
        "--set plus={}",
        "training_step": f"training_step.py {MOBILE} --batch 8 --iterations 6",
        "inference": f"inference.py {MOBILE} --batches 1 8 --repeat 5",
        "export": f"inference.py {MOBILE} --batches 1 8 --repeat 5 --set plus={{}} --export",
        "scaling": f"training_step.py {MOBILE} --batch 8 --iterations 6 --images 32 --no-parts "
        "--variant 256: --variant 128:image_size=128 --variant 384:image_size=384 "
        "--variant batch_2:batch_size=2 --variant batch_4:batch_size=4 "
        "--variant many_images:feature_memory=0.0",  # whose features are not kept
    },
    "tiny": {
        "training_step": f"training_step.py {TINY} --size 64 --batch 2 --images 4 --iterations 2 --turns 1",
        "inference": f"inference.py {TINY} --size 64 --batches 1 2 --repeat 1 --turns 1",
        "scaling": f"training_step.py {TINY} --size 64 --batch 2 --images 4 --iterations 2 --turns 1 "
        "--no-parts --variant 64: --variant 96:image_size=96 --variant batch_4:batch_size=4",
    },
}


def steps(settings: str, device: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """Script and arguments by the name of the step."""
    found = {name: [*text.split(), "--device", device] for name, text in SETTINGS[settings].items()}
    if "whole_run" in found:
        found["whole_run"] += ["--data", options.data, "--textures", options.textures, "--teacher-weights"]
        found["whole_run"] += [options.teacher_weights, "--set", f"teacher_options={NORMALISED}"]
    return found


def kept(path: Path, command: list[str], devices: set[str]) -> bool:
    """Whether the file holds the result of this very command on one of these devices."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = found.get("command") == measure.command_line(command[0], command[1:])
    return same and found.get("device") in devices


def run_one(command: list[str], path: Path, limit: float) -> str:
    """Why the step failed, '' if it did not, within `limit` seconds."""
    try:
        if limit <= 0:
            raise measure.ScriptError("not started: the time is used up")
        measure.run_script([str(FOLDER / command[0]), *command[1:], "--out", str(path)], limit)
    except measure.ScriptError as error:
        print(f"  failed: {error}", flush=True)
        return str(error)
    return ""


def run_steps(chosen: dict, options: argparse.Namespace, devices: set[str], end: float) -> dict[str, str]:
    """Run what is not there yet, until `end` (of time.perf_counter). The errors by the names of the steps,
    '' where there was none."""
    errors = {}
    for number, (name, command) in enumerate(chosen.items(), start=1):
        path, began = options.out / f"{name}.json", time.perf_counter()
        known = not options.again and kept(path, command, devices)
        told = f"kept, {path}" if known else measure.command_line(command[0], command[1:])
        print(f"[{number}/{len(chosen)}] {name}: {told}", flush=True)
        errors[name] = "" if known else run_one(command, path, min(options.limit, end - began))
    return errors


def summary(results: dict[str, dict]) -> str:
    """Markdown of the results by name of the step, and the machines."""
    machines = {
        f"{r['device']}, {r['threads']} threads, torch {r['versions']['torch']}" for r in results.values()
    }
    rows = [row for result in results.values() for row in result["table"]]
    trained = [result for name, result in results.items() if name.startswith("training_step")]
    if trained and "inference" in results:
        rows.append(mvtec(trained, results["inference"]))
    return f"{'; '.join(machines)}\n\n{measure.table(rows)}"


def mvtec(trained: list[dict], tested: dict) -> list[str]:
    """How long all fifteen categories take: the published iterations of the fastest configuration, and the
    test images at the best rate. Reading files, metrics and starting processes come on top."""
    ways = {n: found for result in trained for n, found in result["ways"].items() if "error" not in found}
    ways.pop(BASELINE, None)
    name = max(ways, key=lambda name: ways[name]["iterations_per_second"])
    iterations = sum(published_iterations(category) for category in MVTEC_CATEGORIES)
    learning = iterations / ways[name]["iterations_per_second"] / 60
    ours = next(iter(tested["ways"].values()))
    testing = TEST_IMAGES / max(found["images_per_second"] for found in ours.values()) / 60
    text = f"{learning + testing:.1f} minutes: {learning:.1f} for {iterations} iterations of batch "
    text += f"{ways[name]['batch']} ({name}), {testing:.2f} for {TEST_IMAGES} images"
    return ["MVTec AD, fifteen categories", text]


def parse() -> argparse.Namespace:
    """limit: seconds that a step may take; minutes: that all may take, 0 = no limit, or 8 on a GPU; data,
    textures and teacher_weights are those of the whole run."""
    named = {"device": "auto", "limit": 300.0, "minutes": 0.0, "data": "data/mvtec_ad/bottle"}
    named |= {"textures": "data/dtd/dtd/images", "teacher_weights": "mobilenetv2_100.safetensors"}
    parser = measure.parser(__doc__, **named)
    parser.set_defaults(out=Path("results/benchmarks"))
    parser.add_argument("--settings", choices=SETTINGS, help="by default those that fit the device")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    return parser.parse_args()


def main():
    options, began = parse(), time.perf_counter()
    device = resolve_device(options.device)
    settings = options.settings or ("gpu" if device.type == "cuda" else "cpu")
    chosen = steps(settings, str(device), options)
    end = began + 60 * (options.minutes or (8 if settings == "gpu" else math.inf))
    devices = {describe(resolve_device(name))["device"] for name in ("cpu", str(device))}
    out = options.out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    errors = run_steps(chosen, options, devices, end)
    done = [name for name, error in errors.items() if not error]
    text = summary({name: json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in done})
    write_atomically(out / "summary.md", lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\n{text}\n{(time.perf_counter() - began) / 60:.1f} minutes; {out / 'summary.md'}")
    if len(done) < len(chosen):
        told = "\n".join(f"{name} failed: {error}" for name, error in errors.items() if error)
        raise SystemExit(f"{told}\nthe same command tries again what failed")


if __name__ == "__main__":
    main()
