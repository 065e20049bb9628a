"""Result files, and the tables made of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .config import MVTEC_CATEGORIES, Config, published_iterations
from .data.fingerprints import changes, digest, digests
from .detector import Detector
from .evaluation import METRICS, Evaluation
from .options import differences
from .utils import describe, peak_memory_mb, write_json

#: What the paper's abstract states, means over MVTec AD's 15 categories; no other number of it is known.
PAPER = {"pixel_auroc": 0.9885, "aupro": 0.9613}
PROTOCOL = (
    "last: weights of the last iteration; masks resized by area, defective above one half (full_size: "
    "original masks); AUPRO pooled over the test set up to FPR 0.3"
)


def result_path(results_dir: str | Path, category: str, seed: int) -> Path:
    return Path(results_dir) / f"{category}_seed{seed}.json"


def write_result(results_dir: str | Path, evaluation: Evaluation, detector: Detector, training) -> Path:
    """Write `<category>_seed<seed>.json`: configuration, metrics.<map>.<name> and decisions.<map>.<name> as
    fractions of 1 (None for a precision where no image is called anomalous), cost, machine, versions,
    protocol, and files: hashes of the training and test images, masks, textures and teacher.

    Raises ValueError if the detector was trained on other images than the category now has.
    """
    config, name, made_from = detector.config, evaluation.category.name, detector.made_from
    known = made_from.get("images")
    if known and evaluation.files and known != digest(evaluation.files["images"]):
        raise ValueError(f"{name}: the training images are not those of the detector; train it again")
    values = {
        "category": name,
        "seed": config.seed,
        "protocol": PROTOCOL,
        "full_size": evaluation.full_size,
        "mask_rule": evaluation.category.mask_rule,
        "layout": evaluation.category.layout,
        "warnings": evaluation.warnings,
        "metrics": without_nan(evaluation.metrics),
        "decisions": without_nan(evaluation.decisions),
        "thresholds": detector.thresholds,
        "held_out": detector.held_out,
        "seconds": round(training.seconds, 1),
        "images_per_second": {
            "training_pairs": round(training.pairs_per_second, 2),
            "inference": round(evaluation.images_per_second, 2),
        },
        "peak_memory_mb": round(peak_memory_mb(detector.device), 1),
        **describe(detector.device),
        "images": {"train": len(evaluation.category.train), "test": len(evaluation.labels)},
        "config": config.to_dict(),
        "files": {**made_from, **evaluation.files},
    }
    return write_json(result_path(results_dir, name, config.seed), values)


def without_nan(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """As JSON takes it: None instead of NaN."""
    return {of: {k: None if np.isnan(v) else v for k, v in values.items()} for of, values in found.items()}


def collect_results(results_dir: str | Path, planned: Sequence[tuple[str, Config]] = ()) -> pd.DataFrame:
    """All result files of a folder, one row per category, seed and map: category, seed, map, the metrics,
    seconds, file. planned: categories and configurations of runs whose results are to follow.

    Raises ValueError naming a file that is not a result, or two, planned ones included, whose mean would mean
    nothing: of other settings (another seed is none, nor are the published iterations of each category),
    another teacher, or, of one category, other files.
    """
    rows, found = [], []
    for path in sorted(Path(results_dir).glob("*_seed*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            common = {"category": values["category"], "seed": values["seed"]}
            for name, metrics in values["metrics"].items():
                row = (
                    common
                    | {"map": name}
                    | {key: np.nan if metrics[key] is None else metrics[key] for key in METRICS}
                )
                rows.append(row | {"seconds": values["seconds"], "file": path.name})
            made = _Made(
                path, values["category"], Config.from_dict(values["config"]), values.get("files", {})
            )
            digests(made.files)
            found.append(made)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result file ({error!r}); move it away") from error
    found += [_Made(result_path(results_dir, name, c.seed), name, c, {}) for name, c in planned]
    kinds: dict[str, _Made] = {}  # the first of each category
    for made in found:
        for other in kinds.values():
            _check_averaged(other, made)
        kinds.setdefault(made.category, made)
    return pd.DataFrame(rows, columns=["category", "seed", "map", *METRICS, "seconds", "file"])


class _Made(NamedTuple):
    """How a result was made."""

    path: Path
    category: str
    config: Config
    files: dict


def _check_averaged(one: _Made, other: _Made):
    """Raises ValueError, naming what differs, for two results that no mean may hold."""
    budgets = [made.config.iterations == published_iterations(made.category) for made in (one, other)]
    iterations = {"iterations": one.config.iterations} if all(budgets) else {}
    first, second = (
        made.config.replace(seed=0, teacher_weights=Path(made.config.teacher_weights).name, **changed)
        for made, changed in ((one, {}), (other, iterations))
    )
    compared = ("teacher", *(("images", "test", "masks") if one.category == other.category else ()))
    files = {kind: other.files[kind] for kind in compared if kind in one.files and kind in other.files}
    if changed := [*differences(first, second), *changes(one.files, files)]:
        raise ValueError(
            f"{other.path} is no run of the same kind as {one.path.name} ({'; '.join(changed)}), so that "
            "their mean would mean nothing; move one of them away or use a folder for each"
        )


def results_table(results: pd.DataFrame, of: str = "fused") -> pd.DataFrame:
    """One row per category in percent, mean ± std over its seeds, then the mean over the categories."""
    grouped = results[results["map"] == of].groupby("category")[list(METRICS)]
    mean, std = 100 * grouped.mean(), 100 * grouped.std()
    cells = {m: [cell(mean.loc[c, m], std.loc[c, m]) for c in mean.index] for m in METRICS}
    table = pd.DataFrame(cells, index=mean.index)
    table.insert(0, "seeds", grouped.size())
    if len(mean) > 1:
        overall = [cell(value) for value in mean.mean()]
        table.loc[f"mean of {len(mean)}"] = [grouped.size().sum(), *overall]
    return table


def cell(mean: float, std: float = np.nan, digits: int = 2) -> str:
    """Of a table: mean ± std with so many digits, without std where that is NaN, "-" for NaN."""
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" if np.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def compare_with_paper(results: pd.DataFrame) -> pd.DataFrame:
    """One row per metric: paper | DMDD | difference | coverage, means over categories in percent, of the map
    'fused'.

    The paper's figures are means over MVTec AD's fifteen categories; only for these a difference is given.
    """
    mean = 100 * results[results["map"] == "fused"].groupby("category")[list(METRICS)].mean()
    known = mean.index.intersection(MVTEC_CATEGORIES)
    complete, others = len(known) == len(MVTEC_CATEGORIES), len(mean.index.difference(known))
    ours = mean.loc[known].mean() if complete else mean.mean()
    covers = f"{len(known)} of {len(MVTEC_CATEGORIES)} MVTec AD categories"
    covers += f", {others} other" if others and not complete else ""
    rows = {}
    for metric in METRICS:
        paper = PAPER.get(metric)
        rows[metric] = {
            "paper": "not stated" if paper is None else f"{100 * paper:.2f}",
            "DMDD": cell(ours[metric]),
            "difference": f"{ours[metric] - 100 * paper:+.2f}" if paper and complete else "-",
            "DMDD covers": covers,
        }
    return pd.DataFrame(rows).T
