"""Are the two branches two? Distances of a detector's branches to the teacher, inside and outside anomalies.

    python benchmarks/branches.py runs/bottle/detector --data data/mvtec_ad/bottle \\
        --textures data/dtd/seen --unseen-textures data/dtd/unseen --out branches.json

All distances are d = 1 - cos per cell of a feature map, in [0, 2], at strides 4, 8 and 16. Held-out good
images are damaged synthetically (32 pairs, fixed seed, opacity at least 0.5); a cell is inside where the mask
covers at least 0.99 of it, outside where it covers at most 0.01. Columns of the table:

    A_T_in, A_T_out    d(A(x_a), T(x_a)): AIM asks for 1 inside and 0 outside
    N_Tn_in            d(N(x_a), T(x_n)) inside: NGM asks for 0
    A_N_in             d(A(x_a), N(x_a)) inside: 0 where A is a copy of N
    T_Tn_in            d(T(x_a), T(x_n)) inside: what restoring alone would give A
    N_clean, A_clean   d(N(x_n), T(x_n)) and d(A(x_n), T(x_n)), all cells
    mean_in            d of the per-position mean of the teacher's features to T(x_n), in the cells inside

The same inside and outside real defects of the test split, where no normal view is known; how well M can be
read off the unsplit feature by a linear probe (AUROC of cells, learned on every other image); the correlation
of the two branches' maps inside and outside real defects; and the parts of L_AIM beside those of three
trivial branches, A = T, A = N and A = T(x_n).
"""

import json
from pathlib import Path

import measure
import numpy as np
import torch
from pandas import DataFrame
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dmdd_lite.course import probes
from dmdd_lite.course.probes import INSIDE, OUTSIDE, opaque_pairs
from dmdd_lite.data.folders import open_folder
from dmdd_lite.data.images import load_images, unit_range
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks
from dmdd_lite.data.training import load_training_data
from dmdd_lite.detector import Detector, DetectorError
from dmdd_lite.losses import Features, cosine_distance, resize_mask
from dmdd_lite.model import DMDD
from dmdd_lite.pairs import Pairs, step_generator
from dmdd_lite.student import moments
from dmdd_lite.utils import autocast, resolve_device

SEED = 0
PROBED = 20_000  # cells at most that a linear probe learns from or is tested on


class View:
    """Features of images (B, 3, H, W) in [0, 1]: of the teacher, of both branches, and the unsplit ones."""

    @torch.no_grad()
    def __init__(self, model: DMDD, images: torch.Tensor):
        parts, student = [], model.student
        for batch in images.split(8):
            batch = batch.contiguous(memory_format=torch.channels_last)
            with autocast(images.device, model.config.precision):
                teacher = model.teacher(batch)
                parts.append((teacher, *student(batch, teacher), tuple(student.hidden(batch, teacher))))
        self.teacher, self.normality, self.abnormality, self.unsplit = (
            tuple(torch.cat([f.float() for f in scale]) for scale in zip(*kind, strict=True))
            for kind in zip(*parts, strict=True)
        )


class PairViews:
    """Both views of pairs, each seen by the model once, and the mask (B, H, W)."""

    def __init__(self, model: DMDD, pairs: Pairs):
        self.clean, self.damaged = View(model, pairs.normal), View(model, pairs.anomalous)
        self.mask, self.strides = pairs.mask, model.teacher.info.strides


def mean_of(distances: torch.Tensor, where: torch.Tensor) -> float:
    return distances[where].mean().item() if where.any() else float("nan")


def by_stride(rows: dict[int, dict]) -> DataFrame:
    return DataFrame.from_dict(rows, orient="index").rename_axis("stride")


def pair_table(views: PairViews, mean: Features) -> DataFrame:
    """One row per stride, columns as in the module's docstring. mean: of the teacher's, (1, C, H, W)."""
    rows, d = {}, cosine_distance
    for k, stride in enumerate(views.strides):
        normal, n_clean, a_clean = (
            getattr(views.clean, v)[k] for v in ("teacher", "normality", "abnormality")
        )
        seen, n, a = (getattr(views.damaged, v)[k] for v in ("teacher", "normality", "abnormality"))
        share = resize_mask(views.mask, seen.shape[2:])
        inside, outside = share >= INSIDE, share <= OUTSIDE
        rows[stride] = {
            "A_T_in": mean_of(d(a, seen), inside),
            "A_T_out": mean_of(d(a, seen), outside),
            "N_Tn_in": mean_of(d(n, normal), inside),
            "A_N_in": mean_of(d(a, n), inside),
            "T_Tn_in": mean_of(d(seen, normal), inside),
            "N_clean": d(n_clean, normal).mean().item(),
            "A_clean": d(a_clean, normal).mean().item(),
            "mean_in": mean_of(d(mean[k].expand_as(normal), normal), inside),
            "probe": probe(views.damaged.unsplit[k], inside, outside),
        }
    return by_stride(rows)


