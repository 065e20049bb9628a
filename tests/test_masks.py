"""Masks: which pixels are defective in every kind of file, what is left of them, and what vanishes."""

import numpy as np
import pytest
import torch
from builders import disc, make_category, palette, tiny_config
from builders import save_image as save
from PIL import Image
from scipy import ndimage

from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks, read_mask, resize_mask, vanished_regions, vanishing
from dmdd_lite.data.problems import DataWarning
from dmdd_lite.data.training import load_training_data

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
