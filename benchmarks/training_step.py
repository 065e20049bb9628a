"""A training iteration of the full-size networks: images a second, where the time goes, the floor, memory.

    python benchmarks/training_step.py                                   # WideResNet-50-2, 256 px, batch 16
    python benchmarks/training_step.py --teacher mobilenetv2_100 --batch 8 --precision float32
    python benchmarks/training_step.py --variant plain: --variant compiled:compile=true,feature_memory=0
    git worktree add /tmp/before COMMIT && python benchmarks/training_step.py --baseline /tmp/before

Random weights and random images of MVTec AD's size: speed does not depend on them. The floor is the count of
convolution operations over the rate that this device reaches on one convolution (`dmdd_lite.course.cost`).
`--baseline` is another checkout of this project, which comes first; it and every `--variant` of the
configuration have a process of their own, and on a CPU these take turns. Medians.
"""

import argparse
import json
import statistics
import warnings
from pathlib import Path

import measure
import torch


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="wide_resnet50_2")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20, help="timed, after some that are not")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of Config, for all")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:FIELD=JSON,FIELD=JSON",
        help="one of several configurations to compare",
    )
    parser.add_argument("--baseline", type=Path, help="root of another checkout to take turns with")
    parser.add_argument("--turns", type=int, default=5, help="of each way (default 5); 1 = one by one")
    parser.add_argument("--no-parts", action="store_true", help="only the whole iteration")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def fields_of(options, more: str = "") -> dict:
    """The configuration's fields; `more` and --set override them."""
    return {
        "teacher": options.teacher,
        "teacher_weights": "random",
        "image_size": options.size,
        "batch_size": options.batch,
        "precision": options.precision,
        "iterations": 5000,
        **measure.read_fields([*options.set, more]),
    }


