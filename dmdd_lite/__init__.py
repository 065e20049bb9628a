"""dmdd-lite: learn, run and reproduce Dual-Modeling Decouple Distillation (ACM MM 2024).

The method is in seven files of this folder: teacher, student, losses, pairs, msn, model and training; config
holds its choices; detector, evaluation and metrics use it. `plus` holds what is ours alone, `backbones` the
networks of timm, `data` reads images, `course` has what the notebooks
call beside the method, `explorer` the widget, `reproduce` the whole table.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

# Read by OpenMP when PyTorch is imported: threads that wait give way after some microseconds. Where another
# process works on the same cores, those that go on spinning make a training many times slower; those that
# never spin make it a sixth slower where none does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from .config import Config
    from .data.layout import open_category
    from .detector import Detector
    from .evaluation import evaluate
    from .prediction import Prediction
    from .training import train

__all__ = ["Config", "Detector", "Prediction", "__version__", "evaluate", "open_category", "train"]

_HOMES = {
    "Config": "config",
    "Detector": "detector",
    "Prediction": "prediction",
    "evaluate": "evaluation",
    "open_category": "data.layout",
    "train": "training",
}


def __getattr__(name: str):
    """Import on first use: PyTorch and pandas take seconds, and many commands need neither."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
