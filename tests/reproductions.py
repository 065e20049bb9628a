"""A small stand-in for notebook 05, with its parameters cell, that tests can hold, break, keep in its tail
and count; and jobs whose results are made up."""

import json
import time
from pathlib import Path

import nbformat
from builders import some_samples

from dmdd_lite import reproduce
from dmdd_lite.evaluation import METRICS
from dmdd_lite.reproduction.jobs import Job
from dmdd_lite.runner import REPRODUCTION

TRAIN = """
import time
from pathlib import Path
from dmdd_lite import evaluation, training
from dmdd_lite.config import Config
from dmdd_lite.data import open_category

name = f"{category}_seed{seed}"
Path(results_dir, f"begun_{name}").touch()
if Path(results_dir, f"break_{name}").exists():
    raise RuntimeError("broken on purpose")
save = training.save_checkpoint

def save_and_hold(path, trainer):
    save(path, trainer)
    while Path(results_dir, f"hold_{name}").exists():
        time.sleep(0.05)

training.save_checkpoint = save_and_hold
config = Config(teacher=teacher, teacher_weights=teacher_weights, teacher_options=teacher_options,
                image_size=image_size, iterations=iterations, batch_size=batch_size, seed=seed)
trained = training.train(config, data_root, category, texture_root, Path(results_dir, name), device, 2)
scored = evaluation.evaluate(trained.detector, open_category(data_root, category))
follower = Path(results_dir, f"follower_{name}")  # names the run that begins while this one is in its tail
if follower.exists():
    deadline = time.monotonic() + 120
    while not Path(results_dir, f"begun_{follower.read_text()}").exists():
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(0.05)
if Path(results_dir, f"break_tail_{name}").exists():
    raise RuntimeError("broken in its tail")
evaluation.write_result(results_dir, scored, trained.detector, trained)
with open(Path(results_dir, "written.txt"), "a") as file:
    file.write(name + "\\n")
"""


def small_notebook(path: Path) -> Path:
    document = nbformat.read(REPRODUCTION, 4)
    document.cells = [cell for cell in document.cells if "parameters" in cell.metadata.get("tags", [])]
    document.cells.append(nbformat.v4.new_code_cell(TRAIN))
    nbformat.write(document, path)
    return path


def small_data(root: Path, categories=("fabric", "pcb")) -> Path:
    for category in categories:
        some_samples(root, category, train=6)
    return root


def arguments(
    root: Path, results: Path, *more: str, categories=("fabric", "pcb"), notebook=None
) -> list[str]:
    """Of a reproduction of some seconds: an untrained teacher, six iterations."""
    fixed = ["--teacher", "test_resnet", "--teacher-weights", "random", "--device", "cpu"]
    fixed += ["--image-size", "64", "--batch-size", "2"]
    steps = [] if "--iterations" in more else ["--iterations", "6"]
    own = ["--notebook", str(notebook)] if notebook else []
    return [str(root), "--results", str(results), "--categories", *categories, *fixed, *steps, *own, *more]


def written(results: Path) -> list[str]:
    """The runs whose results were written, each as often as it was."""
    return sorted((results / "written.txt").read_text().split())


def until(condition, seconds: float = 180.0):
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def planned(nuts, tmp_path, *more, categories=("nut", "bolt")) -> list[Job]:
    """Jobs on what the fixture `nuts` wrote, with results in <tmp_path>/out."""
    return reproduce.plan(reproduce.parse(arguments(nuts, tmp_path / "out", *more, categories=categories)))


def write_result_of(job: Job, **changes):
    """As the job itself would write it, apart from `changes` to the configuration."""
    config = job.config().to_dict() | changes
    values = {"category": job.parameters["category"], "seed": job.parameters["seed"], "config": config}
    values |= {"metrics": {"fused": dict.fromkeys(METRICS, 0.75)}, "seconds": 90.0, "device": "cpu: test"}
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.write_text(json.dumps(values))
