"""Time, peak memory and values of `dmdd_lite.metrics`, beside the ways the field computes the same numbers.

    python benchmarks/metrics.py --maps 83 --size 256 --repeat 5

83 maps of 256 x 256 is the size of MVTec AD's bottle. The maps are smoothed noise on which the anomalies are
raised: nothing is downloaded. Ours are medians of `--repeat` runs; the peers run once.
"""

import argparse
import platform
import statistics
import time
import tracemalloc

import numpy as np
import scipy
import sklearn
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from dmdd_lite import metrics


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


def measure(call, repeat: int) -> tuple[float, float, float]:
    """Median seconds of `repeat` runs, peak MiB allocated by one more run, and the value."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - start)
    if repeat == 1:
        return seconds[0], float("nan"), value
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return statistics.median(seconds), peak, value


def report(name: str, measured: tuple[float, float, float], exact: float | None = None) -> None:
    seconds, peak, value = measured
    memory = "-" if np.isnan(peak) else f"{peak:.0f}"
    difference = "" if exact is None else f"{value - exact:+.1e}"
    print(f"| {name} | {seconds:.3f} | {memory} | {value:.6f} | {difference} |")


def processor() -> str:
    """Name of the processor where Linux tells it, else the architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=83, help="images of the test set (default 83)")
    parser.add_argument("--size", type=int, default=256, help="side of the maps in pixels (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of ours, at least 2 (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the maps (default 0)")
    options = parser.parse_args()
    repeat = max(2, options.repeat)

    maps, masks = fake_test_set(options.maps, options.size, options.seed)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    print(f"{processor()}; {platform.system()}; Python {platform.python_version()}, NumPy {np.__version__},")
    print(f"SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}; seed {options.seed};")
    print(f"maps {maps.shape} {maps.dtype}, {maps.nbytes / 2**20:.0f} MiB; {labels.sum()} images anomalous,")
    print(f"{masks.mean():.1%} of the pixels; median of {repeat} runs of ours, peers once\n")
    print("| metric | seconds | peak MiB | value | minus exact |\n|---|---|---|---|---|")

    exact = metrics.evaluate_maps(maps, masks, scores, labels)
    report("image_auroc", measure(lambda: metrics.image_auroc(scores, labels), repeat))
    for name in ("pixel_auroc", "pixel_ap", "aupro", "aupro_per_image"):
        report(name, measure(lambda name=name: getattr(metrics, name)(maps, masks), repeat))
    together = measure(lambda: metrics.evaluate_maps(maps, masks, scores, labels)["aupro"], repeat)
    report("evaluate_maps, all five (value: aupro)", together)
    for name, metric in (("pixel_auroc", roc_auc_score), ("pixel_ap", average_precision_score)):
        peer = measure(lambda metric=metric: float(metric(masks.ravel(), maps.ravel())), 1)
        report(f"{name}, scikit-learn on raw pixels", peer, exact[name])
    report(
        "aupro, 200 thresholds (RD4AD)", measure(lambda: pro_by_thresholds(maps, masks), 1), exact["aupro"]
    )
    peer = measure(lambda: pro_by_thresholds_per_image(maps, masks), 1)
    report("aupro_per_image, 200 thresholds (RD4AD)", peer, exact["aupro_per_image"])


if __name__ == "__main__":
    main()
