"""Checking the MVTec AD layout: every planted problem is reported at once, and nothing is written."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from builders import disc, make_category, tree
from builders import save_image as save
from PIL import Image

from dmdd_lite.data import layout as data
from dmdd_lite.data.problems import DataError, DataWarning


def test_open_category(tmp_path):
    folder = make_category(tmp_path, defects=("hole", "a_hole"))
    (folder / "ground_truth/hole/001_mask.png").rename(folder / "ground_truth/hole/001.png")
    save(folder / "ground_truth/hole/002_mask.BMP", disc(32, on=1))
    (folder / "ground_truth/hole/002_mask.png").unlink()
    for stray in ("test/hole/Thumbs.db", "train/good/.hidden.png", "license.txt"):
        (folder / stray).write_text("no image")
    save(folder / "ground_truth/good/000_mask.png", disc(on=0))
    (folder / "test/.ipynb_checkpoints").mkdir()
    before = tree(tmp_path)
    category = data.open_category(tmp_path, "nut")
    assert tree(tmp_path) == before
    assert [p.name for p in category.train] == ["000.png", "001.png", "002.png"]
    assert [(t.defect, t.path.stem) for t in category.test][2:4] == [("a_hole", "002"), ("good", "000")]
    assert category.labels.tolist() == [True] * 3 + [False] * 3 + [True] * 3
    masks = [t.mask and t.mask.name for t in category.test][3:]
    assert masks == [None, None, None, "000_mask.png", "001.png", "002_mask.BMP"]
    assert category == data.open_category(str(tmp_path), "nut", check_files=False)
    assert data.open_train(tmp_path, "nut") == category.train


def plant_problems(folder: Path) -> list[str]:
    """Breaks a sound category in every way at once; what the message must say about each."""
    (folder / "train/good/000.png").write_text("hello, I am text")
    whole = save(folder / "train/good/001.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    whole.write_bytes(whole.read_bytes()[:2000])
    (folder / "test/hole/001.png").unlink()
    (folder / "ground_truth/scratch/000_mask.png").write_bytes(b"")
    save(folder / "ground_truth/scratch/001.png", disc())
    save(folder / "test/scratch/002.jpg", disc())
    save(folder / "ground_truth/ghost/000_mask.png", disc())
    (folder / "test/dull").mkdir()
    (folder / "test/dull/readme.txt").write_text("no image")
    return [
        r"train/good/000\.png: unreadable image \(not a PNG, JPEG, BMP, TIFF, WebP or GIF\); replace",
        r"train/good/001\.png: unreadable image \(Truncated File Read\); replace",
        r"ground_truth/hole/001_mask\.png: mask without its image; add",
        r"ground_truth/scratch/000_mask\.png: unreadable image",
        r"test/scratch/001\.png: ambiguous masks 001_mask\.png and 001\.png; keep one",
        r"ground_truth/scratch/002_mask\.png: ambiguous, fits 002\.jpg and 002\.png; give",
        r"ground_truth/ghost: no test folder of that name; add",
        r"test/dull: no images; put",
    ]


def test_one_error_lists_all_planted_problems_and_nothing_is_written(tmp_path):
    folder = make_category(tmp_path)
    expected = plant_problems(folder)
    before = tree(tmp_path)
    with pytest.raises(DataError) as caught:
        data.open_category(tmp_path, "nut")
    assert tree(tmp_path) == before
    assert str(caught.value).startswith(f"{len(expected)} problems in {folder}:")
    assert len(caught.value.problems) == len(expected)
    for pattern in expected:
        caught.match(pattern)
    with pytest.raises(DataError) as structure:
        data.open_category(tmp_path, "nut", check_files=False)
    assert len(structure.value.problems) == len(expected) - 3  # without the unreadable


def test_what_falsifies_numbers_is_told_and_kept(tmp_path):
    folder, of_train = make_category(tmp_path), "train/good/001.png"
    (folder / "ground_truth/hole/000_mask.png").unlink()
    save(folder / "test/bent/000.png", disc())
    save(folder / "train/good/000.png", disc(on=0))
    Image.open(folder / of_train).save(folder / "test/good/leak.tif")
    for part in ("train", "train/good", "test", "test/scratch", "ground_truth/hole"):
        (folder / part / "a.txt").write_text("no image")
    expected = [
        r"^2 files ignored in .*nut: train/a\.txt, train/good/a\.txt; images are PNG, .* files in place$",
        r"^1 defective image without a mask: bent/000\.png; counted for the metrics of images only, unless",
        r"^1 defective image without a mask: hole/000\.png; .*ground_truth/hole/<image stem>_mask\.png$",
        r"^3 files ignored in .*nut: ground_truth/hole/a\.txt, test/a\.txt, test/scratch/a\.txt; images",
        r"^1 image of one value: .*train/good/000\.png; is the file whole\?$",
        rf"^1 test image also trained on: .*test/good/leak\.tif = .*{of_train}; the numbers will be",
    ]
    with pytest.warns(DataWarning) as caught:
        category = data.open_category(tmp_path, "nut")
    assert category.warnings == tuple(str(warning.message) for warning in caught)
    for text, pattern in zip(category.warnings, expected, strict=True):
        assert re.search(pattern, text)
    assert category.outlined.tolist() == [t.mask is not None or t.defect == "good" for t in category.test]
    assert (len(category.test), sum(category.outlined)) == (11, 9)
    with pytest.warns(DataWarning) as caught:
        data.open_train(tmp_path, "nut")
    assert tuple(str(w.message) for w in caught) == (category.warnings[0], category.warnings[4])


@pytest.mark.parametrize("missing, expected", [
    (["train/good"], [r"train/good: no such folder"]), (["test"], [r"test: no such folder"]),
    (["train", "test/hole"], [r"train/good: no", r"ground_truth/hole: no test folder"]),
    (["test/good", "test/hole", "ground_truth"], [r"test: no images"]),
])  # fmt: skip
def test_missing_folders(tmp_path, missing, expected):
    folder = make_category(tmp_path, defects=("hole",))
    for part in missing:
        (folder / part).rename(tmp_path / f"away_{part.replace('/', '_')}")
    with pytest.raises(DataError) as caught:
        data.open_category(tmp_path, "nut")
    assert len(caught.value.problems) == len(expected)
    for pattern in expected:
        caught.match(pattern)


def test_wrong_root_or_category_names_what_is_there(tmp_path):
    make_category(tmp_path, "nut")
    make_category(tmp_path, "bolt")
    with pytest.raises(DataError, match=r"no category named 'nutt'; categories there: bolt, nut$"):
        data.open_category(tmp_path, "nutt")
    with pytest.raises(DataError, match="no such folder; root is"):
        data.open_train(tmp_path / "nowhere", "nut")
    with pytest.raises(DataError, match=r"is a category itself; pass its parent as root and 'nut'"):
        data.open_category(tmp_path / "nut", "nut")
    for name in ("", ".", "..", "../nut", "nut/test"):
        with pytest.raises(DataError, match="no category named"):
            data.open_category(tmp_path, name)


def test_only_twenty_problems_are_listed():
    error = DataError([f"file {i}" for i in range(25)], "here")
    assert str(error).splitlines()[0] == "25 problems in here:"
    assert str(error).splitlines()[-2:] == ["  - file 19", "  and 5 more"]
    assert len(error.problems) == 25
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
