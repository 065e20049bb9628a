"""Latency and throughput of a detector, smoothing and scores included, at several batch sizes, with memory.

    python benchmarks/inference.py                                          # WideResNet-50-2, 256 px
    python benchmarks/inference.py --teacher mobilenetv2_100 --batches 1 8

A call goes from uint8 images on the device to smoothed maps of full size and scores on the CPU: ours gives
four maps (fused, either branch, their sum), its scores too. Where anomalib is installed, its
ReverseDistillation with the same backbone, input and precision, which gives one map, is the baseline; it is
imported here only. Random weights and images. Each way has a process of its own, and their calls take turns.
Medians.
"""

import argparse
import json
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

import measure
import torch
from torchvision.transforms.v2.functional import normalize

from dmdd_lite.config import Config
from dmdd_lite.course.cost import convolution_rate, image_operations
from dmdd_lite.detector import Detector
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher
from dmdd_lite.utils import autocast, describe, resolve_device

OURS, BASELINE = "dmdd-lite", "anomalib ReverseDistillation"
WARM_UP = 3  # calls with a batch size that do not count
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="wide_resnet50_2")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeat", type=int, default=10, help="calls that count, after some that do not")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of our Config")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    parser.add_argument("--serve", choices=(OURS, BASELINE), help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(config: Config, device: torch.device):
    """Our call: images uint8 (B, 3, S, S) -> maps (B, S, S) and scores (B,), by name."""
    teacher = build_teacher(config.teacher, "random")
    return Detector(build_model(config, teacher).to(device)).maps


def has_baseline(teacher: str) -> bool:
    """Whether anomalib is installed and builds its decoder for this backbone."""
    return teacher.startswith(("resnet", "wide_resnet")) and find_spec("anomalib") is not None


def anomalib_baseline(config: Config, device: torch.device):
    """The call of anomalib's model: the same images -> its map (B, 1, S, S) and scores (B, 1)."""
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    model = ReverseDistillationModel(
        backbone=config.teacher,
        input_size=(config.image_size, config.image_size),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )
    model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def call(images):
        scaled = normalize(images.float() / 255, **IMAGENET).contiguous(memory_format=torch.channels_last)
        with autocast(device, config.precision):
            answer = model(scaled)
        return answer.anomaly_map.float().cpu(), answer.pred_score.float().cpu()

    return call


def serve(config: Config, options, device: torch.device):
    """One way in a process of its own: for every batch size that is asked for, the seconds and the memory of
    a call and, for our floor, the device's rate. A call ends on the CPU, so nothing is left running."""
    call = (ours if options.serve == OURS else anomalib_baseline)(config, device)
    measure.tell({"ready": True})
    while True:
        shape = (measure.request(), 3, config.image_size, config.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        with measure.peak_memory(device) as memory:
            seconds = measure.timed(lambda: call(images), device, 1)  # noqa: B023
        found = {"seconds": seconds, "memory": memory}
        if options.serve == OURS:  # right after: other work on the machine slows both
            found["rate"] = convolution_rate(device, repeats=3, precision=config.precision)
        measure.tell(found)


def combine(runs: list[dict], batch: int, config: Config) -> dict:
    """One result of the calls with a batch size: medians, and the highest memory."""
    seconds = statistics.median(run["seconds"] for run in runs)
    found = {
        "milliseconds": 1000 * seconds,
        "images_per_second": batch / seconds,
        "memory": measure.highest([run["memory"] for run in runs]),
    }
    if "rate" in runs[0]:
        done = statistics.median(run["seconds"] * run["rate"] for run in runs)
        found["times_floor"] = done / (batch * image_operations(config))
    return found


def run_together(names: list[str], options, config: Config) -> dict[str, dict]:
    """By way the result at every batch size, the calls of the ways in turns; or {"error": message}."""
    arguments = measure.without_out(sys.argv[1:])
    workers, found = {}, {name: {} for name in names}
    try:
        for name in names:
            print(f"  {name}", flush=True)
            try:
                workers[name] = measure.Worker(__file__, [*arguments, "--serve", name])
            except measure.ScriptError as error:
                found[name] = {"error": str(error)}
        for batch in sorted(options.batches):
            asked = {n: lambda w=w, b=batch: w.ask(b) for n, w in workers.items() if "error" not in found[n]}
            for name, runs in measure.take_turns(asked, WARM_UP + options.repeat).items():
                failed = "error" in runs[0]
                found[name] |= runs[0] if failed else {str(batch): combine(runs[WARM_UP:], batch, config)}
    finally:
        for worker in workers.values():
            worker.close()
    return found


def compare(options, config: Config) -> dict[str, dict]:
    """The result of each way. Raises SystemExit where ours fails; a baseline that does is a result."""
    found = run_together([OURS, BASELINE] if has_baseline(options.teacher) else [OURS], options, config)
    if "error" in found[OURS]:
        raise SystemExit(found[OURS]["error"])
    for batch, values in found[OURS].items():
        if batch in found.get(BASELINE, {}):
            baseline = found[BASELINE][batch]["milliseconds"]
            values["times_baseline"] = baseline / values["milliseconds"]  # images per second, ratio
    return found


def report(ways: dict[str, dict], goals: dict):
    """Print a line for every way and batch size."""
    ratios = {"times_floor": "our floor", "times_baseline": "the baseline's images/s"}
    for name, found in ways.items():
        if "error" in found:
            print(f"{name}: failed: {found['error']}")
            continue
        for batch, values in found.items():
            wanted = {kind: f" (goal {goal[batch]})" for kind, goal in goals.items() if batch in goal}
            columns = [
                f"batch {batch:>3}  {name:30}",
                f"{values['milliseconds']:9.1f} ms{wanted.get('milliseconds', '')}",
                f"{values['images_per_second']:8.1f} images/s{wanted.get('images_per_second', '')}",
                measure.memory_text(values["memory"]),
                *(f"{values[kind]:5.2f} x {text}" for kind, text in ratios.items() if kind in values),
            ]
            print(*columns, sep="  ")


def main():
    options = parse()
    device = resolve_device(options.device)
    torch.manual_seed(0)
    config = Config(
        teacher=options.teacher,
        teacher_weights="random",
        image_size=options.size,
        precision=options.precision,
        **measure.read_fields(options.set),
    )
    if options.serve:
        serve(config, options, device)
    ways = compare(options, config)
    goals = measure.goals("inference", device.type, options.teacher, options.size)
    goals = {} if options.precision == "float32" else goals  # set for the fastest precision
    print(json.dumps(describe(device)))
    report(ways, goals)
    measure.write_result(options.out, device, 0, {"goals": goals, "ways": ways})


if __name__ == "__main__":
    main()
