"""The embedded samples: the shipped files are the committed ones, and whole."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dmdd_lite.data.layout import open_category
from dmdd_lite.data.samples import SAMPLES, samples_root, undamaged

SHA256 = "e03e1839ba15de94a22307e1c683edc08ff2a630912ca9c1da04616066a98d83"
TRAIN = {"fabric": 60, "pcb": 60, "lever": 240}
each_category = pytest.mark.parametrize("category", SAMPLES)


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
    assert (len(found.train), found.depth, found.warnings) == (TRAIN[category], 8, ())
    kinds = Counter(image.defect for image in found.test)
    assert kinds.pop("good") == 20
    assert set(kinds.values()) == {10}
    assert len(kinds) == (3 if category == "lever" else 5)
    assert {Image.open(path).size for path in (samples_root() / category).glob("*/*/*")} == {(256, 256)}


def test_an_image_without_a_twin_is_told():
    with pytest.raises(ValueError, match=r"004\.jpg: no undamaged"):
        undamaged(samples_root() / "pcb/test/scratch/004.jpg")
