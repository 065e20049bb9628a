"""How much the protocol is worth: the same trainings reported as 'last' and as 'best-on-test'.

    python benchmarks/protocols.py --data bottle=data/mvtec_ad/bottle --textures data/dtd/images \\
        --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
        --set 'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}' \\
        --seeds 0 1 2 --iterations 600 --batch-size 8

- last [ours]: the weights of the last iteration; nothing is chosen on the test set.
- best-on-test [authors]: the watched iteration with the highest pixel AUROC + AUPRO per image on the test set
  itself. It looks at the test labels, so it says nothing of new images: it is reported only to compare with
  numbers that were made the same way.

Both are given with AUPRO pooled over the test set and averaged per image (exact, where the authors' code has
200 thresholds an image). The test split is scored every --every iterations and after the last; that changes
no training. Results go to <out>/<data>_seed<seed>.json, with the fused map's metrics by iteration, and are
not made again; a run that was stopped in the middle begins anew.
Exit status: 0 all done, 1 a training failed, 2 something is missing or wrong, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from ablation import CannotStart, Data, base_config, check, common_parser, read_values
from torch import Tensor

from dmdd_lite.config import Config
from dmdd_lite.data.images import load_images
from dmdd_lite.data.layout import load_masks, open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import BATCH, GPU_BATCH, METRICS, PROTOCOL
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.teacher import TeacherError
from dmdd_lite.training import Trainer, TrainingError, snapshot, train
from dmdd_lite.utils import describe, resolve_device, write_json

LAST, BEST = "last", "best-on-test"
PROTOCOLS = {
    LAST: PROTOCOL,
    BEST: f"{BEST}: weights of the watched iteration with the highest pixel AUROC + AUPRO per image on the "
    "test set itself; it looks at the test labels and is for comparison only",
}
NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO pooled",
    "aupro_per_image": "AUPRO per image",
    "pixel_ap": "pixel AP",
}
LOOKS = 8  # at the test split in a training, unless --every says otherwise


class Run(NamedTuple):
    """A training and where its result lies; `config` has its seed, `textures` is a folder or ''."""

    data: Data
    config: Config
    every: int
    textures: str
    device: str
    out: Path

    @property
    def name(self) -> str:
        return f"{self.data.name}_seed{self.config.seed}"

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.json"

    @property
    def settings(self) -> dict:
        """What the result depends on, apart from its configuration."""
        return {
            "data": self.data.name,
            "category": self.data.category,
            "textures": Path(self.textures).name,
            "every": self.every,
        }


class Split(NamedTuple):
    """A test split: images uint8 (N, 3, S, S), masks bool (N, S, S), labels bool (N,)."""

    images: Tensor
    masks: np.ndarray
    labels: np.ndarray


# ---- what to run --------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--every", type=int, help=f"iterations between two looks (default 1/{LOOKS} of all)")
    parser.add_argument("--out", type=Path, default=Path("results/protocols"), help="folder of the results")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Run]:
    """All runs, done or not, seed by seed, after a look at everything that they need.

    Raises CannotStart, also for a result of other settings, ValueError or TypeError.
    """
    base = base_config(options)
    every = max(1, base.iterations // LOOKS) if options.every is None else options.every
    if every < 1:
        raise CannotStart(f"--every {every}: at least 1")
    resolve_device(options.device)
    check(options, base, [])
    runs = [
        Run(data, base.replace(seed=seed), every, options.textures, options.device, options.out)
        for seed in dict.fromkeys(options.seeds)
        for data in options.data
    ]
    for run in runs:
        read_result(run)
    return runs


def read_result(run: Run) -> dict | None:
    """The result of a run; None if there is none. Raises CannotStart for another run's or a broken one."""
    values = read_values(run.path, run.config, run.settings)
    try:
        _ = values and [
            line[key] for line in choose(values["curve"]).values() for key in ("iteration", *METRICS)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CannotStart(f"{run.path} is not a result file ({error!r}); move it away") from error
    return values


# ---- a run --------------------------------------------------------------------------------------------


def read_split(run: Run) -> Split:
    """Raises DataError for files that cannot be read."""
    category, size = open_category(run.data.root, run.data.category), run.config.image_size
    images = load_images([image.path for image in category.test], size, None)
    masks = load_masks(category.test, size, None).numpy()
    return Split(images, masks, np.asarray(category.labels))


def score(detector: Detector, split: Split) -> dict[str, float]:
    """The five metrics of the fused map."""
    batches = split.images.split(GPU_BATCH if detector.device.type == "cuda" else BATCH)
    found = (detector.device_maps(batch) for batch in batches)
    parts = [(maps["fused"].cpu(), scores["fused"].cpu()) for maps, scores, _ in found]
    maps, scores = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return evaluate_maps(maps, split.masks, scores, split.labels)


def observer(run: Run, split: Split, curve: list[dict]) -> Callable[[Trainer], None]:
    """A watch that adds a line to the curve, iteration and metrics, and tells it."""

    def look(trainer: Trainer):
        curve.append({"iteration": trainer.iteration, **score(snapshot(trainer), split)})
        print(f"{run.name}: {in_words(curve[-1])}", flush=True)

    return look


def in_words(line: dict) -> str:
    """A line of the curve in words."""
    numbers = ", ".join(f"{name} {100 * line[key]:.2f}" for key, name in NAMES.items())
    return f"iteration {line['iteration']}: {numbers}"


def choose(curve: list[dict]) -> dict[str, dict]:
    """The line of the curve that each protocol reports; of equally good ones the earliest."""
    best = max(curve, key=lambda line: line["pixel_auroc"] + line["aupro_per_image"])
    return {LAST: curve[-1], BEST: best}


def execute(run: Run) -> dict:
    """Train and watch; the result. Raises what `train` and the metrics raise."""
    split, curve = read_split(run), []
    look, data = observer(run, split, curve), run.data
    training = train(
        *(run.config, data.root, data.category, run.textures),
        device=run.device,
        checkpoint_every=run.every,
        watch=look,
    )
    return {
        **run.settings,
        "seed": run.config.seed,
        "map": "fused",
        "protocols": {name: {"protocol": PROTOCOLS[name], **line} for name, line in choose(curve).items()},
        "curve": curve,
        "seconds": round(training.seconds, 1),
        **describe(training.detector.device),
        "config": run.config.to_dict(),
    }


def complete(runs: list[Run]) -> int:
    """Make the results that are not there yet; how many trainings failed."""
    failed = 0
    for run in runs:
        if read_result(run) is not None:
            continue
        try:
            print(f"wrote {write_json(run.path, execute(run))}", flush=True)
        except TrainingError as error:
            failed += 1
            print(f"{run.name}: failed: {error}", flush=True)
    return failed


# ---- the table ----------------------------------------------------------------------------------------


def means(results: list[dict]) -> dict[str, pd.DataFrame]:
    """By protocol: a line a data set, percent, means over the seeds; of several data sets also their mean."""
    found = {}
    for protocol in PROTOCOLS:
        lines = [{**choose(values["curve"])[protocol], "data": values["data"]} for values in results]
        found[protocol] = 100 * pd.DataFrame(lines).groupby("data", sort=False)[list(NAMES)].mean()
        if len(found[protocol]) > 1:
            found[protocol].loc[f"mean of {len(found[protocol])}"] = found[protocol].mean()
    return found


def table(results: list[dict]) -> pd.DataFrame:
    """'last / best-on-test (difference in points)' of every metric, a line a data set; how many seeds, and at
    which iterations they were best."""
    last, best = means(results).values()
    cells = pd.DataFrame(index=last.index)
    for key, name in NAMES.items():
        pairs = zip(last[key], best[key], strict=True)
        cells[name] = [f"{a:.2f} / {b:.2f} ({b - a:+.2f})" for a, b in pairs]
    chosen = {data: [] for data in cells.index}
    for values in results:
        chosen[values["data"]].append(choose(values["curve"])[BEST]["iteration"])
    cells.insert(0, "seeds", [len(found) or "" for found in chosen.values()])
    cells["best at"] = [", ".join(map(str, found)) for found in chosen.values()]
    return cells


def report(results: list[dict]) -> str:
    """The table in markdown, with what it means."""
    return "\n\n".join(
        [
            f"Fused map, percent, mean over the seeds: {LAST} / {BEST} (difference in points).",
            "\n".join(f"- {text}" for text in PROTOCOLS.values()),
            table(results).to_markdown(disable_numparse=True),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        runs = plan(options)
        failed = complete(runs)
        results = [values for values in map(read_result, runs) if values is not None]
        print("\n" + report(results) if results else "no results yet")
    except KeyboardInterrupt:
        print("stopped; the same command repeats nothing finished")
        return 130
    except (ValueError, TypeError, TeacherError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
