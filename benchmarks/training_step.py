"""A training iteration of the full-size networks: images a second, where the time goes, the floor, memory.

    python benchmarks/training_step.py                                   # WideResNet-50-2, 256 px, batch 16
    python benchmarks/training_step.py --teacher mobilenetv2_100 --batch 8 --precision float32
    python benchmarks/training_step.py --variant plain: --variant compiled:compile=true,feature_memory=0

Random weights and random images of MVTec AD's size: speed does not depend on them. The floor is the count of
convolution operations over the rate that this device reaches on one convolution (`dmdd_lite.course.cost`).
Every `--variant` of the configuration has processes of its own, which take turns, and so has anomalib's
ReverseDistillation with the same backbone, batch and precision where it is installed: one branch, trained on
the good images alone. Medians.
"""

import argparse
import json
import statistics

import measure
import reverse_distillation
import torch
from reverse_distillation import NAME as BASELINE

from dmdd_lite import training
from dmdd_lite.config import Config
from dmdd_lite.course.cost import convolution_rate, pair_operations
from dmdd_lite.losses import msn_loss
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher
from dmdd_lite.utils import autocast, resolve_device, write_json


def parse() -> argparse.Namespace:
    """iterations: timed in a process, after some that are not; turns: processes of each way."""
    named = {"teacher": "wide_resnet50_2", "size": 256, "batch": 16, "precision": "auto", "device": "auto"}
    parser = measure.parser(__doc__, **named, images=200, iterations=20, turns=2)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of Config, for all")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:FIELD=JSON,FIELD=JSON")
    parser.add_argument("--no-parts", action="store_true", help="only the whole iteration")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def ways_of(options) -> dict[str, list[str]]:
    """Arguments of every way, the baseline last. Raises ValueError for a variant without a name."""
    kept = ("device", "images", "iterations")
    inner = [word for name in kept for word in (f"--{name}", str(getattr(options, name)))]
    named = {"teacher": options.teacher, "image_size": options.size, "batch_size": options.batch}
    named |= {"teacher_weights": "random", "precision": options.precision, "iterations": 5000}

    inner += ["--no-parts"] if options.no_parts else []
    ways = {}
    for variant in options.variant or ["this checkout:"]:
        name, _, fields = variant.partition(":")
        if not name or name in ways:
            raise ValueError(f"--variant {variant!r} needs a name of its own before the colon")
        ways[name] = [*inner, "--serve", json.dumps({**named, **measure.read_fields([*options.set, fields])})]
    if not options.no_parts and reverse_distillation.available(options.teacher):
        ways[BASELINE] = [*inner, "--reference", "--serve", json.dumps(named)]
    return ways


# ---- one way, in a process of its own -----------------------------------------------------------------


