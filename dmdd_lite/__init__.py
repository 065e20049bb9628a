"""dmdd-lite: learn, run and reproduce Dual-Modeling Decouple Distillation (ACM MM 2024).

Modules by chapter: teacher, samples and data (01); synthesis (02); student and losses (03); fusion (04);
training, evaluation, metrics and detector (05); config holds every choice with its origin.
"""

from .config import Config
from .data import open_category
from .detector import Detector, Prediction
from .evaluation import evaluate
from .training import train
from .version import __version__

__all__ = ["Config", "Detector", "Prediction", "__version__", "evaluate", "open_category", "train"]
