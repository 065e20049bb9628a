"""Arguments of `python -m dmdd_lite.reproduce`, the jobs that they ask for, and all that those need."""

import argparse
import dataclasses
import os
from pathlib import Path

import pandas as pd

from ..backbones.networks import TeacherError
from ..config import MVTEC_CATEGORIES, Config, published_iterations
from ..data.fingerprints import Fingerprint, changes, digest, hash_category, hash_files
from ..data.folders import open_folder
from ..data.layout import open_category
from ..data.layouts import LAYOUTS
from ..data.masks import RULES
from ..data.problems import DataError
from ..data.samples import samples_root
from ..data.training import draw_files
from ..options import read_setting, read_value
from ..tables import collect_results
from ..teacher import build_teacher
from ..utils import resolve_device, writing_problem
from .notebook import REPRODUCTION, check_parameters, notebook_parameters
from .run import CannotStart, Job, finished

DESCRIPTION = """The whole table: every category and seed by notebook 05, on this machine's GPUs or cores
or on a Dask cluster; the same command resumes after any interruption and repeats nothing finished."""
PATHS = ("data_root", "texture_root", "teacher_weights", "results_dir")
#: parameters with options, as are those below
OWN = (*PATHS, "teacher", "image_size", "batch_size", "mask_rule", "layout", "full_size", "device")
OWN_OF_RUN = ("category", "seed", "iterations", "settings")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dmdd_lite.reproduce", description=DESCRIPTION)
    add, whole = parser.add_argument, {"type": int, "metavar": "N"}
    text = {"default": "", "metavar": "FILE"}
    add("data_root", metavar="DATA_ROOT", help="folder that holds the category folders")
    add("--layout", default="mvtec", choices=LAYOUTS, help="of the data set; default: %(default)s")
    add("--categories", nargs="+", default=MVTEC_CATEGORIES, metavar="NAME", help="default: MVTec AD's 15")
    add("--seeds", nargs="+", default=[0], **whole, help="default: 0")
    results = {"dest": "results_dir", "default": "results/mvtec", "metavar": "FOLDER"}
    add("--results", **results, help="default: %(default)s")
    add("--textures", dest="texture_root", **text, help="folder, such as DTD's images; default: procedural")
    add("--teacher", default=Config.teacher, help="timm name, or 'tf_efficientnet_lite0.pypi'; %(default)s")
    add("--teacher-weights", **text, help="or 'random'; default: from the hub, once")
    size = {"type": read_value, "default": 256, "metavar": "N"}
    add("--image-size", **size, help="or [HEIGHT,WIDTH]; default: %(default)s")
    add("--batch-size", default=16, **whole, help="default: %(default)s")
    add("--iterations", **whole, help="default: 5,000, and 10,000 for cable and transistor")
    add("--mask-rule", default="auto", choices=RULES, help="how masks are read; default: %(default)s")
    add("--full-size", action="store_true", help="metrics of pixels on the original masks")
    add("--jobs", **whole, help="runs at a time; default: the number of GPUs, or 1")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    add("--scheduler", metavar="ADDRESS", help="of a running Dask cluster, such as tcp://host:8786")
    add("--dashboard", action="store_true", help="serve Dask's dashboard")
    several = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    add("--set", **several, help="any other field of Config, as JSON or text; repeatable")
    add("--notebook", **text, help="another one with the same parameters")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Job]:
    """A job a category and seed, those with most iterations first. Raises CannotStart with all problems."""
    notebook, problems = absolute(options.notebook), []
    common = notebook_parameters(notebook or REPRODUCTION) | {name: getattr(options, name) for name in OWN}
    common |= {name: absolute(common[name], only_files=name == "teacher_weights") for name in PATHS}
    common |= _extra(options.set, common, problems)
    jobs = []
    for seed in dict.fromkeys(options.seeds):
        for category in dict.fromkeys(options.categories):
            steps = published_iterations(category) if options.iterations is None else options.iterations
            jobs.append(Job({**common, "category": category, "seed": seed, "iterations": steps}, notebook))
    if problems := problems + setting_problems(jobs, options.jobs):
        raise CannotStart(problems)
    return sorted(jobs, key=lambda job: -job.parameters["iterations"])


def setting_problems(jobs: list[Job], at_a_time: int | None) -> list[str]:
    """Parameters that the notebook or `Config` refuses."""
    problems = (
        [f"--jobs must be at least 1, got {at_a_time}"] if at_a_time is not None and at_a_time < 1 else []
    )
    for job in jobs:
        try:
            check_parameters(job.notebook or REPRODUCTION, job.parameters)
            job.config()
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def absolute(path: str, only_files: bool = False) -> str:
    """Jobs may start elsewhere. '' stays '', and with only_files what is no file stays as it is."""
    found = Path(path).expanduser()
    return str(found.resolve()) if path and (found.is_file() or not only_files) else path


