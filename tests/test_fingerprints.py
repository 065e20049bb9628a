"""A run is known by the contents of its files and of its teacher, not by their place."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import timm
from builders import make_category, save_image, tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file

from dmdd_lite.data.fingerprints import changes, digest, hash_files
from dmdd_lite.training import Trainer, TrainingError, train


def call(made, folder, data=None, textures=None, watch=None):
    config = tiny_config(teacher_weights=str(made / "weights.safetensors"), iterations=4)
    place = (data or made / "data", "lever", textures or made / "textures", folder)
    return train(config, *place, "cpu", 1, False, watch)


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """Data, textures and weights, and a stopped and a finished run of them."""
    made = tmp_path_factory.mktemp("made")
    shutil.copytree(root / "lever/train", made / "data/lever/train")
    for i, name in enumerate(("a.png", "fine/b.png")):
        save_image(made / "textures" / name, np.full((64, 64, 3), 90 * i, np.uint8))
    save_file(timm.create_model("test_resnet").state_dict(), made / "weights.safetensors")

    def stop(trainer):
        if trainer.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(made, made / "stopped", watch=stop)
    call(made, made / "finished")
    return made


@contextmanager
def put(path, content: bytes | None):
    """Another content of a file, None for none, until the end of the block."""
    before = path.read_bytes() if path.exists() else None
    for new in (content, before):
        path.unlink(missing_ok=True)
        if new is not None:
            path.write_bytes(new)
        if new is content:
            yield


def inverted(path) -> bytes:
    save_image(path.parents[3] / "new.png", 255 - np.asarray(Image.open(path)))
    return (path.parents[3] / "new.png").read_bytes()


def other_weights(path) -> bytes:
    state = load_file(path)
    state["conv1.0.weight"].mul_(1.01)
    save_file(state, path.with_name("new.safetensors"))
    return path.with_name("new.safetensors").read_bytes()


GOOD = "data/lever/train/good"
IMAGES = "the training images differ: {}, the first lever/train/good/{}.png"
REPLACED = [
    (f"{GOOD}/002.png", inverted, IMAGES.format("1 of 7 changed", "002")),
    (f"{GOOD}/000.png", lambda _: None, IMAGES.format("1 gone", "000")),
    (f"{GOOD}/900.png", lambda path: path.with_name("001.png").read_bytes(), IMAGES.format("1 new", "900")),
    ("textures/fine/b.png", lambda path: (path.parents[1] / "a.png").read_bytes(),
     "the textures differ: 1 of 2 changed, the first fine/b.png"),
    ("weights.safetensors", other_weights, "the teacher's weights differ"),
]  # fmt: skip


@pytest.mark.parametrize("name, new, told", REPLACED)
def test_what_was_replaced_in_place_is_named_before_any_work(made, tmp_path, monkeypatch, name, new, told):
    monkeypatch.setattr(Trainer, "__init__", None)
    for kind in ("stopped", "finished"):
        folder = shutil.copytree(made / kind, tmp_path / kind)
        content = new(made / name)
        with put(made / name, content), pytest.raises(TrainingError) as found:
            call(made, folder)
        assert f"it is of another run ({told}); delete it or use another output folder" in str(found.value)


def test_the_same_files_in_another_place_are_the_same(made, tmp_path, capsys):
    for name in ("data", "textures"):
        shutil.copytree(made / name, tmp_path / name)
    for kind, told in (("stopped", "resumes from iteration 1"), ("finished", "loaded, trained before")):
        folder = shutil.copytree(made / kind, tmp_path / kind)
        call(made, folder, tmp_path / "data", tmp_path / "textures")
        assert told in capsys.readouterr().out


def test_a_detector_of_other_images_beside_the_record_is_refused(made, tmp_path):
    shutil.copytree(made / "finished", tmp_path / "run")
    with put(made / GOOD / "002.png", inverted(made / GOOD / "002.png")):
        call(made, tmp_path / "other")
    shutil.copytree(tmp_path / "other/detector", tmp_path / "run/detector", dirs_exist_ok=True)
    with pytest.raises(TrainingError, match=r"training\.json and .*detector are of different trainings"):
        call(made, tmp_path / "run")


def test_names_and_contents_count_and_the_order_does_not(tmp_path):
    folder = make_category(tmp_path) / "train/good"
    paths = sorted(folder.iterdir())
    before = hash_files(paths, tmp_path)
    assert digest(hash_files(paths[::-1], tmp_path)) == digest(before)
    assert changes({"images": before}, {"images": digest(before)}) == []
    paths[0].rename(folder / "z.png")
    now = hash_files(sorted(folder.iterdir()), tmp_path)
    told = "1 new, the first nut/train/good/z.png, 1 gone, the first nut/train/good/000.png"
    assert changes({"images": before}, {"images": now}) == [f"the training images differ: {told}"]
    assert changes({}, {"images": now}) == ["the training images differ"]
    assert "\\udcff" in changes({"masks": {}}, {"masks": {"\udcff": "0"}})[0]  # a name that is no text
