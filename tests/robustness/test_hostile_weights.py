"""Files of weights and saved detectors from strangers: nothing in them is run, nothing beside them is read,
and what is wrong with them is said in one error of the package."""

import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import timm
import torch
from builders import spread, tiny_config, tiny_detector
from safetensors.torch import load_file, save, save_file

import dmdd_lite
from dmdd_lite.backbones.networks import TeacherError, read_weights
from dmdd_lite.checkpoints import read_checkpoint
from dmdd_lite.detector import SETTINGS, WEIGHTS, Detector, DetectorError
from dmdd_lite.teacher import build_teacher
from dmdd_lite.training import TrainingError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Validating sparse")
PACKAGE = Path(dmdd_lite.__file__).parent
SEEN: list[tuple[str, str]] | None = None
SUSPECT = ("pickle.", "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")
OURS = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, PACKAGE.parent)})


def _note(event: str, args: tuple):
    if SEEN is not None and (event == "open" or event.startswith(SUSPECT)):
        SEEN.append((event, str(args[0]) if args else ""))


sys.addaudithook(_note)


@contextmanager
def only_reading(folder: Path):
    """Nothing is unpickled, run or asked of a network, and no file is opened but those below `folder` and of
    the installation. Python tells of all but what Rust opens, which is safetensors' own."""
    global SEEN
    SEEN = []
    try:
        yield
    finally:
        seen, SEEN = SEEN, None
    allowed = (str(folder), *OURS, "/proc", "/sys", "<")
    assert [s for s in seen if s[0] != "open" or not s[1].startswith(allowed)] == []


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(canary: Path) -> dict[str, object]:
    """Objects that make the file `canary` when they are unpickled as code."""
    code = f"open({str(canary)!r}, 'w').close()"
    run = Calls(exec, code)
    return {
        "system": Calls(os.system, f"touch '{canary}'"),
        "exec": run,
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(run)),
        "storage from bytes": Calls(torch.storage._load_from_bytes, torch_file(run)),
        "tensor from a function": Calls(torch._tensor._rebuild_from_type_v2, exec, torch.Tensor, (code,), {}),
        "key of a dict": {Calls(eval, f"{code} or 'key'"): torch.ones(1)},
    }


def torch_file(value, zipped: bool = True) -> bytes:
    written = io.BytesIO()
    torch.save(value, written, _use_new_zipfile_serialization=zipped)
    return written.getvalue()


def disguises(payload, state: dict) -> list[bytes]:
    """The payload as a file of weights, bare, and hidden among the tensors that are looked for."""
    hidden = {"epoch": 3, "state_dict": {**state, "head.weight": [payload]}}
    bare = [pickle.dumps(payload), torch_file(payload), torch_file(payload, False)]
    return [*bare, torch_file(hidden), torch_file(hidden, False)]


