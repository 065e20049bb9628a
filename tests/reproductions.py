"""A stand-in for notebook 05 that trains nothing: tests hold it, break it, kill its kernel and count it."""

import json
import time
from pathlib import Path

import nbformat

from dmdd_lite.data.fingerprints import digest, hash_category
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.samples import samples_root
from dmdd_lite.evaluation import METRICS
from dmdd_lite.reproduce.notebook import REPRODUCTION
from dmdd_lite.reproduce.plan import parse, plan
from dmdd_lite.reproduce.run import Job

CELL = """
import json, os, signal, time
from pathlib import Path
from dmdd_lite.config import Config
from dmdd_lite.data.fingerprints import digest, hash_category
from dmdd_lite.data.layout import open_category

folder, name = Path(results_dir), f"{category}_seed{seed}"
Path(folder, f"kernel_{name}_{os.getpid()}").touch()
print("hello from", name)
given = {"teacher": teacher, "teacher_weights": teacher_weights, "teacher_options": teacher_options,
         "image_size": image_size, "iterations": iterations, "batch_size": batch_size, "seed": seed}
config = Config.from_dict(dict(**given, **settings))
while Path(folder, f"hold_{name}").exists():
    time.sleep(0.05)
if Path(folder, f"break_{name}").exists():
    raise RuntimeError("broken on purpose")
if Path(folder, f"die_{name}").exists():
    Path(folder, f"die_{name}").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
metrics = {"fused": dict.fromkeys(%r, 0.75)}
values = {"category": category, "seed": seed, "config": config.to_dict(), "metrics": metrics}
files = hash_category(open_category(data_root, category, check_files=False))
values |= {"seconds": 90.0, "device": "cpu: test", "files": {**files, "textures": digest({})}}
values |= {"mask_rule": mask_rule, "layout": layout, "full_size": full_size}
Path(folder, f"{name}.json").write_text(json.dumps(values))
with open(folder / "written.txt", "a") as file:
    file.write(name + "\\n")
"""


def small_notebook(path: Path) -> Path:
    document = nbformat.read(REPRODUCTION, 4)
    document.cells = [cell for cell in document.cells if "parameters" in cell.metadata.get("tags", [])]
    document.cells.append(nbformat.v4.new_code_cell(CELL % (METRICS,)))
    nbformat.write(document, path)
    return path


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


def kernels(results: Path, name: str) -> list[int]:
    """The process numbers of the kernels that have begun with this run."""
    return [int(path.name.rpartition("_")[2]) for path in results.glob(f"kernel_{name}_*")]


def until(condition, seconds: float = 240.0):
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def planned(nuts, tmp_path, *more, categories=("nut", "bolt")) -> list[Job]:
    """Jobs on what the fixture `nuts` wrote, with results in <tmp_path>/out."""
    return plan(parse(arguments(nuts, tmp_path / "out", *more, categories=categories)))


def write_result_of(job: Job, **changes):
    """As the job itself would write it, apart from `changes` to the configuration."""
    config = job.config().to_dict() | changes
    values = {"category": job.parameters["category"], "seed": job.parameters["seed"], "config": config}
    maps = dict.fromkeys(("fused", "plus"), dict.fromkeys(METRICS, 0.75))
    place = (job.parameters["data_root"] or samples_root(), job.parameters["category"])
    files = {**hash_category(open_category(*place, check_files=False)), "textures": digest({})}
    values |= {name: job.parameters[name] for name in ("mask_rule", "layout", "full_size")}
    values |= {"metrics": maps, "seconds": 90.0, "device": "cpu: test", "files": files}
    job.result.parent.mkdir(parents=True, exist_ok=True)
    job.result.write_text(json.dumps(values))
