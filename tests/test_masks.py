"""Masks: which pixels are defective in every kind of file, what is left of them, and what vanishes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from builders import disc, make_category, tiny_config
from builders import save_image as save
from PIL import Image
from scipy import ndimage

from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks, read_mask, resize_mask, vanished_regions, vanishing
from dmdd_lite.data.problems import DataWarning
from dmdd_lite.data.training import load_training_data


def palette(image: Image.Image, *colours) -> Image.Image:
    image = image.copy()
    image.putpalette([value for colour in colours for value in colour])
    return image


LABELS = disc(on=1)  # of two colours, neither of them background
LABELS[5, 6] = 2
DISTANCE = np.hypot(*(np.mgrid[:64, :64] - 31.3))
ROUND = DISTANCE < 20
EDGES = np.uint8(255 * np.clip(20.5 - DISTANCE, 0, 1))  # anti-aliased: a hundred values
BLURRED = np.uint8(ndimage.gaussian_filter(255.0 * ROUND, 2))
LINES = np.zeros((64, 64), np.uint8)  # 30 thin ones, and one of them a pixel
for line in range(30):
    LINES[2 * line, 5 : 60 - line] = line + 1
LINES[60, 60] = 31
SQUARES = ((np.arange(64) // 8)[:, None] * 8 + np.arange(64) // 8) * (np.indices((64, 64)) % 8 < 5).all(0)


KINDS = {
    "0/255": disc(on=255),
    "0/1": disc(on=1),
    "0/1/2": LABELS,
    "16 bit 0/1": disc(on=1, dtype=np.uint16),
    "16 bit": disc(on=65535, dtype=np.uint16),
    "16 bit labels": LABELS.astype(np.uint16) * 300,
    "float": disc(on=1, dtype=np.float32),
    "1 bit": disc().astype(bool),
    "red": np.stack([disc(), disc(on=0), disc(on=0)], axis=2),
    "colours": np.stack([LABELS == 1, LABELS == 2, LABELS < 0], axis=2) * np.uint8(9),
    "LA": Image.fromarray(disc()).convert("LA"),
    "RGBA": Image.fromarray(disc()).convert("RGBA"),
    "palette": palette(Image.fromarray(LABELS), (0, 0, 0), (40, 0, 0), (255, 255, 255)),
    "permuted palette": palette(Image.fromarray(1 - disc(on=1)), (255, 255, 255), (0, 0, 0)),
}


@pytest.mark.parametrize("mask", KINDS.values(), ids=KINDS)
def test_mask_conventions(tmp_path, mask):
    got = read_mask(save(tmp_path / "m.tif", mask))
    assert got.dtype == torch.bool
    assert torch.equal(got, torch.from_numpy(disc() > 0))


SOFT = {  # and the opposite
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


@pytest.mark.parametrize("suffix, mask, expected", SOFT.values(), ids=SOFT)
def test_soft_borders_are_told_from_labels(tmp_path, suffix, mask, expected):
    """More than 16 values: ringing and soft borders do not spread a mask, and no label is lost."""
    if isinstance(mask, str):
        mask = Image.open(save(tmp_path / "m.jpg", 255 * ROUND.astype(np.uint8), quality=80))
        assert (np.asarray(mask) > 0).sum() > ROUND.sum() + 100  # the ringing is there
    assert np.array_equal(read_mask(save(tmp_path / f"m{suffix}", mask, quality=60)), expected)


def test_another_rule_is_given_by_name(tmp_path):
    soft = save(tmp_path / "soft.png", EDGES)
    assert np.array_equal(read_mask(soft, rule="nonzero"), EDGES > 0)
    folder = make_category(tmp_path, defects=("hole",), count=1)
    save(folder / "ground_truth/hole/000_mask.png", LABELS)
    for rule, marked in (("auto", LABELS > 0), ("nonzero", LABELS > 0), ("half", LABELS > 1)):
        found = open_category(tmp_path, "nut", mask_rule=rule)
        assert np.array_equal(load_masks(found.test, 16, None, found.mask_rule)[-1], marked)
    for wrong in (
        lambda: read_mask(soft, rule="all"),
        lambda: open_category(tmp_path, "nut", mask_rule="all"),
    ):
        with pytest.raises(ValueError, match="mask_rule must be one of auto, nonzero, half, got 'all'"):
            wrong()


# ---- other sizes --------------------------------------------------------------------------------------


def more_than_half(mask, size):
    """Cell by cell in exact fractions."""
    (height, width), cells = mask.shape, np.zeros((size, size), bool)

    def overlap(cell, pixel, length):
        step = Fraction(length, size)
        return max(Fraction(0), min(pixel + 1, (cell + 1) * step) - max(pixel, cell * step))

    for i, j in np.ndindex(size, size):
        area = sum(overlap(i, y, height) * overlap(j, x, width) for y, x in np.argwhere(mask).tolist())
        cells[i, j] = 2 * area > Fraction(height * width, size * size)
    return cells


@pytest.mark.parametrize("shape", [(7, 11), (12, 12), (5, 5), (3, 4), (1, 13)])
def test_a_cell_is_defective_where_more_than_half_of_its_area_is(shape):
    """At other than whole ratios too, upwards too, and centred: turned alike, turned results."""
    for seed in range(4):
        mask = np.random.default_rng(seed).random(shape) < 0.5
        assert np.array_equal(resize_mask(mask, 5), more_than_half(mask, 5))
        assert np.array_equal(resize_mask(mask[::-1, ::-1], 5)[::-1, ::-1], resize_mask(mask, 5))
        assert np.array_equal(resize_mask(mask.T, 5).T, resize_mask(mask, 5))


def test_vanished_defects_are_counted_and_told_before_training(tmp_path):
    """At a quarter of the size a cell is 4 x 4 pixels: of three defects a whole cell stays, a line and half a
    cell do not."""
    mask = np.zeros((256, 256), bool)
    mask[8:12, 8:12] = mask[100, 20:200] = mask[201:203, 200:204] = True
    assert vanished_regions(mask, 64) == (2, 3)
    assert vanished_regions(mask, 256) == (0, 3)
    assert vanished_regions(mask & False, 64) == (0, 0)
    folder = make_category(tmp_path, defects=("hole",))
    path = save(folder / "ground_truth/hole/001_mask.png", mask)
    told = (
        "2 of 5 defects vanish from their masks at image_size 64 (001_mask.png): choose a larger image_size"
    )
    with pytest.warns(DataWarning) as caught:
        load_training_data(tiny_config(plus=None), tmp_path, "nut", progress=False)
    assert [str(w.message).startswith(told) for w in caught if w.category is DataWarning] == [True]
    assert vanishing([path], 256) == []
