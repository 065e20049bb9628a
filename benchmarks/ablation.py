"""What each part and each choice of the method is worth: rows (changes of the configuration) x data sets x
seeds.

    python benchmarks/ablation.py --data bottle=data/mvtec_ad/bottle --textures data/dtd/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}' \\
        --rows full pairs plain --seeds 0 1 2 --iterations 300 --batch-size 8

After an interruption the same command resumes from the last checkpoint and repeats nothing finished. Results
go to <out>/<row>_<data>_seed<seed>.json, tables to <out>.csv and <out>.md, the figure to <out>.png.
Exit status: 0 all done, 1 a training failed, 2 nothing was started, 130 interrupted.
"""

import argparse
import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import grid
import measure
from ablation_report import write_report
from ablation_rows import BY_NAME, FULL, is_scored
from grid import Data, run_name
from refit import refit, rescored

from dmdd_lite.config import Config
from dmdd_lite.data.layout import open_category
from dmdd_lite.evaluation import evaluate
from dmdd_lite.tables import PROTOCOL, without_nan
from dmdd_lite.training import Training, train
from dmdd_lite.utils import describe, resolve_device, write_json

CHECKPOINTS = 20  # of a training: an interrupted one loses at most that share of itself


class Job(NamedTuple):
    """The training of `row`, and the rows that are scored from its detector, with their configurations."""

    row: str
    data: Data
    seed: int
    base: Config
    rows: dict[str, Config]
    options: argparse.Namespace

    @property
    def name(self) -> str:
        return run_name(self.row, self.data.name, self.seed)

    @property
    def folder(self) -> Path:
        """Checkpoint or detector of the training."""
        return self.options.out / "runs" / self.name

    def result(self, row: str) -> Path:
        return self.options.out / f"{run_name(row, self.data.name, self.seed)}.json"

    def settings(self, row: str) -> dict:
        """What a result depends on, apart from its configuration."""
        data = {"data": self.data.name, "category": self.data.category}
        files = grid.files_of(self.data)
        return {"row": row, **data, "textures": ["folder", Path(self.options.textures).name], "files": files}


def plan(options: argparse.Namespace, base: Config) -> list[Job]:
    """The trainings, seed by seed, the full row first. Rows that change nothing of the base are left out."""
    wanted = [BY_NAME[name] for name in dict.fromkeys(options.rows)]
    same = [row.name for row in wanted if row.name != FULL and row.same_as_full(base)]
    if same:
        print(f"as the full row, left out: {', '.join(same)}")
    wanted = [row for row in wanted if row.name not in same]
    groups = {}
    for row in sorted(wanted, key=lambda row: row.name != FULL):
        groups.setdefault(row.trained(base), []).append(row)
    return [
        Job(name, data, seed, base, {row.name: row.config(base, seed) for row in groups[name]}, options)
        for seed in options.seeds
        for name in sorted(groups, key=lambda name: name != FULL)
        for data in options.data
    ]


def open_rows(job: Job) -> list[str]:
    """The rows that have no result yet. Raises CannotStart for a result of other settings or files."""

    def settings(row):
        return {**job.settings(row), "config": job.rows[row].to_dict()}

    return [row for row in job.rows if grid.read_values(job.result(row), settings(row)) is None]


# ---- a training ---------------------------------------------------------------------------------------


def run_job(job: Job):
    """Train, or load what was trained before, then score the open rows, some of them after an MSN of their
    own was trained for the same student. Raises what `train`, `refit` and `evaluate` raise."""
    config, data = BY_NAME[job.row].config(job.base, job.seed), job.data
    every = max(1, config.iterations // CHECKPOINTS)
    place = (data.root, data.category, job.options.textures)
    with measure.peak_memory(resolve_device(job.options.device)) as memory:
        training = train(config, *place, job.folder, job.options.device, every)
    category = open_category(data.root, data.category, check_files=False)
    for row in open_rows(job):
        made = variant(training, job.rows[row], (*place, job.options.device))
        values = result_of(job, row, made, evaluate(made.detector, category))
        values["peak_memory_mb"] = round(1000 * memory.get("allocated_gb", memory.get("process_gb")), 1)
        write_json(job.result(row), values)
        print(told(values), flush=True)
    if not job.options.keep and job.row != FULL:  # rows that only score may be added to the full one later
        shutil.rmtree(job.folder)


def variant(training: Training, config: Config, place: tuple) -> Training:
    """The training under the configuration of one of its rows. Its seconds are those of what was trained."""
    if is_scored(training.detector.config, config):
        return dataclasses.replace(training, detector=rescored(training.detector, config))
    print("the MSN anew", flush=True)
    return refit(training.detector, config, *place)


def result_of(job: Job, row: str, made: Training, evaluation) -> dict:
    """All of a row's result, as `tables.write_result` has it, with the recall of edge and centre."""
    device = made.detector.device
    return {
        **job.settings(row),
        "seed": job.seed,
        "protocol": PROTOCOL,
        "metrics": without_nan(evaluation.metrics),
        "decisions": without_nan(evaluation.decisions),
        "zones": grid.zone_recalls(evaluation.maps, evaluation.masks),
        "seconds": round(made.seconds, 1),
        "images_per_second": round(evaluation.images_per_second, 2),
        **describe(device),
        "images": {"train": len(evaluation.category.train), "test": len(evaluation.labels)},
        "config": made.detector.config.to_dict(),
        "base": job.base.replace(seed=0).to_dict(),
    }


# ---- all of them ----------------------------------------------------------------------------------------


def told(values: dict) -> str:
    """One result in one line."""
    names = {"image_auroc": "image", "pixel_auroc": "pixel", "aupro": "AUPRO", "pixel_ap": "AP"}
    numbers = [f"{name} {100 * values['metrics']['fused'][key]:.2f}" for key, name in names.items()]
    run = f"{values['row']} {values['data']} seed {values['seed']}"
    return f"{run}: {', '.join(numbers)}, {values['seconds']:.0f} s"


def run(options: argparse.Namespace) -> int:
    """Check, then train and score what is open; how many trainings failed. Raises CannotStart."""
    base = grid.base_config(options)
    jobs, failed = plan(options, base), 0
    grid.check(options, base, [(open_rows, job) for job in jobs])
    for number, job in enumerate([job for job in jobs if open_rows(job)], start=1):
        print(f"training {number}: {job.name}", flush=True)
        try:
            run_job(job)
        except Exception as error:  # out of memory, say: the others may still run
            failed += 1
            print(f"{job.name}: failed: {type(error).__name__}: {error}", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = grid.common_parser(__doc__, "results/ablation", textures="")
    parser.add_argument("--rows", nargs="+", default=list(BY_NAME), choices=BY_NAME, metavar="ROW")
    parser.add_argument("--keep", action="store_true", help="keep every detector, not only the full row's")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("DMDD_PROGRESS", "lines")
    try:
        failed = run(options)
        print("\n" + write_report(options.out) if any(options.out.glob("*.json")) else "no results yet")
    except KeyboardInterrupt:
        print("stopped; the same command resumes")
        return 130
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
