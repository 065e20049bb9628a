"""What each part and each choice of the method is worth: rows (changes of the configuration) x data sets x
seeds, every training in a process of its own.

    python benchmarks/ablation.py --data bottle=data/mvtec_ad/bottle --textures data/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}' \\
        --rows full pairs plain --seeds 0 1 2 --iterations 300 --batch-size 8

After an interruption the same command resumes from the last checkpoint and repeats nothing finished. Results
go to <out>/<row>_<data>_seed<seed>.json, tables to <out>.csv and <out>.md, the figure to <out>.png.
Exit status: 0 all done, 1 a training failed, 2 nothing was started, 130 interrupted.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import measure
import numpy as np
from ablation_report import portable, write_report
from ablation_rows import BY_NAME, FULL, SCORING

from dmdd_lite.config import Config, differences
from dmdd_lite.course.zones import zone_table
from dmdd_lite.data.images import DataError
from dmdd_lite.data.layout import list_images, open_category, open_folder
from dmdd_lite.evaluation import PROTOCOL, evaluate
from dmdd_lite.teacher import TeacherError, build_teacher
from dmdd_lite.training import Training, refit_msn, train
from dmdd_lite.utils import describe, peak_memory_mb, write_json

ZONE_WIDTH = 0.02  # of the edge and of the rim, as a share of the image's side
ZONE_FPR = 0.01  # share of good pixels above the threshold at which edge and centre are looked for
CHECKPOINTS = 20  # of a training: an interrupted one loses at most that share of itself


class CannotStart(ValueError):
    """Something that the trainings need is missing or wrong; the message says what."""


class Data(NamedTuple):
    """A category in a folder of them, under the name that the tables use."""

    name: str
    root: str
    category: str


def read_data(text: str) -> Data:
    """'NAME=ROOT/CATEGORY'. Raises ArgumentTypeError for another form."""
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[\w-]+", name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROOT/CATEGORY")
    return Data(name, str(Path(path).resolve().parent), Path(path).resolve().name)


def common_parser(description: str) -> argparse.ArgumentParser:
    """A parser of what says which trainings there are: data, textures, configuration, seeds, device."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--data", type=read_data, nargs="+", default=[], metavar="NAME=ROOT/CATEGORY")
    parser.add_argument("--textures", default="", help="folder of anomaly textures; without it procedural")
    parser.add_argument("--teacher", help="timm name of the teacher")
    parser.add_argument("--teacher-weights", help="its weights, a local file")
    for name in ("--image-size", "--iterations", "--batch-size"):
        parser.add_argument(name, type=int)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    return parser


def base_config(options: argparse.Namespace) -> Config:
    """The configuration that all rows are changes of. Raises ValueError or TypeError naming a field."""
    named = ("teacher", "teacher_weights", "image_size", "iterations", "batch_size")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if given.get("teacher_weights") not in (None, "", "random"):
        given["teacher_weights"] = str(Path(given["teacher_weights"]).resolve())
    return Config.from_dict({**given, **measure.read_fields(options.set)})


def run_name(row: str, data: str, seed: int) -> str:
    return f"{row}_{data}_seed{seed}"


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

    @property
    def log(self) -> Path:
        return self.options.out / "logs" / f"{self.name}.log"

    def result(self, row: str) -> Path:
        return self.options.out / f"{run_name(row, self.data.name, self.seed)}.json"

    def settings(self, row: str) -> dict:
        """What a result depends on, apart from its configuration."""
        kind = BY_NAME[self.row].textures
        folder = Path(self.options.textures).name if kind in ("folder", "mixed") else ""
        data = {"data": self.data.name, "category": self.data.category}
        return {"row": row, **data, "textures": [kind, folder]}


def plan(options: argparse.Namespace, base: Config) -> list[Job]:
    """The trainings, seed by seed, the full row first. Rows that change nothing of the base are left out."""
    wanted = [BY_NAME[name] for name in dict.fromkeys(options.rows)]
    same = [row.name for row in wanted if row.name != FULL and row.same_as_full(base)]
    same += [row.name for row in wanted if row.textures == "none" and not options.textures]
    if same:
        print(f"as the full row, left out: {', '.join(same)}")
    wanted = [row for row in wanted if row.name not in same]
    groups = {row.name: [row] for row in wanted if not row.is_refit(base)}
    if refit := [row for row in wanted if row.is_refit(base)]:
        groups[FULL] = [*groups.get(FULL, []), *refit]
    return [
        Job(name, data, seed, base, {row.name: row.config(base, seed) for row in groups[name]}, options)
        for seed in options.seeds
        for name in sorted(groups, key=lambda name: name != FULL)
        for data in options.data
    ]


def read_values(path: Path, config: Config, settings: dict) -> dict | None:
    """A result; None if there is none yet. Raises CannotStart, naming what differs, if it was made with other
    settings, or if it is no result."""
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        changed = differences(portable(values["config"]), portable(config.to_dict()))
        changed += [f"{k}: {values[k]!r} -> {v!r}" for k, v in settings.items() if values[k] != v]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotStart(f"{path} is not a result file ({error!r}); move it away") from error
    if changed:
        told = f"{path} was made with other settings ({'; '.join(changed)})"
        raise CannotStart(f"{told}; delete it or choose another --out")
    return values


def open_rows(job: Job) -> list[str]:
    """The rows that have no result yet. Raises CannotStart for a result of other settings."""
    rows = job.rows.items()
    return [row for row, config in rows if read_values(job.result(row), config, job.settings(row)) is None]


