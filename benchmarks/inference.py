"""Latency and throughput of a detector, smoothing and scores included, at several batch sizes, with memory.

    python benchmarks/inference.py                                          # WideResNet-50-2, 256 px
    python benchmarks/inference.py --teacher mobilenetv2_100 --batches 1 8 --set plus={}      # DMDD+
    python benchmarks/inference.py --export                             # and the exported file beside it

A call goes from uint8 images on the device to smoothed maps of full size and scores on the CPU: DMDD gives
four maps (fused, either branch, their sum), its scores too, DMDD+ two more. Where anomalib is installed, its
ReverseDistillation with the same backbone, input and precision, which gives one map, is the baseline. Random
weights and images. Each way has processes of its own, which take turns. Medians.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np
import reverse_distillation
import torch
from reverse_distillation import NAME as BASELINE

from dmdd_lite.config import Config
from dmdd_lite.course.cost import convolution_rate, image_operations
from dmdd_lite.data.images import unit_range
from dmdd_lite.detector import Detector
from dmdd_lite.model import build_model
from dmdd_lite.plus.fusion import Plus
from dmdd_lite.teacher import build_teacher
from dmdd_lite.utils import autocast, resolve_device, write_json

OURS, EXPORTED = "dmdd-lite", "exported file"
WARM_UP = 3  # calls with a batch size that do not count


def parse() -> argparse.Namespace:
    named = {"teacher": "wide_resnet50_2", "size": 256, "precision": "auto", "device": "auto"}
    parser = measure.parser(__doc__, **named, repeat=10, turns=2)  # calls of a process, processes of a way
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of our Config")
    parser.add_argument("--export", action="store_true", help="also an ONNX file of it, in ONNX Runtime")
    parser.add_argument("--serve", choices=(OURS, EXPORTED, BASELINE), help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(config: Config, device: torch.device) -> Detector:
    """Ours, of which `maps` is called: images uint8 (B, 3, S, S) -> maps (B, S, S), scores (B,), by name."""
    teacher = build_teacher(config.teacher, "random", image_size=config.image_size)
    plus = None if config.plus is None else Plus(config, teacher.info).to(device)
    return Detector(build_model(config, teacher).to(device), plus)


def exported_call(config: Config, device: torch.device):
    """The call of the exported file, float32 on the CPU: the same images -> scores and map that decide."""
    import onnxruntime

    images = np.random.default_rng(0).integers(0, 256, (2, *config.size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "detector.onnx")
        ours(config, device).export(path, list(images))
        session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(None, {"images": images.permute(0, 2, 3, 1).cpu().numpy()})


def anomalib_call(config: Config, device: torch.device):
    """The call of anomalib's model: the same images -> its map (B, 1, S, S) and scores (B, 1)."""
    model = reverse_distillation.build(config.teacher, config.size).to(device).eval()

    @torch.inference_mode()
    def call(images):
        with autocast(device, config.precision):
            answer = model(reverse_distillation.normalised(images))
        return answer.anomaly_map.float().cpu(), answer.pred_score.float().cpu()

    return call


