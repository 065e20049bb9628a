"""A whole run on one category: the minutes of its training, the metrics of every map, and what bf16 changes.

    python benchmarks/whole_run.py --data data/mvtec_ad/bottle --textures data/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights mobilenetv2_100.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'

The trained detector predicts the test images twice, with convolutions in float32 and in bf16; the result has
the metrics of both and how far maps, image scores and decisions differ, of the map that decides (`plus`,
without DMDD+ `fused`). Beside it stands cpu_run.json, the result of this command on a CPU
(`--out benchmarks/cpu_run.json`), where that is of the same configuration and category. Protocol: last
iteration.
"""

import argparse
import json
from pathlib import Path

import measure
import numpy as np
import torch
from refit import rescored

from dmdd_lite.backbones.networks import TeacherError
from dmdd_lite.config import Config
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.problems import DataError
from dmdd_lite.detector import decisive_map
from dmdd_lite.evaluation import evaluate
from dmdd_lite.training import train
from dmdd_lite.utils import resolve_device

REFERENCE = Path(__file__).with_name("cpu_run.json")
PRECISIONS = ("float32", "bf16")


def parse() -> argparse.Namespace:
    named = {"textures": "", "teacher": "mobilenetv2_100", "teacher_weights": "", "device": "auto"}
    parser = measure.parser(__doc__, **named, size=256, iterations=300, batch=8)
    parser.add_argument("--data", type=Path, required=True, help="a category in the MVTec AD layout")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of our Config")
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> Config:
    """Raises ValueError or TypeError naming a field."""
    fields = {"teacher": options.teacher, "teacher_weights": options.teacher_weights}
    fields |= {"image_size": options.size, "iterations": options.iterations, "batch_size": options.batch}
    return Config.from_dict({**fields, **measure.read_fields(options.set)})


def agreement(detector, category) -> dict:
    """Metrics in either precision, and the differences between the two: the largest of the maps (in [0, 1])
    and of the image scores, and how many decisions change."""
    of, found = decisive_map(detector.config), []
    for precision in PRECISIONS:
        other = rescored(detector, detector.config.replace(precision=precision))
        found.append(evaluate(other, category))
    exact, low = found
    changed = (exact.scores[of] > detector.threshold) != (low.scores[of] > detector.threshold)
    return {
        "map": of,
        "metrics": dict(zip(PRECISIONS, (exact.metrics[of], low.metrics[of]), strict=True)),
        "map_difference": float(np.abs(exact.maps[of] - low.maps[of]).max()),
        "score_difference": float(np.abs(exact.scores[of] - low.scores[of]).max()),
        "decisions_changed": int(changed.sum()),
        "images": len(exact.labels),
    }


def run(options: argparse.Namespace, device: torch.device) -> dict:
    """Train, evaluate, compare. Raises DataError, TeacherError, ValueError."""
    config, data = config_of(options), options.data.resolve()
    training = train(config, data.parent, data.name, options.textures, device=str(device))
    category = open_category(data.parent, data.name, check_files=False)
    scored = evaluate(training.detector, category)
    return {
        "category": data.name,
        "metrics": scored.metrics,
        "minutes": training.seconds / 60,
        "pairs_per_second": training.pairs_per_second,
        "test_images_per_second": scored.images_per_second,
        "precision": agreement(training.detector, category),
        "config": config.replace(teacher_weights=Path(config.teacher_weights).name).to_dict(),
    }


def reference_of(path: Path, found: dict) -> dict:
    """What is printed beside this result: {} if there is no such file or it is of another configuration."""
    if not path.is_file():
        return {}
    reference = json.loads(path.read_text(encoding="utf-8"))
    if any(reference[name] != found[name] for name in ("config", "category")):
        print(f"{path.name} is of another configuration or category and is not compared with")
        return {}
    return {name: reference[name] for name in ("device", "minutes", "metrics")}


def rows(found: dict) -> list[list[str]]:
    """Minutes and every map's metrics, in percent, beside the reference's; then what bf16 changes."""
    reference, both, config = found["reference"], found["precision"], found["config"]
    what = f"run of {config['iterations']} iterations of batch {config['batch_size']}, {config['teacher']}"
    lines = [[what, f"{found['minutes']:.1f} minutes"]]
    lines += [[f"{what}: {name}", percent(metrics)] for name, metrics in found["metrics"].items()]
    if reference:
        beside = [percent(reference["metrics"][name]) for name in found["metrics"]]
        beside = [f"{reference['device']}: {reference['minutes']:.1f} minutes", *beside]
        lines = [[*line, text] for line, text in zip(lines, beside, strict=True)]
        lines[0] += [f"{reference['minutes'] / found['minutes']:.1f}"]
    lines += [[f"{both['map']} in {name}", percent(metrics)] for name, metrics in both["metrics"].items()]
    text = f"maps {both['map_difference']:.4f}, scores {both['score_difference']:.4f} apart at most, "
    text += f"{both['decisions_changed']} of {both['images']} decisions differ"
    return [*lines, ["bf16 beside float32", text]]


def percent(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())


def main():
    options = parse()
    device = resolve_device(options.device)
    try:
        found = run(options, device)
        found["reference"] = reference_of(REFERENCE, found)
    except (ValueError, TypeError, DataError, TeacherError) as error:
        raise SystemExit(str(error)) from None
    found["table"] = rows(found)
    measure.write_result(options.out, device, found["config"]["seed"], found)


if __name__ == "__main__":
    main()
