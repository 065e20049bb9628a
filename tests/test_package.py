"""The package's front door: what it exports, and what importing it costs."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dmdd_lite
from dmdd_lite.data.samples import samples_root, undamaged

CHECKOUT = Path(__file__).parent.parent


def python(code: str, *arguments, **options) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def test_everything_exported_is_there_and_where_it_is_defined():
    assert set(dmdd_lite.__all__) <= set(dir(dmdd_lite))
    for name in dmdd_lite.__all__:
        assert getattr(dmdd_lite, name) is not None
    assert dmdd_lite.Detector.__module__ == "dmdd_lite.detector"
    with pytest.raises(AttributeError, match="no attribute 'detect'"):
        dmdd_lite.detect  # noqa: B018


def test_light_modules_need_no_pytorch_and_the_explorer_no_widgets():
    light = "import sys, dmdd_lite, dmdd_lite.config, dmdd_lite.metrics, dmdd_lite.data.samples"
    python(f"{light}; assert 'torch' not in sys.modules")
    none = "import sys; sys.modules['ipywidgets'] = sys.modules['anywidget'] = None"
    python(f"{none}; import dmdd_lite.explorer")


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools")
def test_a_wheel_brings_the_notebook_that_its_commands_run_and_the_samples(tmp_path):
    source, installed = tmp_path / "tree", tmp_path / "installed"
    for name in ("dmdd_lite", "notebooks"):
        left_out = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(CHECKOUT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, source)
    build = "from setuptools.build_meta import *; import sys; build_wheel(sys.argv[1])"
    python(build, tmp_path, cwd=source, stderr=subprocess.DEVNULL)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    told = (
        "import dmdd_lite.explorer, dmdd_lite.course.plots, dmdd_lite.training, dmdd_lite.plus.fusion;"
        "from dmdd_lite.reproduce.notebook import REPRODUCTION; print(REPRODUCTION, end='')"
    )
    notebook = Path(python(told, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}))
    assert notebook.is_relative_to(installed)
    assert notebook.read_bytes() == (CHECKOUT / "notebooks" / notebook.name).read_bytes()
    pictures = {path.relative_to(CHECKOUT) for path in (CHECKOUT / "dmdd_lite/data/samples").glob("*/*/*/*")}
    script = Path("dmdd_lite/explorer/canvas.js")
    assert {*pictures, script} <= {path.relative_to(installed) for path in installed.rglob("*")}


ALONE = """
import sys
from builders import train_tiny
made = train_tiny(sys.argv[1], iterations=2, plus=None)
assert set(made.detector.thresholds) == {"fused", "normality", "abnormality", "sum"}
print(*[name for name in sys.modules if name.startswith("dmdd_lite.plus.")])
"""


def test_dmdd_alone_trains_without_dmdd_plus(root):
    paths = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tests")))
    told = python(ALONE, str(root), env=os.environ | {"PYTHONPATH": paths})
    assert "dmdd_lite.plus." not in told


SHA256 = "e03e1839ba15de94a22307e1c683edc08ff2a630912ca9c1da04616066a98d83"


def test_every_byte_is_the_committed_one():
    files = sorted(samples_root().glob("*/*/*/*"), key=Path.as_posix)
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.relative_to(samples_root()).as_posix().encode() + path.read_bytes())
    assert whole.hexdigest() == SHA256
    assert len(files) == 732
    assert sum(path.stat().st_size for path in files) < 12e6


def test_an_image_without_a_twin_is_told():
    with pytest.raises(ValueError, match=r"004\.jpg: no undamaged"):
        undamaged(samples_root() / "pcb/test/scratch/004.jpg")
