"""Broken, hostile and unusual images: the right pixels, or one clear error that names the file, soon and in
little memory."""

import io
import os
import re
import resource
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from builders import save_image, tiny_config
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torchvision.transforms.v2.functional import resize

from dmdd_lite.data import DataError, open_folder
from dmdd_lite.detector import Detector
from dmdd_lite.images import load_images, read_image
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
REMEDY = "replace or remove it|shrink it|check the path|check its permissions|remove the link"
LIMIT = 2_000_000  # pixels, so that a header that claims many is not believed for long


def encoded(array, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: colour 0 is grey, 2 RGB; rows with their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURES = {
    "colour.png": encoded(COLOURS, "PNG"),
    "16bit.png": encoded(COLOURS[..., 0].astype(np.uint16) * 250, "PNG"),
    "baseline.jpg": encoded(COLOURS, "JPEG"),
    "progressive.jpg": encoded(COLOURS, "JPEG", progressive=True),
    "plain.bmp": encoded(COLOURS, "BMP"),
    "plain.tif": encoded(COLOURS, "TIFF"),
    "lzw.tif": encoded(COLOURS, "TIFF", compression="tiff_lzw"),
    "deflate.tif": encoded(COLOURS, "TIFF", compression="tiff_adobe_deflate"),
    "jpeg.tif": encoded(COLOURS, "TIFF", compression="jpeg"),
    "fax.tif": encoded(COLOURS[..., 0] > 127, "TIFF", compression="group4"),
}


@pytest.fixture(scope="module")
def detector():
    return Detector(build_model(tiny_config(), build_teacher("test_resnet", "random")))


def written(path, content: bytes):
    path.write_bytes(content)
    return path


def read_or_refuse(path):
    """The pixels, or None after an error as it should be; in seconds."""
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


# ---- broken files -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICTURES)
def test_a_cut_file_is_refused_or_still_whole(tmp_path, name, depth, tally):
    content, whole = PICTURES[name], read_image(written(tmp_path / name, PICTURES[name]))
    steps = depth(40, len(content))
    cuts = sorted({len(content) * i // steps for i in range(steps)} | {len(content) - 1})
    refused = [read_or_refuse(written(tmp_path / name, content[:cut])) for cut in cuts]
    assert all(pixels is None or torch.equal(pixels, whole) for pixels in refused)
    assert sum(pixels is None for pixels in refused) > 0.8 * len(cuts)
    tally("images cut short", len(cuts))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICTURES)
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
@example(changes=[(48, 0), (1088, 223)])  # of 16bit.png a pixel, and a length that cuts off zlib's own sum
def test_changed_bytes_give_an_image_or_an_error(tmp_path, name, changes, tally):
    content = bytearray(PICTURES[name])
    for place, value in changes:
        content[place % len(content)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)
        pixels = read_or_refuse(written(tmp_path / name, bytes(content)))
    tally("images with changed bytes")
    if pixels is not None:
        assert (pixels.dtype, pixels.ndim, len(pixels)) == (torch.uint8, 3, 3)
        if name.endswith("png"):  # every part of a PNG has a checksum
            assert torch.equal(pixels, read_image(written(tmp_path / name, PICTURES[name])))


@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"\xff\xd8"]),
)
@pytest.mark.filterwarnings("ignore")
def test_arbitrary_bytes_are_refused(tmp_path, content, head, tally):
    assert read_or_refuse(written(tmp_path / "x.png", head + content)) is None
    tally("files of arbitrary bytes")


def test_broken_images_raise_one_error_and_few_warnings(tmp_path, depth, tally):
    broken = [(n, PICTURES[n][: len(PICTURES[n]) - 40]) for n in PICTURES if n != "fax.tif"]
    for i in range(depth(4, 40)):
        for name, content in broken:
            written(tmp_path / f"{i:02}_{name}", content)
    paths = open_folder(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for path in paths:
            assert read_or_refuse(path) is None
        with pytest.raises(DataError, match=r"00_16bit\.png: unreadable image .*; replace or remove it$"):
            load_images(paths, 8, None)
    assert len(caught) <= 10, [str(w.message) for w in caught]
    tally("images cut short", len(paths))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "ICO", "PPM"])
