"""Masks in every encoding and folders in every disorder: the right data, or an error that says what to do."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import disc, make_category, save_image, tiny_config, tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmdd_lite import data
from dmdd_lite.data import DataError, load_masks, open_category, open_folder, open_train
from dmdd_lite.images import load_images, read_image, read_mask
from dmdd_lite.training import train
from dmdd_lite.training_data import load_training_data


@pytest.fixture
def category(tmp_path):
    return make_category(tmp_path, defects=("hole",), count=2)


def check(category: Path):
    return open_category(category.parent, category.name)


def refusal(category: Path) -> str:
    with pytest.raises(DataError) as caught:
        check(category)
    return str(caught.value)


# ---- masks --------------------------------------------------------------------------------------------


def alpha_only(marked: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([np.zeros_like(marked)] * 3 + [marked], axis=2))


def soft(marked: np.ndarray) -> Image.Image:
    """Twice as large, its edges drawn anti-aliased."""
    height, width = marked.shape
    large = Image.fromarray(marked).resize((6 * width, 6 * height), Image.Resampling.NEAREST)
    return large.resize((2 * width, 2 * height), Image.Resampling.BOX)


def palette(marked: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.uint8(marked > 0))
    image.putpalette([0, 0, 0, 90, 20, 0])
    return image


ENCODINGS = {
    "8 bit": lambda m: Image.fromarray(m),
    "0/1": lambda m: Image.fromarray(m // 255),
    "16 bit": lambda m: Image.fromarray(m.astype(np.uint16) * 257),
    "1 bit": lambda m: Image.fromarray(m > 0),
    "palette": palette,
    "opaque": lambda m: Image.fromarray(m).convert("RGBA"),
    "one channel of three": lambda m: Image.fromarray(np.stack([0 * m, m, 0 * m], axis=2)),
    "grey and alpha": lambda m: Image.fromarray(m).convert("LA"),
    "soft": soft,
}


@given(
    kind=st.sampled_from(sorted(ENCODINGS)),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_masks_are_what_was_marked(tmp_path, kind, height, width, seed, tally):
    rng = np.random.default_rng(seed)
    marked = np.uint8(255 * (rng.random((height, width)) < rng.random()))
    marked[0, 0] = 255
    got = read_mask(save_image(tmp_path / "m.png", ENCODINGS[kind](marked)))
    expected = marked.repeat(2, 0).repeat(2, 1) if kind == "soft" else marked
    assert torch.equal(got, torch.from_numpy(expected > 0))
    tally("masks")


@pytest.mark.parametrize("on, off, share", [(255, 255, 1.0), (0, 255, 226 / 256), (128, 0, 30 / 256)])
def test_masks_that_look_odd_are_taken_as_they_are(category, on, off, share):
    path = category / "ground_truth/hole/000_mask.png"
    save_image(path, np.where(disc() > 0, on, off).astype(np.uint8))
    masks = load_masks(check(category).test, 16, None)
    assert masks[-2].float().mean() == share


@pytest.mark.parametrize("kind, scale", [(np.uint8, 1), (np.uint16, 257)])
def test_soft_edges_are_cut_at_half(tmp_path, kind, scale):
    ramp = np.arange(0, 255, 2, dtype=kind)[None].repeat(3, 0)
    found = read_mask(save_image(tmp_path / "m.png", ramp * kind(scale)))
    assert found[0].tolist() == [value > 127 for value in ramp[0]]


@pytest.mark.parametrize("mask, message", [
    (disc(on=0), r"000_mask\.png: empty mask; mark the defect \(transparency is not read\), or move"),
    (alpha_only(disc()), r"000_mask\.png: empty mask; mark the defect \(transparency is not read\)"),
    (disc()[:, :9], r"000_mask\.png: a mask of 9 x 16 pixels does not fit its image of 16 x 16; turn"),
    (disc().repeat(3, 0), r"a mask of 16 x 48 pixels does not fit its image of 16 x 16"),
    (np.full((16, 16), np.nan, np.float32), r"000_mask\.png: unreadable image \(floating-point pixels must"),
    (np.full((16, 16), -5, np.int32), r"000_mask\.png: unreadable image \(integers outside 0\.\.65535"),
])  # fmt: skip
def test_masks_that_cannot_be_meant(category, mask, message, tally):
    path = category / "ground_truth/hole/000_mask.png"
    save_image(path, mask, format="TIFF" if getattr(mask, "dtype", 0) in (np.float32, np.int32) else "PNG")
    with pytest.raises(DataError, match=message) as caught:
        check(category)
    assert len(caught.value.problems) == 1
    tally("masks")


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (47, 48), (160, 160)])
def test_a_mask_of_another_size_is_laid_over_its_image(category, size):
    mask = Image.fromarray(disc()).resize(size, Image.Resampling.NEAREST)
    save_image(category / "ground_truth/hole/000_mask.png", mask)
    found = load_masks(check(category).test, 16, None)[-2]
    assert (found != torch.from_numpy(disc() > 0)).float().mean() < 0.06


def test_image_and_mask_turned_alike_fit_and_one_alone_does_not(category):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = category / "test/hole/000.png", category / "ground_truth/hole/000_mask.png"
    save_image(image, disc(24)[:16], exif=exif)
    save_image(mask, disc(24)[:16], exif=exif)
    found = check(category).test[-2]
    assert torch.equal(read_image(found.path)[0] > 127, read_mask(found.mask))
    save_image(mask, disc(24)[:16])
    assert "a mask of 24 x 16 pixels does not fit its image of 16 x 24; turn the mask" in refusal(category)


# ---- folders ------------------------------------------------------------------------------------------


FILES = ["train/good/000.png", "test/good/000.png", "test/hole/000.png", "ground_truth/hole/000_mask.png"]
NAMES = ["größe 1.png", "a\nb.png", "日本.PNG", f"{'x' * 240}.png", "-rf.png", "100%s{0}.png", "a'b\"c.png"]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff\xe9.png")])
def test_names_of_any_kind(category, name, tally):
    for part in (FILES[0], *FILES[2:]):
        (category / part).rename((category / part).with_name(name))
    found = check(category)
    assert name in [path.name for path in found.train]
    fits = {image.path: image.mask for image in found.test}
    assert fits[category / "test/hole" / name] == category / "ground_truth/hole" / name
    assert len(load_training_data(tiny_config(), category.parent, "nut", progress=False).images) == 1
    (category / "train/good" / name).write_bytes(b"broken")
    refusal(category).encode()  # can be printed
    tally("names")


NO_NAMES = [
    "",
    ".",
    "..",
    "../nut",
    "nut/test",
    "nut/",
    "/etc",
    "a\0b",
    "x" * 5000,
    "nüt",
    None,
    5,
    Path("nut"),
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_no_category(category, name, tally):
    for check_of in (open_category, open_train):
        with pytest.raises(DataError, match=r"no category named .*; categories there: nut$"):
            check_of(category.parent, name)
    tally("names", 2)


@pytest.mark.parametrize("root, name, message", [
    ("", "mvtec", r"mvtec: holds categories itself; pass it as root and as name one of 'bolt', 'nut'$"),
    ("", "nut", r"'nut' lies in .*mvtec; pass that as root$"),
    ("mvtec/nut", "nut", r"is a category itself; pass its parent as root and 'nut' as name$"),
    ("mvtec/nut", "train", r"is a category itself; pass its parent as root and 'nut' as name$"),
    ("mvtec/nut/train", "good", r"lies in a category; pass .*mvtec as root and 'nut' as name$"),
    ("mvtec/nut/test", "nut", r"lies in a category; pass .*mvtec as root and 'nut' as name$"),
    ("mvtec/readme.txt", "nut", r"readme\.txt: no such folder; root is the folder that holds"),
    ("mvtec", "readme.txt", r"no category named 'readme\.txt'; categories there: bolt, nut$"),
    ("empty", "nut", r"no category named 'nut'; categories there: none$"),
])  # fmt: skip
def test_a_level_too_high_or_too_deep(tmp_path, monkeypatch, root, name, message, tally):
    for category in ("nut", "bolt"):
        make_category(tmp_path / "mvtec", category, count=1)
    (tmp_path / "mvtec/readme.txt").write_text("no folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        open_category(tmp_path / root, name)
    if (tmp_path / root).is_dir():
        monkeypatch.chdir(tmp_path / root)
        with pytest.raises(DataError, match=message.replace(".*mvtec;", "mvtec;")):
            open_category(".", name)
    tally("folders", 2)


def test_what_is_no_image_is_left_out(category, tally):
    good = category / "train/good"
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "notes.txt", "desktop.ini", "a.png~", "b.webp"):
        (good / name).write_bytes(b"\0\5\x16\7")
    (good / "folder.png").mkdir()
    (category / "test/.cache").mkdir()
    save_image(category / "test/.cache/1.png", disc())
    os.mkfifo(good / "pipe.png")
    (category / "train/good/000.png").rename(good / "000.PnG")
    assert [path.name for path in check(category).train] == ["000.PnG", "001.png"]
    tally("folders")


@pytest.mark.parametrize("part", FILES)
def test_links_that_lead_nowhere_are_named_and_others_followed(category, part, tmp_path, tally):
    path, kept = category / part, tmp_path / "kept.png"
    path.rename(kept)
    path.symlink_to(kept)
    check(category)
    kept.unlink()
    told = refusal(category)
    assert f"{path}: a link to a file that is not there; restore that file or remove the link" in told
    path.unlink()
    path.symlink_to(path)
    assert f"{path}: unreadable image (Too many levels of symbolic links)" in refusal(category)
    tally("folders", 3)


def test_links_to_folders_are_not_followed_in_circles(category, tally):
    (category / "test/hole/again").symlink_to(category)
    (category / "train/good/up").symlink_to("..")
    assert len(check(category).test) == 4
    assert len(open_folder(category, recursive=True)) == 8
    tally("folders", 2)


@pytest.mark.parametrize(
    "part", ["train", "train/good", "test", "test/good", "ground_truth", "ground_truth/hole"]
)
@pytest.mark.parametrize("what", ["file", "empty", "gone"])
def test_a_folder_that_is_a_file_or_empty_or_gone(category, part, what, tally):
    (category / part).rename(category.parent / "away")
    if what != "gone":
        (category / part).mkdir() if what == "empty" else (category / part).write_text("a file")
    told = refusal(category)
    assert str(category / part) in told
    assert any(word in told for word in ("put ", "add ", "no category named"))
    tally("folders")


@pytest.mark.parametrize("part", ["train/good", "test", "test/hole", "ground_truth/hole"])
def test_a_folder_that_may_not_be_listed(category, part, monkeypatch, tally):
    listed = os.listdir

    def refuse(path):
        if Path(path) == category / part:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "iterdir", lambda self: (self / name for name in refuse(self)))
    assert f"{category / part}: cannot be listed (Permission denied); check its permissions" in refusal(
        category
    )
    with pytest.raises(DataError, match="cannot be listed"):
        open_folder(category, recursive=True)
    tally("folders", 2)


def test_the_same_stem_twice(category, tally):
    save_image(category / "train/good/000.jpg", disc())
    save_image(category / "test/good/000.bmp", disc())
    assert len(check(category).train) == 3  # no masks, no harm
    save_image(category / "test/hole/000.jpg", disc())
    assert "000_mask.png: ambiguous, fits 000.jpg and 000.png; give the images other stems" in refusal(
        category
    )
    tally("folders", 2)


def test_thousands_of_files(tmp_path, depth, tally):
    category, count = make_category(tmp_path, defects=("hole",), count=1), depth(2000, 20_000)
    content = (category / "train/good/000.png").read_bytes()
    for i in range(1, count):
        (category / f"train/good/{i:05}.png").write_bytes(content)
    began = time.process_time()
    assert len(check(category).train) == count
    assert time.process_time() - began < 0.005 * count
    for path in (category / "train/good").iterdir():
        path.write_bytes(b"broken")
    told = refusal(category).splitlines()
    assert (told[0], told[-1]) == (f"{count} problems in {category}:", f"  and {count - 20} more")
    tally("files of large folders", 2 * count)


PARTS = [
    "train",
    "test",
    "ground_truth",
    "good",
    "hole",
    ".git",
    "nut",
    "a.png",
    "a_mask.png",
    "b.JPG",
    "b.txt",
]
CONTENTS = {"image": disc(4), "wide": disc(16)[:4], "zero": disc(4, on=0)}
PLACES = st.tuples(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join),
    st.sampled_from([*CONTENTS, "text", "folder", "loop"]),
)


def put(path: Path, content: str):
    """Where something else is already, nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "loop":
            path.symlink_to("..")
        elif content == "folder":
            path.mkdir()
        elif content == "text":
            path.write_text("text")
        else:
            save_image(path, CONTENTS[content], format="PNG")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        pass


