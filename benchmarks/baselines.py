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
import sys
import time
from itertools import product
from pathlib import Path
from unittest import mock

import grid
import numpy as np
import torch
from ablation_report import collect, quality_table
from grid import Data, run_name
from torch import Tensor, nn

from dmdd_lite.backbones.networks import TeacherError, untrained_network
from dmdd_lite.config import Config
from dmdd_lite.data.images import load_images
from dmdd_lite.data.layout import open_category
from dmdd_lite.data.masks import load_masks
from dmdd_lite.metrics import evaluate_maps
from dmdd_lite.tables import PROTOCOL
from dmdd_lite.teacher import Teacher, build_teacher
from dmdd_lite.utils import describe, resolve_device, write_json

MAP = "map"  # the one map of a baseline


#: class of anomalib, which of the teacher's three scales it reads (as anomalib's default does), and the
#: options of this script that its result depends on
BASELINES = {
    "patchcore": ("PatchcoreModel", (1, 2), ("coreset",)),
    "padim": ("PadimModel", (0, 1, 2), ("features",)),
    "stfpm": ("STFPMModel", (0, 1, 2), ("iterations", "batch_size")),
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
        self.network = None
        if requires_grad:
            self.network = untrained_network(config.teacher, config.teacher_options, config.image_size)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        if self.network is None:
            features = self.teacher(images)
        else:
            features = self.network((images - self.teacher.mean) / self.teacher.std)
        return {layer: features[layer] for layer in self.layers}


def build_baseline(name: str, config: Config, teacher: Teacher, **options) -> nn.Module:
    """anomalib's model with our features in place of its extractor's; options: further ones of its own."""
    model, scales, _ = BASELINES[name]
    module = importlib.import_module(f"anomalib.models.image.{name}.torch_model")

    def features(backbone, layers, pre_trained=True, requires_grad=False):
        return Features(config, teacher, layers, requires_grad)

    with mock.patch.object(module, "TimmFeatureExtractor", features):
        return getattr(module, model)(backbone=config.teacher, layers=scales, **options)


def fit(name: str, config: Config, teacher: Teacher, images: Tensor, options) -> nn.Module:
    """The model that has seen all training images, uint8 (N, 3, S, S): PatchCore keeps a share of the
    patches, PaDiM a Gaussian at every position over some random channels, STFPM trains a student."""
    more = {"n_features": options.features} if name == "padim" else {}
    model = build_baseline(name, config, teacher, **more).to(images.device).train()
    if name == "stfpm":
        return train_stfpm(model, images, config.seed, options)
    with torch.no_grad():
        for batch in images.split(8):
            model(batch.float() / 255)
    if name == "patchcore":
        model.subsample_embedding(options.coreset)
    else:
        model.fit()
    return model


def train_stfpm(model: nn.Module, images: Tensor, seed: int, options) -> nn.Module:
    """As anomalib does (SGD 0.4, momentum 0.9, decay 0.001)."""
    loss = importlib.import_module("anomalib.models.image.stfpm.loss").STFPMLoss()
    student = model.student_model.network.parameters()
    optimizer = torch.optim.SGD(student, lr=0.4, momentum=0.9, weight_decay=0.001)
    rng = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(options.iterations):
        while len(order) < options.batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=rng)])
        chosen, order = order[: options.batch_size], order[options.batch_size :]
        optimizer.zero_grad()
        loss(*model(images[chosen.to(images.device)].float() / 255)).backward()
        optimizer.step()
    return model


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
    values |= {option: getattr(options, option) for option in BASELINES[name][2]}
    data_set = {"data": data.name, "category": data.category, "files": grid.files_of(data)}
    return {"row": name, **data_set, "settings": values}


def run_baseline(name: str, data: Data, config: Config, options) -> dict:
    """Fit and evaluate one baseline. Raises ImportError without anomalib, DataError or TeacherError."""
    device, category = resolve_device(options.device), open_category(data.root, data.category)
    teacher = build_teacher(
        config.teacher, config.teacher_weights, config.teacher_options, image_size=config.image_size
    ).to(device)
    depth = category.depth
    images = load_images(category.train, config.image_size, None, depth).to(device)
    torch.manual_seed(config.seed)
    began = time.perf_counter()
    model = fit(name, config, teacher, images, options)
    seconds = time.perf_counter() - began
    shown = load_images([test.path for test in category.test], config.image_size, None, depth).to(device)
    maps, scores = predict(model, shown)
    masks = load_masks(category.test, config.image_size, None).numpy()
    return {
        **settings_of(name, data, config, options),
        "seed": config.seed,
        "protocol": PROTOCOL,
        "metrics": {MAP: evaluate_maps(maps, masks, scores, category.labels, None, category.outlined)},
        "zones": grid.zone_recalls({MAP: maps}, masks),
        "seconds": round(seconds, 1),
        **describe(device),
        "images": {"train": len(category.train), "test": len(masks)},
    }


def table(folder: Path) -> str:
    """Markdown of all results of a folder, a part a data set."""
    results = collect(folder)
    tables = {data: quality_table(results, data, MAP) for data in dict.fromkeys(results["data"])}
    parts = (f"## {data}\n\n{found.to_markdown(disable_numparse=True)}" for data, found in tables.items())
    return "\n\n".join(parts)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """coreset: the share of patches that PatchCore keeps; features: channels that PaDiM keeps; iterations and
    batch-size are STFPM's."""
    parser = grid.common_parser(__doc__, "results/baselines", coreset=0.01, features=100)
    parser.set_defaults(teacher="mobilenetv2_100", iterations=300, batch_size=8)
    parser.add_argument("--baselines", nargs="+", choices=BASELINES, default=list(BASELINES))
    return parser.parse_args(arguments)


def configurations(options: argparse.Namespace) -> list[Config]:
    """One a seed. Raises ValueError or TypeError naming a field."""
    base = grid.base_config(options)
    return [base.replace(seed=seed) for seed in options.seeds]


def complete(options: argparse.Namespace):
    """Make the results that are not there, seed by seed. Raises as `run_baseline` and `grid.read_values`."""
    for config, data, name in product(configurations(options), options.data, options.baselines):
        path = options.out / f"{run_name(name, data.name, config.seed)}.json"
        if grid.read_values(path, settings_of(name, data, config, options)) is None:
            write_json(path, run_baseline(name, data, config, options))
            print(f"wrote {path}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all there, 2 something is missing or wrong."""
    options = parse(arguments)
    try:
        complete(options)
        print(table(options.out))
    except ModuleNotFoundError as error:
        print(f"{error}: pip install 'dmdd-lite[baselines]', in an environment of its own", file=sys.stderr)
        return 2
    except (ValueError, TypeError, TeacherError) as error:  # a DataError is a ValueError
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