def probe(features: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor) -> float:
    """AUROC of a linear classifier of cells inside and outside, learned on every other image, tested on the
    rest; NaN where either half lacks one kind of cells."""
    cells, halves = features.permute(0, 2, 3, 1), []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        known = inside[half] | outside[half]
        x, y = (v[half][known].cpu().numpy() for v in (cells, inside))
        chosen = np.random.default_rng(SEED).permutation(len(y))[:PROBED]
        halves.append((x[chosen], y[chosen]))
    (x, y), (new_x, new_y) = halves
    if any(labels.all() or not labels.any() for labels in (y, new_y)):
        return float("nan")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(x, y)
    return float(roc_auc_score(new_y, classifier.decision_function(new_x)))


def aim_table(views: PairViews) -> DataFrame:
    """Both parts of L_AIM on the anomalous views, summed over scales: of A and of three trivial branches."""
    clean, damaged = views.clean, views.damaged
    branches = {"A": damaged.abnormality, "A = T": damaged.teacher, "A = N": damaged.normality}
    branches["A = T(x_n)"] = clean.teacher
    return probes.aim_table(branches, damaged.teacher, views.mask)[["inside", "outside"]]


def defect_table(model: DMDD, root: Path, category: str) -> DataFrame:
    """Real defects: one row per stride with d(A, T), d(N, T) and d(A, N) inside and outside the masks, and
    the correlation of the two branches' maps there."""
    size, split = model.config.image_size, open_category(root, category, check_files=False)
    tests = [test for test in split.test if test.is_anomalous]
    images = load_images([test.path for test in tests], size, None)
    masks = load_masks(tests, size, None)
    view, rows = View(model, unit_range(images, model.teacher.mean.device)), {}
    for k, stride in enumerate(model.teacher.info.strides):
        t, n, a = (f[k].cpu() for f in (view.teacher, view.normality, view.abnormality))
        kinds = {"A_T": cosine_distance(a, t), "N_T": cosine_distance(n, t), "A_N": cosine_distance(a, n)}
        share, rows[stride] = resize_mask(masks.float(), t.shape[2:]), {}
        for name, where in (("in", share >= INSIDE), ("out", share <= OUTSIDE)):
            rows[stride] |= {f"{kind}_{name}": mean_of(values, where) for kind, values in kinds.items()}
            both = torch.stack((kinds["N_T"][where], kinds["A_T"][where]))
            found = torch.corrcoef(both)[0, 1].item() if both.shape[1] > 1 else float("nan")
            rows[stride][f"correlation_{name}"] = found
    return by_stride(rows)


def tables(detector: Detector, root: Path, category: str, textures: str, unseen: str) -> dict[str, DataFrame]:
    """All tables by name. Raises DataError, and ValueError for a detector without both branches."""
    config, model = detector.config, detector.model
    if len(config.branches) < 2:
        raise ValueError(f"the detector has no two branches, only {', '.join(config.branches)}")
    data = load_training_data(config, root, category, textures, detector.device, progress=False)
    with torch.no_grad(), autocast(detector.device, config.precision):
        *_, mean = moments(model.teacher.stream(data.images))
    sources = {"pairs": data.textures}
    if unseen:
        paths = open_folder(unseen)
        sources["unseen"] = load_images(paths, config.image_size, None).to(detector.device)
    views = {}
    for name, textures in sources.items():
        rng = step_generator(SEED, "branches", 0, data.held_out.device)
        views[name] = PairViews(model, opaque_pairs(config, data.held_out, textures, rng))
    found = {name: pair_table(seen, mean) for name, seen in views.items()}
    return found | {"aim": aim_table(views["pairs"]), "defects": defect_table(model, root, category)}


def main():
    parser = measure.parser(__doc__, textures="", unseen_textures="", device="auto")
    parser.add_argument("detector", type=Path, help="folder that a training wrote")
    parser.add_argument("--data", type=Path, required=True, help="the category that it was trained on")
    options = parser.parse_args()
    device, data = resolve_device(options.device), options.data.resolve()
    try:
        detector = Detector.load(options.detector, options.device)
        found = tables(detector, data.parent, data.name, options.textures, options.unseen_textures)
    except (ValueError, DetectorError) as error:  # a DataError is a ValueError
        raise SystemExit(str(error)) from None
    for name, table in found.items():
        print(f"\n{name}\n{table.round(2).to_markdown()}")
    result = {name: json.loads(table.to_json(orient="index")) for name, table in found.items()}
    measure.write_result(options.out, device, SEED, {"category": data.name, **result})


if __name__ == "__main__":
    main()
