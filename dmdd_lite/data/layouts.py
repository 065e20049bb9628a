"""Public data sets as their authors ship them, by name. Each function finds the files of one category; only
"mvtec" has been tried on the real data, see docs/datasets.md."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .category import GOOD, TestImage
from .folders import find_images, ignored
from .images import in_threads
from .masks import read_mask
from .problems import DataError, counted, some
from .trees import Tree, category_folder, tested_images, train_images

BAD = "bad"  # the defect of data sets that name none
Found = tuple[list[Path], list[TestImage]]  # to train on; to test on


@dataclass(frozen=True)
class Layout:
    """find(root, name, problems, told): the files of a category; raises DataError where nothing can be found.
    official: what the data set is ranked by, where that is none of our metrics."""

    find: Callable[[Path, str, list[str], list[str]], Found]
    official: str = ""

    @property
    def warnings(self) -> list[str]:
        """That our metrics are not the official one."""
        told = f"this data set's own metric is {self.official}; none of the metrics here is the official one"
        return [told] if self.official else []


def find_tree(tree: Tree, root: Path, name: str, problems: list[str], told: list[str]) -> Found:
    folder = category_folder(root, name)
    return train_images(folder, problems, told, tree.good), tested_images(folder, problems, told, tree)


def _visa(root: Path, name: str, problems: list[str], told: list[str]) -> Found:
    """As published: <name>/Data/Images/{Normal,Anomaly} and Data/Masks/Anomaly, split by split_csv/1cls.csv
    (object, split, label, image, mask); without that file, as rearranged into MVTec AD's folders."""
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        return find_tree(Tree(), root, name, problems, told)
    category_folder(root, name, "Data")

    def entries(file) -> list[tuple]:
        rows = [row for row in csv.DictReader(file) if row["object"] == name]
        kinds = [GOOD if row["label"] == "normal" else BAD for row in rows]
        return [(r["split"], kind, r["image"], r["mask"]) for r, kind in zip(rows, kinds, strict=True)]

    return _listed(table, root, _parsed(table, entries), problems, told)


def _real_iad(root: Path, name: str, problems: list[str], told: list[str]) -> Found:
    """<name>/{OK,NG}/... listed in realiad_jsons/<name>.json, in `root`, beside it, or in another
    folder of that name."""
    folder = category_folder(root, name, "OK")
    jsons = [place / "realiad_jsons" / f"{name}.json" for place in (root, Path(os.path.abspath(root)).parent)]
    jsons += [path.parent / "realiad_jsons" / path.name for path in jsons]
    if not (found := [path for path in jsons if path.is_file()]):
        raise DataError(f"{jsons[0]}: no such file; put the data set's list of the category there")

    def entries(file) -> list[tuple]:
        lists = json.load(file)
        good = lists.get("meta", {}).get("normal_class", "OK")
        rows = [(split, row) for split in ("train", "test") for row in lists[split]]
        kinds = [GOOD if row["anomaly_class"] == good else row["anomaly_class"] for _, row in rows]
        paths = [(row["image_path"], row["mask_path"]) for _, row in rows]
        return [(split, kind, *two) for (split, _), kind, two in zip(rows, kinds, paths, strict=True)]

    return _listed(found[0], folder, _parsed(found[0], entries), problems, told)


