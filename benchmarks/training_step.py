"""A training iteration of the full-size networks: images a second, where the time goes, the floor, memory.

    python benchmarks/training_step.py                                   # WideResNet-50-2, 256 px, batch 16
    python benchmarks/training_step.py --teacher mobilenetv2_100 --batch 8 --precision float32
    git worktree add /tmp/before COMMIT && python benchmarks/training_step.py --peer /tmp/before

Random weights and random images of MVTec AD's size: speed does not depend on them. The floor is the count of
convolution operations over the rate that this device reaches on one convolution (`dmdd_lite.cost`). `--peer`
is another checkout of this project: both take turns, each in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="wide_resnet50_2")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20, help="timed, after three that are not")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of Config")
    parser.add_argument("--peer", type=Path, help="root of another checkout to take turns with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def build(options):
    """A trainer on random images, in stage 2 from its first iteration."""
    from dmdd_lite import training
    from dmdd_lite.config import Config
    from dmdd_lite.device import resolve_device
    from dmdd_lite.model import build_model
    from dmdd_lite.teacher import build_teacher

    fields = {
        "teacher": options.teacher,
        "teacher_weights": "random",
        "image_size": options.size,
        "batch_size": options.batch,
        "iterations": 100_000,
        "fusion_start": 0.0,
        **{name: json.loads(value) for name, value in (item.split("=", 1) for item in options.set)},
    }
    if "precision" in Config.__dataclass_fields__:  # an older checkout may not have it
        fields["precision"] = options.precision
    config, device = Config(**fields), resolve_device(options.device)
    shape = (options.images, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    teacher = build_teacher(config.teacher, "random").to(device)
    data = training.TrainingData(images, images[:1], None, images[:100].clone(), "random")
    return training.Trainer(config, build_model(config, teacher), data)


def timed(call, device, times):
    """Median seconds of a call, its work on the device included."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def parts(trainer, times) -> dict[str, float]:
    """Seconds of the parts of an iteration, each on its own; the student's with backward and losses."""
    from dmdd_lite.device import autocast
    from dmdd_lite.fusion_training import fusion_loss
    from dmdd_lite.losses import distillation_maps
    from dmdd_lite.model import fusion_input

    pairs, index, model = trainer.pairs.batch(0), trainer.pairs.indices(0), trainer.model
    views = [pairs.normal, pairs.anomalous]
    cast = lambda: autocast(trainer.device, trainer.config.precision)  # noqa: E731
    with cast(), torch.no_grad():
        features = trainer.teacher_features(views, index)
        maps = [distillation_maps(b, features[0]) for b in model.student(pairs.normal, features[0])]
        seen = torch.cat([fusion_input(*maps)] * 2)
    mask = torch.cat((torch.zeros_like(pairs.mask), pairs.mask))

    def teach():
        with cast():
            trainer.teacher_features(views, index)

    def fuse():
        with cast():
            fusion_loss(model.fusion, seen, mask, trainer.config, 0).backward()

    found = {
        "synthesis": timed(lambda: trainer.pairs.batch(1), trainer.device, times),
        "teacher": timed(teach, trainer.device, times),
        "fusion": timed(fuse, trainer.device, times),
    }
    return found


def measure(options) -> dict:
    torch.manual_seed(0)
    trainer = build(options)
    timed(trainer.step, trainer.device, 3)
    seconds = timed(trainer.step, trainer.device, options.iterations)
    from dmdd_lite.device import describe, peak_memory_mb

    found = {"seconds": seconds, "memory": peak_memory_mb(trainer.device), **describe(trainer.device)}
    if hasattr(trainer, "teacher_features"):
        from dmdd_lite.cost import convolution_rate, pair_operations

        share = parts(trainer, max(3, options.iterations // 4))
        share["student and step"] = seconds - sum(share.values())
        rate = convolution_rate(trainer.device, precision=trainer.config.precision)
        found |= {"parts": share, "operations": pair_operations(trainer.config).total, "rate": rate}
    return found


def in_process(root: Path, arguments: list[str]) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, *arguments, "--once"]
    output = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def report(name: str, runs: list[dict], batch: int):
    """Medians over the turns."""
    seconds = statistics.median(run["seconds"] for run in runs)
    memory = max(run["memory"] for run in runs)
    print(
        f"{name}: {1000 * seconds:.0f} ms, {1 / seconds:.2f} iterations/s, {batch / seconds:.1f} pairs/s, ",
        end="",
    )
    print(f"peak {memory / 1000:.2f} GB")
    if "parts" in runs[0]:
        for part in runs[0]["parts"]:
            value = statistics.median(run["parts"][part] for run in runs)
            print(f"    {part:18} {1000 * value:8.1f} ms  {value / seconds:5.0%}")
        rate = statistics.median(run["rate"] for run in runs)
        floor = batch * runs[0]["operations"] / rate
        print(f"    floor {1000 * floor:.0f} ms: {batch * runs[0]['operations'] / 1e9:.0f} GFLOP", end="")
        print(f" at {rate / 1e12:.3g} TFLOP/s; the iteration takes {seconds / floor:.2f} x that")
    return seconds


def main():
    options = parse()
    if options.once:
        print(json.dumps(measure(options)))
        return
    arguments = [a for a in sys.argv[1:]]
    roots = {"this checkout": Path(__file__).resolve().parent.parent}
    if options.peer:
        roots["peer"] = options.peer.resolve()
    runs = {name: [] for name in roots}
    for _ in range(options.turns if options.peer else 1):
        for name, root in roots.items():
            runs[name].append(in_process(root, arguments))
    print(json.dumps({k: runs["this checkout"][0][k] for k in ("device", "threads", "versions")}))
    seconds = {name: report(name, found, options.batch) for name, found in runs.items()}
    if options.peer:
        print(f"{seconds['peer'] / seconds['this checkout']:.2f} x the peer's images a second")


if __name__ == "__main__":
    main()
