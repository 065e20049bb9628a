"""The whole table: every category and seed by notebook 05, each in a process of its own, on this machine's
GPUs or cores or over a Dask cluster; the same command goes on after any interruption and repeats nothing.

    python -m dmdd_lite.reproduce data/mvtec_ad --textures data/dtd/images --seeds 0 1 2

Everything is checked before anything starts. Into the results folder come <category>_seed<seed>.json, logs/,
notebooks/ as executed, and at the end results.csv, results.md and figures/05_peers.png.
"""

import argparse
import ast
import contextlib
import sys
from pathlib import Path

from .config import MVTEC_CATEGORIES, Config, published_iterations
from .data import open_category, open_folder
from .evaluation import METRICS, collect_results, results_table
from .figures import save_figure
from .images import DataError
from .plots.peers import plot_peers
from .reference import report
from .reproduction import cluster
from .reproduction.board import Board, Run, summary
from .reproduction.jobs import INTERRUPTED, Job, ResultError, finished, interrupt_on_sigterm
from .reproduction.schedule import places, run_here
from .runner import REPRODUCTION, check_parameters, notebook_parameters
from .teacher import TeacherError, build_teacher
from .utils import resolve_device, write_atomically, writing_problem

#: Notebook parameters that options of the command line set.
OWN = ("data_root", "category", "texture_root", "teacher", "teacher_weights", "image_size")
OWN += ("iterations", "batch_size", "seed", "device", "results_dir")


class CannotStart(RuntimeError):
    """Problems found before any work, all of them."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot start, nothing was run:\n" + "\n".join(f"- {text}" for text in problems))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dmdd_lite.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, whole = parser.add_argument, {"type": int, "metavar": "N"}
    add("data_root", metavar="DATA_ROOT", help="folder in the MVTec AD layout")
    add("--categories", nargs="+", default=MVTEC_CATEGORIES, metavar="NAME", help="default: MVTec AD's 15")
    add("--seeds", nargs="+", default=[0], **whole, help="default: 0")
    add("--results", default="results/mvtec", metavar="FOLDER", help="default: %(default)s")
    add("--textures", default="", metavar="FOLDER", help="such as DTD's images; default: procedural")
    add(
        "--teacher",
        default=Config.teacher,
        help="timm name, or 'tf_efficientnet_lite0.pypi'; default: %(default)s",
    )
    add("--teacher-weights", default="", metavar="FILE", help="or 'random'; default: from the hub, once")
    add("--image-size", default=256, **whole, help="default: %(default)s")
    add("--batch-size", default=16, **whole, help="default: %(default)s")
    add("--iterations", **whole, help="default: 5,000, and 10,000 for cable and transistor")
    add("--jobs", **whole, help="runs at a time; default: the number of GPUs, or 1")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    add(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs the jobs, such as tcp://host:8786"
    )
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any other parameter of the notebook")
    add("--notebook", default="", metavar="FILE", help="another one with the same parameters")
    return parser.parse_args(arguments)


# ---- what is to be run --------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> list[Job]:
    """A job a category and seed, those with most iterations first. Raises CannotStart with all problems."""
    notebook = absolute(options.notebook)
    defaults, problems = notebook_parameters(notebook or REPRODUCTION), []
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"--jobs must be at least 1, got {options.jobs}")
    common = defaults | _extra(options.set, defaults, problems)
    common |= {
        "data_root": absolute(options.data_root),
        "texture_root": absolute(options.textures),
        "teacher": options.teacher,
        "teacher_weights": absolute(options.teacher_weights, only_files=True),
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "device": options.device,
        "results_dir": absolute(options.results),
    }
    jobs = []
    for seed in dict.fromkeys(options.seeds):
        for category in dict.fromkeys(options.categories):
            steps = published_iterations(category) if options.iterations is None else options.iterations
            jobs.append(Job({**common, "category": category, "seed": seed, "iterations": steps}, notebook))
    for job in jobs:
        try:
            check_parameters(notebook or REPRODUCTION, job.parameters)
            job.config()
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    if problems:
        raise CannotStart(list(dict.fromkeys(problems)))
    return sorted(jobs, key=lambda job: -job.parameters["iterations"])


def absolute(path: str, only_files: bool = False) -> str:
    """Jobs may start elsewhere. '' stays '', and with only_files what is no file stays as it is."""
    found = Path(path).expanduser()
    return str(found.resolve()) if path and (found.is_file() or not only_files) else path


def _extra(pairs: list[str], defaults: dict, problems: list[str]) -> dict:
    """The values of --set, as Python literals where the notebook's default is not a text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            problems.append(f"--set {pair}: must be NAME=VALUE")
        elif name in OWN:
            problems.append(f"--set {pair}: {name} has an option of its own, see --help")
        else:
            values[name] = text
            if not isinstance(defaults.get(name), str):
                with contextlib.suppress(ValueError, SyntaxError):
                    values[name] = ast.literal_eval(text)
    return values