def build(fields: dict, options):
    """A trainer on random images."""
    from dmdd_lite import training
    from dmdd_lite.config import Config
    from dmdd_lite.model import build_model
    from dmdd_lite.teacher import build_teacher
    from dmdd_lite.utils import resolve_device

    if "precision" not in Config.__dataclass_fields__:  # an older checkout
        fields = {name: value for name, value in fields.items() if name != "precision"}
    config, device = Config(**fields), resolve_device(options.device)
    torch.manual_seed(0)
    shape = (options.images, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    teacher = build_teacher(config.teacher, "random").to(device)
    data = training.TrainingData(images, images[:1], None, images[:100].clone(), "random")
    return training.Trainer(config, build_model(config, teacher), data)


def parts(trainer, times: int, calls: int) -> dict[str, float]:
    """Seconds of the parts of an iteration, each on its own."""
    from dmdd_lite.losses import msn_loss
    from dmdd_lite.utils import autocast

    model, device, config = trainer.model, trainer.device, trainer.config
    networks = getattr(trainer, "networks", {"msn": model.msn})  # as they are trained: compiled or not
    pairs, index = trainer.pairs.batch(0), trainer.pairs.indices(0)
    views = [pairs.normal, pairs.anomalous]
    seen = []  # by the fusion, whatever a baseline's output calls it
    hook = model.msn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with autocast(device, config.precision), torch.no_grad():
        model(pairs.normal)
    hook.remove()
    seen = torch.cat(seen * 2)
    mask = torch.cat((torch.zeros_like(pairs.mask), pairs.mask))

    def teach():
        with autocast(device, config.precision):
            trainer.teacher_features(views, index)

    def fuse():
        with autocast(device, config.precision):
            msn_loss(networks["msn"](seen).logits, mask, config.msn_loss).backward()

    ways = {"synthesis": lambda: trainer.pairs.batch(1), "teacher": teach, "MSN": fuse}
    for way in ways.values():  # the first calls warm up
        measure.timed(way, device, 1)
    found = {name: measure.timed(way, device, times, calls) for name, way in ways.items()}
    found["MSN"] *= 1 - student_iterations(config) / config.iterations
    return found


def operations(trainer) -> dict[str, int]:
    """Operations of an iteration: all of the method's, and those left to compute where the teacher's features
    of the normal images are kept."""
    from dmdd_lite.course.cost import pair_operations

    pair, batch = pair_operations(trainer.config), trainer.config.batch_size
    spared = 0 if trainer.known is None else pair.teacher // 2
    return {"operations": batch * pair.total, "computed": batch * (pair.total - spared)}


def student_iterations(config) -> int:
    """Iterations of stage 1; a baseline from before the stages were told apart has a share alone."""
    return getattr(config, "student_iterations", round(config.msn_start * config.iterations))


def turn(trainer, times: int, calls: int, whole: bool) -> dict[str, float]:
    """Seconds of an iteration, in the mean over both stages of a training, and, for the floor, the device's
    rate right before: other work on the machine slows both."""
    found = {}
    if whole:
        from dmdd_lite.course.cost import convolution_rate

        found["rate"] = convolution_rate(trainer.device, precision=trainer.config.precision)
    config, seconds = trainer.config, 0.0
    learning = student_iterations(config) / config.iterations
    for first, share in ((0, learning), (1, 1 - learning)):
        if share:
            warm_up(trainer, first)
            seconds += share * measure.timed(trainer.step, trainer.device, times, calls)
    return {**found, "seconds": seconds}


def warm_up(trainer, second: bool):
    """Some iterations of a stage, from its start."""
    trainer.iteration = student_iterations(trainer.config) if second else 0
    trainer.model.train(not second)
    if second and hasattr(trainer, "finish_student"):  # not in a baseline whose stages run together
        trainer.finish_student()
    measure.timed(trainer.step, trainer.device, 10 if trainer.device.type == "cuda" else 1)


def serve(fields: dict, options, device: torch.device):
    """One way in a process of its own: an answer in every turn; then memory, parts and operations, the last
    two (and rates) on a checkout that has what they take."""
    cuda = device.type == "cuda"
    calls = 10 if cuda else 1  # a training looks at its losses every ten iterations
    times = max(2, options.iterations // options.turns // calls)
    with measure.peak_memory(device) as memory, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        trainer = build(fields, options)
        whole = hasattr(trainer, "teacher_features") and not options.no_parts
        config = trainer.config
        for second in range(1 + (student_iterations(config) < config.iterations)):
            warm_up(trainer, second)
        measure.tell({"ready": True})
        for _ in range(options.turns):
            measure.request()
            measure.tell(turn(trainer, times, calls, whole))
    measure.request()
    found = {"batch": fields["batch_size"], "memory": memory}
    found["warnings"] = sorted({str(w.message) for w in told if issubclass(w.category, UserWarning)})
    if whole:
        found["parts"] = parts(trainer, max(5, times // 2), calls)
        found["floor"] = operations(trainer)
    measure.tell(found)


def combine(runs: list[dict], rest: dict) -> dict:
    """One result: medians of the turns, what follows from them, and the rest."""
    turns = [run["seconds"] for run in runs]
    seconds = statistics.median(turns)
    found = {
        "seconds": seconds,
        "iterations_per_second": 1 / seconds,
        "pairs_per_second": rest["batch"] / seconds,
        "turns": turns,
        **rest,
    }
    if "parts" in found:
        found["parts"]["student and step"] = seconds - sum(found["parts"].values())
        floor = found["floor"]
        floor["rate"] = statistics.median(run["rate"] for run in runs)
        done = statistics.median(run["seconds"] * run["rate"] for run in runs)
        for kind in ("operations", "computed"):
            floor[f"seconds_{kind}"] = floor[kind] / floor["rate"]
            floor[f"ratio_{kind}"] = done / floor[kind]
    return found


def report(name: str, found: dict, goals: dict):
    """Print one way."""
    if "error" in found:
        print(f"{name}: failed: {found['error']}")
        return
    wanted = f" (goal {goals['iterations_per_second']})" if "iterations_per_second" in goals else ""
    columns = [
        f"{1000 * found['seconds']:.1f} ms",
        f"{found['iterations_per_second']:.2f} iterations/s{wanted}",
        f"{found['pairs_per_second']:.1f} pairs/s",
        measure.memory_text(found["memory"]),
        *([f"{found['times_first']:.2f} x the first's pairs/s"] if "times_first" in found else []),
    ]
    print(f"{name}: {', '.join(columns)}")
    for text in found["warnings"]:
        print(f"    warning: {text}")
    for part, seconds in found.get("parts", {}).items():
        print(f"    {part:18} {1000 * seconds:8.2f} ms  {seconds / found['seconds']:5.0%}")
    if "floor" in found:
        report_floor(found["floor"], goals)


def report_floor(least: dict, goals: dict):
    """Print the least time of one way and how far it is from it."""
    wanted = f" (goal {goals['times_floor']})" if "times_floor" in goals else ""
    print(
        f"    floor {1000 * least['seconds_operations']:.1f} ms: {least['operations'] / 1e9:.0f} GFLOP at",
        f" {least['rate'] / 1e12:.3g} TFLOP/s; the iteration takes {least['ratio_operations']:.2f} x that",
        f"{wanted}, {least['ratio_computed']:.2f} x if the teacher's kept features do not count",
        sep="",
    )


def ways_of(options) -> dict[str, tuple[Path, dict]]:
    """Root and fields of every way, the baseline first."""
    ways = {"baseline": (options.baseline.resolve(), fields_of(options))} if options.baseline else {}
    for variant in options.variant or ["this checkout:"]:
        name, _, fields = variant.partition(":")
        if not name or name in ways:
            raise ValueError(f"--variant {variant!r} needs a name of its own before the colon")
        ways[name] = (measure.ROOT, fields_of(options, fields))
    return ways


def run_together(ways: dict[str, tuple[Path, dict]], options) -> dict[str, dict]:
    """The results of ways whose processes are there at the same time and work in turns; {"error": message}
    of one that fails."""
    inner = ["--device", options.device, "--images", str(options.images), "--turns", str(options.turns)]
    inner += ["--iterations", str(options.iterations), *(["--no-parts"] if options.no_parts else [])]
    workers, found = {}, {}
    try:
        for name, (root, fields) in ways.items():
            print(f"  {name}", flush=True)
            try:
                arguments = [*inner, "--serve", json.dumps(fields)]
                workers[name] = measure.Worker(__file__, arguments, root)
            except measure.ScriptError as error:
                found[name] = {"error": str(error)}
        asked = {name: worker.ask for name, worker in workers.items()}
        for name, runs in measure.take_turns(asked, options.turns).items():
            (rest,) = measure.take_turns({name: asked[name]}, 1)[name]
            workers.pop(name).close()  # before the next one measures its parts
            found[name] = combine(runs, rest) if "error" not in rest else rest
    finally:
        for worker in workers.values():
            worker.close()
    return {name: found[name] for name in ways}


def compare(options, device: torch.device) -> dict[str, dict]:
    """The result of every way, each with its speed in those of the first. On a GPU one after the other, as
    its memory may not hold all. Raises SystemExit where the first fails; another that does (too little
    memory, say) is a result."""
    ways, alone = ways_of(options), device.type == "cuda" or options.turns == 1
    groups = [{name: way} for name, way in ways.items()] if alone else [ways]
    results = {name: found for group in groups for name, found in run_together(group, options).items()}
    first = next(iter(results.values()))
    if "error" in first:
        raise SystemExit(f"{next(iter(ways))}: {first['error']}")
    for found in results.values():
        if found is not first and "error" not in found:
            found["times_first"] = found["pairs_per_second"] / first["pairs_per_second"]
    return results


def main():
    options = parse()
    from dmdd_lite.utils import describe, resolve_device

    device = resolve_device(options.device)
    if options.serve:
        serve(json.loads(options.serve), options, device)
        return
    try:
        ways = compare(options, device)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    goals = measure.goals("training", device.type, options.teacher, options.size, options.batch)
    print(json.dumps(describe(device)))
    for name, found in ways.items():
        report(name, found, goals)
    measure.write_result(options.out, device, 0, {"goals": goals, "ways": ways})


if __name__ == "__main__":
    main()
