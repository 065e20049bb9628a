"""Files of weights and saved detectors from strangers: nothing in them is run, nothing beside them is read,
and what is wrong with them is said in one error of the package."""

import ast
import copy
import functools
import io
import json
import math
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import timm
import torch
from builders import spread, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import dmdd_lite
from dmdd_lite.checkpoints import load_checkpoint
from dmdd_lite.config import Config
from dmdd_lite.detector import SETTINGS, WEIGHTS, Detector, DetectorError
from dmdd_lite.model import build_model
from dmdd_lite.teacher import TeacherError, build_teacher, read_weights
from dmdd_lite.training import TrainingError, train

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Validating sparse")
PACKAGE = Path(dmdd_lite.__file__).parent
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", "")


# ---- what watches ----------------------------------------------------------------------------------------

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


# ---- payloads ----------------------------------------------------------------------------------------------


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
    inner = io.BytesIO()
    torch.save(run, inner)
    return {
        "system": Calls(os.system, f"touch '{canary}'"),
        "exec": run,
        "eval": Calls(eval, code),
        "process": Calls(subprocess.call, ["touch", str(canary)]),
        "file": Calls(open, str(canary), "w"),
        "method": Calls(Path.touch, canary),
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(run)),
        "storage from bytes": Calls(torch.storage._load_from_bytes, inner.getvalue()),
        "argument of a tensor": Calls(torch._utils._rebuild_parameter, run, False, {}),
        "tensor from a function": Calls(torch._tensor._rebuild_from_type_v2, exec, torch.Tensor, (code,), {}),
        "map": Calls(list, Calls(map, exec, [code])),
        "key of a dict": {Calls(eval, f"{code} or 'key'"): torch.ones(1)},
        "state of an object": Calls(functools.partial, run),
    }


NAMES = list(payloads(Path("canary")))


def raw_pickles(code: bytes) -> dict[str, bytes]:
    """Pickles written by hand, one an opcode that makes or calls something."""
    return {
        "global and reduce": b"cbuiltins\nexec\n(V" + code + b"\ntR.",
        "inst": b"(V" + code + b"\nibuiltins\nexec\n.",
        "obj": b"(cbuiltins\nexec\nV" + code + b"\no.",
        "stack global": b"\x80\x04Vbuiltins\nVexec\n\x93V" + code + b"\n\x85R.",
        "within a dict": b"(Vstate_dict\ncbuiltins\nexec\n(V" + code + b"\ntRd.",
        "memo": b"cbuiltins\nexec\np0\n0g0\n(V" + code + b"\ntR.",
    }


def torch_file(value, zipped: bool) -> bytes:
    written = io.BytesIO()
    torch.save(value, written, _use_new_zipfile_serialization=zipped)
    return written.getvalue()


def disguises(payload, state: dict) -> dict[str, bytes]:
    """The payload as a file of weights, bare, and hidden among the tensors that are looked for."""
    hidden = {"epoch": 3, "state_dict": {**state, "head.weight": [payload]}}
    return {
        "pickle": pickle.dumps(payload),
        "old pickle": pickle.dumps(payload, 0),
        "zip": torch_file(payload, True),
        "legacy": torch_file(payload, False),
        "hidden in zip": torch_file(hidden, True),
        "hidden in legacy": torch_file(hidden, False),
    }


