"""The embedded samples: the shipped files are those that tools/samples renders, and their masks are exact."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmdd_lite.data.layout import open_category
from dmdd_lite.data.samples import SAMPLES, samples_root, undamaged

SHA256 = "e03e1839ba15de94a22307e1c683edc08ff2a630912ca9c1da04616066a98d83"
TRAIN = {"fabric": 60, "pcb": 60, "lever": 240}
each_category = pytest.mark.parametrize("category", SAMPLES)


@pytest.fixture(scope="module")
def render():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "tools/samples")
        import render

        yield render


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def defective(category):
    return [image for image in open_category(samples_root(), category, False).test if image.is_anomalous]


def test_every_byte_is_the_committed_one():
    files = sorted(samples_root().glob("*/*/*/*"), key=Path.as_posix)
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.relative_to(samples_root()).as_posix().encode() + path.read_bytes())
    assert whole.hexdigest() == SHA256
    assert len(files) == 732
    assert sum(path.stat().st_size for path in files) < 12e6


@each_category
def test_layout_sizes_and_numbers(category):
    found = open_category(samples_root(), category)  # decodes every file
    assert len(found.train) == TRAIN[category]
    kinds = Counter(image.defect for image in found.test)
    assert kinds.pop("good") == 20
    assert set(kinds.values()) == {10}
    assert len(kinds) == (3 if category == "lever" else 5)
    assert {Image.open(path).size for path in (samples_root() / category).glob("*/*/*")} == {(256, 256)}


@each_category
def test_the_renderer_makes_the_shipped_files(render, category, tmp_path):
    first, *_, last = sorted({image.defect for image in defective(category)})
    for kind, index in (("train", 7), ("test", 3), (first, 2), (last, 5)):
        render.write_sample(tmp_path, category, kind, index)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 7
    for path in made:
        shipped = pixels(samples_root() / category / path.relative_to(tmp_path))
        error = np.abs(pixels(path) - shipped).mean()
        assert error < (1e-3 if path.suffix == ".png" else 0.5), path


@each_category
def test_a_mask_covers_what_differs_from_the_undamaged_twin(category):
    twins = [image for image in defective(category) if image.path.stem < "004"]
    for image in twins:
        mask = pixels(image.mask) > 0
        difference = np.abs(pixels(image.path) - pixels(undamaged(image.path))).max(2)
        blocks = mask.reshape(32, 8, 32, 8).any(axis=(1, 3)).repeat(8, 0).repeat(8, 1)  # of JPEG
        assert not difference[~blocks].any()
        assert (difference[mask] > 4).mean() > 0.75
        assert difference[mask].mean() > 4 * difference[blocks & ~mask].mean()
        assert 0.003 <= mask.mean() <= 0.1


def test_an_image_without_a_twin_is_told():
    with pytest.raises(ValueError, match=r"004\.jpg: no undamaged"):
        undamaged(samples_root() / "pcb/test/scratch/004.jpg")
