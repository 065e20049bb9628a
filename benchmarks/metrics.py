"""Time, peak memory and values of `dmdd_lite.metrics`, beside the ways the field computes the same numbers.

    python benchmarks/metrics.py --maps 83 --size 256 --repeat 5

83 maps of 256 x 256 is the size of MVTec AD's bottle. The maps are smoothed noise on which the anomalies are
raised: nothing is downloaded. Ours are medians of `--repeat` runs; the baselines run once. Where anomalib is
installed, its AUPRO is one of them; it is imported here only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import measure
import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from dmdd_lite import metrics
from dmdd_lite.utils import describe

CPU = torch.device("cpu")


def fake_test_set(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 maps (N, H, W) and bool masks: three quarters of the images have one to four ellipses."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    masks = np.zeros((count, size, size), dtype=bool)
    for mask in masks[: 3 * count // 4]:
        for _ in range(rng.integers(1, 5)):
            (cy, cx), (ry, rx) = rng.random(2), rng.uniform(0.01, 0.12, 2)
            mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    noise = ndimage.gaussian_filter(rng.normal(size=masks.shape), (0, 4, 4))
    raised = ndimage.gaussian_filter(masks.astype(np.float64), (0, 4, 4))
    return (noise / noise.std() + 3 * raised).astype(np.float32), masks


def pro_by_thresholds(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3, count: int = 200) -> float:
    """AUPRO the way RD4AD (H. Deng and X. Li, CVPR 2022) computes it: evenly spaced thresholds, one by one.

    Written anew after its description. As there, the regions are found again at every threshold, the top
    threshold is left out, only points below the limit are kept, and their FPR is divided by its maximum.
    """
    low, high = float(maps.min()), float(maps.max())
    points = []
    for threshold in np.arange(low, high, (high - low) / count):
        detected = maps > threshold
        overlaps = []
        for found, mask in zip(detected, masks, strict=True):
            regions, number = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [found[regions == k].mean() for k in range(1, number + 1)]
        fpr = (detected & ~masks).sum() / (~masks).sum()
        if fpr < limit:
            points.append((fpr, np.mean(overlaps)))
    fpr, pro = np.array(points).T
    return float(auc(fpr / fpr.max(), pro))


def pro_by_thresholds_per_image(maps: np.ndarray, masks: np.ndarray) -> float:
    """The mean over the anomalous images that RD4AD reports."""
    pairs = zip(maps, masks, strict=True)
    return float(np.mean([pro_by_thresholds(a[None], m[None]) for a, m in pairs if m.any()]))


def anomalib_aupro(maps: np.ndarray, masks: np.ndarray) -> float | None:
    """anomalib's AUPRO of the same maps, or None where it is not installed."""
    metric = measure.optional("anomalib.metrics", "AUPRO")
    if metric is None:
        return None
    found = metric(fields=["maps", "masks"])
    found.update(SimpleNamespace(maps=torch.from_numpy(maps), masks=torch.from_numpy(masks)))
    return float(found.compute())


def run(call, repeat: int) -> dict[str, float]:
    """Median seconds of `repeat` runs, the memory that they took beyond what was there in MB, the value."""
    seconds, megabytes = [], []
    for _ in range(repeat):
        with measure.peak_memory(CPU) as memory:
            began = time.perf_counter()
            value = call()
            seconds.append(time.perf_counter() - began)
        megabytes.append(1000 * memory["above_start_gb"])
    return {"seconds": statistics.median(seconds), "mb": max(megabytes), "value": value}


def ours(maps, masks, scores, labels, repeat: int) -> dict[str, dict]:
    """Each of our metrics, and all of them together."""
    calls = {"image_auroc": lambda: metrics.image_auroc(scores, labels)}
    for name in ("pixel_auroc", "pixel_ap", "aupro", "aupro_per_image"):
        calls[name] = lambda name=name: getattr(metrics, name)(maps, masks)
    rows = {name: run(call, repeat) for name, call in calls.items()}
    together = run(lambda: metrics.evaluate_maps(maps, masks, scores, labels), repeat)
    rows["all five"] = {**together, "value": together["value"]["aupro"]}
    return rows


def baselines(maps: np.ndarray, masks: np.ndarray) -> dict[str, tuple[str, Callable[[], float]]]:
    """Which of our metrics each baseline computes, and its call."""
    truth, found = masks.ravel(), maps.ravel()
    calls = {
        "scikit-learn on raw pixels, AUROC": ("pixel_auroc", lambda: float(roc_auc_score(truth, found))),
        "scikit-learn on raw pixels, AP": ("pixel_ap", lambda: float(average_precision_score(truth, found))),
        "200 thresholds (RD4AD)": ("aupro", lambda: pro_by_thresholds(maps, masks)),
        "200 thresholds (RD4AD), per image": (
            "aupro_per_image",
            lambda: pro_by_thresholds_per_image(maps, masks),
        ),
    }
    if anomalib_aupro(maps[:1] * 0, masks.any(0)[None]) is not None:  # imports, too, before time counts
        calls["anomalib AUPRO"] = ("aupro", lambda: anomalib_aupro(maps, masks))
    return calls


def report(name: str, row: dict[str, float]) -> None:
    baseline = f"{row['difference']:+.1e} | {row['times_ours']:.1f}" if "difference" in row else " | "
    print(
        f"| {name} | {row['seconds']:.3f} | {row['mb']:.0f} | {row['value']:.6f} | {baseline} |", flush=True
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=83, help="images of the test set (default 83)")
    parser.add_argument("--size", type=int, default=256, help="side of the maps in pixels (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of ours (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the maps (default 0)")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    return parser.parse_args()


def main() -> None:
    options = parse()
    maps, masks = fake_test_set(options.maps, options.size, options.seed)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    print(json.dumps(describe(CPU)))
    print(f"maps {maps.shape} {maps.dtype}, {maps.nbytes / 1e6:.0f} MB; {labels.sum()} images anomalous,")
    print(f"{masks.mean():.1%} of the pixels; median of {options.repeat} runs of ours, baselines once\n")
    print("| metric | seconds | peak MB above the start | value | minus exact | times ours |")
    print("|---|---|---|---|---|---|")

    rows = ours(maps, masks, scores, labels, options.repeat)
    for name, row in rows.items():
        report(name, row)
    for name, (metric, call) in baselines(maps, masks).items():
        row, exact = run(call, 1), rows[metric]
        row["baseline_of"], row["times_ours"] = metric, row["seconds"] / exact["seconds"]
        row["difference"] = row["value"] - exact["value"]
        report(f"{metric}: {name}", row)
        rows[name] = row
    measure.write_result(options.out, CPU, options.seed, {"goals": measure.goals("metrics"), "rows": rows})


if __name__ == "__main__":
    main()
