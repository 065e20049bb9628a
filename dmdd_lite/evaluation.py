"""From a detector and a test split to numbers, the result file, and the table beside the paper's."""

import gc
import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_curve
from torch import Tensor

from .config import MVTEC_CATEGORIES
from .data.images import load_images, send
from .data.layout import Category, load_masks
from .detector import Detector, DetectorError
from .metrics import evaluate_maps, pixel_ap, pro_curve
from .model import map_names
from .utils import Progress, describe, peak_memory_mb, write_json

#: What the paper's abstract states, means over MVTec AD's 15 categories; no other number of it is known.
PAPER = {"pixel_auroc": 0.9885, "aupro": 0.9613}
PROTOCOL = "last: weights of the last iteration; AUPRO pooled over the test set up to FPR 0.3"
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "aupro_per_image")

BATCH, GPU_BATCH = 8, 32  # images predicted at once
PINNED = 1e9  # bytes of maps up to which they are collected in memory that the system cannot swap out


@dataclass(frozen=True)
class Evaluation:
    """A scored test split of N images: images uint8 (N, 3, S, S); masks bool (N, S, S); labels bool (N,);
    per map name maps float32 (N, S, S), scores (N,) and metrics (fractions of 1)."""

    category: Category
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    maps: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]
    images_per_second: float


def evaluate(
    detector: Detector, category: Category, batch_size: int | None = None, progress: bool = True
) -> Evaluation:
    """Predict every test image and compute the five metrics of each of its maps, five for a complete model.

    batch_size None is 8, on a GPU 32. Another one, or another number of threads, changes the fused map by
    2e-6 at most and the others, which reach 2 and more, by 1e-5 (measured in float32 on a CPU).
    images_per_second counts inference with smoothing, not reading.

    Memory: image and mask take 4 bytes a pixel and each map 4, 1.8 GB a thousand images of 256 px with six
    maps; the metrics add 0.4 GB at most for every thread, and what `metrics` says of anomalous pixels.

    Raises DataError for unreadable files, DetectorError naming the image if a score is not finite, and
    ValueError as `metrics.evaluate_maps`.
    """
    size = detector.config.image_size
    reading = "reading test images" if progress else None
    images = load_images([t.path for t in category.test], size, reading)
    with Progress(len(images), "predicting", enabled=progress) as bar:
        maps, scores, seconds = _predict(detector, images, batch_size, bar)
    _release(detector)
    _check_finite(scores, category)
    if bar.mode == "lines":
        print(f"now scoring the maps of {len(images)} images", flush=True)
    masks = load_masks(category.test, size, None).numpy()
    labels = np.asarray(category.labels)
    metrics = _side_by_side(lambda name: evaluate_maps(maps[name], masks, scores[name], labels), maps)
    return Evaluation(
        category, images.numpy(), masks, labels, maps, scores, metrics, len(images) / max(seconds, 1e-9)
    )


def _predict(detector: Detector, images: Tensor, batch_size: int | None, bar: Progress):
    """Maps (N, S, S) and scores (N,) by name, and the seconds that they took, of uint8 images (N, 3, S, S).

    A GPU is waited for once, at the end: the copies to it and from it are queued between its batches.
    """
    gpu, config = detector.device.type == "cuda", detector.config
    batch_size = batch_size or (GPU_BATCH if gpu else BATCH)
    names = map_names(config)
    shape = (len(images), config.image_size, config.image_size)
    pinned = gpu and 4 * len(names) * math.prod(shape) <= PINNED
    maps = {name: torch.zeros(shape, pin_memory=pinned) for name in names}
    scores = {name: torch.zeros(len(images), pin_memory=pinned) for name in names}
    began = time.perf_counter()
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        found = detector.device_maps(send(batch, detector.device))
        rows = slice(start, start + len(batch))
        for name in names:
            maps[name][rows].copy_(found[0][name], non_blocking=gpu)
            scores[name][rows].copy_(found[1][name], non_blocking=gpu)
        bar.update(rows.stop)
    if gpu:
        torch.cuda.synchronize(detector.device)
    seconds = time.perf_counter() - began
    return {n: m.numpy() for n, m in maps.items()}, {n: s.numpy() for n, s in scores.items()}, seconds


def _check_finite(scores: dict[str, np.ndarray], category: Category):
    for name, values in scores.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise DetectorError(
                f"the {name} score of {category.test[bad[0]].path} is {values[bad[0]]} ({bad.size} of "
                f"{len(values)} are not finite): the weights are broken, lower learning_rate and train again"
            )


