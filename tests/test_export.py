"""Exported files: the detector's maps and decisions, and the example of docs/export.md that runs one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import random_images, tiny_detector

from dmdd_lite import export
from dmdd_lite.data.folders import open_folder

DOCS = Path(__file__).parent.parent / "docs/export.md"


@pytest.fixture(scope="module")
def detector(whole):
    return whole.detector


@pytest.fixture(scope="module")
def pictures(root):
    return root / "lever/test"


@pytest.mark.slow
def test_onnx_runs_without_this_package(detector, pictures, tmp_path):
    """Any number of images at once, with the threshold in the file; the example prints the same scores."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "lever.onnx"
    assert detector.export(path, pictures) <= export.TOLERANCE
    session = onnxruntime.InferenceSession(path)
    told = json.loads(session.get_modelmeta().custom_metadata_map["dmdd_lite"])
    assert told["config"] == detector.config.to_dict()
    assert (told["threshold"], told["map_name"]) == (detector.threshold, "plus")
    images = random_images(3)
    maps, scores, _ = detector.maps(images)
    found = session.run(None, {"images": images.permute(0, 2, 3, 1).numpy()})
    assert found[0] == pytest.approx(scores["plus"].numpy(), abs=1e-4)
    assert found[1] == pytest.approx(maps["plus"].numpy(), abs=1e-4)
    example = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)[-1]
    files = list(map(str, open_folder(pictures)[:3]))
    command = [sys.executable, "-c", example, str(path), *files]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, prediction in zip(lines, detector.predict(files), strict=True):
        name, score, decision, _ = line.split("\t")
        assert name == str(prediction.path)
        assert float(score) == pytest.approx(prediction.score, abs=0.02)  # Pillow resizes otherwise
        clear = abs(prediction.score - detector.threshold) > 0.02
        assert not clear or (decision == "anomalous") == prediction.is_anomalous


@pytest.mark.slow
def test_a_program_of_torch_export_gives_the_same_maps(detector, pictures, tmp_path):
    path = tmp_path / "lever.pt2"
    assert detector.export(path, pictures, batch=2) <= export.TOLERANCE
    extra = {export.METADATA: ""}
    with open(path, "rb") as file:
        program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra[export.METADATA])["image_size"] == detector.config.image_size
    images = random_images(2)
    score, found = program.module()(images.permute(0, 2, 3, 1).contiguous())
    maps, scores, _ = detector.maps(images)
    torch.testing.assert_close(found, maps["plus"], atol=1e-4, rtol=0)
    torch.testing.assert_close(score, scores["plus"], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_oblong_detector_is_exported(pictures, tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    detector = tiny_detector(image_size=(64, 96))
    assert detector.export(tmp_path / f"oblong{suffix}", pictures) <= export.TOLERANCE


@pytest.mark.parametrize(
    "maps, scores, told", [(0.1, 0.0, "differ by 1.0e-01"), (0.0, 9.0, "decides otherwise")]
)
def test_a_file_that_differs_is_not_written(detector, pictures, tmp_path, monkeypatch, maps, scores, told):
    def save(program, path, values):
        path.write_text("half")

        def run(images):
            with torch.no_grad():
                score, found = export.Exported(detector)(images)
            return (score + scores).numpy(), (found + maps).numpy()

        return run

    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: None)
    monkeypatch.setattr(export, "_save_program", save)
    with pytest.raises(export.ExportError, match=told):
        detector.export(tmp_path / "lever.pt2", pictures)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, told", [("x.tar", "must be .onnx or .pt2"), ("x.onnx", "dmdd-lite.export")])
def test_what_cannot_be_exported_is_told_first(detector, tmp_path, monkeypatch, name, told):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(export.ExportError, match=told):
        detector.export(tmp_path / name, tmp_path)
