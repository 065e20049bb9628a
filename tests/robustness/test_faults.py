"""Writers of one file at a time, Ctrl-C in the middle of an iteration."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attempts import assert_same
from builders import tree

from dmdd_lite import checkpoints, tables
from dmdd_lite.training import Trainer, TrainingError
from dmdd_lite.utils import locked, write_atomically, write_json


def test_writers_of_one_file_never_spoil_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"rows": [0] * 2000})

    def write(value: int):
        for _ in range(25):
            write_json(path, {"rows": [value] * 2000})
            rows = json.loads(path.read_text())["rows"]
            assert (len(rows), len(set(rows))) == (2000, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert tree(tmp_path).keys() == {"a.json"}


def test_what_a_killed_writer_left_is_no_result_and_goes_with_the_next_training(call, tmp_path):
    for name in (
        ".pcb_seed0.json-00.partial",
        ".checkpoint.pt-00.partial",
        "detector/.config.json-00.partial",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"metr')
    assert len(tables.collect_results(tmp_path)) == 0
    call(tmp_path)
    assert set(tree(tmp_path)) == {"training.json", "detector/config.json", "detector/model.safetensors"}


MOMENTS = {
    "losses": (Trainer, "student_losses"),
    "student": (torch.optim.Adam, "step"),
    "save": (torch, "save"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_in_the_middle_of_an_iteration(call, whole, tmp_path, monkeypatch, moment):
    """With gradients of it, with half of the weights changed, with the checkpoint's file written."""
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), []

    def interrupted(*given, **named):
        calls.append(1)
        result = real(*given, **named)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path)
    monkeypatch.undo()
    assert set(tree(tmp_path)) == {"checkpoint.pt"}
    assert_same(call(tmp_path), whole)


def test_ctrl_c_while_pytorch_writes_stays_ctrl_c(tmp_path):
    """PyTorch closes its half-written archive first, and fails at that with an error of its own."""

    class Interrupted(io.BytesIO):
        def write(self, data):
            if self.tell() > 1000:
                raise KeyboardInterrupt
            return super().write(data)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.pt", lambda _: torch.save(torch.zeros(5000), Interrupted()))
    assert not tree(tmp_path)


def test_a_folder_in_use_is_named_and_left_alone(call, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PATIENCE", 0)
    with locked(tmp_path / "training.lock"), pytest.raises(TrainingError, match=f"{tmp_path} is used"):
        call(tmp_path)
    assert not tree(tmp_path)
