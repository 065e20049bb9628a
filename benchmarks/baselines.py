"""Other methods beside ours: anomalib's PatchCore, PaDiM and STFPM with our teacher, images and metrics.

    python -m venv other && other/bin/pip install -e '.[baselines]'
    other/bin/python benchmarks/baselines.py --data bottle=data/mvtec_ad/bottle --teacher mobilenetv2_100 \\
        --teacher-weights weights.safetensors --set \\
        'teacher_options={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "pad_type": "same"}'

The models are anomalib's own, their maps and image scores too; what they see are the features of our frozen
teacher, from the same file and with the same normalisation, and images of the same size. They learn from all
of train/good, with nothing held out. Results go to <out>/<baseline>_<data>_seed<seed>.json, in the shape
of the ablation's, and are not made again.
"""

import argparse
import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from ablation import Data
from ablation_report import collect
from single_map import Run, common_parser, config_of, data_table, make_open, result_of
from torch import Tensor, nn

from dmdd_lite.config import Config
from dmdd_lite.data.images import load_images
from dmdd_lite.data.layout import open_category
from dmdd_lite.teacher import Teacher, build_teacher, untrained_network
from dmdd_lite.utils import resolve_device


class Baseline(NamedTuple):
    """model: class and module within anomalib.models.image; scales: which of the teacher's three it reads, as
    anomalib's default does; settings: options of this script that its result depends on."""

    module: str
    model: str
    scales: tuple[int, ...]
    settings: tuple[str, ...] = ()


BASELINES = {
    "patchcore": Baseline("patchcore", "PatchcoreModel", (1, 2), ("coreset",)),
    "padim": Baseline("padim", "PadimModel", (0, 1, 2), ("features",)),
    "stfpm": Baseline("stfpm", "STFPMModel", (0, 1, 2), ("iterations", "batch_size")),
}


# ---- anomalib's models on our teacher -----------------------------------------------------------------


class Features(nn.Module):
    """Stands in for anomalib's TimmFeatureExtractor: images (B, 3, H, W) in [0, 1] -> features by layer, of
    the frozen teacher, or with requires_grad of an untrained network like it."""

    def __init__(self, config: Config, teacher: Teacher, layers, requires_grad: bool = False):
        super().__init__()
        self.layers = list(layers)
        self.out_dims = [teacher.info.channels[layer] for layer in layers]
        self.teacher = teacher
        own = untrained_network(config.teacher, config.teacher_options) if requires_grad else None
        self.network = own

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        if self.network is None:
            features = self.teacher(images)
        else:
            features = self.network((images - self.teacher.mean) / self.teacher.std)
        return {layer: features[layer] for layer in self.layers}


def build_baseline(name: str, config: Config, teacher: Teacher, **options) -> nn.Module:
    """anomalib's model with our features in place of its extractor's; options: further ones of its own."""
    baseline = BASELINES[name]
    module = importlib.import_module(f"anomalib.models.image.{baseline.module}.torch_model")

    def features(backbone, layers, pre_trained=True, requires_grad=False):
        return Features(config, teacher, layers, requires_grad)

    with mock.patch.object(module, "TimmFeatureExtractor", features):
        return getattr(module, baseline.model)(backbone=config.teacher, layers=baseline.scales, **options)


def fit_patchcore(config, teacher, images: Tensor, options) -> nn.Module:
    """A memory of the share `coreset` of all patches."""
    model = build_baseline("patchcore", config, teacher).to(images.device).train()
    remember(model, images)
    model.subsample_embedding(options.coreset)
    return model


def fit_padim(config, teacher, images: Tensor, options) -> nn.Module:
    """A Gaussian at every position over `features` random channels."""
    model = build_baseline("padim", config, teacher, n_features=options.features).to(images.device).train()
    remember(model, images)
    model.fit()
    return model


@torch.no_grad()
def remember(model: nn.Module, images: Tensor):
    """Show the model all training images, uint8 (N, 3, S, S), once."""
    for batch in images.split(8):
        model(batch.float() / 255)


