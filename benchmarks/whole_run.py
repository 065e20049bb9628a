"""A whole run on one category: the minutes of its training, the metrics of every map, and what bf16 changes.

    python benchmarks/whole_run.py --data data/mvtec_ad/bottle --textures data/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights mobilenetv2_100.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'

The trained detector predicts the test images twice, with convolutions in float32 and in bf16; the result has
the metrics of both and how far maps, image scores and decisions differ. Beside it stands cpu_run.json, the
result of this command on a CPU (`--out benchmarks/cpu_run.json`), where that is of the same configuration and
category. Protocol: last iteration.
"""

import argparse
import json
from pathlib import Path

import measure
import numpy as np
import torch

from dmdd_lite.config import Config
from dmdd_lite.data.images import DataError
from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.teacher import TeacherError
from dmdd_lite.training import train
from dmdd_lite.utils import describe, resolve_device

REFERENCE = Path(__file__).with_name("cpu_run.json")
PRECISIONS = ("float32", "bf16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a category in the MVTec AD layout")
    parser.add_argument("--textures", default="", help="folder of anomaly textures; without it procedural")
    parser.add_argument("--teacher", default="mobilenetv2_100")
    parser.add_argument("--teacher-weights", default="", help="a local file; without it the model's own")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="of our Config")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> Config:
    """Raises ValueError or TypeError naming a field."""
    fields = {
        "teacher": options.teacher,
        "teacher_weights": options.teacher_weights,
        "image_size": options.size,
        "iterations": options.iterations,
        "batch_size": options.batch,
    }
    return Config(**fields | measure.read_fields(options.set))


def agreement(detector, category) -> dict:
    """Metrics of the fused map in either precision, and the differences between the two: the largest of the
    maps (in [0, 1]) and of the image scores, and how many decisions change."""
    found = {
        precision: evaluate(
            measure.rescored(detector, detector.config.replace(precision=precision)), category
        )
        for precision in PRECISIONS
    }
    exact, low = (found[precision] for precision in PRECISIONS)
    decisions = [scored.scores["fused"] > detector.threshold for scored in (exact, low)]
    return {
        "metrics": {precision: scored.metrics["fused"] for precision, scored in found.items()},
        "map_difference": float(np.abs(exact.maps["fused"] - low.maps["fused"]).max()),
        "score_difference": float(np.abs(exact.scores["fused"] - low.scores["fused"]).max()),
        "decisions_changed": int((decisions[0] != decisions[1]).sum()),
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
    try:
        same = Config.from_dict(reference["config"]) == Config.from_dict(found["config"])
    except ValueError:  # a field that is no more
        same = False
    if not same or reference["category"] != found["category"]:
        print(f"{path.name} is of another configuration or category and is not compared with")
        return {}
    return {name: reference[name] for name in ("device", "minutes", "metrics")}


def report(found: dict):
    """Print one result, percent."""
    print(f"{found['minutes']:.1f} minutes of training, {found['pairs_per_second']:.1f} pairs/s")
    for name, metrics in found["metrics"].items():
        theirs = found["reference"].get("metrics", {}).get(name)
        texts = [
            f"{key} {100 * metrics[key]:.2f}" + (f" ({100 * theirs[key]:.2f})" if theirs else "")
            for key in METRICS
        ]
        print(f"{name:12} {', '.join(texts)}")
    if found["reference"]:
        print(f"in brackets: {found['reference']['device']}, {found['reference']['minutes']:.1f} minutes")
    both = found["precision"]
    print(
        f"bf16 against float32, largest differences: maps {both['map_difference']:.4f}, scores",
        f"{both['score_difference']:.4f}; {both['decisions_changed']} of {both['images']} decisions differ",
    )


def main():
    options = parse()
    device = resolve_device(options.device)
    try:
        found = run(options, device)
        found["reference"] = reference_of(REFERENCE, found)
    except (ValueError, TypeError, DataError, TeacherError) as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(describe(device)), options.data)
    report(found)
    measure.write_result(options.out, device, found["config"]["seed"], found)


if __name__ == "__main__":
    main()
