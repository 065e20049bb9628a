"""A run is known by the contents of its files and of its teacher, not by their place."""

import json
import shutil
from contextlib import contextmanager

import nbformat
import numpy as np
import papermill
import pytest
import timm
from builders import encoded, make_category, save_image, stop_at, tiny_config
from PIL import Image
from reproductions import arguments, planned, write_notebook, write_result_of
from safetensors.torch import load_file, save, save_file

from dmdd_lite.data.fingerprints import changes, digest, hash_files
from dmdd_lite.reproduce.__main__ import main
from dmdd_lite.reproduce.notebook import NotebookError, run_notebook
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

    with pytest.raises(KeyboardInterrupt):
        call(made, made / "stopped", watch=stop_at(2))
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
    return encoded(255 - np.asarray(Image.open(path)), "PNG")


def other_weights(path) -> bytes:
    state = load_file(path)
    return save({**state, "conv1.0.weight": 1.01 * state["conv1.0.weight"]})


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
    with pytest.raises(TrainingError, match=r"training\.json: it is not of the training of .*detector"):
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


# ---- finished results: refused where the files that they were made from have changed ------------------


def replaced(source: str, target: str, told: str):
    """A change that copies a file of the category over another one, and what is told of it."""

    def change(nuts, tmp_path):
        shutil.copy(nuts / "nut" / source, nuts / "nut" / target)
        return f"{told} changed, the first nut/{target}"

    return change


MASK = replaced("test/hole/000.png", "ground_truth/hole/000_mask.png", "the masks differ: 1 of 6")
TEST = replaced("test/hole/000.png", "test/hole/001.png", "the test images differ: 1 of 9")
#: seen where the planned seed, 1, is to be averaged with the one that is there
TRAIN = replaced("train/good/000.png", "train/good/001.png", "the training images differ: 1 of 3")


def give_other_textures(nuts, tmp_path):
    shutil.copytree(nuts / "nut/test/hole", tmp_path / "textures")
    return "the textures differ"


def forget_files(nuts, tmp_path):
    path = tmp_path / "out/nut_seed0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {}}))
    return "does not tell from which files it was made"


OTHER = (MASK, TEST, TRAIN, give_other_textures, forget_files)


@pytest.mark.parametrize("change", [*OTHER, None])
def test_a_result_of_other_files_is_refused_though_all_is_finished(nuts, tmp_path, capsys, change):
    for job in planned(nuts, tmp_path):
        write_result_of(job)
    told = change and change(nuts, tmp_path)
    more = ["--textures", str(tmp_path / "textures")] if (tmp_path / "textures").exists() else []
    more += ["--seeds", "1"] if change is TRAIN else []
    assert main(arguments(nuts, tmp_path / "out", *more, categories=("nut", "bolt"))) == (2 if told else 0)
    if told:
        told = "nut_seed0.json " + (told if change is forget_files else f"was made from other files ({told})")
        assert f"{told}; delete it and the folder nut_seed0 beside it" in capsys.readouterr().err


# ---- notebooks by papermill: parameters are checked by the command and by the notebook ----------------


@pytest.fixture
def notebook(tmp_path):
    checked = "from dmdd_lite.reproduce.notebook import check_injected\n\ncheck_injected()"
    work = "if steps > 5:\n    raise ValueError(f'{steps} steps')\nprint(steps)"
    given = 'root: str = ""  # a folder\nsteps: int = 3'
    return write_notebook(tmp_path / "small.ipynb", checked, work, parameters=given)


def test_prints_are_logged_and_a_failing_cell_is_told(notebook, tmp_path):
    """Braces in a path mean nothing."""
    output, log = tmp_path / "{steps}" / "ran.ipynb", tmp_path / "logs" / "ran.log"
    run_notebook(notebook, output, {"steps": 4}, log)
    assert nbformat.read(output, 4).cells[-1].outputs[0].text == log.read_text() == "4\n"
    with pytest.raises(NotebookError, match="ValueError: 9 steps"):
        run_notebook(notebook, output, {"steps": 9}, log)


def test_wrong_parameters_write_nothing(notebook, tmp_path):
    with pytest.raises(TypeError, match=r"parameter steps of small\.ipynb must be int, got '4'"):
        run_notebook(notebook, tmp_path / "out" / "ran.ipynb", {"steps": "4"}, tmp_path / "out" / "log")
    assert not (tmp_path / "out").exists()


def test_a_notebook_itself_refuses_what_papermill_accepts(notebook, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter step; it has root, steps"):
        papermill.execute_notebook(str(notebook), str(tmp_path / "a.ipynb"), {"step": 4}, progress_bar=False)
