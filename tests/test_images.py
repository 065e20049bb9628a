"""Reading images: known pixels in every format and depth, and one clear error for a file that is broken."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import deep_png, deep_tiff, palette, written
from builders import save_image as save
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from dmdd_lite.data import images
from dmdd_lite.data.problems import DataError, DataWarning

COLOUR = (200, 100, 50)
BLACK = (0, 0, 0)
PAGES = [Image.new("RGB", (4, 3), colour) for colour in (COLOUR, BLACK)]
ALL = {"save_all": True, "append_images": PAGES[1:]}


# ---- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".TIFF", ".webp", ".gif", ".jpg", ".jfif"])
def test_formats_keep_every_pixel(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    got = images.read_image(save(tmp_path / f"a{suffix}", array, quality=95, subsampling=0, lossless=True))
    assert got.dtype == torch.uint8
    lost = np.abs(got.permute(1, 2, 0).numpy().astype(int) - array).max()
    assert lost <= (3 if suffix in (".jpg", ".jfif") else 0)


@pytest.mark.parametrize("suffix, image, options, expected", [
    (".tif", Image.new("1", (4, 3), 1), {}, (255, 255, 255)),
    (".tif", Image.new("L", (4, 3), 77), {}, (77, 77, 77)),
    (".tif", Image.new("LA", (4, 3), (77, 0)), {}, (77, 77, 77)),
    (".tif", Image.new("RGBA", (4, 3), (*COLOUR, 0)), {}, COLOUR),  # of full transparency stays
    (".tif", Image.new("CMYK", (4, 3), (55, 155, 205, 0)), {}, COLOUR),
    (".png", palette(Image.new("P", (4, 3), 1), BLACK, COLOUR), {"transparency": b"\x80\x40"}, COLOUR),
    (".png", PAGES[0], ALL, COLOUR), (".tif", PAGES[0], ALL, COLOUR), (".gif", PAGES[0], ALL, COLOUR),
    (".webp", PAGES[0], ALL | {"lossless": True}, COLOUR),
])  # fmt: skip
def test_modes_and_the_first_of_several_pages(tmp_path, suffix, image, options, expected, recwarn):
    got = images.read_image(save(tmp_path / f"a{suffix}", image, **options))
    assert got.shape == (3, 3, 4)
    assert tuple(got[:, 1, 1].tolist()) == expected
    assert not recwarn.list


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path / "a.jpg", np.full((16, 16, 3), COLOUR, np.uint8), "CMYK", quality=95)
    assert (images.read_image(path)[:, 8, 8].int() - torch.tensor(COLOUR)).abs().max() <= 3


@pytest.mark.parametrize("bits", images.DEPTHS)
def test_images_of_every_depth_are_the_same(tmp_path, bits):
    """Divided and not stretched: both ways to promote 8 bits come back exactly. The depth is that of the
    brightest image."""
    eight = np.random.default_rng(bits).permutation(256).astype(np.uint8).reshape(16, 16)
    scaled = np.rint(eight * ((2**bits - 1) / 255)).astype(np.uint16)
    for deep in (scaled, eight.astype(np.uint16) << (bits - 8)):
        dark = save(tmp_path / "dark.tif", deep // 9)
        stored = [save(tmp_path / f"{kind}.tif", deep.astype(kind)) for kind in ("<u2", ">u2", "<i4")]
        stored += [save(tmp_path / "a.png", deep)]
        stored += [written(tmp_path / "colours.png", deep_png(np.stack([deep] * 3, axis=2)))]
        for source in (*stored, deep, deep.astype(np.int64)):
            assert torch.equal(images.read_image(source, depth=bits), images.read_image(eight))
        assert [images.bit_depth([dark, path]) for path in stored] == [bits] * 5
    assert images.bit_depth([save(tmp_path / "d.png", eight)]) == 8


def test_values_above_the_depth_are_clipped_with_a_warning_and_dark_deep_tiffs_refused(tmp_path):
    values = np.array([[0, 1023, 1024, 65535]], np.uint16)
    paths = [save(tmp_path / f"{name}.png", values) for name in "ab"]
    with pytest.warns(DataWarning, match="^1 image with values above 1023, the largest of 10 bits.*memory"):
        assert images.read_image(values, depth=10)[0].tolist() == [[0, 255, 255, 255]]
    with pytest.warns(DataWarning, match=r"^2 images with values above 1023.*a\.png, .*b\.png; no training"):
        images.load_images(paths, 4, None, 10)
    colours = np.random.default_rng(0).integers(0, 4096, (4, 4, 3))
    bright = images.read_image(written(tmp_path / "c.tif", deep_tiff(colours * 16)))
    assert np.array_equal(bright.permute(1, 2, 0), colours >> 4)
    with pytest.raises(DataError, match=r"c\.tif: .*dark 16-bit colours.*save it as PNG"):
        images.read_image(written(tmp_path / "c.tif", deep_tiff(colours)))


def test_floating_point_tiff_and_out_of_range_values(tmp_path):
    got = images.read_image(save(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32)))
    assert got[0].tolist() == [[0, 128, 255]]
    for name, wrong in (("b", np.array([[0, 1.5]], np.float32)), ("c", np.array([[-1, 70000]], np.int32))):
        with pytest.raises(DataError, match=rf"{name}\.tif: unreadable image \(.*(in \[0, 1\]|0\.\.65535)"):
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


@pytest.mark.parametrize("wrong, message", [
    (np.zeros((2, 2, 2), np.uint8), "expected shape"), (np.zeros((0, 4), np.uint8), "expected shape"),
    (np.zeros((2, 2), bool), "expected integers or float"), (np.full((2, 2), 65536), r"0\.\.65535"),
    (np.full((2, 2), 1.01), r"in \[0, 1\]"), (np.array([[0.5, np.nan]]), "NaN"),
    (torch.zeros(3, 2, 2), "not Tensor"),
])  # fmt: skip
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


# ---- loading ------------------------------------------------------------------------------------------


def test_threads_keep_the_order_and_name_the_broken_file(tmp_path, monkeypatch, capfd):
    paths = [save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8)) for i in range(12)]
    real = images.read_clipped

    def slow_at_first(path, size, depth):
        time.sleep(0.003 * (12 - int(Path(path).stem)))
        return real(path, size, depth)

    monkeypatch.setattr(images, "read_clipped", slow_at_first)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    loaded = images.load_images(paths, 4, progress=None)
    assert loaded[:, 0, 0, 0].tolist() == list(range(12))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("DMDD_PROGRESS", "bar")
    images.load_images(paths, 4, progress="reading nuts")
    assert "reading nuts" in capfd.readouterr().err
    assert images.load_images([], 4, progress=None).shape == (0, 3, 4, 4)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png: unreadable"):
        images.load_images(paths, 4, progress=None)
