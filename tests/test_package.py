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


def test_everything_exported_is_there_and_where_it_is_defined():
    assert set(dmdd_lite.__all__) <= set(dir(dmdd_lite))
    for name in dmdd_lite.__all__:
        assert getattr(dmdd_lite, name) is not None
    assert dmdd_lite.Detector.__module__ == "dmdd_lite.detector"
    with pytest.raises(AttributeError, match="no attribute 'detect'"):
        dmdd_lite.detect  # noqa: B018


@pytest.mark.parametrize(
    "module", ["dmdd_lite", "dmdd_lite.config", "dmdd_lite.metrics", "dmdd_lite.samples"]
)
def test_light_modules_do_not_import_pytorch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools")
def test_a_wheel_brings_the_notebook_that_its_commands_run(tmp_path):
    checkout, tree = Path(__file__).parent.parent, tmp_path / "tree"
    for name in ("dmdd_lite", "notebooks"):
        shutil.copytree(checkout / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(checkout / name, tree)
    build = [
        sys.executable,
        "-c",
        "from setuptools.build_meta import *; import sys; build_wheel(sys.argv[1])",
    ]
    subprocess.run([*build, tmp_path], cwd=tree, check=True, capture_output=True)
    installed = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)

    told = "from dmdd_lite.reproduce.notebook import REPRODUCTION; print(REPRODUCTION, end='')"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-c", told],
        cwd=tmp_path,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    notebook = Path(ran.stdout)
    assert notebook.is_relative_to(installed)
    assert notebook.read_bytes() == (checkout / "notebooks/05_mvtec_reproduction.ipynb").read_bytes()
