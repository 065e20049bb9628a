"""One training of the ablation and the rows that are scored from its detector, in a process of its own.

The process is `python benchmarks/ablation_run.py`; it reads the job from the first line of its standard
input, which stays open as a lifeline: when it closes, whoever started the job is gone, and the job stops too.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import measure
import numpy as np
from ablation_rows import FULL, SCORING

from dmdd_lite.config import Config, differences
from dmdd_lite.data import list_images, open_category, open_folder
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import PROTOCOL, evaluate
from dmdd_lite.reproduction import jobs
from dmdd_lite.training import Training, refit_fusion, train
from dmdd_lite.utils import describe, peak_memory_mb, write_json
from dmdd_lite.zones import zone_table

ZONE_WIDTH = 0.02  # of the edge and of the rim, as a share of the image's side
ZONE_FPR = 0.01  # share of good pixels above the threshold at which edge and core are looked for
CHECKPOINTS = 20  # of a training: an interrupted one loses at most that share of itself


@dataclasses.dataclass(frozen=True)
class Job:
    """A training and the rows that use it, as plain values: `config` is trained on `<root>/<category>` and
    scored as each configuration of `rows`; `base` is the one that all rows are changes of.

    data: the name that the tables use; textures: one of `ablation_rows.TEXTURES`, of `texture_root`; keep:
    whether the detector stays in `out` after its rows are scored.
    """

    row: str
    data: str
    root: str
    category: str
    seed: int
    config: dict
    base: dict
    rows: dict
    textures: str
    texture_root: str
    out: str
    device: str = "auto"
    keep: bool = False

    @property
    def name(self) -> str:
        return run_name(self.row, self.data, self.seed)

    @property
    def folder(self) -> Path:
        """Checkpoint or detector of the training."""
        return Path(self.out) / "runs" / self.name

    @property
    def log(self) -> Path:
        return Path(self.out) / "logs" / f"{self.name}.log"

    @property
    def lock(self) -> Path:
        return Path(self.out) / "locks" / f"{self.name}.lock"

    def result(self, row: str) -> Path:
        return Path(self.out) / f"{run_name(row, self.data, self.seed)}.json"

    def settings(self, row: str) -> dict:
        """What a result depends on, apart from its configuration."""
        folder = Path(self.texture_root).name if self.textures in ("folder", "mixed") else ""
        return {"row": row, "data": self.data, "category": self.category, "textures": [self.textures, folder]}


def run_name(row: str, data: str, seed: int) -> str:
    return f"{row}_{data}_seed{seed}"


def read_result(job: Job, row: str) -> dict | None:
    """The result of a row, or None if there is none yet.

    Raises ResultError, which names what differs, if it was made with other settings, or if it is no result.
    """
    path, config = job.result(row), Config.from_dict(job.rows[row])
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        changed = differences(portable(Config.from_dict(values["config"])), portable(config))
        _ = values["metrics"]["fused"], values["zones"]["fused"], values["seconds"], values["base"]
        now = job.settings(row)
        changed += [f"{k}: {values[k]!r} -> {v!r}" for k, v in now.items() if values[k] != v]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise jobs.ResultError(f"{path} is not a result file ({error!r}); move it away") from error
    if changed:
        raise jobs.ResultError(
            f"{path} was made with other settings ({'; '.join(changed)}); delete it or choose another --out"
        )
    return values


def portable(config: Config) -> Config:
    """The weights file by its name alone: its folder is another one on another machine."""
    return config.replace(teacher_weights=Path(config.teacher_weights).name)


# ---- the job's own process ----------------------------------------------------------------------------


def run_job(job: Job):
    """Train, or load what was trained before, then score the rows that have no result yet, some of them after
    a fusion of their own was trained for the same student.

    Raises what `train`, `refit_fusion` and `evaluate` raise.
    """
    config = Config.from_dict(job.config)
    every = max(1, config.iterations // CHECKPOINTS)
    training = train(config, job.root, job.category, textures_of(job), job.folder, job.device, every)
    category = open_category(job.root, job.category, check_files=False)
    for row, values in job.rows.items():
        if read_result(job, row) is None:
            made = variant(job, training, Config.from_dict(values))
            evaluation = evaluate(made.detector, category)
            write_json(job.result(row), result_of(job, row, made.detector, evaluation, made.seconds))
            print(f"wrote {job.result(row)}", flush=True)
    if not job.keep:
        shutil.rmtree(job.folder)


def variant(job: Job, training: Training, config: Config) -> Training:
    """The training under the configuration of one of its rows. Its seconds are those of what was trained."""
    changed = {text.split(":")[0] for text in differences(training.detector.config, config)}
    if changed <= set(SCORING):
        return dataclasses.replace(training, detector=measure.rescored(training.detector, config))
    print(f"the fusion anew: {', '.join(sorted(changed))}", flush=True)
    return refit_fusion(training.detector, config, job.root, job.category, textures_of(job), job.device)


def textures_of(job: Job) -> str | Path:
    """The folder that the job's textures come from, '' for procedural ones. The one for 'mixed' is made of
    links, in the job's own folder."""
    own = Path(job.root) / job.category / "train" / "good"
    if job.textures != "mixed":
        return {"folder": job.texture_root, "none": "", "own": own}[job.textures]
    mixed = job.folder / "textures"
    sources = [*list_images(own), *(open_folder(job.texture_root, True) if job.texture_root else ())]
    mixed.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(sources):
        link = mixed / f"{number:06}{source.suffix}"
        if not link.is_symlink():
            link.symlink_to(source.resolve())
    return mixed


def result_of(job: Job, row: str, detector: Detector, evaluation, seconds: float) -> dict:
    """All of a row's result, as `evaluation.write_result` has it, with the recall of edge and core."""
    return {
        **job.settings(row),
        "seed": job.seed,
        "protocol": PROTOCOL,
        "metrics": evaluation.metrics,
        "zones": zone_recalls(evaluation.maps, evaluation.masks),
        "seconds": round(seconds, 1),
        "images_per_second": round(evaluation.images_per_second, 2),
        "peak_memory_mb": round(peak_memory_mb(detector.device), 1),
        **describe(detector.device),
        "images": {"train": len(evaluation.category.train), "test": len(evaluation.labels)},
        "config": detector.config.to_dict(),
        "base": job.base,
    }


def zone_recalls(maps: dict[str, np.ndarray], masks: np.ndarray) -> dict[str, dict]:
    """Recall of centre, edge and rim by map, see `zones.zone_table`; None for a zone without pixels."""
    width = max(1, round(ZONE_WIDTH * masks.shape[-1]))
    table = zone_table(maps, masks, width, ZONE_FPR)
    return {
        name: {zone: None if np.isnan(v) else float(v) for zone, v in row.items()}
        for name, row in table.iterrows()
    }


def main() -> int:
    jobs.interrupt_on_sigterm()
    job = Job(**json.loads(sys.stdin.buffer.readline()))
    jobs.stop_with_parent()
    return jobs.attempt(job, run_job)


# ---- the side that starts a job -----------------------------------------------------------------------


class Process(jobs.Process):
    """A started job, logged."""

    COMMAND = (__file__,)

    def __init__(self, job: Job, environment: dict[str, str]):
        super().__init__(job, {**measure.environment(measure.ROOT), **environment})


def is_kept(row: str, keep: bool) -> bool:
    """Whether a detector is needed again: rows that only score may be added later."""
    return keep or row == FULL


if __name__ == "__main__":
    sys.exit(main())
