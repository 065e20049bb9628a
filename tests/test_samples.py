"""The sample data set: layout, reproducibility, exact masks, and folders that are complete or absent."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from dmdd_lite import samples
from dmdd_lite.samples import SAMPLE_CATEGORIES, defect_names, render_sample, sample_root, write_samples

KINDS = [(category, defect) for category in SAMPLE_CATEGORIES for defect in defect_names(category)]
TINY = dict(size=32, train=2, good=1, per_defect=1)


def digests(folder):
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def fabric(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("root"), "fabric", **TINY)


def test_three_categories_with_three_kinds_of_defect_or_more():
    assert len(set(SAMPLE_CATEGORIES)) == 3
    for category in SAMPLE_CATEGORIES:
        names = defect_names(category)
        assert len(names) >= 3
        assert list(names) == sorted(names)
        assert all(name.isascii() and name == name.lower() and name != "good" for name in names)


def test_layout_is_that_of_mvtec_ad(fabric):
    expected = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
    expected |= {f"test/{name}/000.png" for name in defect_names("fabric")}
    expected |= {f"ground_truth/{name}/000_mask.png" for name in defect_names("fabric")}
    assert set(digests(fabric)) == expected
    assert [path.name for path in fabric.parent.iterdir()] == ["fabric"]


def test_written_files_are_the_rendered_arrays(fabric):
    image, mask = render_sample("fabric", "stain", index=0, size=32)
    with Image.open(fabric / "test/stain/000.png") as file:
        assert file.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(file), image)
    with Image.open(fabric / "ground_truth/stain/000_mask.png") as file:
        assert file.mode == "L"
        np.testing.assert_array_equal(np.asarray(file), np.where(mask, 255, 0))


def test_same_seed_gives_the_same_bytes_whatever_the_counts(fabric, tmp_path):
    longer = digests(write_samples(tmp_path, "fabric", size=32, train=3, good=2, per_defect=1))
    assert {name: longer[name] for name in digests(fabric)} == digests(fabric)
    assert len(set(longer.values())) == len(longer)  # no image appears twice, in train and test for instance


@pytest.mark.parametrize("category", SAMPLE_CATEGORIES)
def test_seed_index_and_split_each_change_the_image(category):
    images = [
        render_sample(category, size=32)[0],
        render_sample(category, size=32, seed=1)[0],
        render_sample(category, size=32, index=1)[0],
        render_sample(category, size=32, split="train")[0],
    ]
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("category, defect", KINDS)
def test_mask_is_exact(category, defect):
    image, mask = render_sample(category, defect, size=64)
    sound, same_mask = render_sample(category, defect, size=64, repaired=True)
    assert image.dtype == np.uint8
    assert image.shape == (64, 64, 3)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, same_mask)
    np.testing.assert_array_equal(image[~mask], sound[~mask])
    difference = np.abs(image.astype(int) - sound).max(axis=2)[mask]
    assert (difference > 0).mean() > 0.75  # all but the closed gaps of a pixel or two
    assert np.percentile(difference, 90) > 15  # well above the noise: a careful inspector sees it
    assert samples.AREA[0] <= mask.mean() <= samples.AREA[1]


@pytest.mark.parametrize("category", SAMPLE_CATEGORIES)
def test_good_images_have_an_empty_mask_and_use_the_grey_scale(category):
    image, mask = render_sample(category, size=64)
    assert not mask.any()
    assert 60 < image.mean() < 200
    assert image.std() > 15
    assert (image == 255).mean() < 0.02


@pytest.mark.parametrize("category", SAMPLE_CATEGORIES)
def test_any_size_shows_the_same_scene(category):
    small, large = (render_sample(category, size=size)[0].mean(axis=(0, 1)) for size in (64, 101))
    np.testing.assert_allclose(small, large, atol=6)


def test_category_with_fixed_place_varies_less_than_the_one_in_any_rotation():
    def spread(category):
        images = np.stack([render_sample(category, index=i, size=32)[0].mean(axis=2) for i in range(4)])
        return images.std(axis=0).mean() / images.std()

    assert spread("pcb") < 0.7 * spread("lever")


def test_sample_root_draws_once(tmp_path):
    root = sample_root(cache_dir=tmp_path, categories=("lever",), **TINY)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert (root / "lever/train/good/000.png").is_file()
    assert sample_root(cache_dir=tmp_path, categories=("lever",), **TINY) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_sample_root_names_version_seed_size_and_unusual_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("DMDD_LITE_CACHE", str(tmp_path / "cache"))
    default = sample_root(categories=())
    assert default == tmp_path / "cache" / f"samples-v{samples.GENERATOR_VERSION}-seed0-256px"
    names = {default, sample_root(seed=1, categories=()), sample_root(size=64, categories=())}
    names |= {sample_root(train=5, categories=()), sample_root(train=0, categories=())}
    names |= {sample_root(good=5, categories=()), sample_root(train=60, categories=())}
    assert len(names) == 7


def test_each_category_has_its_own_number_of_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "TRAIN_IMAGES", {"fabric": 2, "pcb": 1, "lever": 3})
    root = sample_root(size=32, cache_dir=tmp_path, good=1, per_defect=1)
    drawn = {
        category: len(list((root / category / "train/good").iterdir())) for category in SAMPLE_CATEGORIES
    }
    assert drawn == samples.TRAIN_IMAGES
    write_samples(root, "lever", size=32, train=0, good=1, per_defect=1)
    assert not (root / "lever/train").exists()


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    real, calls = samples.render_sample, []

    def fail_at_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(samples, "render_sample", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        sample_root(cache_dir=tmp_path, categories=("fabric",), **TINY)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name == "fabric"] == []


def test_loser_of_a_race_keeps_the_winner(tmp_path, monkeypatch):
    real = samples._write_images

    def overtaken(folder, *args):
        real(folder, *args)
        winner = folder.parents[1] / "fabric"
        winner.mkdir()
        (winner / "winner.txt").write_text("first")

    monkeypatch.setattr(samples, "_write_images", overtaken)
    root = sample_root(cache_dir=tmp_path, categories=("fabric",), **TINY)
    assert set(digests(root / "fabric")) == {"winner.txt"}
    assert [path.name for path in root.iterdir()] == ["fabric"]


def test_write_samples_replaces_an_older_folder(tmp_path):
    write_samples(tmp_path, "fabric", size=32, train=2, good=0, per_defect=0)
    write_samples(tmp_path, "fabric", size=32, train=1, good=0, per_defect=0)
    assert set(digests(tmp_path)) == {"fabric/train/good/000.png"}


def test_errors_name_what_is_valid(tmp_path):
    with pytest.raises(ValueError, match=r"'carpet'.*fabric, pcb, lever"):
        render_sample("carpet")
    with pytest.raises(ValueError, match=r"'dent'.*broken_thread.*stain"):
        render_sample("fabric", "dent")
    with pytest.raises(ValueError, match="train, test"):
        render_sample("fabric", split="validation")
    with pytest.raises(ValueError, match="at least 32"):
        render_sample("fabric", size=31)
    with pytest.raises(ValueError, match="fabric, pcb, lever"):
        write_samples(tmp_path, "carpet")
    with pytest.raises(ValueError, match="fabric, pcb, lever"):
        sample_root(cache_dir=tmp_path, categories=("carpet",))
    assert list(tmp_path.iterdir()) == []
