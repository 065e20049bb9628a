"""The benchmark of teachers: what it measures equals the library's own calls; results are kept or refused."""

import json
from importlib import import_module

import pandas as pd
import pytest

from dmdd_lite.data import load_masks, open_category
from dmdd_lite.images import load_images
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.neighbours import NearestNeighbour
from dmdd_lite.teacher import build_teacher

SIZE, PATCHES = 64, 50


@pytest.fixture(scope="module")
def teachers(scripts):
    return import_module("teachers")


def arguments(root, out, *more) -> list[str]:
    given = f"--image-size {SIZE} --patches {PATCHES} --device cpu --data bracket={root}/lever --out {out}"
    return [*given.split(), *more]


def expected(root, teacher, seed: int) -> dict:
    category = open_category(root, "lever")
    memory = NearestNeighbour().fit(teacher, load_images(category.train, SIZE, None), PATCHES, seed)
    maps = memory.maps(load_images([image.path for image in category.test], SIZE, None)).numpy()
    masks = load_masks(category.test, SIZE, None).numpy()
    return evaluate_maps(maps, masks, maps.max((1, 2)), category.labels)


def test_each_row_is_the_nearest_neighbour_of_its_teacher(teachers, root, tmp_path, capsys):
    given = ("--teacher", "test_resnet", "--teacher-weights", "random", "--seeds", "0", "2")
    assert teachers.main(arguments(root, tmp_path, *given)) == 0
    rows = {
        "embedded": build_teacher("embedded"),
        "untrained": build_teacher("embedded", "random", seed=2),
        "imagenet": build_teacher("test_resnet", "random"),
    }
    for row, teacher in rows.items():
        found = json.loads((tmp_path / f"{row}_bracket_seed2.json").read_text())
        assert found["metrics"]["map"] == pytest.approx(expected(root, teacher, 2), abs=1e-9)
    assert "of the way from untrained to ImageNet" in capsys.readouterr().out


def test_results_are_not_made_again_and_those_of_other_settings_are_refused(
    teachers, root, tmp_path, capsys, monkeypatch
):
    assert teachers.main(arguments(root, tmp_path)) == 0
    monkeypatch.setattr(teachers, "run", lambda *_: pytest.fail("made again"))
    assert teachers.main(arguments(root, tmp_path)) == 0
    assert "of the way" not in capsys.readouterr().out  # nothing to measure it by
    assert teachers.main(arguments(root, tmp_path, "--patches", "51")) == 2
    assert "patches: 50 -> 51" in capsys.readouterr().err
    assert teachers.main(arguments(root, tmp_path, "--embedded-weights", "new.safetensors")) == 2
    assert "teacher_weights: '' -> 'new.safetensors'" in capsys.readouterr().err


def test_weights_that_do_not_exist_are_named(teachers, root, tmp_path, capsys):
    assert teachers.main(arguments(root, tmp_path, "--embedded-weights", "nowhere.safetensors")) == 2
    assert "nowhere.safetensors" in capsys.readouterr().err


def test_share_of_the_way_by_a_known_answer(teachers):
    rows = [
        ("untrained", 0.5, 0.1), ("untrained", 0.7, 0.3), ("embedded", 0.7, 0.2),
        ("imagenet", 1.0, 0.6), ("imagenet", 0.8, 0.6),
    ]  # fmt: skip
    results = pd.DataFrame(
        [(row, "set", "map", auroc, aupro) for row, auroc, aupro in rows],
        columns=["row", "data", "map", "image_auroc", "aupro"],
    )
    shares = teachers.share_of_the_way(results, "set")
    assert shares == pytest.approx({"image_auroc": 0.1 / 0.3, "aupro": 0.0}, abs=1e-12)