def test_other_formats_are_refused_under_any_name(tmp_path, kind):
    frames = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    options = {"save_all": True, "append_images": frames[1:]} if kind in ("GIF", "WEBP") else {}
    frames[0].save(tmp_path / "x", kind, **options)
    for name in ("a.png", "a.jpg", f"a.{kind.lower()}"):
        written(tmp_path / name, (tmp_path / "x").read_bytes())
        with pytest.raises(DataError, match=r"not a PNG, JPEG, BMP or TIFF\); replace or remove it"):
            read_image(tmp_path / name)


def test_content_counts_and_not_the_extension(tmp_path):
    for name in ("a.jpg", "a.bmp", "a.TIF", "a"):
        assert torch.equal(
            read_image(written(tmp_path / name, PICTURES["colour.png"])),
            torch.from_numpy(COLOURS).permute(2, 0, 1),
        )
    for text in (b"", b"hello, I am text", b"\x89PNG", b"<svg/>", b"%PDF-1.7"):
        with pytest.raises(DataError, match=r"a\.png: unreadable image \(not a PNG"):
            read_image(written(tmp_path / "a.png", text))


# ---- hostile files ------------------------------------------------------------------------------------


def claiming(kind: str, side: int) -> bytes:
    """A tiny file whose header claims side x side pixels."""
    if kind == "png":
        return png(side, side, 8, 2, b"\0" * 1000)
    if kind == "bmp":
        return PICTURES["plain.bmp"][:18] + struct.pack("<ii", side, side) + PICTURES["plain.bmp"][26:]
    if kind == "jpg":
        at = PICTURES["baseline.jpg"].index(b"\xff\xc0") + 5
        return (
            PICTURES["baseline.jpg"][:at]
            + struct.pack(">HH", *[min(side, 65500)] * 2)
            + PICTURES["baseline.jpg"][at + 4 :]
        )
    return (
        encoded(np.zeros((1, 1), np.uint8), "TIFF", tiffinfo={})
        .replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, side))
        .replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, side))
    )


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
@pytest.mark.parametrize("kind", ["png", "bmp", "jpg", "tif"])
@pytest.mark.parametrize("side", [20_000, 100_000])
def test_a_tiny_file_that_claims_to_be_huge(tmp_path, kind, side, little_memory, tally):
    path = written(tmp_path / f"a.{kind}", claiming(kind, side))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"too large \(.*pixels.*\); shrink it, or raise PIL.Image.MAX_IMAGE"):
        read_image(path)
    assert time.monotonic() - began < 2
    tally("images that claim to be huge")


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(tmp_path, tally):
    content = PICTURES["progressive.jpg"]
    last = content[content.rindex(b"\xff\xda") : -2]
    few = content[:-2] + 80 * last + content[-2:]
    whole = read_image(written(tmp_path / "whole.jpg", content))
    assert read_image(written(tmp_path / "few.jpg", few)).shape == whole.shape
    many = written(tmp_path / "many.jpg", content[:-2] + 100_000 * last + content[-2:])
    began = time.monotonic()
    with pytest.raises(DataError, match=r"many\.jpg: unreadable image \(more than 100 scans.*\); replace"):
        read_image(many)
    assert time.monotonic() - began < 5
    tally("images of endless work", 2)


def test_compressed_texts_and_pages_without_end(tmp_path, tally):
    text = b"k\0\0" + zlib.compress(bytes(80_000_000), 1)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    content = PICTURES["colour.png"]
    assert read_or_refuse(written(tmp_path / "a.png", content[:33] + chunk + content[33:])) is None
    page = bytearray(PICTURES["plain.tif"])
    at = struct.unpack("<I", page[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", page[at : at + 2])[0]
    page[end : end + 4] = page[4:8]  # the next page is the first one
    assert read_or_refuse(written(tmp_path / "a.tif", bytes(page))).shape == (3, 24, 20)
    tally("images of endless work", 2)


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda p: os.symlink("nowhere", p), lambda p: os.symlink(p, p)]
)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, detector, make, tally):
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(DataError, match=REMEDY):
        read_image(path)
    if not path.is_dir():
        with pytest.raises(DataError, match=r"a\.png: "):
            detector.predict(path)
    tally("paths that are no image file")


