"""What a teacher is worth before anything is distilled: nearest-neighbour anomaly maps of its features, for
the embedded teacher, the same network untrained, and one with ImageNet weights as the measure of both.

    python benchmarks/teachers.py --data bottle=data/mvtec_ad/bottle --teacher mobilenetv2_100 \\
        --seeds 0 1 2 --teacher-weights weights.safetensors --set \\
        'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'

Without --teacher the embedded one and the untrained one alone. The seed draws the patches that are kept and
the untrained network. Results go to <out>/<row>_<data>_seed<seed>.json and are not made again. The table ends
with how much of the way from the untrained network to the ImageNet one the embedded teacher goes.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from ablation import Data
from ablation_report import collect
from single_map import MAP, Run, common_parser, config_of, data_table, make_open, result_of

from dmdd_lite.data import open_category
from dmdd_lite.device import resolve_device
from dmdd_lite.images import load_images
from dmdd_lite.neighbours import NearestNeighbour
from dmdd_lite.teacher import Teacher, build_teacher

OURS, UNTRAINED, GIVEN = "embedded", "untrained", "imagenet"
JUDGED = {"image_auroc": "image AUROC", "aupro": "AUPRO"}


def settings_of(row: str, data: Data, options, seed: int) -> dict:
    """What a result depends on; the weights file by its name."""
    config = config_of(options) if row == GIVEN else None
    weights = {OURS: options.embedded_weights or "", UNTRAINED: "random"}
    values = {
        "teacher": config.teacher if config else "embedded",
        "teacher_options": config.to_dict()["teacher_options"] if config else {},
        "teacher_weights": Path(config.teacher_weights if config else weights[row]).name,
        "image_size": options.image_size,
        "patches": options.patches,
        "seed": seed,
    }
    return {"row": row, "data": data.name, "category": data.category, "settings": values}


def teacher_of(row: str, options, seed: int) -> Teacher:
    """Raises TeacherError."""
    if row == GIVEN:
        config = config_of(options)
        return build_teacher(config.teacher, config.teacher_weights, config.teacher_options)
    return build_teacher("embedded", "random" if row == UNTRAINED else options.embedded_weights, seed=seed)


def run(row: str, data: Data, options, seed: int) -> dict:
    """Keep patches of the good images, map and judge the test images. Raises DataError or TeacherError."""
    device, category = resolve_device(options.device), open_category(data.root, data.category)
    teacher = teacher_of(row, options, seed).to(device)
    images = load_images(category.train, options.image_size, None)
    began = time.perf_counter()
    memory = NearestNeighbour().fit(teacher, images, options.patches, seed)
    seconds = time.perf_counter() - began
    maps = memory.maps(load_images([test.path for test in category.test], options.image_size, None)).numpy()
    scores = maps.max(axis=(1, 2))
    return result_of(settings_of(row, data, options, seed), category, maps, scores, seconds, device)


def share_of_the_way(results: pd.DataFrame, data: str) -> dict[str, float]:
    """By metric, of the means over seeds: 0 where the embedded teacher is no better than the untrained one,
    1 where it equals the ImageNet one."""
    own = results[(results["data"] == data) & (results["map"] == MAP)]
    means = own.groupby("row")[list(JUDGED)].mean()
    return {m: _share(means[m]) for m in JUDGED} if {OURS, UNTRAINED, GIVEN} <= set(means.index) else {}


def _share(mean: pd.Series) -> float:
    return (mean[OURS] - mean[UNTRAINED]) / (mean[GIVEN] - mean[UNTRAINED])


def table(folder: Path) -> str:
    """Markdown of all results of a folder, a part a data set."""
    results, parts = collect(folder), []
    for data in dict.fromkeys(results["data"]):
        parts.append(data_table(results, data))
        ways = [f"{share:.2f} in {JUDGED[m]}" for m, share in share_of_the_way(results, data).items()]
        if ways:
            parts.append(f"of the way from untrained to ImageNet: {', '.join(ways)}")
    return "\n\n".join(parts)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.set_defaults(out=Path("results/teachers"))
    parser.add_argument("--embedded-weights", default="", help="another file for the embedded teacher")
    parser.add_argument("--patches", type=int, default=10_000, help="patches of good images that are kept")
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Every teacher on every data set, seed by seed."""
    for seed in options.seeds:
        for data in options.data:
            for row in (OURS, UNTRAINED, *([GIVEN] if options.teacher else [])):
                settings = settings_of(row, data, options, seed)
                yield settings, partial(run, row, data, options, seed)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all there, 2 something is missing or wrong."""
    options = parse(arguments)
    return make_open(options.out, runs(options), table)


if __name__ == "__main__":
    sys.exit(main())
