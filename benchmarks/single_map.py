"""What the benchmarks of other detectors than ours share: these have one map, their results have the shape of
the ablation's, and none is made twice."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import measure
import numpy as np
import torch
from ablation import read_data, run_name, zone_recalls
from ablation_report import quality_table
from pandas import DataFrame

from dmdd_lite.config import Config
from dmdd_lite.data.images import DataError
from dmdd_lite.data.layout import Category, load_masks
from dmdd_lite.evaluation import PROTOCOL
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.teacher import TeacherError
from dmdd_lite.utils import describe, write_json

MAP = "map"  # the one map of a detector

Run = tuple[dict, Callable[[], dict]]  # what its result depends on, and the call that makes it


def common_parser(description: str) -> argparse.ArgumentParser:
    """A parser of what says which runs there are: data, teacher, images, seeds, device."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=read_data, nargs="+", default=[], metavar="NAME=ROOT/CATEGORY")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher", default="", help="timm name of the teacher with ImageNet weights")
    parser.add_argument("--teacher-weights", default="", help="its weights, a local file")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=JSON")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder of the results")
    return parser


def config_of(options: argparse.Namespace) -> Config:
    """Of the teacher and the images that the command names. Raises ValueError or TypeError naming a field."""
    named = ("teacher", "teacher_weights", "image_size")
    return Config.from_dict({n: getattr(options, n) for n in named} | measure.read_fields(options.set))


def result_of(
    settings: dict,
    category: Category,
    maps: np.ndarray,
    scores: np.ndarray,
    seconds: float,
    device: torch.device,
) -> dict:
    """A result file's content, of maps (N, S, S) and scores (N,) of the test images."""
    masks = load_masks(category.test, maps.shape[1], None).numpy()
    return {
        **settings,
        "seed": settings["settings"]["seed"],
        "protocol": PROTOCOL,
        "metrics": {MAP: evaluate_maps(maps, masks, scores, category.labels)},
        "zones": zone_recalls({MAP: maps}, masks),
        "seconds": round(seconds, 1),
        **describe(device),
        "images": {"train": len(category.train), "test": len(masks)},
    }


def is_done(path: Path, settings: dict) -> bool:
    """Whether the result is there. Raises ValueError, naming what differs, if it is of other settings."""
    if not path.exists():
        return False
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        before, now = ({**s, **s["settings"]} for s in (values, settings))
        differing = [k for k in now if k != "settings" and before.get(k) != now[k]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file ({error!r}); move it away") from error
    if differing:
        told = "; ".join(f"{k}: {before.get(k)!r} -> {now[k]!r}" for k in differing)
        raise ValueError(f"{path} was made with other settings ({told}); delete it or choose another --out")
    return True


def data_table(results: DataFrame, data: str) -> str:
    """Markdown of one data set's results."""
    return f"## {data}\n\n{quality_table(results, data, MAP).to_markdown(disable_numparse=True)}"


def make_open(out: Path, runs: Iterable[Run], table: Callable[[Path], str]) -> int:
    """Make the results that are not there, print the table of all. Exit status: 0 all there, 2 something is
    missing or wrong."""
    try:
        for settings, make in runs:
            name = run_name(settings["row"], settings["data"], settings["settings"]["seed"])
            path = out / f"{name}.json"
            if not is_done(path, settings):
                write_json(path, make())
                print(f"wrote {path}", flush=True)
        print(table(out))
    except (ValueError, TypeError, DataError, TeacherError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
