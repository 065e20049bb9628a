"""The package's front door: what it exports, and what importing it costs."""

import ast
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


def test_light_modules_need_no_pytorch_and_the_explorer_no_widgets():
    light = "import sys, dmdd_lite, dmdd_lite.config, dmdd_lite.metrics, dmdd_lite.data.samples"
    python(f"{light}; assert 'torch' not in sys.modules")
    none = "import sys; sys.modules['ipywidgets'] = sys.modules['anywidget'] = None"
    python(f"{none}; import dmdd_lite.explorer")


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


METHOD = ("teacher", "student", "losses", "pairs", "msn", "model")
ALONE = """
import sys
from builders import train_tiny
made = train_tiny(sys.argv[1], iterations=2, plus=None)
assert set(made.detector.thresholds) == {"fused", "normality", "abnormality", "sum"}
print(*[name for name in sys.modules if name.startswith("dmdd_lite.plus.")])
"""


@pytest.mark.parametrize("module", METHOD)
def test_the_method_never_imports_dmdd_plus(module):
    """Neither at once nor in a function; of the package it imports nothing that does."""
    seen, open_ = set(), [f"dmdd_lite.{module}"]
    while open_:
        name = open_.pop()
        path = CHECKOUT.joinpath(*name.split(".")).with_suffix(".py")
        if name in seen or not path.is_file():  # a name within a module
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*name.split(".")[: -node.level], *(node.module or "").split(".")]
                base = ".".join(filter(None, base))
                open_ += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    assert len(seen) > 1 or module == "losses"
    plus = {name for name in seen if name.startswith("dmdd_lite.plus")}
    assert plus <= {"dmdd_lite.plus.config"}  # through `config`, which reads its fields


def test_dmdd_alone_trains_without_dmdd_plus(root):
    paths = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tests")))
    told = python(ALONE, str(root), env=os.environ | {"PYTHONPATH": paths})
    assert not {"dmdd_lite.plus.fusion", "dmdd_lite.plus.statistics"} & set(told.split())
