"""Public data sets' layouts on tiny imitations, plain folders, and the command that trains on them."""

import json

import numpy as np
import pytest
from builders import disc, save_image, tiny_config

from dmdd_lite import evaluation, own
from dmdd_lite.data.fingerprints import hash_category
from dmdd_lite.data.layout import open_category, open_folders
from dmdd_lite.data.masks import load_masks
from dmdd_lite.data.problems import DataError, DataWarning
from dmdd_lite.data.training import load_training_data
from dmdd_lite.training import train

pytestmark = pytest.mark.filterwarnings("ignore::dmdd_lite.data.problems.DataWarning")
MASKS = {"m": disc(), "n": disc(on=200).T, "0": disc(on=0)}
AD = "train/good/0 train/good/1 test/good/0 test/hole/0 ground_truth/hole/0_mask=m"
TREES = {  # files below the category, "=" tells which mask; others are images
    **dict.fromkeys(("mvtec", "mpdd"), AD),
    "loco": AD.replace("_mask=m", "/000=m ground_truth/hole/0/001=n validation/good/0"),
    "ad2": AD.replace("test/", "test_public/").replace(" ground", " test_private/0 test_public/ground"),
    "btad": AD.replace("good", "ok").replace("hole", "ko").replace("_mask", ""),
    "visa": "Data/Images/Normal/0 Data/Images/Normal/1 Data/Images/Normal/2 Data/Images/Anomaly/0 "
    "Data/Masks/Anomaly/0=m",
    "ksdd2": "train/0 train/0_GT=0 train/1 train/1_GT=0 train/2 train/2_GT=m test/3 test/3_GT=0 test/4 "
    "test/4_GT=m train/1_(copy) train/1_GT_(copy)=0",
    "realiad": "OK/S1/a OK/S1/b OK/S2/a NG/hole/S3/a NG/hole/S3/a_mask=m",
}
VISA = """object,split,label,image,mask
nut,train,normal,nut/Data/Images/Normal/0.png,
nut,train,normal,nut/Data/Images/Normal/1.png,
nut,test,normal,nut/Data/Images/Normal/2.png,
nut,test,anomaly,nut/Data/Images/Anomaly/0.png,nut/Data/Masks/Anomaly/0.png"""
REAL_IAD = """{"meta": {"normal_class": "OK"}, "train": [
{"anomaly_class": "OK", "image_path": "OK/S1/a.png", "mask_path": null},
{"anomaly_class": "OK", "image_path": "OK/S1/b.png", "mask_path": null}], "test": [
{"anomaly_class": "OK", "image_path": "OK/S2/a.png", "mask_path": null},
{"anomaly_class": "hole", "image_path": "NG/hole/S3/a.png", "mask_path": "NG/hole/S3/a_mask.png"}]}"""
LISTS = {"visa": ("split_csv/1cls.csv", VISA), "realiad": ("realiad_jsons/nut.json", REAL_IAD)}
DEFECTS = {"btad": "ko", "visa": "bad", "ksdd2": "bad"}


def imitate(root, layout, old="", new=""):
    """The category nut; in a list `old` is replaced by `new`."""
    rng = np.random.default_rng(0)
    for name in TREES[layout].split():
        name, _, mask = name.replace("_(", " (").partition("=")
        image = MASKS[mask] if mask else rng.integers(0, 256, (16, 16, 3), np.uint8)
        save_image(root / "nut" / f"{name}.png", image)
    if layout in LISTS:
        (root / LISTS[layout][0]).parent.mkdir()
        (root / LISTS[layout][0]).write_text(LISTS[layout][1].replace(old or "nut", new or "nut"))


@pytest.mark.parametrize("layout", TREES)
def test_layouts(tmp_path, layout):
    imitate(tmp_path, layout)
    found = open_category(tmp_path, "nut", layout=layout)
    assert (len(found.train), found.layout) == (2, layout)
    marked = zip((i.defect for i in found.test), load_masks(found.test, 16).sum((1, 2)).tolist(), strict=True)
    assert dict(marked) == {"good": 0, DEFECTS.get(layout, "hole"): 44 if layout == "loco" else 30}
    assert ("is the official one" in str(found.warnings)) == (layout in ("loco", "ad2"))
    assert len(hash_category(found)["masks"]) == (2 if layout == "loco" else 1)
    assert len(load_training_data(tiny_config(plus=None), good=found, progress=False).files["images"]) == 2


