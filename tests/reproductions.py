"""A stand-in for notebook 05 that trains nothing: tests hold it, break it, kill its kernel and count it."""

import json
import os
import signal
import time
from pathlib import Path

import nbformat

from dmdd_lite.data.fingerprints import digest, hash_category
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.samples import samples_root
from dmdd_lite.evaluation import METRICS
from dmdd_lite.reproduce.notebook import REPRODUCTION, notebook_parameters
from dmdd_lite.reproduce.plan import parse, plan
from dmdd_lite.reproduce.run import Job

CELL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from reproductions import stand_in
stand_in(globals())
"""


def write_notebook(path: Path, *sources: str, parameters="steps: int = 3") -> Path:
    """Code cells after one of parameters."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def stand_in(parameters: dict):
    """What the notebook does in its kernel."""
    job = Job({name: parameters[name] for name in notebook_parameters(REPRODUCTION)})
    folder = job.result.parent
    hold, fail, die = (folder / f"{what}_{job.name}" for what in ("hold", "break", "die"))
    (folder / f"kernel_{job.name}_{os.getpid()}").touch()
    print("hello from", job.name)
    while hold.exists():
        time.sleep(0.05)
    if fail.exists():
        raise RuntimeError("broken on purpose")
    if die.exists():
        die.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    write_result_of(job)
    with open(folder / "written.txt", "a") as file:
        file.write(f"{job.name}\n")


def small_notebook(path: Path) -> Path:
    document = nbformat.read(REPRODUCTION, 4)
    document.cells = [cell for cell in document.cells if "parameters" in cell.metadata.get("tags", [])]
    document.cells.append(nbformat.v4.new_code_cell(CELL))
    nbformat.write(document, path)
    return path


def arguments(root: Path, out: Path, *more: str, categories=("fabric", "pcb"), notebook=None) -> list[str]:
    """Of a reproduction of some seconds: an untrained teacher, six iterations."""
    fixed = "--teacher test_resnet --teacher-weights random --device cpu --image-size 64 --batch-size 2"
    steps = [] if "--iterations" in more else ["--iterations", "6"]
    own = ["--notebook", str(notebook)] if notebook else []
    return [
        str(root),
        "--results",
        str(out),
        "--categories",
        *categories,
        *fixed.split(),
        *steps,
        *own,
        *more,
    ]


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
