"""What the benchmarks on real images share: which trainings there are, what they need, and results that are
made once, each with what it depends on."""

import argparse
import functools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import measure
import numpy as np

from dmdd_lite.backbones.networks import TeacherError
from dmdd_lite.config import Config
from dmdd_lite.course.zones import zone_table
from dmdd_lite.data.fingerprints import changes, digests, hash_category
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.problems import DataError
from dmdd_lite.teacher import build_teacher

ZONE_WIDTH = 0.02  # of the edge and of the rim, as a share of the image's side
ZONE_FPR = 0.01  # share of good pixels above the threshold at which edge and centre are looked for


class CannotStart(ValueError):
    """Something that the trainings need is missing or wrong; the message says what."""


class Data(NamedTuple):
    """A category in a folder of them, under the name that the tables use."""

    name: str
    root: str
    category: str


def read_data(text: str) -> Data:
    """'NAME=ROOT/CATEGORY'. Raises ArgumentTypeError for another form."""
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[\w-]+", name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ROOT/CATEGORY")
    return Data(name, str(Path(path).resolve().parent), Path(path).resolve().name)


def common_parser(description: str, out: str, **defaults) -> argparse.ArgumentParser:
    """A parser of what says which trainings there are: data, configuration, seeds, device; out: folder of
    the results; defaults: of further options, as in `measure.parser`."""
    parser = measure.parser(description, device="auto", **defaults)
    parser.set_defaults(out=Path(out))
    parser.add_argument("--data", type=read_data, nargs="+", default=[], metavar="NAME=ROOT/CATEGORY")
    parser.add_argument("--teacher", help="timm name of the teacher")
    parser.add_argument("--teacher-weights", help="its weights, a local file")
    for name in ("--image-size", "--iterations", "--batch-size"):
        parser.add_argument(name, type=int)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser


def base_config(options: argparse.Namespace) -> Config:
    """The configuration of the command, with seed 0. Raises ValueError or TypeError naming a field."""
    named = ("teacher", "teacher_weights", "image_size", "iterations", "batch_size")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if given.get("teacher_weights") not in (None, "", "random"):
        given["teacher_weights"] = str(Path(given["teacher_weights"]).resolve())
    return Config.from_dict({**given, **measure.read_fields(options.set)})


def run_name(row: str, data: str, seed: int) -> str:
    return f"{row}_{data}_seed{seed}"


@functools.cache
def files_of(data: Data) -> dict[str, str]:
    """A hash each of the training images, the test images and the masks. Raises DataError."""
    return digests(hash_category(open_category(data.root, data.category, check_files=False)))


def read_values(path: Path, settings: dict) -> dict | None:
    """A result; None if there is none yet. Raises CannotStart, naming what differs, if it was made with other
    settings or from other files, or if it is no result."""
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        changed = setting_changes(values, settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotStart(f"{path} is not a result file ({error!r}); move it away") from error
    if changed:
        told = f"{path} was made with other settings ({'; '.join(changed)})"
        raise CannotStart(f"{told}; delete it or choose another --out")
    return values


def setting_changes(before: dict, now: dict) -> list[str]:
    """What a result depends on `now` and did not so before, as 'name: a -> b' and `fingerprints.changes`."""
    one, other = _flat(before), _flat(now)
    files = other.pop("files", {})
    changed = [f"{name}: {one[name]!r} -> {value!r}" for name, value in other.items() if one[name] != value]
    return [*changed, *changes(one["files"] if files else {}, files)]


def _flat(values: dict) -> dict:
    """With what 'settings' and 'config' hold, and the bare name of the weights file, whose folder differs by
    machine."""
    found = {**values, **values.get("settings", {}), **values.get("config", {})}
    if "teacher_weights" in found:
        found["teacher_weights"] = Path(found["teacher_weights"]).name
    return {name: value for name, value in found.items() if name not in ("settings", "config")}


def check(options: argparse.Namespace, base: Config, more: Iterable[tuple[Callable, ...]] = ()):
    """Look at data, textures and teacher, and make the calls of `more`, functions with their arguments.
    Raises CannotStart with all problems."""
    problems = [] if options.data else ["no --data given"]
    if len({data.name for data in options.data}) < len(options.data):
        problems.append("--data: every data set needs a name of its own")
    if options.textures and not Path(options.textures).is_dir():
        problems.append(f"--textures {options.textures}: no such folder")
    checks = [*more, *((open_category, data.root, data.category, False) for data in options.data)]
    checks += [(build_teacher, base.teacher, base.teacher_weights, base.teacher_options, 0, base.image_size)]
    for call, *arguments in checks:
        try:
            call(*arguments)
        except (DataError, TeacherError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise CannotStart("\n".join(problems))


def zone_recalls(maps: dict[str, np.ndarray], masks: np.ndarray) -> dict[str, dict]:
    """Recall of centre, edge and rim by map, see `zones.zone_table`; None for a zone without pixels."""
    table = zone_table(maps, masks, max(1, round(ZONE_WIDTH * masks.shape[-1])), ZONE_FPR)
    return table.astype(object).where(table.notna(), None).to_dict("index")