@pytest.fixture(scope="module")
def state():
    """What a file of weights for test_resnet holds, its head included."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    detector = tiny_detector(plus={"channels": 8, "context": 0})
    return detector.save(tmp_path_factory.mktemp("original"))


@pytest.fixture
def saved(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "detector"))


@pytest.mark.parametrize("name", payloads(Path("canary")))
def test_pickles_disguised_as_weights_are_not_run(tmp_path, saved, state, name):
    canary = tmp_path / "canary"
    payload = payloads(canary)[name]
    with suppress(Exception):
        pickle.loads(pickle.dumps(payload))
    assert canary.exists()  # it would work
    canary.unlink()
    for data in disguises(payload, state):
        for path in (tmp_path / "a.pth", tmp_path / "a.safetensors", tmp_path / "a", saved / WEIGHTS):
            path.write_bytes(data)
            with pytest.raises(TeacherError, match=str(path)):
                read_weights("test_resnet", path)
        with pytest.raises(DetectorError, match=str(saved / WEIGHTS)):
            Detector.load(saved, "cpu")
        with pytest.raises(TrainingError, match=r"a\.pth is not .*plain tensors.*delete it"):
            read_checkpoint(tmp_path / "a.pth", tiny_config(), {})
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_weights_that_are_cut_or_changed(tmp_path, state, kind):
    """A flip may only pass where it changes a number, or the name of a tensor that is not needed."""
    few = state if kind == "safetensors" else {name: state[name] for name in list(state)[:3]}
    data = save(few) if kind == "safetensors" else torch_file(few, kind == "zip")
    header = 8 + struct.unpack("<Q", data[:8])[0] if kind == "safetensors" else len(data)
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    for cut in spread(0, header, 25) + spread(header - 1, len(data), 5):
        path.write_bytes(data[:cut])
        with pytest.raises(TeacherError, match=str(path)):
            read_weights("test_resnet", path)
    for place in spread(0, header, 25):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with suppress(TeacherError):
            found = read_weights("test_resnet", path)
            assert all(t.isfinite().all() and t.shape == state[name].shape for name, t in found.items())


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file(tmp_path, saved, make):
    """A pipe or a device would be read for ever."""
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        make(path)
        with pytest.raises(TeacherError, match="no such file"):
            read_weights("test_resnet", path)
    for name in (WEIGHTS, SETTINGS):
        (saved / name).unlink()
        make(saved / name)
        with pytest.raises(DetectorError, match=name):
            Detector.load(saved, "cpu")


FIRST, GAIN = "conv1.0.weight", "dmdd.msn.gain"  # of test_resnet, of a detector
CHANGES = {
    "missing": (lambda s, n: s.pop(n), "1 tensors are missing"),
    "nothing there": (lambda s, n: s.clear(), "tensors are missing .*more"),
    "another shape": (lambda s, n: s.update({n: torch.ones(2)}), "1 tensors are of another shape"),
    "whole numbers": (lambda s, n: s.update({n: s[n].int()}), "1 tensors are of another type"),
    "NaN": (lambda s, n: s[n].view(-1)[:1].fill_(math.nan), "1 tensors hold NaN or infinity"),
    "infinity": (lambda s, n: s[n].view(-1)[:1].fill_(-math.inf), "1 tensors hold NaN or infinity"),
}


@pytest.mark.parametrize("spoil, message", CHANGES.values(), ids=CHANGES)
def test_weights_of_something_else(tmp_path, state, saved, spoil, message):
    own, detector = {n: t.clone() for n, t in state.items()}, load_file(saved / WEIGHTS)
    spoil(own, FIRST), spoil(detector, GAIN)
    save_file(own, tmp_path / "a.safetensors"), torch.save({"state_dict": own}, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        with pytest.raises(TeacherError, match=rf"{path} do not belong to 'test_resnet'.*{message}"):
            build_teacher("test_resnet", str(path))
    save_file(detector, saved / WEIGHTS)
    with pytest.raises(DetectorError, match=rf"{saved / WEIGHTS} does not fit.*{message}"):
        Detector.load(saved, "cpu")


LOADING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
PLACES = ("hf-hub:", "local-dir:/tmp/", "../../", "test_resnet.hf-hub:")
EVIL = [  # a field, its value, what is told
    *[("format", value, f"format {value}, not 7: another version, train it again") for value in (6, 999)],
    ("config.shiny", True, "unknown configuration field shiny: written by another version"),
    *[("facts.thresholds", {"plus": value}, "JSON|lacks") for value in (math.nan, 10**400, "0.5", None)],
    *[("facts.pixel_thresholds", value, "configuration") for value in (None, 0.5, [], {})],
    *[("facts.held_out", value, "held_out must be") for value in (-1, 0.5, True, "6", None)],
    *[("facts.made_from", value, "made_from must") for value in ([], {"images": 1}, {"images": math.inf})],
    *[("facts.depth", value, "depth must be") for value in (9, "8", None)],
    ("config", [], "configuration"),
    ("config.learning_rate", math.nan, "learning_rate"),
    ("config.image_size", 64 * 10**7, "image_size|network"),
    ("config.plus", {"channels": 9}, "another shape"),
    ("config.plus", None, "are extra"),
    ("config.msn_attention", ["self"], "are missing"),
    *[("config.teacher", f"{place}evil/x", "evil/x") for place in PLACES],
    *[("config.teacher_options", {name: "evil"}, f"may not hold {name}") for name in LOADING],
    ("config.teacher_options", {"act_layer": "os.system"}, "cannot build"),
    ("config.teacher_options", {"shiny": 1}, "teacher_options not taken"),
    ("config.teacher_options", {"std": [0, 0, 0]}, "three numbers above 0"),
]
TEXTS = (b"", b"[1]", b"\xff\xfe{}", b'{"format": 2, "config": {', b"[" * 200_000, pickle.dumps(Calls(print)))


@pytest.mark.parametrize("place, value, message", EVIL)
def test_settings_of_strangers(saved, place, value, message):
    settings = json.loads((saved / SETTINGS).read_text())
    field = place.rpartition(".")[2]
    (settings[place.partition(".")[0]] if "." in place else settings)[field] = value
    (saved / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(DetectorError, match=rf"{saved / SETTINGS}.*({message})"), only_reading(saved):
        Detector.load(saved, "cpu")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_settings_that_are_no_settings(saved, text):
    (saved / SETTINGS).write_bytes(text)
    with pytest.raises(DetectorError, match=rf"{saved / SETTINGS} is not a detector's configuration"):
        Detector.load(saved, "cpu")


def test_nothing_but_the_folder_is_read(saved, tmp_path):
    """Neither weights that the configuration names nor any beside the two files."""
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(payloads(tmp_path / "canary")["exec"]))
    for name in ("model.pth", "pytorch_model.bin", "__init__.py", "config.pkl"):
        shutil.copy(evil, saved / name)
    settings = json.loads((saved / SETTINGS).read_text())
    for weights in (str(evil), "http://127.0.0.1:9/x.pth"):
        settings["config"]["teacher_weights"] = weights
        (saved / SETTINGS).write_text(json.dumps(settings))
        with only_reading(saved):
            assert Detector.load(saved, "cpu").config.teacher_weights == weights
    assert not (tmp_path / "canary").exists()
    for act in (evil.read_bytes, lambda: pickle.loads(pickle.dumps(evil)), lambda: os.system("true")):
        with pytest.raises(AssertionError), only_reading(saved):  # the watch sees
            act()


RULES = "S102,S202,S301,S302,S306,S307,S506,S602,S604,S605"  # exec, pickle, eval, yaml, shells and so on


def test_the_source_runs_no_file():
    folders = [PACKAGE.parent / part for part in ("dmdd_lite", "tools", "benchmarks")]
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", RULES, *folders]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    for path in [path for folder in folders for path in folder.rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^)]*\)", source)), path
        assert not re.search(r"import (pickle|marshal|dill)|(allow_pickle|remote_code)=True", source), path
