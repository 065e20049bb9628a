"""A finished result is refused, before anything runs, where the files that it was made from have changed."""

import json
import shutil

import pytest
from reproductions import arguments, planned, write_result_of

from dmdd_lite.reproduce.__main__ import main


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
