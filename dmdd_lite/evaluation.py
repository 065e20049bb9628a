"""From a detector and a test split to numbers, the result file, and tables."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor

from .data.category import Category
from .data.fingerprints import Hashes, hash_category
from .data.images import load_images, read_image
from .data.masks import load_masks, read_mask
from .data.problems import recorded
from .detector import Detector, DetectorError, map_names
from .metrics import evaluate_maps, pixel_ap, pro_curve
from .utils import Progress

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "aupro_per_image")
BATCH, GPU_BATCH = 8, 32  # images predicted at once


@dataclass(frozen=True)
class Evaluation:
    """A scored test split of N images: images uint8 (N, 3, H, W); masks bool (N, H, W); labels bool (N,);
    per map name maps float32 (N, H, W), scores (N,) and metrics (fractions of 1; NaN where no mask is known).

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
    """Maps (N, h, w), each resized bilinearly to its mask (H, W)."""
    pairs = zip(torch.from_numpy(maps), masks, strict=True)
    return [F.interpolate(m[None, None], mask.shape, mode="bilinear")[0, 0].numpy() for m, mask in pairs]


def _predict(detector: Detector, images: Tensor, batch_size: int | None, progress: bool):
    """Maps (N, H, W) and scores (N,) by name, and their seconds, of uint8 images (N, 3, H, W)."""
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
    maps, scores = ({n: torch.cat(v).numpy() for n, v in found.items()} for found in (maps, scores))
    return maps, scores, seconds


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
