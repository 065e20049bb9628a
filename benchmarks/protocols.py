"""How much the protocol is worth: the same trainings reported as 'last' and as 'best-on-test'.

    python benchmarks/protocols.py --data bottle=data/mvtec_ad/bottle --textures data/dtd/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}' \\
        --seeds 0 1 2 --iterations 600 --batch-size 8

- last [ours]: the weights of the last iteration; nothing is chosen on the test set.
- best-on-test [authors]: the watched iteration with the highest pixel AUROC + AUPRO per image on the test set
  itself. It looks at the test labels, so it says nothing of new images: it is reported only to compare with
  numbers that were made the same way.

The test split is scored every --every iterations (an eighth of all) and after the last. Results go to
<out>/<data>_seed<seed>.json, with the fused map's metrics by iteration, and are not made again; a run that
was stopped in the middle begins anew.
"""

import argparse
import copy
import sys

import grid
import pandas as pd
from grid import Data

from dmdd_lite.backbones.networks import TeacherError
from dmdd_lite.config import Config
from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import METRICS, evaluate
from dmdd_lite.training import Trainer, TrainingError, finish, train
from dmdd_lite.utils import describe, write_json

LAST, BEST = "last", "best-on-test"


def execute(data: Data, config: Config, every: int, options: argparse.Namespace) -> dict:
    """Train and look at the test split now and then; the result. Raises what `train` and `evaluate` raise."""
    category, curve = open_category(data.root, data.category), []

    def look(trainer: Trainer):
        metrics = evaluate(
            finish(copy.deepcopy(trainer.model), trainer.data), category, progress=False
        ).metrics["fused"]
        curve.append({"iteration": trainer.iteration, **metrics})

    place, watched = (data.root, data.category, options.textures), {"checkpoint_every": every, "watch": look}
    training = train(config, *place, device=options.device, **watched)
    values = {"seed": config.seed, "map": "fused", "protocols": choose(curve), "curve": curve}
    return {**values, "seconds": round(training.seconds, 1), **describe(training.detector.device)}


def choose(curve: list[dict]) -> dict[str, dict]:
    """The line of the curve that each protocol reports; of equally good ones the earliest."""
    best = max(curve, key=lambda line: line["pixel_auroc"] + line["aupro_per_image"])
    return {LAST: curve[-1], BEST: best}


def table(results: list[dict]) -> pd.DataFrame:
    """'last / best-on-test (difference in points)' of every metric, percent, means over the seeds, a line a
    data set; and at which iterations they were best."""
    lines = {}
    for data in dict.fromkeys(values["data"] for values in results):
        chosen = [choose(values["curve"]) for values in results if values["data"] == data]
        cells = {"seeds": len(chosen)}
        for metric in METRICS:
            last, best = (100 * sum(c[name][metric] for c in chosen) / len(chosen) for name in (LAST, BEST))
            cells[metric] = f"{last:.2f} / {best:.2f} ({best - last:+.2f})"
        cells["best at"] = ", ".join(str(c[BEST]["iteration"]) for c in chosen)
        lines[data] = cells
    return pd.DataFrame.from_dict(lines, orient="index")


def complete(options: argparse.Namespace) -> list[dict]:
    """All results, those made that are not there. Raises CannotStart, and what `execute` raises."""
    base, results = grid.base_config(options), []
    grid.check(options, base)
    every = options.every or max(1, base.iterations // 8)
    for seed in options.seeds:
        for data in options.data:
            config, path = base.replace(seed=seed), options.out / f"{data.name}_seed{seed}.json"
            settings = {"data": data.name, "category": data.category, "textures": options.textures}
            settings |= {"every": every, "config": config.to_dict(), "files": grid.files_of(data)}
            if grid.read_values(path, settings) is None:
                write_json(path, {**settings, **execute(data, config, every, options)})
            results.append(grid.read_values(path, settings))
    return results


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all there, 2 something is missing or wrong."""
    parser = grid.common_parser(__doc__, "results/protocols", textures="", every=0)
    try:
        found = table(complete(parser.parse_args(arguments)))
    except (ValueError, TypeError, TeacherError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"fused map, percent: {LAST} / {BEST}\n\n{found.to_markdown(disable_numparse=True)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
