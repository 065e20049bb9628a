"""Time, peak memory and value of our AUPRO, beside the ways the field computes it.

    python benchmarks/metrics.py --maps 83 --size 256 --repeat 5

83 maps of 256 x 256 is the size of MVTec AD's bottle. The maps are smoothed noise on which the anomalies are
raised: nothing is downloaded. Ours is the median of `--repeat` runs; the baselines run once. Where anomalib
is installed, its AUPRO is one of them; it is imported here only.
"""

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import measure
import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import auc

from dmdd_lite.metrics import aupro

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


def by_thresholds(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3, count: int = 200) -> float:
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


def anomalib_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """anomalib's AUPRO of the same maps."""
    from anomalib.metrics import AUPRO

    found = AUPRO(fields=["maps", "masks"])
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


def ways(maps: np.ndarray, masks: np.ndarray) -> dict[str, Callable[[], float]]:
    """Computations of AUPRO, ours first."""
    calls = {"aupro": lambda: aupro(maps, masks), "RD4AD, 200 thresholds": lambda: by_thresholds(maps, masks)}
    if find_spec("anomalib"):
        anomalib_aupro(maps[:1] * 0, masks.any(0)[None])  # imports before time counts
        calls["anomalib"] = lambda: anomalib_aupro(maps, masks)
    return calls


def told(row: dict[str, float]) -> str:
    return f"{row['seconds']:.3f} s, {row['value']:.6f}, {row['mb']:.0f} MB"


def main():
    options = measure.parser(__doc__, maps=83, size=256, repeat=5, seed=0).parse_args()
    maps, masks = fake_test_set(options.maps, options.size, options.seed)
    calls = ways(maps, masks)
    rows = {name: run(call, options.repeat if name == "aupro" else 1) for name, call in calls.items()}
    exact, table = rows["aupro"], []
    for name in list(rows)[1:]:
        row = rows[name]
        row["difference"] = row["value"] - exact["value"]
        row["times_ours"] = row["seconds"] / exact["seconds"]
        table.append(["AUPRO", told(exact), f"{name}: {told(row)}", f"{row['times_ours']:.1f}"])
    measure.write_result(options.out, CPU, options.seed, {"table": table, "rows": rows})


if __name__ == "__main__":
    main()