def _release(detector: Detector):
    """Leave to the next run what a training and the predictions held of the device, but for the model."""
    detector.model.zero_grad(set_to_none=True)  # of the last step
    if detector.device.type == "cuda":
        gc.collect()  # a trainer that refers to itself would keep its optimisers and features
        torch.cuda.empty_cache()


def _side_by_side(function: Callable[[str], object], names: Iterable[str]) -> dict:
    """function(name) by name, in as many threads as PyTorch has: NumPy sorts outside of Python's lock."""
    names = list(names)
    with ThreadPoolExecutor(min(len(names), torch.get_num_threads())) as pool:
        return dict(zip(names, pool.map(function, names), strict=True))


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
        "metrics": evaluation.metrics,
        "threshold": detector.threshold,
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


def collect_results(results_dir: str | Path) -> pd.DataFrame:
    """All result files of a folder, a row a category, seed and map: category, seed, map, the metrics,
    seconds, file. Raises ValueError naming a file that is not a result."""
    rows = []
    for path in sorted(Path(results_dir).glob("*_seed*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            for name, metrics in values["metrics"].items():
                row = {key: metrics[key] for key in METRICS}
                rows.append(
                    {
                        "category": values["category"],
                        "seed": values["seed"],
                        "map": name,
                        **row,
                        "seconds": values["seconds"],
                        "file": path.name,
                    }
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result file ({error!r}); move it away") from error
    columns = ["category", "seed", "map", *METRICS, "seconds", "file"]
    return pd.DataFrame(rows, columns=columns)


def results_table(results: pd.DataFrame, of: str = "fused") -> pd.DataFrame:
    """A row a category in percent, mean ± std over its seeds, then the mean over the categories."""
    grouped = results[results["map"] == of].groupby("category")[list(METRICS)]
    mean, std = 100 * grouped.mean(), 100 * grouped.std()
    table = pd.DataFrame(
        {m: [_cell(mean.loc[c, m], std.loc[c, m]) for c in mean.index] for m in METRICS}, index=mean.index
    )
    table.insert(0, "seeds", grouped.size())
    if len(mean) > 1:
        overall = [f"{value:.2f}" for value in mean.mean()]
        table.loc[f"mean of {len(mean)}"] = [grouped.size().sum(), *overall]
    return table


def compare_with_paper(results: pd.DataFrame, of: str = "fused") -> pd.DataFrame:
    """Rows of the metrics: paper | ours | difference | categories, means over categories in percent.

    The paper's figures are means over MVTec AD's fifteen categories; the difference is given for just those.
    """
    mean = 100 * results[results["map"] == of].groupby("category")[list(METRICS)].mean()
    known = mean.index.intersection(MVTEC_CATEGORIES)
    complete = len(known) == len(MVTEC_CATEGORIES)
    ours = mean.loc[known].mean() if complete else mean.mean()
    rows = {
        m: {
            "paper": f"{100 * PAPER[m]:.2f}" if m in PAPER else "not stated",
            "ours": f"{ours[m]:.2f}",
            "difference": f"{ours[m] - 100 * PAPER[m]:+.2f}" if m in PAPER and complete else "-",
            "ours covers": f"{len(known)} of {len(MVTEC_CATEGORIES)} MVTec AD categories"
            + (
                ""
                if complete or not len(mean.index.difference(known))
                else f", {len(mean) - len(known)} other"
            ),
        }
        for m in METRICS
    }
    return pd.DataFrame(rows).T


def _cell(mean: float, std: float) -> str:
    return f"{mean:.2f}" if np.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def rank_anomalous(evaluation: Evaluation, of: str = "fused") -> list[int]:
    """Indices of the defective test images, from the best outlined to the worst, by their own pixel AP."""
    found = np.flatnonzero(evaluation.labels)
    quality = {i: pixel_ap(evaluation.maps[of][i : i + 1], evaluation.masks[i : i + 1]) for i in found}
    return sorted(quality, key=quality.get, reverse=True)


def curves(evaluation: Evaluation) -> dict[str, dict]:
    """ROC of the image scores and PRO of the maps, for `plots.plot_roc_and_pro`."""
    found = {}
    for name in evaluation.maps:
        roc = roc_curve(evaluation.labels, evaluation.scores[name], drop_intermediate=False)[:2]
        pro = pro_curve(evaluation.maps[name], evaluation.masks)
        metrics = evaluation.metrics[name]
        found[name] = {"roc": roc, "pro": pro, "auroc": metrics["image_auroc"], "aupro": metrics["aupro"]}
    return found
