"""Checking the MVTec AD layout: every planted problem is reported at once, and nothing is written."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import disc, make_category, palette, tiny_config, tree
from builders import save_image as save
from PIL import Image
from scipy import ndimage

from dmdd_lite.data import layout as data
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks, read_mask, resize_mask, vanished_regions, vanishing
from dmdd_lite.data.problems import DataError, DataWarning
from dmdd_lite.data.training import load_training_data


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


# ---- masks: which pixels are defective in every kind of file, what is left of them, and what vanishes -


LABELS = disc(on=1)  # of two colours, neither of them background
LABELS[5, 6] = 2
DISTANCE = np.hypot(*(np.mgrid[:64, :64] - 31.3))
ROUND = DISTANCE < 20
EDGES = np.uint8(255 * np.clip(20.5 - DISTANCE, 0, 1))  # anti-aliased: a hundred values
BLURRED = np.uint8(ndimage.gaussian_filter(255.0 * ROUND, 2))
LINES = np.where(np.arange(64) % 2, np.arange(64) // 2 + 1, 0)[:, None].repeat(64, axis=1).astype(np.uint8)
SQUARES = ((np.arange(64) // 8)[:, None] * 8 + np.arange(64) // 8) * (np.indices((64, 64)) % 8 < 5).all(0)


KINDS = {
    "0/255": (".tif", disc(on=255), disc() > 0),
    "0/1": (".tif", disc(on=1), disc() > 0),
    "0/1/2": (".tif", LABELS, disc() > 0),
    "16 bit 0/1": (".tif", disc(on=1, dtype=np.uint16), disc() > 0),
    "16 bit": (".tif", disc(on=65535, dtype=np.uint16), disc() > 0),
    "16 bit labels": (".tif", LABELS.astype(np.uint16) * 300, disc() > 0),
    "float": (".tif", disc(on=1, dtype=np.float32), disc() > 0),
    "1 bit": (".tif", disc().astype(bool), disc() > 0),
    "red": (".tif", np.stack([disc(), disc(on=0), disc(on=0)], axis=2), disc() > 0),
    "colours": (".tif", np.stack([LABELS == 1, LABELS == 2, LABELS < 0], axis=2) * np.uint8(9), disc() > 0),
    "LA": (".tif", Image.fromarray(disc()).convert("LA"), disc() > 0),
    "RGBA": (".tif", Image.fromarray(disc()).convert("RGBA"), disc() > 0),
    "palette": (".tif", palette(Image.fromarray(LABELS), (0, 0, 0), (40, 0, 0), (255, 255, 255)), disc() > 0),
    "permuted": (".tif", palette(Image.fromarray(1 - LABELS), (255,) * 3, (0,) * 3), LABELS == 1),
    "anti-aliased": (".png", EDGES, EDGES > 127.5),
    "blurred": (".png", BLURRED, BLURRED > 127.5),
    "16 bit blurred": (".png", BLURRED.astype(np.uint16) * 257, BLURRED > 127.5),
    "JPEG": (".jpg", disc(32), disc(32) > 0),
    "lossy WebP": (".webp", disc(32), disc(32) > 0),
    "JPEG as PNG": (".png", "JPEG", ROUND),
    "thin": (".png", LINES, LINES > 0),
    "instances": (".png", SQUARES.astype(np.uint16), SQUARES > 0),
    "BMP": (".bmp", SQUARES.astype(np.uint8), SQUARES > 0),
    "GIF": (".gif", disc(), disc() > 0),
}


@pytest.mark.parametrize("suffix, mask, expected", KINDS.values(), ids=KINDS)
def test_kinds_of_masks(tmp_path, suffix, mask, expected):
    """Ringing and soft borders do not spread a mask, and no label is lost."""
    if isinstance(mask, str):
        mask = Image.open(save(tmp_path / "m.jpg", 255 * ROUND.astype(np.uint8), quality=80))
        assert (np.asarray(mask) > 0).sum() > ROUND.sum() + 100  # the ringing is there
    got = read_mask(save(tmp_path / f"m{suffix}", mask, quality=60))
    assert got.dtype == torch.bool
    assert np.array_equal(got, expected)


def test_another_rule_is_given_by_name(tmp_path):
    soft = save(tmp_path / "soft.png", EDGES)
    assert np.array_equal(read_mask(soft, rule="nonzero"), EDGES > 0)
    folder = make_category(tmp_path, defects=("hole",), count=1)
    save(folder / "ground_truth/hole/000_mask.png", LABELS)
    for rule, marked in (("auto", LABELS > 0), ("nonzero", LABELS > 0), ("half", LABELS > 1)):
        found = open_category(tmp_path, "nut", mask_rule=rule)
        assert np.array_equal(load_masks(found.test, 16, None, found.mask_rule)[-1], marked)
    with pytest.raises(ValueError, match="mask_rule must be one of auto, nonzero, half, got 'all'"):
        open_category(tmp_path, "nut", mask_rule="all")


# ---- other sizes --------------------------------------------------------------------------------------


def more_than_half(mask, rows, columns):
    """Every pixel as rows x columns equal parts, of which a cell has height x width."""
    parts = mask.repeat(rows, axis=0).repeat(columns, axis=1).reshape(rows, len(mask), columns, -1)
    return 2 * parts.sum((1, 3)) > mask.size


@pytest.mark.parametrize("shape", [(7, 11), (12, 12), (5, 5), (3, 4), (1, 13)])
def test_a_cell_is_defective_where_more_than_half_of_its_area_is(shape):
    """At other than whole ratios too, upwards too, and centred: turned alike, turned results."""
    for seed in range(4):
        mask = np.random.default_rng(seed).random(shape) < 0.5
        assert np.array_equal(resize_mask(mask, 5), more_than_half(mask, 5, 5))
        assert np.array_equal(resize_mask(mask, (5, 3)), more_than_half(mask, 5, 3))
        assert np.array_equal(resize_mask(mask.T, (3, 5)).T, resize_mask(mask, (5, 3)))
        assert np.array_equal(resize_mask(mask[::-1, ::-1], 5)[::-1, ::-1], resize_mask(mask, 5))
        assert np.array_equal(resize_mask(mask.T, 5).T, resize_mask(mask, 5))


def test_vanished_defects_are_counted_and_told_before_training(tmp_path):
    """At a quarter of the size a cell is 4 x 4 pixels: of three defects a whole cell stays, a line and half a
    cell do not."""
    mask = np.zeros((256, 256), bool)
    mask[8:12, 8:12] = mask[100, 20:200] = mask[201:203, 200:204] = True
    assert vanished_regions(mask, 64) == (2, 3)
    assert (vanished_regions(mask, 256), vanished_regions(mask & False, 64)) == ((0, 3), (0, 0))
    folder = make_category(tmp_path, defects=("hole",))
    path = save(folder / "ground_truth/hole/001_mask.png", mask)
    told = r"^2 of 5 defects vanish from their masks at image_size 64 \(001_mask\.png\): choose a larger"
    with pytest.warns(DataWarning, match=told):
        load_training_data(tiny_config(plus=None), tmp_path, "nut", progress=False)
    assert vanishing([path], 256) == []