@given(places=st.lists(PLACES, max_size=12))
def test_any_tree_is_opened_or_refused_and_left_as_it_is(tmp_path_factory, places, tally):
    root = tmp_path_factory.mktemp("tree")
    if len(places) % 2:
        make_category(root, defects=("hole",), count=1)
    for name, content in places:
        put(root / "nut" / name, content)
    before = tree(root)
    try:
        found, problems = open_category(root, "nut"), ()
    except DataError as error:
        found, problems = None, error.problems
    if found:
        assert load_images(found.train, 8, None).shape[0] == len(found.train) > 0
        assert load_masks(found.test, 8, None).shape[0] == len(found.test) > 0
    else:
        assert all(problem.startswith(f"{root}") and ": " in problem for problem in problems)
    assert tree(root) == before
    tally("folders")


# ---- what training makes of it ------------------------------------------------------------------------


@given(count=st.integers(1, 12), holdout=st.floats(0, 0.5), seed=st.integers(0, 2**63 - 1))
def test_every_split_leaves_images_to_train_on(tmp_path_factory, count, holdout, seed, tally):
    root = tmp_path_factory.getbasetemp() / f"split{count}"
    if not root.exists():
        make_category(root, defects=("hole",), count=count)
    config = tiny_config(holdout=holdout, seed=seed, foreground="none")
    split = load_training_data(config, root, "nut", progress=False)
    assert len(split.images) + len(split.held_out) == count
    assert len(split.images) >= max(1, (count - 1) // 2)
    assert bool(len(split.held_out)) == (holdout > 0 and count > 1)
    tally("splits")


@pytest.mark.parametrize("count, changes", [(1, {}), (3, {"batch_size": 9}), (4, {"position_maps": True})])
def test_training_on_next_to_no_images(tmp_path, count, changes):
    make_category(tmp_path, defects=("hole",), count=count)
    config = tiny_config(**{"iterations": 2, "position_maps": False, **changes})
    found = train(config, tmp_path, "nut", device="cpu", progress=False)
    assert 0 <= found.detector.predict(disc()).score <= 1
    assert np.isfinite(found.detector.threshold)


def test_too_few_images_for_statistics_are_told(tmp_path):
    make_category(tmp_path, defects=("hole",), count=3)
    with pytest.raises(
        ValueError, match="needs at least three training images, got 2: add good images, lower"
    ):
        train(tiny_config(), tmp_path, "nut", output_dir=tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, content, message", [
    ("a.png", b"broken", r"a\.png: unreadable image"),
    ("a.txt", b"text", r"textures: no images; put"),
])  # fmt: skip
def test_bad_textures_stop_it_before_training(category, tmp_path, name, content, message):
    (tmp_path / "textures").mkdir()
    (tmp_path / "textures" / name).write_bytes(content)
    for place in (tmp_path / "textures", str(tmp_path / "textures")):
        with pytest.raises(DataError, match=message):
            train(tiny_config(), category.parent, "nut", place, tmp_path / "out", "cpu", progress=False)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        train(
            tiny_config(),
            category.parent,
            "nut",
            tmp_path / "nowhere",
            tmp_path / "out",
            "cpu",
            progress=False,
        )
    assert not (tmp_path / "out").exists()


def test_a_file_that_breaks_after_the_check_is_named(category, monkeypatch):
    checked = data._file_problems
    monkeypatch.setattr(data, "_file_problems", lambda files: checked(files) or (files[0][0].unlink() or []))
    with pytest.raises(DataError, match=r"000\.png: no such file; check the path"):
        load_training_data(tiny_config(), category.parent, "nut", progress=False)