@pytest.mark.parametrize("name", ["", "a\0b.png", "x" * 5000, "no/such.png", "/dev/null"])
def test_impossible_paths(detector, name, tally):
    for source in (name, [name]):
        with pytest.raises(DataError, match=REMEDY):
            detector.predict(source)
    tally("paths that are no image file", 2)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = written(tmp_path / "a.png", PICTURES["colour.png"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"a\.png: may not be read; check its permissions"):
        read_image(path)


# ---- unusual images -----------------------------------------------------------------------------------

EIGHT_BITS = {"1": "png", "L": "png", "LA": "png", "P": "png", "RGB": "bmp", "RGBA": "png", "PA": "tif"}
EIGHT_BITS |= {"CMYK": "tif", "YCbCr": "tif", "LAB": "tif"}
SIDES = st.integers(1, 40) | st.sampled_from([1, 5000])


@given(
    mode=st.sampled_from(sorted(EIGHT_BITS)),
    height=SIDES,
    width=st.integers(1, 9),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_mode_gives_the_pixels_that_pillow_shows(tmp_path, mode, height, width, turned, seed, tally):
    size = (width, height) if turned else (height, width)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 4), np.uint8)
    if mode in ("PA",):
        image = Image.fromarray(values[..., 0]).convert("P").convert("PA")
    elif mode in ("L", "P", "1"):
        image = Image.fromarray(values[..., 0]).convert(mode)
    elif mode == "LA":
        image = Image.fromarray(np.ascontiguousarray(values[..., :2]), "LA")
    elif mode in ("RGBA", "CMYK"):
        image = Image.frombytes(mode, size[::-1], values.tobytes())
    else:
        image = Image.frombytes(mode, size[::-1], np.ascontiguousarray(values[..., :3]).tobytes())
    try:
        path = save_image(tmp_path / f"a.{EIGHT_BITS[mode]}", image)
    except OSError:  # Pillow reads PA but writes it in no format of ours
        path = image
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(path), expected)
    assert torch.equal(read_image(image), expected)
    tally("unusual images", 2)


def test_sixteen_bits_of_colour_keep_the_upper_byte(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    got = read_image(written(tmp_path / "a.png", png(5, 6, 16, 2, rows)))
    assert torch.equal(got, torch.from_numpy((values >> 8).astype(np.uint8)).permute(2, 0, 1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.5, -0.1])
def test_floating_point_files_that_are_no_image(tmp_path, wrong):
    values = np.full((3, 4), 0.5, np.float32)
    assert read_image(save_image(tmp_path / "a.tif", values)).unique().tolist() == [128]
    values[1, 1] = wrong
    with pytest.raises(
        DataError, match=r"a\.tif: unreadable image \(floating-point pixels must.*\); replace"
    ):
        read_image(save_image(tmp_path / "a.tif", values))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_several_pages_or_frames_the_first_is_read(tmp_path, kind, detector):
    pages = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS), Image.fromarray(COLOURS // 2)]
    pages[0].save(tmp_path / "a", kind, save_all=True, append_images=pages[1:])
    assert torch.equal(read_image(tmp_path / "a"), torch.from_numpy(COLOURS).permute(2, 0, 1))
    assert detector.predict(tmp_path / "a").score == detector.predict(COLOURS).score


UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    "name, options",
    [("a.png", {}), ("a.jpg", {"quality": 100}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})],
)
def test_a_turned_image_is_read_and_predicted_upright(tmp_path, detector, orientation, name, options, tally):
    stored = np.kron(np.arange(0, 240, 10, np.uint8).reshape(4, 6), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(tmp_path / name, stored, exif=exif, **options)
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    pixels = read_image(path)
    assert pixels.shape == (3, *upright.shape)
    assert np.abs(np.int16(pixels[0]) - upright).max() <= (2 if name == "a.jpg" else 0)
    tally("unusual images")
    if orientation in (3, 6):
        found = detector.predict(path)
        assert found.fused.shape == upright.shape
        assert found.score == pytest.approx(detector.predict(upright).score, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3), (1, 64), (3000, 7)])