@pytest.mark.parametrize("layout, old, new, told", [
    ("visa", "nut/Data/Images/Normal/0", "../0", r"0\.png: listed in 1cls\.csv, but not below"),
    ("realiad", "OK/S1/b", "OK/S1/c", r"c\.png: listed in nut\.json, but not there"),
    ("realiad", "image_path", "path", r"nut\.json: not as documented \(KeyError"),
    ("visa", "\nnut,", "\npin,", r"no good training images"),
])  # fmt: skip
def test_lists_that_do_not_fit_are_refused(tmp_path, layout, old, new, told):
    imitate(tmp_path, layout, old, new)
    with pytest.raises(DataError, match=told):
        open_category(tmp_path, "nut", layout=layout)
    with pytest.raises(ValueError, match="layout must be one of mvtec, loco"):
        open_category(tmp_path, "nut", layout="coco")


@pytest.fixture
def places(tmp_path):
    """Ten good images, and three defective ones, two of them with masks."""
    rng = np.random.default_rng(0)
    for name in (*(f"good/{i:02}.png" for i in range(10)), "bad/0.png", "bad/dent/0.jpg", "bad/dent/1.png"):
        save_image(tmp_path / name, rng.integers(0, 256, (16, 16, 3), np.uint8))
    save_image(tmp_path / "masks/0_mask.png", disc())
    save_image(tmp_path / "masks/dent/1.png", disc())
    return {kind: tmp_path / kind for kind in ("good", "bad", "masks")}


def test_plain_folders(places, tmp_path):
    found = open_folders(**places, seed=3)
    bad = [f"{i.defect}/{i.path.name} {i.mask and i.mask.name}" for i in found.test if i.is_anomalous]
    assert bad == ["bad/0.png 0_mask.png", "dent/0.jpg None", "dent/1.png 1.png"]
    held = {image.path for image in found.test if not image.is_anomalous}
    assert (len(found.train), len(held - set(found.train)), found.name) == (8, 2, "good")
    data = load_training_data(tiny_config(seed=3), good=places["good"], progress=False)
    assert data.files["images"] == hash_category(found)["images"]
    assert len(hash_category(found)["test"]) == 5  # equal names in different folders
    whole = open_folders(places["good"], test_good=places["bad"] / "dent", check_files=False)
    assert (len(whole.train), whole.labels.tolist()) == (10, [False] * 2)


@pytest.mark.parametrize("change, told", [
    ({"bad": "good"}, r"lies in .*good \(.*give folders apart"), ({"masks": "bad/dent"}, "lies in"),
    ({"bad": None}, "masks without defective images; give bad"), ({"good": "nowhere"}, "no such folder"),
    ({"good": "masks/dent", "masks": None}, "1.png: the only good image; add others"),
    ({"good": "whole"}, "whole: a category in the layout of MVTec AD; give its train/good"),
])  # fmt: skip
def test_plain_folders_that_cannot_be_meant(places, tmp_path, change, told):
    for split in ("train", "test"):
        (tmp_path / "whole" / split).mkdir(parents=True)
    given = {**places, **{kind: place and tmp_path / place for kind, place in change.items()}}
    with pytest.raises(DataError, match=told):
        open_folders(**given)


def test_the_command_trains_and_judges(places, tmp_path, capsys, monkeypatch):
    values = ["teacher=test_resnet", "teacher_weights=random", "image_size=[64,96]", "iterations=4"]
    values += ["batch_size=2", "precision=float32"]
    words = [w for kind, place in places.items() for w in (f"--{kind}", str(place))]
    words += ["--device", "cpu", "--out", str(tmp_path / "out"), "--set"]
    assert own.main([*words, "plus"]) == own.main([*words, "epochs=3"]) == 2
    assert not (tmp_path / "out").exists()
    assert own.main([*words, *values]) == 0
    assert "false_alarm_rate" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/good_seed0.json").read_text())
    assert (result["layout"], result["images"]) == ("folders", {"train": 8, "test": 5})
    assert own.main([*words[:2], *words[words.index("--device") :], *values]) == 0  # --good alone
    told = capsys.readouterr().out
    assert "loaded, trained before" in told
    assert "2 test images" in told
    assert "false_alarm_rate" in told
    assert "aupro" not in told  # without defective images it is undefined
    config = tiny_config(iterations=4, image_size=(64, 96))
    detector = train(config, good=places["good"], output_dir=tmp_path / "out").detector
    with pytest.warns(DataWarning, match="are not those of the detector, which may have seen test images"):
        evaluation.evaluate(detector, open_folders(**places, seed=1), progress=False)
    monkeypatch.setattr(own, "work", lambda options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert own.main([*words, *values]) == 130
