"""The package's front door: what it exports, and what importing it costs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dmdd_lite

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


def test_light_modules_need_no_pytorch_and_the_explorer_no_ipywidgets():
    light = "import sys, dmdd_lite, dmdd_lite.config, dmdd_lite.metrics, dmdd_lite.data.samples"
    python(f"{light}; assert 'torch' not in sys.modules")
    python("import sys; sys.modules['ipywidgets'] = None; import dmdd_lite.explorer")


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools")
def test_a_wheel_brings_the_notebook_that_its_commands_run_and_the_samples(tmp_path):
    source, installed = tmp_path / "tree", tmp_path / "installed"
    for name in ("dmdd_lite", "notebooks"):
        shutil.copytree(
            CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, source)
    build = "from setuptools.build_meta import *; import sys; build_wheel(sys.argv[1])"
    python(build, tmp_path, cwd=source, stderr=subprocess.DEVNULL)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    told = "from dmdd_lite.reproduce.notebook import REPRODUCTION; print(REPRODUCTION, end='')"
    notebook = Path(python(told, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}))
    assert notebook.is_relative_to(installed)
    assert notebook.read_bytes() == (CHECKOUT / "notebooks" / notebook.name).read_bytes()
    pictures = {path.relative_to(CHECKOUT) for path in (CHECKOUT / "dmdd_lite/data/samples").glob("*/*/*/*")}
    assert pictures <= {path.relative_to(installed) for path in installed.rglob("*")}