def build(config: Config, count: int, device: torch.device) -> training.Trainer:
    """A trainer on random images."""
    torch.manual_seed(0)
    shape = (count, 3, *config.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    teacher = build_teacher(config.teacher, "random", image_size=config.image_size).to(device)
    data = training.TrainingData(images, images[:1], None, images[:100].clone(), {})
    return training.Trainer(config, build_model(config, teacher), data)


def warm_up(trainer, second: bool):
    """Some iterations of a stage, after its first, in which the levels of the maps are taken."""
    trainer.iteration = 1 + second * trainer.config.student_iterations
    trainer.model.train(not second)
    measure.timed(trainer.step, trainer.device, 10 if trainer.device.type == "cuda" else 1)


def iteration(trainer, times: int, calls: int) -> float:
    """Seconds of an iteration, in the mean over both stages of a training."""
    seconds, learning = 0.0, trainer.config.student_iterations / trainer.config.iterations
    for second, share in ((False, learning), (True, 1 - learning)):
        if share:
            warm_up(trainer, second)
            seconds += share * measure.timed(trainer.step, trainer.device, times, calls)
    return seconds


def parts(trainer, times: int, calls: int) -> dict[str, float]:
    """Seconds of the parts of an iteration, each on its own."""
    model, device, config = trainer.model, trainer.device, trainer.config
    pairs, stride = trainer.pairs.batch(0), model.teacher.info.strides[0]
    shape = (2 * config.batch_size, model.calibration.level.numel(), *(n // stride for n in config.size))
    maps = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    mask = torch.cat((torch.zeros_like(pairs.mask), pairs.mask))

    def teach():
        with autocast(device, config.precision):
            trainer.teacher_features([pairs.normal, pairs.anomalous], 0)

    def fuse():
        with autocast(device, config.precision):
            logits = model.msn(maps).logits
        msn_loss(logits, mask).backward()

    ways = {"synthesis": lambda: trainer.pairs.batch(1), "teacher": teach, "MSN": fuse}
    for way in ways.values():  # the first calls warm up
        measure.timed(way, device, 1)
    found = {name: measure.timed(way, device, times, calls) for name, way in ways.items()}
    found["MSN"] *= 1 - config.student_iterations / config.iterations
    return found


def operations(trainer) -> dict[str, int]:
    """Operations of an iteration: all of the method's, and those left to compute where the teacher's features
    of the normal images are kept."""
    pair, batch = pair_operations(trainer.config), trainer.config.batch_size
    kept = 0 if trainer.known.kept is None else pair.teacher // 2
    return {"operations": batch * pair.total, "computed": batch * (pair.total - kept)}


def serve_reference(config: Config, options, device: torch.device) -> dict:
    """Seconds and memory of an iteration of the baseline."""
    shape = (options.images, 3, *config.size)
    with measure.peak_memory(device) as memory:
        images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
        model = reverse_distillation.build(config.teacher, config.size).to(device)
        step = reverse_distillation.training_step(model, images, lambda: autocast(device, config.precision))
        measure.timed(lambda: step(config.batch_size), device, 2)
        seconds = measure.timed(lambda: step(config.batch_size), device, options.iterations)
    return {"batch": config.batch_size, "seconds": seconds, "memory": memory}


def serve(config: Config, options, device: torch.device) -> dict:
    """Seconds and memory, then the parts, operations and, for the floor, the device's rate right after: other
    work on the machine slows both."""
    calls = 10 if device.type == "cuda" else 1  # a training looks at its losses every ten iterations
    times = max(2, options.iterations // calls)
    with measure.peak_memory(device) as memory:
        trainer = build(config, options.images, device)
        seconds = iteration(trainer, times, calls)
    found = {"batch": config.batch_size, "seconds": seconds, "memory": memory}
    if not options.no_parts:
        floor = {"rate": convolution_rate(device, precision=config.precision), **operations(trainer)}
        found |= {"parts": parts(trainer, max(5, times // 2), calls), "floor": floor}
    return found


# ---- all ways -----------------------------------------------------------------------------------------


def combine(runs: list[dict]) -> dict:
    """One result: medians of the turns, what follows from them, and the rest of the last one."""
    turns, found = [run["seconds"] for run in runs], runs[-1]
    seconds = statistics.median(turns)
    found |= {"seconds": seconds, "iterations_per_second": 1 / seconds, "turns": turns}
    found["pairs_per_second"] = found["batch"] / seconds
    if "parts" in found:
        found["parts"]["student and step"] = seconds - sum(found["parts"].values())
        floor = found["floor"]
        done = statistics.median(run["seconds"] * run["floor"]["rate"] for run in runs)
        floor |= {f"ratio_{kind}": done / floor[kind] for kind in ("operations", "computed")}
    return found


def compare(options) -> dict[str, dict]:
    """The result of every way, each with its speed in those of the first. Raises SystemExit where the first
    fails; another that does (too little memory, say) is a result."""
    ways = ways_of(options)
    told = measure.take_turns(__file__, ways, options.turns)
    results = {name: runs[0] if "error" in runs[0] else combine(runs) for name, runs in told.items()}
    first = results[next(iter(ways))]
    if "error" in first:
        raise SystemExit(f"{next(iter(ways))}: {first['error']}")
    for found in results.values():
        if found is not first and "error" not in found:
            found["times_first"] = found["pairs_per_second"] / first["pairs_per_second"]
    return results


def rows(ways: dict[str, dict]) -> list[list[str]]:
    """Every configuration's speed and memory, then how far it is from its floor and where its time goes."""
    lines, first = [], next(iter(ways))
    for name, found in ways.items():
        what = f"training iteration, {name}"
        if "error" in found:
            lines.append([what, f"failed: {found['error']}"])
            continue
        text = f"{1000 * found['seconds']:.1f} ms, {found['pairs_per_second']:.1f} pairs/s, "
        beside = [first, f"{found['times_first']:.2f}"] if "times_first" in found else []
        lines.append([what, text + measure.memory_text(found["memory"]), *beside])
        if "floor" in found:
            text = "{ratio_operations:.2f}, without kept features {ratio_computed:.2f}"
            lines.append([f"{what}: times the floor", text.format(**found["floor"])])
            shares = (f"{part} {s / found['seconds']:.0%}" for part, s in found["parts"].items())
            lines.append([f"{what}: share of the time", ", ".join(shares)])
            rate = found["batch"] / found["parts"]["synthesis"]
            lines.append([f"{what}: synthesis alone", f"{rate:.0f} pairs/s"])
    return lines


def main():
    options = parse()
    device = resolve_device(options.device)
    if options.serve:
        way = serve_reference if options.reference else serve
        write_json(options.out, way(Config(**json.loads(options.serve)), options, device))
        return
    try:
        ways = compare(options)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    measure.write_result(options.out, device, 0, {"table": rows(ways), "ways": ways})


if __name__ == "__main__":
    main()