def _parsed(path: Path, entries: Callable) -> list[tuple]:
    """What `entries` makes of a file. Raises DataError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return entries(file)
    except (OSError, ValueError, csv.Error, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not as documented ({error!r}); copy it from the data set again") from error


def _listed(table: Path, root: Path, entries: Iterable[tuple], problems: list[str], told: list[str]) -> Found:
    """Entries of a table: split, defect, image and mask, '' or None for none, below `root`."""
    train, test, unused, whole = [], [], [], os.path.abspath(root)
    for split, defect, name, mask in entries:
        files = [Path(os.path.normpath(root / file)) for file in (name, mask) if file]
        if wrong := [path for path in files if not Path(os.path.abspath(path)).is_relative_to(whole)]:
            problems += [
                f"{path}: listed in {table.name}, but not below {root}; correct it" for path in wrong
            ]
            continue
        missing = [path for path in files if not path.is_file()]
        problems += [f"{path}: listed in {table.name}, but not there; copy it again" for path in missing]
        if split != "train":
            test.append(TestImage(files[0], defect, files[1] if defect != GOOD and files[1:] else None))
        else:
            (train if defect == GOOD else unused).append(files[0])
    return _checked(table, train, test, unused, problems, told)


def _checked(place: Path, train, test, unused: list[Path], problems: list[str], told: list[str]) -> Found:
    """What was found, sorted."""
    for found, what in ((train, "good training images"), (test, "test images")):
        if not found:
            problems.append(f"{place}: no {what} of this category; copy the data set again")
    if unused:
        told.append(f"{counted(unused, 'defective training image')} not used: {some(unused)}")
    if missing := [image.path for image in test if image.is_anomalous and image.mask is None]:
        told.append(f"{counted(missing, 'defective image')} without a mask: {some(missing)}")
    return sorted(train), sorted(test, key=lambda image: (image.defect, image.path))


def _ksdd2(root: Path, name: str, problems: list[str], told: list[str]) -> Found:
    """{train,test}/<id>.png with <id>_GT.png, which is black for a good image; one category, named as
    the data set's folder."""
    folder = category_folder(root, name)
    kinds: dict[str, list[TestImage]] = {"train": [], "test": []}
    for split, found in kinds.items():
        images, others = find_images(folder / split, folder) if os.path.isdir(folder / split) else ([], [])
        copies = [path for path in images if path.stem.endswith(" (copy)")]  # two are in the archive
        told += ignored(sorted(others + copies), folder)
        images = [path for path in images if path not in copies]
        truth = {path.stem: path for path in images if path.stem.endswith("_GT")}
        images = [path for path in images if path.stem not in truth]
        lacking = [path for path in images if f"{path.stem}_GT" not in truth]
        problems += [f"{path}: without {path.stem}_GT.png; copy the data set again" for path in lacking]
        pairs = [(path, truth[f"{path.stem}_GT"]) for path in images if path not in lacking]
        for (path, mask), marked in zip(pairs, in_threads(_marks, [mask for _, mask in pairs]), strict=True):
            if isinstance(marked, str):
                problems.append(marked)
            else:
                found.append(TestImage(path, BAD if marked else GOOD, mask if marked else None))
    train = [image.path for image in kinds["train"] if not image.is_anomalous]
    unused = [image.path for image in kinds["train"] if image.is_anomalous]
    return _checked(folder, train, kinds["test"], unused, problems, told)


def _marks(mask: Path) -> bool | str:
    """Whether a pixel is defective, or why it cannot be told."""
    try:
        return bool(read_mask(mask).any())
    except DataError as error:
        return str(error)


LAYOUTS = {
    # Bergmann et al., "MVTec AD", CVPR 2019
    "mvtec": Layout(partial(find_tree, Tree())),
    # Bergmann et al., "Beyond Dents and Scratches", IJCV 2022: ground_truth/<defect>/<stem>/000.png, 001.png
    "loco": Layout(partial(find_tree, Tree(several=True)), "the sPRO up to a false-positive rate of 0.05"),
    # Heckler-Kram et al., "The MVTec AD 2 Dataset", arXiv 2503.21622: the public test set, with masks
    "ad2": Layout(
        partial(find_tree, Tree(test="test_public", truth="test_public/ground_truth")),
        "the SegF1 on its private test sets, by a server",
    ),
    # Zou et al., "SPot-the-Difference", ECCV 2022
    "visa": Layout(_visa),
    # Mishra et al., "VT-ADL", ISIE 2021: train/ok, test/{ok,ko}, ground_truth/ko
    "btad": Layout(partial(find_tree, Tree(good="ok"))),
    # Jezek et al., "Deep learning-based defect detection of metal parts", ICUMT 2021
    "mpdd": Layout(partial(find_tree, Tree())),
    # Bozic et al., "Mixed supervision for surface-defect detection", Computers in Industry 2021
    "ksdd2": Layout(_ksdd2),
    # Wang et al., "Real-IAD", CVPR 2024
    "realiad": Layout(_real_iad),
}
