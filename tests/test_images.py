"""Reading images and masks: known pixels in every format, and one clear error for a file that is broken."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import disc
from builders import save_image as save
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from dmdd_lite.data import images

COLOUR = (200, 100, 50)
BLACK = (0, 0, 0)
PAGES = [Image.new("RGB", (4, 3), colour) for colour in (COLOUR, BLACK)]
ALL = {"save_all": True, "append_images": PAGES[1:]}


# ---- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".TIFF", ".jpg", ".JPEG"])
def test_formats_keep_every_pixel(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    got = images.read_image(save(tmp_path / f"a{suffix}", array, quality=95, subsampling=0))
    assert got.dtype == torch.uint8
    lost = np.abs(got.permute(1, 2, 0).numpy().astype(int) - array).max()
    assert lost <= (3 if suffix in (".jpg", ".JPEG") else 0)


def palette(image: Image.Image, *colours) -> Image.Image:
    image = image.copy()
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize(
    "suffix, image, options, expected",
    [
        (".tif", Image.new("1", (4, 3), 1), {}, (255, 255, 255)),
        (".tif", Image.new("L", (4, 3), 77), {}, (77, 77, 77)),
        (".tif", Image.new("LA", (4, 3), (77, 0)), {}, (77, 77, 77)),
        (".tif", Image.new("RGBA", (4, 3), (*COLOUR, 0)), {}, COLOUR),  # of full transparency stays
        (".tif", Image.new("CMYK", (4, 3), (55, 155, 205, 0)), {}, COLOUR),
        (".png", palette(Image.new("P", (4, 3), 1), BLACK, COLOUR), {"transparency": b"\x80\x40"}, COLOUR),
        (".png", PAGES[0], ALL, COLOUR),
        (".tif", PAGES[0], ALL, COLOUR),
    ],
)
def test_modes_and_the_first_of_several_pages(tmp_path, suffix, image, options, expected, recwarn):
    got = images.read_image(save(tmp_path / f"a{suffix}", image, **options))
    assert got.shape == (3, 3, 4)
    assert tuple(got[:, 1, 1].tolist()) == expected
    assert not recwarn.list


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path / "a.jpg", np.full((16, 16, 3), COLOUR, np.uint8), "CMYK", quality=95)
    assert (images.read_image(path)[:, 8, 8].int() - torch.tensor(COLOUR)).abs().max() <= 3


@pytest.mark.parametrize(
    "dtype, suffix", [("<u2", ".png"), ("<u2", ".tif"), (">u2", ".tif"), ("<i4", ".tif")]
)
def test_16_bits_are_divided_not_stretched(tmp_path, dtype, suffix):
    values = np.array([[0, 255, 256, 4095], [32767, 32768, 65279, 65535]], dtype)
    expected = torch.tensor([[0, 0, 1, 15], [127, 128, 254, 255]], dtype=torch.uint8)
    assert torch.equal(images.read_image(save(tmp_path / f"a{suffix}", values)), expected.expand(3, 2, 4))
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)  # both ways to promote 8 bits come back exactly
    for promoted in (eight.astype(np.uint16) * 257, eight.astype(np.uint16) << 8):
        assert torch.equal(images.read_image(promoted), images.read_image(eight))


def test_floating_point_tiff_and_out_of_range_values(tmp_path):
    got = images.read_image(save(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32)))
    assert got[0].tolist() == [[0, 128, 255]]
    for name, wrong in (("b", np.array([[0, 1.5]], np.float32)), ("c", np.array([[-1, 70000]], np.int32))):
        with pytest.raises(
            images.DataError, match=rf"{name}\.tif: unreadable image \(.*(in \[0, 1\]|0\.\.65535)"
        ):
            images.read_image(save(tmp_path / f"{name}.tif", wrong))


def test_path_string_pil_and_array_agree_and_the_input_is_not_shared(tmp_path):
    array = np.random.default_rng(1).integers(0, 256, (9, 6, 4), np.uint8)
    path = save(tmp_path / "a.png", array)
    image = images.read_image(array)
    for source in (path, str(path), Image.open(path), (array / 255).astype(np.float64), array[:, :, :3]):
        assert torch.equal(images.read_image(source), image)
    grey = np.zeros((1, 1), np.uint8)
    images.read_image(grey).fill_(9)
    assert grey[0, 0] == 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros((2, 2, 2), np.uint8), "expected shape"),
        (np.zeros((0, 4), np.uint8), "expected shape"),
        (np.zeros((2, 2), np.int64), "expected uint8"),
        (np.full((2, 2), 1.01), r"in \[0, 1\]"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (torch.zeros(3, 2, 2), "not Tensor"),
    ],
)
def test_other_arrays_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        images.read_image(wrong)


def test_resize_is_antialiased_and_equals_torchvision(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    path = save(tmp_path / "a.png", stripes)
    got = images.read_image(path, 8)
    assert got.shape == (3, 8, 8)
    assert (got[:, :, 1:-1].int() - 127).abs().max() <= 2  # without antialiasing: 0 or 255
    assert type(got) is torch.Tensor
    assert torch.equal(got, tvf.resize(images.read_image(path), [8, 8], antialias=True))
    assert images.read_image(np.zeros((5, 9), np.uint8), 4).shape == (3, 4, 4)


# ---- masks --------------------------------------------------------------------------------------------


LABELS = disc(on=1)  # of two colours, neither of them background
LABELS[5, 6] = 2


@pytest.mark.parametrize(
    "mask",
    [
        disc(on=255),
        disc(on=1),
        disc(on=1, dtype=np.uint16),
        disc(on=65535, dtype=np.uint16),
        disc(on=1, dtype=np.float32),
        disc().astype(bool),
        np.stack([disc(), disc(on=0), disc(on=0)], axis=2),
        palette(Image.fromarray(LABELS), (0, 0, 0), (40, 0, 0), (255, 255, 255)),
        palette(Image.fromarray(1 - disc(on=1)), (255, 255, 255), (0, 0, 0)),  # an optimiser put white first
    ],
    ids=["0/255", "0/1", "16 bit 0/1", "16 bit", "float", "1 bit", "red", "labels", "permuted palette"],
)
def test_mask_conventions(tmp_path, mask):
    got = images.read_mask(save(tmp_path / "m.tif", mask))
    assert got.dtype == torch.bool
    assert torch.equal(got, torch.from_numpy(disc() > 0))


def test_masks_as_jpeg_of_another_size_and_empty(tmp_path):
    """The ringing of JPEG does not spread a mask; it is resized with nearest."""
    path = save(tmp_path / "m.jpg", disc(32), quality=60)
    assert (np.asarray(Image.open(path)) > 0).sum() > 30  # the ringing is there
    assert torch.equal(images.read_mask(path), torch.from_numpy(disc(32) > 0))
    path = save(tmp_path / "m.png", disc(16).repeat(4, axis=0).repeat(4, axis=1))
    assert torch.equal(images.read_mask(path, 16), torch.from_numpy(disc(16) > 0))
    assert not images.read_mask(save(tmp_path / "e.png", disc(on=0))).any()


# ---- loading ------------------------------------------------------------------------------------------


def test_threads_keep_the_order_and_name_the_broken_file(tmp_path, monkeypatch, capfd):
    paths = [save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8)) for i in range(12)]
    real = images.read_image

    def slow_at_first(path, size=None):
        time.sleep(0.003 * (12 - int(Path(path).stem)))
        return real(path, size)

    monkeypatch.setattr(images, "read_image", slow_at_first)
    loaded = images.load_images(paths, 4, progress=None, workers=4)
    assert loaded[:, 0, 0, 0].tolist() == list(range(12))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("DMDD_PROGRESS", "bar")
    images.load_images(paths, 4, progress="reading nuts")
    assert "reading nuts" in capfd.readouterr().err
    assert images.load_images([], 4, progress=None).shape == (0, 3, 4, 4)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(images.DataError, match=r"1\.png: unreadable"):
        images.load_images(paths, 4, progress=None)