def _extra(pairs: list[str], known: dict, problems: list[str]) -> dict:
    """The values of --set: other parameters of the notebook, and `settings` of everything else."""
    found = {"settings": {}}
    for pair in pairs:
        try:
            name, value = read_setting(pair)
        except ValueError as error:
            problems.append(str(error))
            continue
        if name in (*OWN, *OWN_OF_RUN):
            problems.append(f"--set {pair}: {name} has an option of its own, see --help")
        else:
            (found if name in known else found["settings"])[name] = value
    return found


def problems_of(jobs: list[Job]) -> list[str]:
    """What the machine that this runs on lacks for the jobs: data, textures, the device, the teacher, whose
    weights are fetched here once."""
    if not jobs:
        return []
    one, config = jobs[0].parameters, jobs[0].config()
    checks = [
        (open_category, one["data_root"], name, True, one["mask_rule"], one["layout"])
        for name in dict.fromkeys(job.parameters["category"] for job in jobs)
    ]
    checks += [(open_folder, one["texture_root"])] if one["texture_root"] else []
    teacher = (config.teacher, config.teacher_weights, config.teacher_options, config.seed, config.image_size)
    checks += [(build_teacher, *teacher)]
    checks += [(resolve_device, one["device"])]
    problems = []
    for check, *arguments in checks:
        try:
            check(*arguments)
        except (DataError, TeacherError, ValueError) as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def stale(done: list[tuple[Job, dict]]) -> list[str]:
    """Which results, jobs with the `files` of their results, were made from other files or weights than this
    machine has now. Weights from the hub are not fetched to be compared."""
    problems, categories, teachers = [], {}, {}
    for job, before in done:
        try:
            changed = changes(before, _present(job, categories, teachers))
        except (DataError, TeacherError, ValueError) as error:
            problems.append(str(error))
            continue
        told = f"was made from other files ({'; '.join(changed)})"
        if changed or not before:
            told = told if before else "does not tell from which files it was made"
            remedy = f"delete it and the folder {job.name} beside it, or choose another --results folder"
            problems.append(f"{job.result} {told}; {remedy}")
    return list(dict.fromkeys(problems))


def _present(job: Job, categories: dict, teachers: dict) -> Fingerprint:
    """What the job would be made from now. What is known of categories and teachers is kept in the dicts."""
    config, textures = job.config(), job.parameters["texture_root"]
    place = (job.parameters["data_root"] or samples_root(), job.parameters["category"])
    if place not in categories:
        found = open_category(*place, check_files=False, layout=job.parameters["layout"])
        categories[place] = hash_category(found)
    found = dict(categories[place])
    _, drawn = draw_files(config, len(found["images"]), textures)
    found["textures"] = digest(hash_files(drawn, textures))
    weights = config.teacher_weights
    if os.path.isfile(weights):
        if weights not in teachers:
            options = config.teacher_options
            teacher = build_teacher(config.teacher, weights, options, image_size=config.image_size)
            teachers[weights] = teacher.sha256
        found["teacher"] = teachers[weights]
    return found


def unfinished(jobs: list[Job]) -> tuple[list[Job], list[tuple[Job, dict]]]:
    """The jobs without a result; and for `stale` those with one and runs of other seeds that are averaged
    with them, each with the hashes of the files that it was made from.

    Raises CannotStart if a result was made with other settings, or the folder holds a file that is no result,
    or cannot be written to.
    """
    left, done, problems, folder = [], [], [], jobs[0].parameters["results_dir"]
    others, spoilt = [], []
    try:
        results = collect_results(folder, [(job.parameters["category"], job.config()) for job in jobs])
        others = _other_seeds(jobs, results)
    except ValueError as error:  # of what would spoil the table at the end
        spoilt = [str(error)]
    for job in [*jobs, *others]:
        try:
            if values := finished(job):
                done.append((job, values.get("files", {})))
            elif job in jobs:
                left.append(job)
        except ValueError as error:
            problems.append(str(error))
    problems = problems or spoilt
    if left and (problem := writing_problem(folder)):
        problems.append(f"{problem}; choose another --results folder")
    if problems:
        raise CannotStart(problems)
    return left, done


def _other_seeds(jobs: list[Job], results: pd.DataFrame) -> list[Job]:
    """The jobs of further seeds that the folder has results of."""
    first = {job.parameters["category"]: job for job in reversed(jobs)}
    planned = {(job.parameters["category"], job.parameters["seed"]) for job in jobs}
    there = set(zip(results["category"], results["seed"], strict=True)) - planned
    return [
        dataclasses.replace(first[category], parameters={**first[category].parameters, "seed": int(seed)})
        for category, seed in sorted(there)
        if category in first
    ]