def fit_stfpm(config, teacher, images: Tensor, options) -> nn.Module:
    """A student of the teacher's structure, trained as anomalib does (SGD 0.4, momentum 0.9, decay 0.001)."""
    loss = importlib.import_module("anomalib.models.image.stfpm.loss").STFPMLoss()
    model = build_baseline("stfpm", config, teacher).to(images.device).train()
    student = model.student_model.network.parameters()
    optimizer = torch.optim.SGD(student, lr=0.4, momentum=0.9, weight_decay=0.001)
    rng = torch.Generator().manual_seed(config.seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(options.iterations):
        while len(order) < options.batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=rng)])
        chosen, order = order[: options.batch_size], order[options.batch_size :]
        optimizer.zero_grad()
        loss(*model(images[chosen.to(images.device)].float() / 255)).backward()
        optimizer.step()
    return model


FIT: dict[str, Callable] = {"patchcore": fit_patchcore, "padim": fit_padim, "stfpm": fit_stfpm}


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Maps (N, S, S) and image scores (N,) of uint8 images (N, 3, S, S), as the model itself gives them."""
    maps, scores = [], []
    for batch in images.split(4):
        found = model.eval()(batch.float() / 255)
        maps.append(found.anomaly_map[:, 0].cpu())
        scores.append(found.pred_score.flatten().cpu())
    return torch.cat(maps).numpy(), torch.cat(scores).numpy()


# ---- runs and their results ---------------------------------------------------------------------------


def settings_of(name: str, data: Data, config: Config, options) -> dict:
    """What a result depends on; the weights file by its name."""
    kept = ("teacher", "teacher_options", "image_size", "seed")
    values = {field: config.to_dict()[field] for field in kept}
    values["teacher_weights"] = Path(config.teacher_weights).name
    values |= {option: getattr(options, option) for option in BASELINES[name].settings}
    return {"row": name, "data": data.name, "category": data.category, "settings": values}


def run_baseline(name: str, data: Data, config: Config, options) -> dict:
    """Fit and evaluate one baseline. Raises ImportError without anomalib, DataError or TeacherError."""
    device, category = resolve_device(options.device), open_category(data.root, data.category)
    teacher = build_teacher(config.teacher, config.teacher_weights, config.teacher_options).to(device)
    images = load_images(category.train, config.image_size, None).to(device)
    torch.manual_seed(config.seed)
    began = time.perf_counter()
    model = FIT[name](config, teacher, images, options)
    seconds = time.perf_counter() - began
    shown = load_images([test.path for test in category.test], config.image_size, None).to(device)
    maps, scores = predict(model, shown)
    return result_of(settings_of(name, data, config, options), category, maps, scores, seconds, device)


def table(folder: Path) -> str:
    """Markdown of all results of a folder, a part a data set."""
    results = collect(folder)
    return "\n\n".join(data_table(results, data) for data in dict.fromkeys(results["data"]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.set_defaults(teacher="mobilenetv2_100", out=Path("results/baselines"))
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--coreset", type=float, default=0.01, help="PatchCore: share of patches kept")
    parser.add_argument("--features", type=int, default=100, help="PaDiM: channels kept")
    parser.add_argument("--iterations", type=int, default=300, help="STFPM")
    parser.add_argument("--batch-size", type=int, default=8, help="STFPM")
    return parser.parse_args(arguments)


def configurations(options: argparse.Namespace) -> list[Config]:
    """One a seed. Raises ValueError or TypeError naming a field."""
    base = config_of(options)
    return [base.replace(seed=seed) for seed in options.seeds]


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Every baseline on every data set, seed by seed."""
    for config in configurations(options):
        for data in options.data:
            for name in options.baselines:
                settings = settings_of(name, data, config, options)
                yield settings, partial(run_baseline, name, data, config, options)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all there, 2 something is missing or wrong."""
    options = parse(arguments)
    try:
        return make_open(options.out, runs(options), table)
    except ModuleNotFoundError as error:
        print(f"{error}: pip install 'dmdd-lite[baselines]', in an environment of its own", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
