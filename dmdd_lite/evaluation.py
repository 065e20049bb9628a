"""From a detector and a test split to numbers, the result file, and tables."""

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor

from .config import MVTEC_CATEGORIES, Config, published_iterations
from .data.category import Category
from .data.fingerprints import Hashes, changes, digest, digests, hash_category
from .data.images import load_images, read_image
from .data.masks import load_masks, read_mask
from .data.problems import recorded
from .detector import Detector, DetectorError, map_names
from .metrics import evaluate_maps, pixel_ap, pro_curve
from .options import differences
from .utils import Progress, describe, peak_memory_mb, write_json

#: What the paper's abstract states, means over MVTec AD's 15 categories; no other number of it is known.
PAPER = {"pixel_auroc": 0.9885, "aupro": 0.9613}
PROTOCOL = (
    "last: weights of the last iteration; masks resized by area, defective above one half (full_size: "
    "original masks); AUPRO pooled over the test set up to FPR 0.3"
)
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "aupro_per_image")
BATCH, GPU_BATCH = 8, 32  # images predicted at once


@dataclass(frozen=True)
class Evaluation:
    """A scored test split of N images: images uint8 (N, 3, S, S); masks bool (N, S, S); labels bool (N,);
    per map name maps float32 (N, S, S), scores (N,) and metrics (fractions of 1; NaN where no mask is known).

    decisions: per map name image_precision, image_recall, image_f1 and false_alarm_rate at the detector's
    threshold, and best_pixel_f1, see `metrics.evaluate_maps`; files: hashes of the category's images and
    masks, see `data.fingerprints`. Both are empty where no files were read. full_size: whether the metrics of
    pixels are of the original masks; warnings: of the data.
    """

    category: Category
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    maps: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]
    images_per_second: float
    decisions: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, Hashes] = field(default_factory=dict)
    full_size: bool = False
    warnings: tuple[str, ...] = ()


def evaluate(
    detector: Detector,
    category: Category,
    batch_size: int | None = None,
    progress: bool = True,
    full_size: bool = False,
) -> Evaluation:
    """Predict every test image and compute the five metrics of each of its maps, and its decisions.

    full_size: the metrics of pixels with the maps resized to the original masks, not the masks to the maps.

    batch_size None is 8, on a GPU 32. images_per_second counts inference with smoothing, not reading. Images,
    masks and maps stay in memory: 1.8 GB per thousand images of 256 px with six maps.

    Raises DataError for unreadable files, DetectorError naming the image if a score is not finite, and
    ValueError as `metrics.evaluate_maps`.
    """
    size = detector.config.image_size
    with recorded() as told:
        reading = "reading test images" if progress else None
        images = load_images([t.path for t in category.test], size, reading, detector.depth)
        files = hash_category(category, detector.made_from.get("images"))
    masks = load_masks(category.test, size, None, category.mask_rule).numpy()
    maps, scores, seconds = _predict(detector, images, batch_size, progress)
    for name, values in scores.items():
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            raise DetectorError(
                f"the {name} score of {category.test[bad[0]].path} is {values[bad[0]]} ({bad.size} of "
                f"{len(values)} are not finite): the weights are broken, lower learning_rate and train again"
            )
    labels = np.asarray(category.labels)
    originals = [_original_mask(test, category.mask_rule) for test in category.test] if full_size else []
    metrics, decisions = {}, {}
    for name, values in maps.items():
        compared = (_at_size_of(values, originals), originals) if full_size else (values, masks)
        threshold = detector.thresholds.get(name)
        found = evaluate_maps(*compared, scores[name], labels, threshold, category.outlined)
        metrics[name] = {key: found.pop(key) for key in METRICS}
        decisions[name] = found
    parts = (category, images.numpy(), masks, labels, maps, scores, metrics)
    rate, told = len(images) / max(seconds, 1e-9), (*category.warnings, *told)
    return Evaluation(*parts, rate, decisions, files, full_size, told)


def _original_mask(test, rule: str) -> np.ndarray:
    """Bool (H, W) in the size of the file; empty, in that of the image, for one without a mask."""
    if test.mask is not None:
        return read_mask(test.mask, None, rule).numpy()
    return np.zeros(read_image(test.path).shape[1:], bool)


def _at_size_of(maps: np.ndarray, masks: list[np.ndarray]) -> list[np.ndarray]:
    """Maps (N, S, S), each resized bilinearly to its mask (H, W)."""
    pairs = zip(torch.from_numpy(maps), masks, strict=True)
    return [F.interpolate(m[None, None], mask.shape, mode="bilinear")[0, 0].numpy() for m, mask in pairs]


def _predict(detector: Detector, images: Tensor, batch_size: int | None, progress: bool):
    """Maps (N, S, S) and scores (N,) by name, and their seconds, of uint8 images (N, 3, S, S)."""
    gpu, names = detector.device.type == "cuda", map_names(detector.config)
    batch_size = batch_size or (GPU_BATCH if gpu else BATCH)
    maps, scores = {name: [] for name in names}, {name: [] for name in names}
    began = time.perf_counter()
    with Progress(len(images), "predicting", enabled=progress) as bar:
        for start in range(0, len(images), batch_size):
            found = detector.maps(images[start : start + batch_size])
            for name in names:
                maps[name].append(found[0][name])
                scores[name].append(found[1][name])
            bar.update(min(start + batch_size, len(images)))
    seconds = time.perf_counter() - began
    detector.model.zero_grad(set_to_none=True)  # of the last training step
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
    maps, scores = ({n: torch.cat(v).numpy() for n, v in found.items()} for found in (maps, scores))
    return maps, scores, seconds


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


def cell(mean: float, std: float = np.nan) -> str:
    """Of a table: mean ± std with two digits, without std where that is NaN, "-" for NaN."""
    if np.isnan(mean):
        return "-"
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f} ± {std:.2f}"


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


def rank_anomalous(evaluation: Evaluation, of: str = "fused") -> list[int]:
    """Indices of the test images whose defects are outlined, from the best found to the worst, by their own
    pixel AP."""
    found = [i for i, mask in enumerate(evaluation.masks) if mask.any()]
    maps, masks = evaluation.maps[of], evaluation.masks
    quality = {i: pixel_ap(maps[i : i + 1], masks[i : i + 1]) for i in found}
    return sorted(quality, key=quality.get, reverse=True)


def curves(evaluation: Evaluation) -> dict[str, dict]:
    """ROC of the image scores and PRO of the maps, for `plots.plot_roc_and_pro`; the latter of images whose
    masks are known; NaN where there is no metric."""
    found, known, none = {}, evaluation.category.outlined, 2 * (np.full(2, np.nan),)
    masks = evaluation.masks[known]
    for name, metrics in evaluation.metrics.items():
        auroc, aupro, scores = metrics["image_auroc"], metrics["aupro"], evaluation.scores[name]
        roc = none if np.isnan(auroc) else roc_curve(evaluation.labels, scores, drop_intermediate=False)[:2]
        pro = none if np.isnan(aupro) else pro_curve(evaluation.maps[name][known], masks)
        found[name] = {"roc": roc, "pro": pro, "auroc": auroc, "aupro": aupro}
    return found