def check(options: argparse.Namespace, base: Config, jobs: list[Job]):
    """Look at results, data, textures and teacher. Raises CannotStart with all problems."""
    problems = [] if options.data else ["no --data given"]
    if len({data.name for data in options.data}) < len(options.data):
        problems.append("--data: every data set needs a name of its own")
    if options.textures and not Path(options.textures).is_dir():
        problems.append(f"--textures {options.textures}: no such folder")
    checks = [(open_rows, job) for job in jobs]
    checks += [(open_category, data.root, data.category, False) for data in options.data]
    checks += [(build_teacher, base.teacher, base.teacher_weights, base.teacher_options)]
    for call, *arguments in checks:
        try:
            call(*arguments)
        except (DataError, TeacherError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise CannotStart("\n".join(problems))


# ---- a training ---------------------------------------------------------------------------------------


def run_job(job: Job):
    """Train, or load what was trained before, then score the open rows, some of them after a fusion of their
    own was trained for the same student. Raises what `train`, `refit_msn` and `evaluate` raise."""
    config, data = BY_NAME[job.row].config(job.base, job.seed), job.data
    every = max(1, config.iterations // CHECKPOINTS)
    place = (data.root, data.category, textures_of(job))
    training = train(config, *place, job.folder, job.options.device, every)
    category = open_category(data.root, data.category, check_files=False)
    for row in open_rows(job):
        made = variant(training, job.rows[row], (*place, job.options.device))
        write_json(job.result(row), result_of(job, row, made, evaluate(made.detector, category)))
    if not job.options.keep and job.row != FULL:  # rows that only score may be added to the full one later
        shutil.rmtree(job.folder)


def variant(training: Training, config: Config, place: tuple) -> Training:
    """The training under the configuration of one of its rows. Its seconds are those of what was trained."""
    changed = {text.split(":")[0] for text in differences(training.detector.config, config)}
    if changed <= set(SCORING):
        return dataclasses.replace(training, detector=measure.rescored(training.detector, config))
    print(f"the fusion anew: {', '.join(sorted(changed))}", flush=True)
    return refit_msn(training.detector, config, *place)


def textures_of(job: Job) -> str | Path:
    """The folder that the textures come from, '' for procedural ones; that of 'mixed' is made of links."""
    kind, folder = BY_NAME[job.row].textures, job.options.textures
    own = Path(job.data.root) / job.data.category / "train" / "good"
    if kind != "mixed":
        return {"folder": folder, "none": "", "own": own}[kind]
    mixed = job.folder / "textures"
    mixed.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate([*list_images(own), *(open_folder(folder, True) if folder else ())]):
        link = mixed / f"{number:06}{source.suffix}"
        if not link.is_symlink():
            link.symlink_to(source.resolve())
    return mixed


def result_of(job: Job, row: str, made: Training, evaluation) -> dict:
    """All of a row's result, as `evaluation.write_result` has it, with the recall of edge and centre."""
    device = made.detector.device
    return {
        **job.settings(row),
        "seed": job.seed,
        "protocol": PROTOCOL,
        "metrics": evaluation.metrics,
        "zones": zone_recalls(evaluation.maps, evaluation.masks),
        "seconds": round(made.seconds, 1),
        "images_per_second": round(evaluation.images_per_second, 2),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
        **describe(device),
        "images": {"train": len(evaluation.category.train), "test": len(evaluation.labels)},
        "config": made.detector.config.to_dict(),
        "base": job.base.replace(seed=0).to_dict(),
    }


def zone_recalls(maps: dict[str, np.ndarray], masks: np.ndarray) -> dict[str, dict]:
    """Recall of centre, edge and rim by map, see `zones.zone_table`; None for a zone without pixels."""
    table = zone_table(maps, masks, max(1, round(ZONE_WIDTH * masks.shape[-1])), ZONE_FPR)
    return table.astype(object).where(table.notna(), None).to_dict("index")


# ---- processes ----------------------------------------------------------------------------------------


def child(job: Job):
    """`run_job` in a process of its own, which ends with its parent; what it prints goes to the log."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    with open(job.log, "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        run_job(job)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run_child(job: Job) -> str:
    """Why the training failed, '' if it did not. No process is left, whatever happens."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(job,))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode < 0:
        return f"killed by {signal.Signals(-process.exitcode).name}"
    return measure.last_line(job.log.read_text(encoding="utf-8"), 1) if process.exitcode else ""


def told(values: dict) -> str:
    """One result in one line."""
    names = {"image_auroc": "image", "pixel_auroc": "pixel", "aupro": "AUPRO", "pixel_ap": "AP"}
    numbers = [f"{name} {100 * values['metrics']['fused'][key]:.2f}" for key, name in names.items()]
    run = f"{values['row']} {values['data']} seed {values['seed']}"
    return f"{run}: {', '.join(numbers)}, {values['seconds']:.0f} s"


def run(options: argparse.Namespace) -> int:
    """Check, then train and score what is open; how many trainings failed. Raises CannotStart."""
    base = base_config(options)
    jobs, failed = plan(options, base), 0
    check(options, base, jobs)
    for number, job in enumerate(jobs, start=1):
        if rows := open_rows(job):
            problem = run_child(job)
            failed += bool(problem)
            for row in set(rows) - set(open_rows(job)):
                print(f"[{number}/{len(jobs)}] {told(json.loads(job.result(row).read_text()))}", flush=True)
            if problem:
                print(f"[{number}/{len(jobs)}] {job.name}: failed: {problem} (log: {job.log})", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = common_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=list(BY_NAME), choices=BY_NAME, metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("results/ablation"), help="folder of the results")
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