# ---- what must be there -------------------------------------------------------------------------------


def data_problems(jobs: list[dict], check_files: bool = True) -> list[str]:
    """What is wrong with the categories and textures of these jobs, given as their parameters."""
    problems = []
    for root, category in dict.fromkeys((job["data_root"], job["category"]) for job in jobs):
        try:
            open_category(root, category, check_files)
        except DataError as error:
            problems.append(str(error))
    for textures in {job["texture_root"] for job in jobs} - {""}:
        try:
            open_folder(textures, recursive=True)
        except DataError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def teacher_problems(config: dict) -> list[str]:
    """Build the teacher once: its weights are there, and if they come from the hub, all jobs find them."""
    teacher = Config.from_dict(config)
    try:
        build_teacher(teacher.teacher, teacher.teacher_weights, teacher.teacher_options)
    except (TeacherError, ValueError) as error:
        return [str(error)]
    return []


def check(runs: list[Run], device: str, client=None):
    """Look at everything that the open runs need, here or on the cluster's workers. Raises CannotStart."""
    jobs = [run.job for run in runs if run.open]
    if not jobs:
        return
    parameters, config = [job.parameters for job in jobs], jobs[0].config().to_dict()
    print(
        f"checking {len({job['category'] for job in parameters})} categories and the teacher ...", flush=True
    )
    if client is None:
        problems = data_problems(parameters) + teacher_problems(config)
        try:
            resolve_device(device)
        except ValueError as error:
            problems.append(str(error))
    else:
        problems = cluster.problems(client, data_problems, teacher_problems, parameters, config)
    problem = writing_problem(jobs[0].results)
    if problem:
        problems.append(f"{problem}; choose another --results folder")
    if problems:
        raise CannotStart(problems)


# ---- all of it ----------------------------------------------------------------------------------------


def close_finished(runs: list[Run]):
    """Mark what was done by an earlier command. Raises CannotStart if results are of other settings."""
    problems = []
    for run in runs:
        try:
            result = finished(run.job)
        except ResultError as error:
            problems.append(str(error))
        else:
            if result:
                run.end("done", result=result)
    try:
        collect_results(runs[0].job.results)
    except ValueError as error:  # tell now what would spoil the table at the end
        problems = problems or [str(error)]
    if problems:
        raise CannotStart(problems)


def conclude(runs: list[Run], folder: Path) -> str:
    """Collect all results of the folder into results.csv, results.md and the figure; what to tell of it."""
    results, told = collect_results(folder), []
    if len(results):
        write_atomically(folder / "results.csv", lambda path: results.to_csv(path, index=False))
        text = report(folder, results) + "\n\n![by category](figures/05_peers.png)\n"
        write_atomically(folder / "results.md", lambda path: path.write_text(text, encoding="utf-8"))
        save_figure(plot_peers(results), folder / "figures" / "05_peers.png")
        told += ["fused map, percent, mean ± std over seeds:", ""]
        told += [results_table(results)[["seeds", *METRICS]].to_markdown(disable_numparse=True), ""]
        told += [f"with the paper's and the peers' numbers: {folder}/results.md, figures/05_peers.png"]
    failed = [run for run in runs if run.state == "failed"]
    if failed:
        told += ["", f"{len(failed)} of {len(runs)} runs failed; the same command tries them again:"]
        told += [f"- {run.job.name}: {run.detail}\n  log: {run.job.log}" for run in failed]
    return "\n".join(told)


def work(options: argparse.Namespace, runs: list[Run]):
    """Check, then run what is open. Raises CannotStart or ClusterError before anything has run."""
    connected = cluster.connect(options.scheduler) if options.scheduler else contextlib.nullcontext()
    with connected as client:
        check(runs, options.device, client)
        print(f"{summary(runs)}; logs in {runs[0].job.log.parent}", flush=True)
        if client is None:
            run_here(runs, places(options.jobs, options.device), Board())
        else:
            cluster.run_on_cluster(runs, client, Board())


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 a run or the table failed, 2 nothing was started, 130 interrupted."""
    options, interrupted = parse(arguments), False
    interrupt_on_sigterm()
    try:
        runs = [Run(job) for job in plan(options)]
        close_finished(runs)
        try:
            work(options, runs)
        except KeyboardInterrupt:
            interrupted = True
        print(f"\n{conclude(runs, runs[0].job.results)}")
    except (CannotStart, cluster.ClusterError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # of the table, say: the results are there, each written by its own run
        print(f"failed: {error}; mend that, then the same command goes on", file=sys.stderr)
        return 1
    if interrupted:
        print("stopped; the same command goes on from the last checkpoints and repeats nothing finished")
        return INTERRUPTED
    return int(any(run.state == "failed" for run in runs))


if __name__ == "__main__":
    sys.exit(main())
