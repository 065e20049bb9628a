"""Masks in every encoding and folders in every disorder: the right data, or an error that says what to do."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import disc, make_category, save_image, tiny_config
from PIL import Image

from dmdd_lite.data.folders import open_folder
from dmdd_lite.data.images import read_image
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks, read_mask
from dmdd_lite.data.problems import DataError, DataWarning
from dmdd_lite.data.training import load_training_data
from dmdd_lite.training import train


@pytest.fixture
def category(tmp_path):
    return make_category(tmp_path, defects=("hole",), count=2)


def check(category: Path, refused=None):
    """The category, or the message of its refusal."""
    if refused is None:
        return open_category(category.parent, category.name)
    with pytest.raises(DataError, match=refused) as caught:
        open_category(category.parent, category.name)
    return caught.value


def alpha_only(marked: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([np.zeros_like(marked)] * 3 + [marked], axis=2))


INVERTED, EMPTY = "1 mask covering over 60%", "1 mask marking nothing"


@pytest.mark.parametrize("mask, share, told", [
    (disc() | 255, 256, INVERTED), (255 - disc(), 226, INVERTED), (disc(on=128), 30, ""),
    (disc(on=0), 0, EMPTY), (alpha_only(disc()), 0, EMPTY), (disc().repeat(3, 0).repeat(3, 1), 30, ""),
])  # fmt: skip
def test_masks_that_look_odd_are_taken_as_they_are_and_told(category, mask, share, told, recwarn):
    """Full, inverted, grey, empty, transparent, larger than the image."""
    save_image(category / "ground_truth/hole/000_mask.png", mask)
    found = check(category)
    assert load_masks(found.test, 16, None)[-2].sum() == share
    assert [text[: len(told)] for text in found.warnings] == ([told] if told else [])


@pytest.mark.parametrize("mask, message", [
    (disc()[:, :9], r"000_mask\.png: a mask of 9 x 16 pixels does not fit its image of 16 x 16; turn"),
    (np.full((16, 16), np.nan, np.float32), r"000_mask\.png: unreadable image \(floating-point pixels must"),
    (np.full((16, 16), -5, np.int32), r"000_mask\.png: unreadable image \(integers outside 0\.\.65535"),
])  # fmt: skip
def test_masks_that_cannot_be_meant(category, mask, message):
    path = category / "ground_truth/hole/000_mask.png"
    save_image(path, mask, format="TIFF" if getattr(mask, "dtype", 0) in (np.float32, np.int32) else "PNG")
    assert len(check(category, message).problems) == 1


def test_image_and_mask_turned_alike_fit_and_one_alone_does_not(category):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = category / "test/hole/000.png", category / "ground_truth/hole/000_mask.png"
    save_image(image, disc(24)[:16], exif=exif)
    save_image(mask, disc(24)[:16], exif=exif)
    found = check(category).test[-2]
    assert torch.equal(read_image(found.path)[0] > 127, read_mask(found.mask))
    save_image(mask, disc(24)[:16])
    check(category, "a mask of 24 x 16 pixels does not fit its image of 16 x 24; turn the mask")


FILES = ["train/good/000.png", "test/good/000.png", "test/hole/000.png", "ground_truth/hole/000_mask.png"]
NAMES = ["größe 1.png", "a\nb.png", "日本.PNG", f"{'x' * 240}.png", "-rf.png", "100%s{0}.png", "a'b\"c.png"]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff\xe9.png")])
def test_names_of_any_kind(category, name):
    for part in (FILES[0], *FILES[2:]):
        (category / part).rename((category / part).with_name(name))
    found = check(category)
    assert name in [path.name for path in found.train]
    fits = {image.path: image.mask for image in found.test}
    assert fits[category / "test/hole" / name] == category / "ground_truth/hole" / name
    assert len(load_training_data(tiny_config(plus=None), category.parent, "nut", progress=False).images) == 1
    (category / "train/good" / name).write_bytes(b"broken")
    str(check(category, "unreadable")).encode()  # can be printed


def test_what_is_no_image_is_left_out_and_named(category):
    good = category / "train/good"
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "notes.txt", "a.png~", "b.heic"):
        (good / name).write_bytes(b"\0\5\x16\7")
    (good / "folder.png").mkdir()
    os.mkfifo(good / "pipe.png")
    (category / "train/good/000.png").rename(good / "000.PnG")
    told = r"4 files ignored .*good/a\.png~, train/good/b\.heic, train/good/notes\.txt, train/good/pipe\.png;"
    with pytest.warns(DataWarning, match=told):
        assert [path.name for path in check(category).train] == ["000.PnG", "001.png"]


def test_sub_folders_are_read_with_masks_beside_or_above(category):
    for part in (*FILES[1:], "test/hole/001.png", "train/good/001.png"):
        path = category / part
        (path.parent / "day 1").mkdir(exist_ok=True)
        path.rename(path.parent / "day 1" / path.name)
    found = check(category)
    assert [path.parent.name for path in found.train] == ["good", "day 1"]
    assert [image.mask.parent.name for image in found.test[-2:]] == ["day 1", "hole"]


@pytest.mark.parametrize("part", FILES)
def test_links_that_lead_nowhere_are_named_and_others_followed(category, part, tmp_path):
    path, kept = category / part, tmp_path / "kept.png"
    path.rename(kept)
    path.symlink_to(kept)
    check(category)
    kept.unlink()
    check(category, f"{path}: a link to a file that is not there; restore that file or remove the link")


def test_links_to_folders_are_followed_once_and_not_in_circles(category, tmp_path):
    """Neither above nor into the same category, where they only repeat what is there."""
    (category / "test/hole/again").symlink_to(category)
    (category / "train/good/up").symlink_to("..")
    (category / "test/good/root").symlink_to("/")
    save_image(tmp_path / "more/deep/9.png", disc())
    (tmp_path / "more/back").symlink_to(category / "test")
    for name in ("more", "more too"):
        (category / "train/good" / name).symlink_to(tmp_path / "more")
    (category / "test/good").rename(category / "good")
    (category / "test/good").symlink_to(category / "good")  # the folder itself may be a link
    with pytest.warns(DataWarning, match="2 files ignored"):
        found = check(category)
    assert (len(found.test), len(found.train)) == (4, 3)
    assert "train/good/more/back, train/good/up;" in found.warnings[0]
    assert "test/good/root, test/hole/again;" in found.warnings[1]
    with pytest.warns(DataWarning, match="5 files ignored"):
        assert len(open_folder(category)) == 9


@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("holdout", [0.0, 0.01, 0.5])
def test_every_split_leaves_images_to_train_on(tmp_path, count, holdout):
    make_category(tmp_path, defects=("hole",), count=count)
    for seed in (0, 1, 2**63 - 1):
        config = tiny_config(holdout=holdout, seed=seed, foreground="none", plus=None)
        split = load_training_data(config, tmp_path, "nut", tmp_path / "nut/train", progress=False)
        assert len(split.images) + len(split.held_out) == count
        assert len(split.images) >= max(1, (count - 1) // 2)
        assert len(split.held_out) == max(1, round(holdout * count))


@pytest.mark.parametrize("count, plus, error", [
    (1, None, "train/good has one image, two are needed: add good images"), (2, None, ""), (4, {}, ""),
    (3, {}, "good has 3 images, 1 of them held out; DMDD\\+ needs three .*plus=None"),
])  # fmt: skip
def test_too_few_good_images_are_told_before_training(tmp_path, count, plus, error):
    make_category(tmp_path, count=count)
    given = tiny_config(iterations=1, plus=plus), tmp_path, "nut", "", None, "cpu"
    if error:
        with pytest.raises(DataError, match=error):
            train(*given)
    else:
        assert all(np.isfinite(list(train(*given).detector.thresholds.values())))


@pytest.mark.parametrize("name, message", [
    ("a.png", r"a\.png: unreadable image"), ("a.txt", r"textures: no images; put"), ("", "no such folder"),
])  # fmt: skip
def test_bad_textures_stop_it_before_training(category, tmp_path, name, message):
    if name:
        (tmp_path / "textures").mkdir()
        (tmp_path / "textures" / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=message):
        train(tiny_config(plus=None), category.parent, "nut", tmp_path / "textures", tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
