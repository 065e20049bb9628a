"""What each part and each choice of the method is worth: rows (changes of the configuration) x data sets x
seeds, every training in a process of its own.

    python benchmarks/ablation.py --data bottle=data/mvtec_ad/bottle --textures data/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}' \\
        --rows full pairs plain --seeds 0 1 2 --iterations 300 --batch-size 8 --minutes 9

Stop it whenever you like: the same command goes on from the last checkpoints and repeats nothing finished.
Results go to <out>/<row>_<data>_seed<seed>.json, tables to <out>.csv and <out>.md, the figure to <out>.png.
Exit status: 0 all done, 1 a run failed, 2 nothing was started, 75 runs are left, 130 interrupted.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import measure
from ablation_report import write_report
from ablation_rows import BY_NAME, FULL, listing
from ablation_run import Job, Process, is_kept, read_result, run_name

from dmdd_lite.config import Config
from dmdd_lite.data import open_category
from dmdd_lite.images import DataError
from dmdd_lite.reproduction.jobs import BUSY, INTERRUPTED, ResultError, interrupt_on_sigterm
from dmdd_lite.reproduction.schedule import places
from dmdd_lite.teacher import TeacherError, build_teacher

POLL = 0.2  # seconds between two looks at the processes
SPARE = 40.0  # seconds kept of the time limit: imports before it counts, stopping the runs, the tables


class CannotStart(ValueError):
    """Something that the runs need is missing or wrong; the message says what."""


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
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=read_data, nargs="+", default=[], metavar="NAME=ROOT/CATEGORY")
    parser.add_argument("--textures", default="", help="folder of anomaly textures; without it procedural")
    parser.add_argument("--teacher", help="timm name of the teacher")
    parser.add_argument("--teacher-weights", help="its weights, a local file")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=list(BY_NAME), choices=BY_NAME, metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("results/ablation"), help="folder of the results")
    parser.add_argument("--jobs", type=int, help="trainings at a time (default one, or one a GPU)")
    parser.add_argument("--minutes", type=float, help="stop in time for the call to last so long")
    parser.add_argument("--keep", action="store_true", help="keep every detector, not only the full row's")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--report", action="store_true", help="write the tables of what is there and end")
    return parser.parse_args(arguments)


def base_config(options: argparse.Namespace) -> Config:
    """The configuration that all rows are changes of. Raises ValueError or TypeError naming a field."""
    named = ("teacher", "teacher_weights", "image_size", "iterations", "batch_size")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if given.get("teacher_weights") not in (None, "", "random"):
        given["teacher_weights"] = str(Path(given["teacher_weights"]).resolve())
    return Config.from_dict({**given, **measure.read_fields(options.set)})


# ---- what to run --------------------------------------------------------------------------------------


def plan(options: argparse.Namespace, base: Config) -> list[Job]:
    """The trainings, with the rows that each is scored for, whether there is a result or not; seed by seed,
    the full row first. Rows that change nothing of the base are left out, and named."""
    wanted = [BY_NAME[name] for name in dict.fromkeys(options.rows)]
    same = [row.name for row in wanted if row.name != FULL and row.same_as_full(base)]
    if not options.textures:
        same += [row.name for row in wanted if row.textures == "none"]
    if same:
        print(f"as the full row, left out: {', '.join(same)}")
    wanted = [row for row in wanted if row.name not in same]
    groups = {row.name: [row] for row in wanted if not row.is_refit(base)}
    refit = [row for row in wanted if row.is_refit(base)]  # those that are only scored too
    if refit:
        groups[FULL] = [*groups.get(FULL, []), *refit]
    order = sorted(groups, key=lambda name: name != FULL)
    return [
        job_of(options, base, name, groups[name], data, seed)
        for seed in options.seeds
        for name in order
        for data in options.data
    ]


def job_of(options, base: Config, name: str, rows: list, data: Data, seed: int) -> Job:
    """The training of one row, data set and seed."""
    row = BY_NAME[name]
    return Job(
        row=name,
        **{"data": data.name, "root": data.root, "category": data.category},
        seed=seed,
        config=row.config(base, seed).to_dict(),
        base=base.replace(seed=0).to_dict(),
        rows={r.name: r.config(base, seed).to_dict() for r in rows},
        textures=row.textures,
        texture_root=str(Path(options.textures).resolve()) if options.textures else "",
        out=str(options.out.resolve()),
        device=options.device,
        keep=is_kept(name, options.keep),
    )


def open_rows(job: Job) -> list[str]:
    """The rows that have no result yet. Raises ResultError for a result of other settings."""
    return [row for row in job.rows if read_result(job, row) is None]


def check(options: argparse.Namespace, base: Config, jobs: list[Job]):
    """Look at results, data, textures and teacher before anything starts. Raises CannotStart with all
    problems."""
    problems = []
    if not options.data:
        problems.append("no --data given")
    if len({data.name for data in options.data}) < len(options.data):
        problems.append("--data: every data set needs a name of its own")
    if options.textures and not Path(options.textures).is_dir():
        problems.append(f"--textures {options.textures}: no such folder")
    for job in jobs:
        try:
            open_rows(job)
        except ResultError as error:
            problems.append(str(error))
    for data in options.data:
        try:
            open_category(data.root, data.category, check_files=False)
        except DataError as error:
            problems.append(str(error))
    try:
        build_teacher(base.teacher, base.teacher_weights, base.teacher_options)
    except (TeacherError, ValueError) as error:
        problems.append(str(error))
    if problems:
        raise CannotStart("\n".join(problems))


# ---- running it ---------------------------------------------------------------------------------------


class Grid:
    """The open jobs, as many at a time as there are `environments`; stops by itself at `deadline` (of
    time.monotonic)."""

    def __init__(self, jobs: list[Job], environments: list[dict[str, str]], deadline: float):
        self.total = sum(len(job.rows) for job in jobs)
        self.waiting = [job for job in jobs if open_rows(job)]
        self.open = {job.name: open_rows(job) for job in self.waiting}
        self.environments, self.deadline = environments, deadline
        self.running: dict[int, Process] = {}  # by the index of their environment
        self.failed: dict[str, str] = {}  # messages by the run's name
        self.interrupted = False

    @property
    def left(self) -> int:
        """Runs that neither have a result nor failed."""
        return sum(len(rows) for rows in self.open.values()) - len(self.failed)

    @property
    def done(self) -> int:
        return self.total - self.left - len(self.failed)

    def work(self):
        """Until all is done or failed, or the deadline. Whatever happens, no process is left."""
        try:
            while (self.waiting or self.running) and time.monotonic() < self.deadline:
                for place, process in list(self.running.items()):
                    if self.settle(process):
                        del self.running[place]
                for place, environment in enumerate(self.environments):
                    if place not in self.running and self.waiting:
                        self.running[place] = Process(self.waiting.pop(0), environment)
                time.sleep(POLL)
        finally:
            for process in self.running.values():
                process.stop()
            for process in self.running.values():
                process.wait(SPARE / 4)
                self.tell(process.job)

    def settle(self, process: Process) -> bool:
        """Tell what a process has done; True when it has ended."""
        code, job = process.poll(), process.job
        self.tell(job)
        if code is None:
            return False
        process.wait()
        self.tell(job)
        if code == BUSY:
            print(f"{job.name}: another command works on it", flush=True)
        elif self.open[job.name]:
            message = process.error() if code else "ended without a result"
            for row in self.open[job.name]:
                name = run_name(row, job.data, job.seed)
                self.failed[name] = f"{message} (log: {job.log})"
                print(f"{name}: failed: {message}", flush=True)
        return True

    def tell(self, job: Job):
        """A line for every result that has come since the last look."""
        for row in list(self.open[job.name]):
            values = read_result(job, row)
            if values:
                self.open[job.name].remove(row)
                print(f"[{self.done}/{self.total}] {line(values)}", flush=True)


def line(values: dict) -> str:
    """One result in one line."""
    names = {"image_auroc": "image", "pixel_auroc": "pixel", "aupro": "AUPRO", "pixel_ap": "AP"}
    numbers = [f"{name} {100 * values['metrics']['fused'][key]:.2f}" for key, name in names.items()]
    return f"{values['row']} {values['data']} seed {values['seed']}: {', '.join(numbers)}, " + (
        f"{values['seconds']:.0f} s"
    )


def run(options: argparse.Namespace, began: float) -> Grid:
    """Check, then work. Raises CannotStart."""
    base = base_config(options)
    jobs = plan(options, base)
    check(options, base, jobs)
    limit = 60 * options.minutes if options.minutes else float("inf")
    grid = Grid(jobs, places(options.jobs, options.device), began + limit - min(SPARE, limit / 5))
    print(f"{grid.total} runs, {grid.left} of them open; logs in {options.out / 'logs'}", flush=True)
    try:
        grid.work()
    except KeyboardInterrupt:
        grid.interrupted = True
    return grid


def main(arguments: list[str] | None = None) -> int:
    began, options = time.monotonic(), parse(arguments)
    try:
        if options.list:
            print(listing(base_config(options)))
            return 0
        grid = None
        if not options.report:
            interrupt_on_sigterm()
            grid = run(options, began)
        print("\n" + write_report(options.out) if any(options.out.glob("*.json")) else "no results yet")
    except (ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    return conclude(grid) if grid else 0


def conclude(grid: Grid) -> int:
    """Tell what is missing; the exit status."""
    for name, message in grid.failed.items():
        print(f"failed: {name}: {message}")
    if grid.left:
        print(f"{grid.left} of {grid.total} runs are left; the same command goes on")
    if grid.interrupted:
        return INTERRUPTED
    return 1 if grid.failed else BUSY if grid.left else 0


if __name__ == "__main__":
    sys.exit(main())
