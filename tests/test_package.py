"""The package's front door: what it exports, and what importing it costs."""

import subprocess
import sys

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