def test_extreme_proportions(tmp_path, detector, shape, tally):
    values = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    found = detector.predict([values, save_image(tmp_path / "a.png", values), values[::-1, ::-1]])
    assert [p.fused.shape for p in found] == [shape] * 3
    assert all(np.isfinite(p.fused).all() and 0 <= p.score <= 1 for p in found)
    assert found[0].score == pytest.approx(found[1].score, abs=1e-6)
    for seen in (values, read_image(values).permute(1, 2, 0).numpy()):
        exact = resize(read_image(values).double(), [64, 64], antialias=True)
        assert (read_image(seen, 64) - exact).abs().max() < 1.5
    tally("unusual images", 5)


# ---- arrays and lists ---------------------------------------------------------------------------------

DTYPES = arrays.scalar_dtypes() | st.sampled_from(
    [np.uint8, np.uint16, np.float32, np.float64, bool, ">u2"]
).map(np.dtype)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5) | st.sampled_from(
    [(4, 3), (3, 5, 3), (2, 2, 4)]
)


def reference(array: np.ndarray) -> np.ndarray | None:
    """What the documented rules make of an array, None where they refuse it."""
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        return None
    if array.dtype.kind == "f":
        inside = bool(np.all((array >= 0) & (array <= 1)))
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8) if inside else None
    elif array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        array = (array >> (8 * (array.dtype.itemsize - 1))).astype(np.uint8)
    else:
        return None
    return array if array is None or array.ndim == 3 else np.stack([array] * 3, axis=2)


@given(array=arrays.arrays(DTYPES, SHAPES), flipped=st.booleans())
def test_arrays_follow_the_documented_rules(array, flipped, tally):
    array = array[tuple([slice(None, None, -1)] * array.ndim)] if flipped and array.ndim else array
    expected = reference(array)
    tally("arrays")
    if expected is None:
        with pytest.raises(ValueError, match=r"expected (shape|uint8)|must lie in \[0, 1\]"):
            read_image(array)
    else:
        assert torch.equal(read_image(array), torch.from_numpy(expected[..., :3].copy()).permute(2, 0, 1))


@pytest.mark.parametrize(
    "wrong", [None, 5, b"a.png", [COLOURS], {"a": 1}, {1}, torch.zeros(3, 4, 4), object()]
)
def test_other_objects_are_refused_by_predict(detector, wrong, tally):
    for source in (wrong, [wrong], [COLOURS, wrong]):
        if source is not wrong or not isinstance(wrong, list):
            with pytest.raises(ValueError, match="expected a path, a PIL image or a NumPy array, not "):
                detector.predict(source)
    tally("objects that are no image", 3)


def test_a_list_of_mixed_sizes_and_its_bad_member_is_named(tmp_path, detector, depth, tally):
    path = save_image(tmp_path / "a.png", COLOURS)
    good = [COLOURS, COLOURS[:7, :, 0], Image.fromarray(COLOURS), path, np.float32(COLOURS[2:] / 255)]
    sizes = [(24, 20), (7, 20), (24, 20), (24, 20), (22, 20)]
    rng = np.random.default_rng(0)
    for case in range(depth(6, 200)):
        order, batch_size = rng.permutation(5), int(rng.integers(1, 7))
        found = detector.predict([good[i] for i in order], batch_size)
        assert [p.fused.shape for p in found] == [sizes[i] for i in order]
        bad, place = (np.zeros((2, 2, 2), np.uint8), Image.new("L", (0, 3)))[case % 2], order[0]
        with pytest.raises(ValueError, match=f"^image {place + 1} of 6: .*(expected shape|has no pixels)"):
            detector.predict([*good[:place], bad, *good[place:]], batch_size)
        tally("lists of images", 2)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, "8", float("nan")])
def test_wrong_batch_sizes(detector, batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1, got"):
        detector.predict([COLOURS], batch_size)


@pytest.mark.parametrize("images", ["folder", iter([COLOURS]), {COLOURS.shape}, None, 3])
def test_stream_takes_lists_alone(detector, images):
    with pytest.raises(TypeError, match="stream takes a list of images, not"):
        detector.stream(images)
    assert list(detector.stream([])) == detector.predict([]) == []
