"""From a detector and a test split to numbers, the result file, and tables."""

import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor

from .config import MVTEC_CATEGORIES
from .data.images import load_images, read_image
from .data.layout import Category
from .data.masks import load_masks, read_mask
from .data.problems import recorded
from .detector import Detector, DetectorError, map_names
from .metrics import evaluate_maps, pixel_ap, pro_curve
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
    full_size: whether the metrics of pixels are of the original masks; warnings: of the data."""

    category: Category
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    maps: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]
    images_per_second: float
    full_size: bool = False
    warnings: tuple[str, ...] = ()


def evaluate(
    detector: Detector,
    category: Category,
    batch_size: int | None = None,
    progress: bool = True,
    full_size: bool = False,
) -> Evaluation:
    """Predict every test image and compute the five metrics of each of its maps. full_size: those of pixels
    with the maps resized to the original masks, not the masks to the maps.

    batch_size None is 8, on a GPU 32. images_per_second counts inference with smoothing, not reading. Images,
    masks and maps stay in memory: 1.8 GB per thousand images of 256 px with six maps.

    Raises DataError for unreadable files, DetectorError naming the image if a score is not finite, and
    ValueError as `metrics.evaluate_maps`.
    """
    size = detector.config.image_size
    with recorded() as told:
        reading = "reading test images" if progress else None
        images = load_images([t.path for t in category.test], size, reading, detector.depth)
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
    metrics = {}
    for name, values in maps.items():
        compared = (_at_size_of(values, originals), originals) if full_size else (values, masks)
        metrics[name] = evaluate_maps(*compared, scores[name], labels, category.outlined)
    speed, told = len(images) / max(seconds, 1e-9), (*category.warnings, *told)
    return Evaluation(category, images.numpy(), masks, labels, maps, scores, metrics, speed, full_size, told)


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
    """Write `<category>_seed<seed>.json`: configuration, metrics.<map>.<name> as fractions of 1, cost,
    machine, versions and protocol."""
    config, name = detector.config, evaluation.category.name
    values = {
        "category": name,
        "seed": config.seed,
        "protocol": PROTOCOL,
        "full_size": evaluation.full_size,
        "mask_rule": evaluation.category.mask_rule,
        "warnings": evaluation.warnings,
        "metrics": {name: _or_none(found) for name, found in evaluation.metrics.items()},
        "thresholds": detector.thresholds,
        "seconds": round(training.seconds, 1),
        "images_per_second": {
            "training_pairs": round(training.pairs_per_second, 2),
            "inference": round(evaluation.images_per_second, 2),
        },
        "peak_memory_mb": round(peak_memory_mb(detector.device), 1),
        **describe(detector.device),
        "images": {"train": len(evaluation.category.train), "test": len(evaluation.labels)},
        "config": config.to_dict(),
    }
    return write_json(result_path(results_dir, name, config.seed), values)


def _or_none(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def collect_results(results_dir: str | Path) -> pd.DataFrame:
    """All result files of a folder, one row per category, seed and map: category, seed, map, the metrics,
    seconds, file. Raises ValueError naming a file that is not a result."""
    rows = []
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
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result file ({error!r}); move it away") from error
    return pd.DataFrame(rows, columns=["category", "seed", "map", *METRICS, "seconds", "file"])


def results_table(results: pd.DataFrame, of: str = "fused") -> pd.DataFrame:
    """One row per category in percent, mean ± std over its seeds, then the mean over the categories."""
    grouped = results[results["map"] == of].groupby("category")[list(METRICS)]
    mean, std = 100 * grouped.mean(), 100 * grouped.std()
    cells = {m: [_cell(mean.loc[c, m], std.loc[c, m]) for c in mean.index] for m in METRICS}
    table = pd.DataFrame(cells, index=mean.index)
    table.insert(0, "seeds", grouped.size())
    if len(mean) > 1:
        overall = [f"{value:.2f}" for value in mean.mean()]
        table.loc[f"mean of {len(mean)}"] = [grouped.size().sum(), *overall]
    return table


def _cell(mean: float, std: float) -> str:
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
            "DMDD": f"{ours[metric]:.2f}",
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
    masks are known, and NaN where none marks a pixel."""
    found, known = {}, evaluation.category.outlined
    masks = evaluation.masks[known]
    for name in evaluation.maps:
        roc = roc_curve(evaluation.labels, evaluation.scores[name], drop_intermediate=False)[:2]
        pro = pro_curve(evaluation.maps[name][known], masks) if masks.any() else 2 * (np.full(2, np.nan),)
        metrics = evaluation.metrics[name]
        found[name] = {"roc": roc, "pro": pro, "auroc": metrics["image_auroc"], "aupro": metrics["aupro"]}
    return found
