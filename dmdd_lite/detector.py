"""A trained detector: load, predict, save. DMDD decides alone, or DMDD+ where it was fitted."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from .backbones.weights import WeightsError, misfits, read_tensors
from .config import Config
from .data.fingerprints import sha256
from .data.images import DataError, read_image, unit_range
from .data.layout import open_folder
from .model import DMDD, build_model, full_size_maps, image_scores
from .prediction import Prediction
from .teacher import empty_teacher
from .utils import autocast, resolve_device, write_atomically, write_json

WEIGHTS, SETTINGS, FORMAT = "model.safetensors", "config.json", 7
MAP_NAMES = ("fused", "normality", "abnormality", "sum", "plus", "position")


class DetectorError(RuntimeError):
    """A saved detector cannot be loaded; the message names the file and the remedy."""


def map_names(config: Config) -> tuple[str, ...]:
    """The maps of a detector with this configuration, of MAP_NAMES."""
    known = ("fused", "sum", *config.branches, *(() if config.plus is None else ("plus", "position")))
    return tuple(name for name in MAP_NAMES if name in known)


def decisive_map(config: Config) -> str:
    """The map whose image score decides: that of DMDD+ where there is one, else DMDD's."""
    return "fused" if config.plus is None else "plus"


class Detector:
    """Finds and outlines defects. model: the trained DMDD; plus: DMDD+ or None; thresholds: by map name,
    they separate good from anomalous image scores; held_out: number of the good images that gave them, 0 if
    none did; made_from: a hash each of training images, textures and teacher, see `data.fingerprints`, empty
    if it was not trained."""

    def __init__(
        self,
        model: DMDD,
        plus=None,
        thresholds: dict[str, float] | None = None,
        held_out: int = 0,
        made_from: dict[str, str] | None = None,
    ):
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.plus = None if plus is None else plus.eval()
        self.config = model.config
        self.thresholds = thresholds or dict.fromkeys(map_names(self.config), 0.5)
        self.held_out, self.made_from = held_out, made_from or {}

    @property
    def device(self) -> torch.device:
        return self.model.teacher.mean.device

    @property
    def threshold(self) -> float:
        """Of the map that decides."""
        return self.thresholds[decisive_map(self.config)]

    @property
    def expectation(self) -> str:
        """What the thresholds promise, in one sentence."""
        images = f"{self.held_out} held-out good image{'s' * (self.held_out != 1)}"
        return (
            f"threshold from {images}: expect about 1 false alarm in {self.held_out + 1} good images; "
            "raise holdout or add good images for fewer"
        )

    @classmethod
    def calibrated(
        cls, model: DMDD, plus, good: Tensor, made_from: dict[str, str] | None = None
    ) -> "Detector":
        """Thresholds = the highest scores of held-out good images, uint8 (N, 3, S, S). [ours] A further good
        image exceeds the highest of N about once in N + 1 times."""
        detector = cls(model, plus, None, len(good), made_from)
        found = [detector.device_maps(batch)[1] for batch in good.split(8)]
        names = map_names(model.config)
        detector.thresholds = {n: torch.cat([s[n] for s in found]).cpu().double().max().item() for n in names}
        return detector

    @torch.inference_mode()
    def output(self, images: Tensor):
        """The networks' own outputs, on their device, of images uint8 (B, 3, S, S): ModelOutput, and
        PlusOutput or None."""
        with autocast(self.device, self.config.precision):
            images = unit_range(images, self.device)
            features = self.model.teacher(images)
            output = self.model.of_features(images, features)
            return output, None if self.plus is None else self.plus(output.fused, features)

    def maps(self, images: Tensor):
        """Images uint8 (B, 3, S, S), S = image_size -> smoothed maps (B, S, S) and image scores (B,), by name
        on the CPU, and the networks' own outputs, as of `output`."""
        *found, outputs = self.device_maps(images)
        maps, scores = ({name: values.cpu() for name, values in part.items()} for part in found)
        return maps, scores, outputs

    @torch.inference_mode()
    def device_maps(self, images: Tensor):
        """What `maps` returns, all of it on the model's device, which may still be computing it."""
        outputs = output, plus = self.output(images)
        maps = full_size_maps(output, self.config)
        if plus is not None:
            from .plus.fusion import plus_maps

            maps |= plus_maps(plus, self.config)
        maps = {name: maps[name] for name in map_names(self.config)}
        return maps, {name: image_scores(m) for name, m in maps.items()}, outputs

    def predict(self, source, batch_size: int = 8) -> "Prediction | list[Prediction]":
        """Predict an image (path, PIL image, or array: uint8 or uint16, or float in [0, 1], (H, W[, 3 or 4]))
        -> Prediction; a folder (recursive) or a list of images -> list[Prediction], in order.

        Raises DataError for a file that cannot be read or a folder without images, ValueError for anything
        else that is no image.
        """
        if isinstance(source, str | Path) and os.path.isdir(source):
            return list(self.stream(open_folder(source, recursive=True), batch_size))
        if isinstance(source, list | tuple):
            return list(self.stream(source, batch_size))
        return next(self.stream([source]))

    def stream(self, images: Sequence, batch_size: int = 8) -> Iterator[Prediction]:
        """Predictions one by one, a batch of images in memory at a time: for folders of any length.

        Raises as `predict`, at the image's turn; TypeError unless images is a list, a tuple or an array.
        """
        if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
            raise TypeError(f"stream takes a list of images, not {type(images).__name__}; see predict")
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1, got {batch_size!r}")
        return self._stream(images, batch_size)

    def _stream(self, images: Sequence, batch_size: int) -> Iterator[Prediction]:
        for start in range(0, len(images), batch_size):
            sources = images[start : start + batch_size]
            originals = [_read(source, start + i, len(images)) for i, source in enumerate(sources, 1)]
            size = self.config.image_size
            batch = torch.stack([read_image(image.permute(1, 2, 0).numpy(), size) for image in originals])
            maps, scores, _ = self.maps(batch)
            for i, (source, image) in enumerate(zip(sources, originals, strict=True)):
                yield Prediction(
                    {name: values[i].numpy() for name, values in maps.items()},
                    {name: values[i].item() for name, values in scores.items()},
                    self.thresholds,
                    decisive_map(self.config),
                    tuple(image.shape[1:]),
                    Path(source) if isinstance(source, str | Path) else None,
                )

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors (teacher included, so that loading needs no network) and config.json, which
        holds the SHA-256 of the former, so that files of two trainings are not mixed."""
        folder = Path(folder)
        state = {name: t.detach().cpu().contiguous() for name, t in self._networks().state_dict().items()}
        write_atomically(folder / WEIGHTS, lambda temporary: save_file(state, temporary))
        settings = {
            "format": FORMAT,
            "thresholds": self.thresholds,
            "held_out": self.held_out,
            "config": self.config.to_dict(),
            "made_from": self.made_from,
            "sha256": sha256(folder / WEIGHTS),
        }
        write_json(folder / SETTINGS, settings)
        return folder

    def _networks(self) -> torch.nn.ModuleDict:
        plus = {} if self.plus is None else {"plus": self.plus}
        return torch.nn.ModuleDict({"dmdd": self.model, **plus})

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "Detector":
        """The detector that `save` wrote. Nothing is unpickled, and no file but its two is read, not even the
        `teacher_weights` of its configuration. Raises DetectorError naming the problem."""
        folder, place = Path(folder), resolve_device(device)
        config, settings = _read_settings(folder)
        try:
            state = read_tensors(folder / WEIGHTS)
        except WeightsError as error:
            raise DetectorError(f"{folder / WEIGHTS} {error}; copy or train it again") from error
        try:
            teacher = empty_teacher(config.teacher, config.teacher_options, config.image_size)
            with torch.device("meta"):  # no memory before the file is known to fit
                needed = _build(config, teacher)._networks().state_dict()
        except Exception as error:  # timm and torch raise a dozen types
            raise DetectorError(f"{folder / SETTINGS} is of no network that can be built: {error}") from error
        if wrong := misfits(state, needed):
            raise DetectorError(
                f"{folder / WEIGHTS} does not fit {folder / SETTINGS}: {wrong}; both files must come from "
                "the same training"
            )
        if settings["sha256"] != sha256(folder / WEIGHTS):
            raise DetectorError(
                f"{folder / WEIGHTS} is not the file that {folder / SETTINGS} was written for; both files "
                "must come from the same training: copy both or train it again"
            )
        detector = _build(config, teacher)
        detector._networks().load_state_dict(state)
        made_from = settings["made_from"]
        teacher.sha256 = made_from.get("teacher", "")
        plus = None if detector.plus is None else detector.plus.to(place)
        return cls(detector.model.to(place), plus, settings["thresholds"], settings["held_out"], made_from)


def _build(config: Config, teacher) -> Detector:
    """A detector without weights."""
    plus = None
    if config.plus is not None:
        from .plus.fusion import Plus

        plus = Plus(config, teacher.info)
    return Detector(build_model(config, teacher), plus)


def _read(source, place: int, count: int) -> Tensor:
    """`read_image`; an error names the position of an image that has no path, if there are several."""
    try:
        return read_image(source)
    except ValueError as error:
        if count == 1 or isinstance(source, str | Path):
            raise
        kind = DataError if isinstance(error, DataError) else ValueError
        raise kind(f"image {place} of {count}: {error}") from error


def _read_settings(folder: Path) -> tuple[Config, dict]:
    """Configuration, and what else `Detector.save` writes. Raises DetectorError."""
    path = folder / SETTINGS
    if not path.is_file():  # nor a pipe or a device, which may never end
        raise DetectorError(f"{path} does not exist; give the folder that Detector.save or train wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"format {settings['format']!r}, not {FORMAT}: another version, train it again")
        config, thresholds = Config.from_dict(settings["config"]), settings["thresholds"]
        numbers = [thresholds[name] for name in map_names(config)]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"thresholds must be finite numbers, got {thresholds!r}")
        held_out, made_from = settings["held_out"], settings["made_from"]
        if type(held_out) is not int or held_out < 0:
            raise ValueError(f"held_out must be a number of images, got {held_out!r}")
        if not isinstance(made_from, dict) or not all(isinstance(v, str) for v in made_from.values()):
            raise ValueError(f"made_from must hold a hash by name, got {made_from!r}")
        thresholds = dict(zip(map_names(config), map(float, numbers), strict=True))
        found = {"held_out": held_out, "made_from": made_from, "sha256": settings["sha256"]}
        return config, {"thresholds": thresholds, **found}
    except KeyError as error:
        raise DetectorError(f"{path} is not a detector's configuration: it lacks {error}") from error
    except (OSError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DetectorError(f"{path} is not a detector's configuration: {error}") from error


def overlay(image, prediction: Prediction) -> Image.Image:
    """The image with its anomaly map as heat, as a PIL image of the same size."""
    from matplotlib import colormaps

    pixels = read_image(image).permute(1, 2, 0).numpy() / 255
    heat = colormaps["inferno"](prediction.map)[..., :3]
    strength = 0.7 * prediction.map[..., None]
    return Image.fromarray(np.uint8(255 * ((1 - strength) * pixels + strength * heat)))
