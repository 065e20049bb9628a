"""Broken, hostile and unusual images: the right pixels, or one clear error that names the file, soon and in
little memory."""

import os
import re
import resource
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from builders import deep_png, encoded, save_image, written
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dmdd_lite.data.images import read_image
from dmdd_lite.data.problems import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
REMEDY = "replace or remove it|shrink it|check the path|check its permissions|remove the link"


PICTURES = {
    "colour.png": encoded(COLOURS, "PNG"),
    "16bit.png": encoded(COLOURS[..., 0].astype(np.uint16) * 250, "PNG"),
    "deep.png": deep_png(COLOURS.astype(np.uint16) * 257),
    "lossless.webp": encoded(COLOURS, "WEBP", lossless=True),
    "palette.gif": encoded(COLOURS[..., 0], "GIF"),
    "baseline.jpg": encoded(COLOURS, "JPEG"),
    "progressive.jpg": encoded(COLOURS, "JPEG", progressive=True),
    "plain.bmp": encoded(COLOURS, "BMP"),
    "lzw.tif": encoded(COLOURS, "TIFF", compression="tiff_lzw"),
    "jpeg.tif": encoded(COLOURS, "TIFF", compression="jpeg"),
}


def read_or_refuse(path):
    """The pixels, or None after one line that names the file and a remedy; in seconds."""
    began = time.monotonic()
    try:
        pixels, told = read_image(path), ""
    except DataError as error:
        pixels, told = None, str(error)
    assert time.monotonic() - began < 20
    if pixels is None:
        assert told.startswith(f"{path}: ")
        assert re.search(REMEDY, told)
        assert "\n" not in told
    return pixels


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICTURES)
def test_a_cut_file_is_refused_or_still_whole(tmp_path, name):
    content, whole = PICTURES[name], read_image(written(tmp_path / name, PICTURES[name]))
    cuts = sorted({len(content) * i // 40 for i in range(40)} | {len(content) - 1})
    found = [read_or_refuse(written(tmp_path / name, content[:cut])) for cut in cuts]
    assert all(pixels is None or torch.equal(pixels, whole) for pixels in found)
    assert sum(pixels is None for pixels in found) > 0.8 * len(cuts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICTURES)
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
@example(changes=[(48, 0), (1088, 223)])  # of 16bit.png a pixel, and a length that cuts off zlib's own sum
def test_changed_bytes_give_an_image_or_an_error(tmp_path, name, changes):
    content = bytearray(PICTURES[name])
    for place, value in changes:
        content[place % len(content)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)  # a header that claims many costs time
        pixels = read_or_refuse(written(tmp_path / name, bytes(content)))
    if pixels is not None and name.endswith("png"):  # every part of a PNG has a checksum
        assert torch.equal(pixels, read_image(written(tmp_path / name, PICTURES[name])))


def test_content_counts_and_not_the_extension(tmp_path):
    for name in ("a.jpg", "a.TIF", "a"):
        pixels = read_image(written(tmp_path / name, PICTURES["colour.png"]))
        assert torch.equal(pixels, torch.from_numpy(COLOURS).permute(2, 0, 1))
    others = [encoded(COLOURS, kind) for kind in ("PPM", "ICO")]
    for content in (*others, b"", b"hello, I am text", b"\x89PNG", b"BM\0\1", b"<svg/>", b"%PDF-1.7"):
        assert read_or_refuse(written(tmp_path / "a.png", content)) is None


def claiming(kind: str, side: int) -> bytes:
    """A tiny file whose header claims side x side pixels."""
    content = PICTURES["colour.png" if kind == "png" else "baseline.jpg"]
    if kind == "png":
        header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]


@pytest.fixture
def little_memory():
    """An eighth of a gigabyte more than there is now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**27, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_tiny_file_that_claims_to_be_huge(tmp_path, kind, little_memory):
    path = written(tmp_path / f"a.{kind}", claiming(kind, 60_000))
    with pytest.raises(DataError, match=r"too large \(.*pixels.*\); shrink it, or raise PIL.Image.MAX_IMAGE"):
        read_image(path)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(tmp_path):
    content = PICTURES["progressive.jpg"]
    last = content[content.rindex(b"\xff\xda") : -2]
    few = written(tmp_path / "few.jpg", content[:-2] + 80 * last + content[-2:])
    assert read_image(few).shape == (3, 24, 20)
    many = written(tmp_path / "many.jpg", content[:-2] + 100_000 * last + content[-2:])
    with pytest.raises(DataError, match=r"many\.jpg: unreadable image \(more than 100 scans.*\); replace"):
        read_image(many)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda p: os.symlink("nowhere", p)])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "a.png")
    assert read_or_refuse(tmp_path / "a.png") is None


@pytest.mark.parametrize("name", ["", "a\0b.png", "x" * 5000, "no/such.png", "/dev/null"])
def test_impossible_paths(detector, name):
    for source in (name, [name]):
        with pytest.raises(DataError, match=REMEDY):
            detector.predict(source)


UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_turned_image_is_read_and_predicted_upright(tmp_path, detector, orientation, name):
    stored = np.kron(np.arange(0, 240, 10, np.uint8).reshape(4, 6), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(tmp_path / name, stored, exif=exif)
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    assert np.abs(np.int16(read_image(path)[0]) - upright).max() <= (9 if name == "a.jpg" else 0)
    if orientation == 6:
        assert detector.predict(path).fused.shape == upright.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_extreme_proportions(tmp_path, detector, shape):
    values = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    found = detector.predict([values, save_image(tmp_path / "a.png", values), values[::-1, ::-1]])
    assert [p.fused.shape for p in found] == [shape] * 3
    assert all(np.isfinite(p.fused).all() and 0 <= p.score <= 1 for p in found)
    assert found[0].score == pytest.approx(found[1].score, abs=1e-6)


def test_a_list_of_mixed_sizes_and_its_bad_member_is_named(tmp_path, detector):
    path = save_image(tmp_path / "a.png", COLOURS)
    good = [COLOURS, COLOURS[:7, :, 0], Image.fromarray(COLOURS), path]
    for batch_size in (1, 3, 8):
        found = detector.predict(good, batch_size)
        assert [p.fused.shape for p in found] == [(24, 20), (7, 20), (24, 20), (24, 20)]
        for bad in (np.zeros((2, 2, 2), np.uint8), Image.new("L", (0, 3))):
            with pytest.raises(ValueError, match=r"^image 3 of 5: .*(expected shape|has no pixels)"):
                detector.predict([*good[:2], bad, *good[2:]], batch_size)