def serve(options, config: Config, device: torch.device) -> dict[str, dict]:
    """One way in a process of its own: by batch size the seconds and the memory of a call and, of ours, the
    seconds of its parts and the device's rate. A call ends on the CPU, so nothing is left running."""
    found, detector = {}, ours(config, device) if options.serve == OURS else None
    others = {EXPORTED: exported_call, BASELINE: anomalib_call}
    call = detector.maps if detector else others[options.serve](config, device)
    for batch in sorted(options.batches):
        shape = (batch, 3, *config.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        measure.timed(lambda: call(images), device, WARM_UP)  # noqa: B023
        with measure.peak_memory(device) as memory:
            seconds = measure.timed(lambda: call(images), device, options.repeat)  # noqa: B023
        found[str(batch)] = {"seconds": seconds, "memory": memory}
        if detector:  # right after: other work on the machine slows both
            found[str(batch)]["rate"] = convolution_rate(device, precision=config.precision)
            found[str(batch)]["until"] = parts(detector, images, options.repeat)
    return found


@torch.inference_mode()
def parts(detector: Detector, images: torch.Tensor, repeat: int) -> dict[str, float]:
    """Seconds until the teacher's features are there, and until the outputs of all networks are."""

    def teacher():
        with autocast(detector.device, detector.config.precision):
            detector.model.teacher(unit_range(images, detector.device))

    calls = {"teacher": teacher, "networks": lambda: detector.output(images)}
    return {name: measure.timed(call, detector.device, repeat) for name, call in calls.items()}


def combine(runs: list[dict], batch: int, config: Config) -> dict:
    """One result of the turns with a batch size: medians, and the highest memory."""
    seconds = statistics.median(run["seconds"] for run in runs)
    memory = {kind: max(run["memory"][kind] for run in runs) for kind in runs[0]["memory"]}
    found = {"milliseconds": 1000 * seconds, "images_per_second": batch / seconds, "memory": memory}
    if "rate" in runs[0]:
        done = statistics.median(run["seconds"] * run["rate"] for run in runs)
        found["times_floor"] = done / (batch * image_operations(config))
        until = {name: statistics.median(run["until"][name] for run in runs) for name in runs[0]["until"]}
        teacher, networks = until["teacher"] / seconds, until["networks"] / seconds
        found["parts"] = {"teacher": teacher, "student, MSN, DMDD+": networks - teacher}
        found["parts"]["smoothing and scores"] = 1 - networks
    return found


def compare(options, config: Config) -> dict[str, dict]:
    """By way the result at every batch size. Raises SystemExit where ours fails; a baseline that does is a
    result, {"error": message}."""
    names = [OURS, *([EXPORTED] if options.export else [])]
    names += [BASELINE] if reverse_distillation.available(options.teacher) else []
    inner, found = measure.without_out(sys.argv[1:]), {}
    ways = {name: [*inner, "--serve", name] for name in names}
    for name, runs in measure.take_turns(__file__, ways, options.turns).items():
        found[name] = runs[0]
        if "error" not in runs[0]:
            found[name] = {b: combine([run[b] for run in runs], int(b), config) for b in runs[0]}
    if "error" in found[OURS]:
        raise SystemExit(found[OURS]["error"])
    for batch, values in found[OURS].items():
        if batch in found.get(BASELINE, {}):  # images per second, ratio
            values["times_baseline"] = found[BASELINE][batch]["milliseconds"] / values["milliseconds"]
    return found


def told(found: dict) -> str:
    text = f"{found['milliseconds']:.1f} ms, {found['images_per_second']:.1f} images/s, "
    return text + measure.memory_text(found["memory"])


def rows(ways: dict[str, dict], teacher: str) -> list[list[str]]:
    """A line for every batch size."""
    found, theirs = [], ways.get(BASELINE, {})
    for batch, values in ways[OURS].items():
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in values["parts"].items())
        text = f"{told(values)}, {values['times_floor']:.2f} x the floor; {shares}"
        found.append([f"inference, {teacher}, batch {batch}", text])
        if batch in theirs:
            found[-1] += [f"{BASELINE}: {told(theirs[batch])}", f"{values['times_baseline']:.2f}"]
        elif theirs:
            found[-1] += [f"{BASELINE}: failed: {theirs['error']}"]
        if batch in ways.get(EXPORTED, {}):
            found.append([f"{EXPORTED}, {teacher}, batch {batch}", told(ways[EXPORTED][batch])])
    return found


def main():
    options, seed = parse(), 0
    device = resolve_device(options.device)
    torch.manual_seed(seed)
    named = {"teacher": options.teacher, "image_size": options.size, "precision": options.precision}
    fields = {**named, "teacher_weights": "random", "plus": None, **measure.read_fields(options.set)}
    config = Config(**fields)
    if options.serve:
        write_json(options.out, serve(options, config, device))
        return
    ways = compare(options, config)
    measure.write_result(options.out, device, seed, {"table": rows(ways, options.teacher), "ways": ways})


if __name__ == "__main__":
    main()