@pytest.fixture(scope="module")
def state():
    """What a file of weights for test_resnet holds, its head included."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.mark.parametrize("name", NAMES)
def test_pickles_disguised_as_weights_are_not_run(tmp_path, canary, state, tally, name):
    payload = payloads(canary)[name]
    with suppress(Exception):
        pickle.loads(pickle.dumps(payload))
    assert canary.exists()  # it would work
    canary.unlink()
    for number, data in enumerate(disguises(payload, state).values()):
        for suffix in (".pth", SUFFIXES[number % len(SUFFIXES)]):
            path = tmp_path / f"weights{suffix}"
            path.write_bytes(data)
            with pytest.raises(TeacherError, match=str(path)):
                read_weights("test_resnet", path)
            assert not canary.exists()
            tally("weights that want to run code")


def test_every_opcode_that_calls_is_refused(tmp_path, canary, tally):
    for data in raw_pickles(f"open({str(canary)!r}, 'w').close()".encode()).values():
        pickle.loads(data)
        assert canary.exists()
        canary.unlink()
        for suffix in SUFFIXES:
            path = tmp_path / f"weights{suffix}"
            for content in (data, pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + data):
                path.write_bytes(content)
                with pytest.raises(TeacherError, match=str(path)):
                    read_weights("test_resnet", path)
                assert not canary.exists()
                tally("weights that want to run code")


def test_checkpoints_and_detectors_are_not_run(tmp_path, canary, saved, state, tally):
    class Trainer:
        device = "cpu"

        def restore(self, state):
            pytest.fail("opened")

    checkpoint = tmp_path / "checkpoint.pt"
    for number, payload in enumerate(payloads(canary).values()):
        for data in list(disguises(payload, state).values())[number % 2 :: 2]:
            checkpoint.write_bytes(data)
            with pytest.raises(TrainingError, match=rf"{checkpoint} is not .*plain tensors.*delete it"):
                load_checkpoint(checkpoint, Trainer())
            (saved / WEIGHTS).write_bytes(data)
            with pytest.raises(DetectorError, match=str(saved / WEIGHTS)):
                Detector.load(saved, "cpu")
            assert not canary.exists()
            tally("weights that want to run code", 2)


def test_a_training_does_not_run_its_checkpoint(tmp_path, canary, root, tally):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(torch_file({"config": payloads(canary)["exec"]}, True))
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is not a usable.*plain tensors.*delete it"):
        train(tiny_config(), root, "lever", output_dir=folder, progress=False)
    assert not canary.exists()
    tally("weights that want to run code")


# ---- damaged files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(state):
    """The state as a .safetensors file, and how long its header is."""
    data = save(state)
    return data, 8 + struct.unpack("<Q", data[:8])[0]


def test_safetensors_cut_at_any_byte(tmp_path, plain, depth, tally):
    data, header = plain
    cuts = spread(0, header, depth(60, 1500)) + spread(header, len(data), depth(10, 200))
    path = tmp_path / "weights.safetensors"
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(TeacherError, match=str(path)):
            read_weights("test_resnet", path)
    tally("damaged weights", len(cuts))


def test_safetensors_with_a_flipped_bit(tmp_path, plain, state, depth, tally):
    """A flip may only pass where it changes a number, or the name of a tensor that is not needed."""
    data, header = plain
    path, passed = tmp_path / "weights.safetensors", 0
    bits = spread(0, 8 * header, depth(60, 1200)) + spread(8 * header, 8 * len(data), depth(5, 100))
    for bit in bits:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with suppress(TeacherError):
            found = read_weights("test_resnet", path)
            assert all(t.isfinite().all() and t.shape == state[name].shape for name, t in found.items())
            passed += 1
    assert passed < len(bits) / 2
    tally("damaged weights", len(bits))


def test_torch_files_cut_or_flipped(tmp_path, state, depth, tally):
    path = tmp_path / "weights.pth"
    few = {name: state[name] for name in list(state)[:3]}
    for data in (torch_file(few, True), torch_file(few, False)):
        cuts = spread(0, len(data), depth(15, 250))
        for cut in cuts:
            for content in (data[:cut], data[:cut] + bytes([data[cut] ^ 4]) + data[cut + 1 :]):
                path.write_bytes(content)
                with pytest.raises(TeacherError, match=str(path)):
                    read_weights("test_resnet", path)
        tally("damaged weights", 2 * len(cuts))


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "nothing": {},
    "list": [],
    "number": 3,
    "text": "x",
    "no offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "unknown type": {"a": {**ONE, "dtype": "F33"}},
    "object": {"a": {**ONE, "dtype": "O"}},
    "packed type": {"a": {**ONE, "dtype": "F4", "shape": [8]}},
    "eight bits": {"a": {**ONE, "dtype": "F8_E4M3", "shape": [4]}},
    "negative shape": {"a": {**ONE, "shape": [-1]}},
    "too large a shape": {"a": {**ONE, "shape": [2**62, 4]}},
    "a shape of floats": {"a": {**ONE, "shape": [1.0]}},
    "very many axes": {"a": {**ONE, "shape": [1] * 10_000}},
    "no elements": {"a": {**ONE, "shape": [0], "data_offsets": [0, 0]}},
    "offsets backwards": {"a": {**ONE, "data_offsets": [4, 0]}},
    "offsets outside": {"a": {**ONE, "data_offsets": [2**40, 2**40 + 4]}},
    "negative offsets": {"a": {**ONE, "data_offsets": [-4, 0]}},
    "overlap": {"a": ONE, "b": ONE},
    "hole": {"a": {**ONE, "data_offsets": [8, 12]}},
    "metadata that is no text": {"__metadata__": {"x": 3}, "a": ONE},
    "long name": {"n" * 10**6: ONE},
    "name of a path": {"../../x": ONE},
    "no name": {"": ONE},
    "surrogate": {"\ud800": ONE},
    "half a state": {"state_dict": ONE, "model": {**ONE, "data_offsets": [4, 8]}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(tmp_path, tally, header):
    path, text = tmp_path / "weights.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(TeacherError, match=str(path)) as caught:
        read_weights("test_resnet", path)
    assert len(str(caught.value)) < 3000
    tally("damaged weights")


@pytest.mark.parametrize("length", [0, 1, 99_999_999, 10**8 + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_headers_that_lie(tmp_path, plain, tally, length):
    path = tmp_path / "weights.safetensors"
    for body in (plain[0][8:], b"", b"{}", b"[" * 10_000):
        path.write_bytes(struct.pack("<Q", length) + body)
        with pytest.raises(TeacherError, match=str(path)):
            read_weights("test_resnet", path)
        tally("damaged weights")


@given(data=st.binary(max_size=400), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_as_weights(tmp_path, tally, data, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(TeacherError, match=str(path)):
        read_weights("test_resnet", path)
    tally("damaged weights")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file(tmp_path, saved, tally, suffix):
    """A pipe or a device would be read for ever."""
    path = tmp_path / f"weights{suffix}"
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        make()
        with pytest.raises(TeacherError, match="do not exist"):
            read_weights("test_resnet", path)
        for name in (WEIGHTS, SETTINGS):
            kept = (saved / name).rename(tmp_path / "kept")
            path.rename(saved / name)
            with pytest.raises(DetectorError, match=name):
                Detector.load(saved, "cpu")
            (saved / name).rename(path)
            kept.rename(saved / name)
        path.rmdir() if path.is_dir() else path.unlink()
        tally("damaged weights", 3)


# ---- weights of something else ---------------------------------------------------------------------------

FIRST = "conv1.0.weight"  # of test_resnet
CHANGES = {
    "missing": (lambda s: s.pop(FIRST), "1 tensors are missing.*conv1.0.weight"),
    "nothing there": (lambda s: s.clear(), "tensors are missing .*more"),
    "only others": (lambda s: (s.clear(), s.update(x=torch.ones(1))), "missing.*others in the file: x"),
    "another shape": (lambda s: s.update({FIRST: s[FIRST][:, :1].clone()}), "1 tensors are of another shape"),
    "flat": (lambda s: s.update({FIRST: s[FIRST].flatten()}), "1 tensors are of another shape"),
    "whole numbers": (lambda s: s.update({FIRST: s[FIRST].int()}), "1 tensors are of another type"),
    "truth values": (lambda s: s.update({FIRST: s[FIRST] > 0}), "1 tensors are of another type"),
    "complex numbers": (lambda s: s.update({FIRST: s[FIRST].cfloat()}), "1 tensors are of another type"),
    "eight bits": (lambda s: s.update({FIRST: s[FIRST].to(torch.float8_e5m2)}), "are of another type"),
    "NaN": (lambda s: s[FIRST].view(-1)[3:4].fill_(math.nan), "1 tensors hold NaN or infinity.*conv1.0"),
    "infinity": (lambda s: s[FIRST].view(-1)[:1].fill_(-math.inf), "1 tensors hold NaN or infinity"),
    "several": (
        lambda s: (s.pop(FIRST), s.update({"conv1.3.weight": torch.ones(2)})),
        "1 tensors are missing .*; 1 tensors are of another shape",
    ),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("spoil, message", CHANGES.values(), ids=CHANGES)
def test_teacher_weights_of_something_else(tmp_path, state, tally, spoil, message, suffix):
    own = {name: tensor.clone() for name, tensor in state.items()}
    spoil(own)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(save(own) if suffix == ".safetensors" else torch_file({"state_dict": own}, True))
    with pytest.raises(TeacherError, match=rf"{path} do not belong to 'test_resnet'.*{message}"):
        build_teacher("test_resnet", str(path))
    tally("weights of something else")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_teacher_weights_of_any_precision(tmp_path, state, dtype):
    own = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_file(own, tmp_path / "weights.safetensors")
    teacher = build_teacher("test_resnet", str(tmp_path / "weights.safetensors"))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


ODD = {
    "list": [torch.ones(1)],
    "tensor": torch.ones(1),
    "numbered": {0: torch.ones(1)},
    "numbers": {"conv1.0.weight": 3.0},
    "text inside": {"state_dict": {"conv1.0.weight": "x"}},
    "text for a state": {"state_dict": "x", "model": 3},
    "nested": {"model": {"model": {"conv1.0.weight": torch.ones(1)}}},
    "sparse": {"conv1.0.weight": torch.ones(16, 3, 3, 3).to_sparse()},
    "without values": {"conv1.0.weight": torch.ones(16, 3, 3, 3, device="meta")},
    "vast by repetition": {"conv1.0.weight": torch.ones(1, dtype=torch.half).expand(10**6, 10**6)},
    "nothing": None,
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_torch_files_of_something_else(tmp_path, tally, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(TeacherError, match=str(path)):
        read_weights("test_resnet", path)
    tally("weights of something else")


# ---- saved detectors -------------------------------------------------------------------------------------

SMALL = {"position_channels": 8, "position_context": 0, "student": "encoder"}


@pytest.fixture(scope="module")
def teacher():
    return build_teacher("test_resnet", "random")


@pytest.fixture(scope="module")
def original(teacher, tmp_path_factory):
    return Detector(build_model(tiny_config(**SMALL), teacher)).save(tmp_path_factory.mktemp("original"))


@pytest.fixture
def saved(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "detector"))


@pytest.fixture
def quick(teacher, monkeypatch):
    """Detectors load with a copy of the teacher instead of building one each time."""
    monkeypatch.setattr("dmdd_lite.detector.empty_teacher", lambda *_: copy.deepcopy(teacher))


def settings_of(folder: Path) -> dict:
    return json.loads((folder / SETTINGS).read_text())


GAIN = "fusion.gain"
STATES = {
    "missing": (lambda s: s.pop(GAIN), "1 tensors are missing .fusion.gain"),
    "extra": (lambda s: s.update(x=torch.ones(1)), "1 tensors are extra .x"),
    "nothing there": (lambda s: s.clear(), "tensors are missing .*more"),
    "another shape": (lambda s: s.update({GAIN: torch.ones(2)}), "1 tensors are of another shape .fusion"),
    "whole numbers": (lambda s: s.update({GAIN: torch.tensor(2)}), "1 tensors are of another type .fusion"),
    "half precision": (lambda s: s.update({GAIN: s[GAIN].half()}), "1 tensors are of another type"),
    "NaN": (lambda s: s.update({GAIN: torch.tensor(math.nan)}), "1 tensors hold NaN or infinity .fusion"),
    "infinity": (lambda s: s["teacher.std"].fill_(math.inf), "1 tensors hold NaN or infinity .teacher.std"),
    "several": (lambda s: (s.pop(GAIN), s.update(x=torch.ones(1))), "are missing.*1 tensors are extra"),
}


@pytest.mark.parametrize("spoil, message", STATES.values(), ids=STATES)
def test_detectors_with_tensors_of_something_else(saved, quick, tally, spoil, message):
    state = load_file(saved / WEIGHTS)
    spoil(state)
    save_file(state, saved / WEIGHTS)
    with pytest.raises(DetectorError, match=rf"{saved / WEIGHTS} does not fit.*{message}"):
        Detector.load(saved, "cpu")
    tally("weights of something else")


def test_damaged_weights_of_detectors(saved, quick, depth, tally):
    data = (saved / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    cuts = spread(0, header, depth(20, 600)) + spread(header, len(data), depth(5, 100))
    for cut in cuts:
        (saved / WEIGHTS).write_bytes(data[:cut])
        with pytest.raises(DetectorError, match=rf"{saved / WEIGHTS} cannot be read"):
            Detector.load(saved, "cpu")
    flips = spread(0, 8 * header, depth(15, 300))
    for bit in flips:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        (saved / WEIGHTS).write_bytes(broken)
        with suppress(DetectorError):
            Detector.load(saved, "cpu")
    tally("damaged weights", len(cuts) + len(flips))


def change(*where, **values):
    """A change of settings.json, or of the part of it that is named."""

    def apply(settings: dict):
        for name in where:
            settings = settings[name]
        settings.update(values)

    return apply


def options(**values):
    return change("config", teacher_options=values)


SETTINGS_CHANGES = {
    "newer format": (change(format=6), "format 6, not 5; .*update dmdd_lite if it is newer"),
    "older format": (change(format=1), "format 1, not 5; train it again"),
    "no format": (lambda s: s.pop("format"), "lacks 'format'"),
    "another format": (change(format="x" * 10**5), "format"),
    "newer field": (change("config", shiny=True), "field shiny.*newer version.*update dmdd_lite"),
    "no threshold": (lambda s: s.pop("threshold"), "lacks 'threshold'"),
    "NaN": (change(threshold=math.nan), "threshold must be a finite number"),
    "infinity": (change(threshold=math.inf), "threshold must be a finite number"),
    "too large": (change(threshold=10**400), "configuration"),
    "text for a number": (change(threshold="0.5"), "threshold must be a finite number"),
    "truth for a number": (change(threshold=True), "threshold must be a finite number"),
    "no configuration": (lambda s: s.pop("config"), "lacks 'config'"),
    "list": (change(config=[]), "configuration"),
    "list of names": (change(config=["seed"]), "configuration"),
    "NaN in a field": (change("config", learning_rate=math.nan), "learning_rate"),
    "text in a field": (change("config", image_size="64"), "image_size must be int"),
    "too large a number": (change("config", learning_rate=10**400), "configuration"),
    "vast images": (change("config", image_size=64 * 10**7), "image_size|network"),
    "larger images": (change("config", image_size=2048), "another shape"),
    "vast student": (change("config", student_width=10**9), "student_width|network"),
    "wider fusion": (change("config", fusion_width=1024), "another shape"),
    "another fusion": (change("config", fusion="weighted"), "are missing|are extra"),
    "hub": (change("config", teacher="hf-hub:evil/resnet18"), "no model 'hf-hub:evil/resnet18'"),
    "hub, spelt otherwise": (change("config", teacher="hf_hub:evil/test_resnet"), "no model"),
    "folder": (change("config", teacher="local-dir:/tmp/evil"), "no model 'local-dir:/tmp/evil'"),
    "hub behind a dot": (change("config", teacher="test_resnet.hf-hub:evil/x"), "test_resnet.hf-hub:evil/x"),
    "path": (change("config", teacher="../../evil"), "no model"),
    "NUL": (change("config", teacher="\0"), "no model"),
    "pattern": (change("config", teacher="[*"), "no model"),
    "checkpoint": (options(checkpoint_path="evil.pth"), "may not hold checkpoint_path"),
    "pretrained": (options(pretrained=True), "may not hold pretrained"),
    "address": (options(pretrained_cfg={"url": "http://127.0.0.1:9/x"}), "may not hold pretrained_cfg"),
    "overlay": (options(pretrained_cfg_overlay={"file": "evil.pth"}), "may not hold pretrained_cfg_overlay"),
    "cache": (options(cache_dir="/tmp/evil"), "may not hold cache_dir"),
    "no features": (options(features_only=False), "may not hold features_only"),
    "function by name": (options(act_layer="os.system"), "cannot build"),
    "unknown option": (options(shiny=1), "teacher_options not taken"),
    "twice given": (options(model_name="resnet18"), "teacher_options not taken"),
    "grey": (options(in_chans=1), "in_chans"),
    "text for colours": (options(mean="abc"), "three numbers"),
    "NaN for colours": (options(mean=[math.nan] * 3), "three numbers|teacher_options"),
    "nothing for spread": (options(std=[0, 0, 0]), "three numbers above 0"),
    "wrong features": (options(out_indices=[0, 1, 2]), "strides"),
    "no such features": (options(out_indices=[7, 8, 9]), "cannot build|network"),
    "no features at all": (options(out_indices="abc"), "teacher_options not taken"),
}


@pytest.mark.parametrize("spoil, message", SETTINGS_CHANGES.values(), ids=SETTINGS_CHANGES)
def test_settings_of_strangers(saved, tally, spoil, message):
    settings = settings_of(saved)
    spoil(settings)
    (saved / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(DetectorError, match=rf"{saved / SETTINGS}.*({message})"), only_reading(saved):
        Detector.load(saved, "cpu")
    tally("settings of strangers")


TEXTS = {
    "nothing": b"",
    "text": b"hello",
    "list": b"[1]",
    "number": b"3",
    "nothing at all": b"null",
    "not UTF-8": b"\xff\xfe{}",
    "half": b'{"format": 2, "threshold": 0.5, "config": {',
    "deep list": b"[" * 200_000,
    "deep object": b'{"config":' * 200_000,
    "long number": b'{"format": 2, "threshold": ' + b"9" * 10_000 + b"}",
    "pickle": pickle.dumps(Calls(print, "run")),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_settings_that_are_no_settings(saved, tally, text):
    (saved / SETTINGS).write_bytes(text)
    with pytest.raises(DetectorError, match=rf"{saved / SETTINGS} is not a detector's configuration"):
        Detector.load(saved, "cpu")
    tally("settings of strangers")


def test_nothing_but_the_folder_is_read(saved, canary, tmp_path, tally):
    """Neither weights that the configuration names nor any beside the two files."""
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(payloads(canary)["exec"]))
    for name in ("model.pth", "pytorch_model.bin", "__init__.py", "model.py", "config.pkl"):
        shutil.copy(evil, saved / name)
    settings = settings_of(saved)
    for weights in (str(evil), "", "http://127.0.0.1:9/x.pth"):
        settings["config"]["teacher_weights"] = weights
        (saved / SETTINGS).write_text(json.dumps(settings))
        with only_reading(saved):
            assert Detector.load(saved, "cpu").config.teacher_weights == weights
        tally("settings of strangers")
    assert not canary.exists()


def test_the_watch_sees(tmp_path, saved):
    """`only_reading` can fail."""
    for act in (
        lambda: open(tmp_path / "other", "w").close(),
        lambda: pickle.loads(pickle.dumps(Path("x"))),
        lambda: os.system("true"),
        lambda: socket.socket().connect_ex(("127.0.0.1", 9)),
    ):
        with pytest.raises(AssertionError), only_reading(saved):
            act()


def test_an_older_configuration_lacks_fields(saved, quick):
    """They have their defaults: right if those make the same network, else an error."""
    settings = settings_of(saved)
    settings["config"].pop("smoothing_sigma")
    (saved / SETTINGS).write_text(json.dumps(settings))
    assert Detector.load(saved, "cpu").config.smoothing_sigma == Config().smoothing_sigma
    settings["config"].pop("position_channels")
    (saved / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(DetectorError, match=r"another shape .*position"):
        Detector.load(saved, "cpu")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner))
FIELDS = st.sampled_from([*Config().to_dict(), "format", "threshold", "config", "x"])
NAMED = (
    *("channels", "stem_width", "out_indices", "mean", "std", "pad_type", "checkpoint_path", "cache_dir"),
    *("pretrained_cfg", "features_only", "act_layer", "norm_layer", "drop_rate", "aa_layer", "block"),
)
VALUES = SCALARS | st.lists(st.integers(-3, 9), max_size=4) | st.sampled_from(["relu", "evil.pth", "avg"])
OPTIONS = st.dictionaries(st.sampled_from(NAMED), VALUES, max_size=2)


@given(changes=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3), options=OPTIONS)
def test_any_settings(original, tmp_path_factory, tally, changes, options):
    """An error of the package, or a detector that was loaded from these two files."""
    folder = tmp_path_factory.mktemp("any")
    (folder / WEIGHTS).symlink_to(original / WEIGHTS)
    settings = settings_of(original)
    for name, value in changes.items():
        (settings if name in ("format", "threshold", "config") else settings["config"])[name] = value
        if not isinstance(settings["config"], dict):
            break
    else:
        settings["config"].setdefault("teacher_options", {})
        if options:
            settings["config"]["teacher_options"] = options
    (folder / SETTINGS).write_text(json.dumps(settings))
    with suppress(DetectorError), only_reading(folder):
        assert math.isfinite(Detector.load(folder, "cpu").threshold)
    tally("settings of strangers")


# ---- the package's own source -----------------------------------------------------------------------------

MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
CALLS |= {"torch.jit.load", "torch.hub.load", "torch.export.load"}


def dangers(source: str) -> list[str]:
    """Lines of Python that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").partition(".")[0]]
        bad = any(name in MODULES for name in names)
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            bad |= called in CALLS or called.endswith((".extractall", "_pickle"))
            bad |= called == "torch.load" and given.get("weights_only") != "True"
            bad |= given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False"
            bad |= given.get("trust_remote_code", "False") != "False"
        if bad:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


SNIPPETS = (
    *("import pickle", "from pickle import loads", "import yaml", "eval(x)", "exec(x)", "os.system(x)"),
    *("torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)"),
    *("tar.extractall(x)", "subprocess.run(x, shell=True)", "pd.read_pickle(x)", "f(trust_remote_code=True)"),
)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_dangers_are_seen(snippet):
    assert dangers(snippet)


def test_the_source_runs_no_file(tally):
    folders = [PACKAGE.parent / part for part in ("dmdd_lite", "tools", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 60
    assert {str(p): found for p in files if (found := dangers(p.read_text(encoding="utf-8")))} == {}
    harmless = "torch.load(x, weights_only=True); ast.literal_eval(x); model.eval(); torch.compile(x)"
    assert dangers(harmless) == []
    tally("source files searched", len(files))
