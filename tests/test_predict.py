"""The command that predicts files and folders, and what a prediction draws and measures."""

import csv
import subprocess
import sys
import time

import numpy as np
import pytest
from builders import tree
from PIL import Image

from dmdd_lite.data.folders import open_folder
from dmdd_lite.predict import main
from dmdd_lite.prediction import OUTLINE, Prediction
from dmdd_lite.utils import Progress, write_json


@pytest.fixture(scope="module")
def saved(whole, tmp_path_factory):
    return whole.detector.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def inbox(root, tmp_path):
    """Three pictures of other sizes and formats, one of them in a sub-folder, and one that is broken."""
    folder, paths = tmp_path / "inbox", open_folder(root / "lever/test")
    (folder / "day 1").mkdir(parents=True)
    for path, name, size in zip(paths, ("a.png", "b.webp", "day 1/a.bmp"), (40, 90, 64), strict=False):
        Image.open(path).resize((size, 50)).save(folder / name)
    (folder / "c.png").write_bytes(b"broken")
    return folder


def rows_of(out) -> list[dict]:
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_to_table_and_pictures(saved, whole, inbox, tmp_path, capfd):
    out = tmp_path / "out"
    assert main([str(saved), str(inbox), "--out", str(out)]) == 1
    told = capfd.readouterr()
    assert told.err.startswith(f"not predicted: {inbox}/c.png: unreadable image")
    assert f"3 images, {sum(row['decision'] == 'anomalous' for row in rows_of(out))} anomalous" in told.out
    pictures = {path.relative_to(out).as_posix() for path in out.rglob("*.*")} - {"predictions.csv"}
    names = ("a", "b", "day 1/a")
    assert pictures == {f"{k}/{n}.{s}" for k, s in (("overlays", "jpg"), ("masks", "png")) for n in names}
    for row in rows_of(out):
        expected = whole.detector.predict(row["path"])
        name = expected.path.relative_to(inbox).with_suffix("")
        assert float(row["score"]) == pytest.approx(expected.score, abs=1e-5)
        assert (row["decision"] == "anomalous") == expected.is_anomalous
        mask = np.asarray(Image.open(out / "masks" / f"{name}.png"))
        assert mask.shape == expected.size == Image.open(out / "overlays" / f"{name}.jpg").size[::-1]
        assert int(row["area"]) == mask.sum() == sum(region.area for region in expected.regions())


def test_patterns_one_threshold_for_all_and_equal_names(saved, inbox, tmp_path):
    (inbox / "c.png").unlink()
    words = [saved, f"{inbox}/*.png", f"{inbox}/day 1/*", inbox / "a.png", "--out", tmp_path / "out"]
    words = list(map(str, words))
    assert main([*words, "--threshold", "0", "--fail-on-anomaly"]) == 3
    assert [row["decision"] for row in rows_of(tmp_path / "out")] == ["anomalous"] * 2  # each image once
    assert main([*words, "--threshold", "1", "--fail-on-anomaly"]) == 0
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {"a.png", "a-2.png"}


@pytest.mark.parametrize("wrong, told", [("inbox/*.tif", "no such file"), ("empty", "no images")])
def test_nothing_is_started_without_images(saved, inbox, tmp_path, capfd, wrong, told):
    (tmp_path / "empty").mkdir()
    assert main([str(saved), str(tmp_path / wrong), "--out", str(tmp_path / "out")]) == 2
    assert told in capfd.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(inbox), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command, told", [("predict", "predictions.csv"), ("own", "--good FOLDER")])
def test_help_needs_no_pytorch(command, told):
    began = time.monotonic()
    code = (
        f"import sys; from dmdd_lite.{command} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")
    assert told in out
    assert time.monotonic() - began < 10


def test_regions_mask_and_outline_by_hand():
    values = np.zeros((6, 8), np.float32)
    values[0, 0], values[1, 1], values[4, 3:7] = 0.6, 0.9, 0.7  # the first two touch at a corner
    levels = ({"fused": level} for level in (0.9, 0.8, 0.5))
    prediction = Prediction({"fused": values}, *levels, "fused", (6, 8))
    assert [tuple(region) for region in prediction.regions()] == [
        (4, 3, 4, 4, 1, pytest.approx(0.7)),
        (2, 0, 0, 2, 2, pytest.approx(0.9)),
    ]
    assert prediction.regions(0.95) == []
    assert prediction.mask(0.65).sum() == 5
    drawn = np.asarray(prediction.overlay(np.full((6, 8), 200, np.uint8)))
    outlined = (drawn == OUTLINE).all(2)
    assert outlined[3, 3:7].all()
    assert not (outlined & prediction.mask()).any()
    assert (drawn[0, 7] == 200).all()  # no heat: the image itself
    with pytest.raises(ValueError, match="from memory: pass that image"):
        prediction.overlay()


def test_what_json_cannot_hold_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"aupro": 0.5})
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"aupro": float("nan")})
    assert tree(tmp_path) == before


@pytest.mark.parametrize("mode, quiet, expected", [("lines", 0, 10), ("lines", 5, 0), ("none", 0, 0)])
def test_progress_prints_a_line_every_tenth_but_not_too_often(monkeypatch, capsys, mode, quiet, expected):
    monkeypatch.setenv("DMDD_PROGRESS", mode)
    with Progress(100, "training") as bar:
        for done in [*range(3, 100, 3), 100]:
            bar.update(done, f"loss {done}", quiet)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == expected
    if expected:
        assert (lines[0][:16], lines[0][-7:]) == ("training 12/100 ", "loss 12")
        assert lines[-1].startswith("training 100/100")
