"""A trained DMDD ready for use: load, predict, save. What users ask for first."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from .config import Config
from .data.images import DataError, read_image, unit_range
from .data.layout import open_folder
from .model import DMDD, ModelOutput, build_model, decisive_map, full_size_maps, image_scores
from .teacher import empty_teacher
from .utils import autocast, resolve_device, write_atomically, write_json
from .weights import WeightsError, misfits, read_tensors

WEIGHTS, SETTINGS, FORMAT = "model.safetensors", "config.json", 6


class DetectorError(RuntimeError):
    """A saved detector cannot be loaded; the message names the file and the remedy."""


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    score: image score; is_anomalous: score above `threshold`; map: the anomaly map (H, W) in [0, 1], at the
    image's own size, of which it is the score; map_name: 'plus' (DMDD+), or 'fused' (DMDD) for a detector
    without position maps; fused: the map of DMDD; normality and abnormality: per scale, fine to coarse,
    (H_k, W_k) in [0, 2]; path: None for images from memory.
    """

    score: float
    threshold: float
    map: np.ndarray
    map_name: str
    fused: np.ndarray
    normality: tuple[np.ndarray, ...]
    abnormality: tuple[np.ndarray, ...]
    path: Path | None = None

    @property
    def is_anomalous(self) -> bool:
        return self.score > self.threshold


class Detector:
    """Finds and outlines defects. `threshold` splits good from anomalous image scores, see
    `decisive_map`."""

    def __init__(self, model: DMDD, threshold: float = 0.5):
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.config, self.threshold = model.config, float(threshold)

    @property
    def device(self) -> torch.device:
        return self.model.teacher.mean.device

    @classmethod
    def calibrated(cls, model: DMDD, good: Tensor, trained_on: bool = False) -> "Detector":
        """Threshold = the `threshold_quantile` of the scores of held-out good images, uint8 (N, 3, S, S).
        trained_on: they are training images, nothing was held out. [ours]"""
        detector = cls(model)
        found = (detector.device_maps(batch, trained_on)[1] for batch in good.split(8))
        scores = torch.cat([scores[decisive_map(model.config)] for scores in found])
        detector.threshold = scores.cpu().double().quantile(model.config.threshold_quantile).item()
        return detector

    def output(self, images: Tensor, trained_on: bool = False) -> ModelOutput:
        """The model's own output, on its device, for images uint8 (B, 3, S, S); trained_on as in DMDD."""
        with autocast(self.device, self.config.precision):
            return self.model(unit_range(images, self.device), trained_on)

    def maps(self, images: Tensor):
        """Images uint8 (B, 3, S, S), S = image_size -> (maps, scores, output): the smoothed maps
        (B, S, S) and their image scores (B,) by name on the CPU, and the model's own output."""
        *found, output = self.device_maps(images)
        maps, scores = ({name: values.cpu() for name, values in part.items()} for part in found)
        return maps, scores, output

    @torch.inference_mode()
    def device_maps(self, images: Tensor, trained_on: bool = False):
        """What `maps` returns, all of it on the model's device, which need not have computed it yet."""
        output = self.output(images, trained_on)
        maps = full_size_maps(output, self.config)
        scores = {name: image_scores(m, self.config) for name, m in maps.items()}
        return maps, scores, output

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
            maps, scores, output = self.maps(batch)
            name = decisive_map(self.config)
            for i, (source, image) in enumerate(zip(sources, originals, strict=True)):
                full = {n: maps[n][i][None, None] for n in dict.fromkeys((name, "fused"))}
                full = {n: F.interpolate(m, image.shape[1:], mode="bilinear")[0, 0] for n, m in full.items()}
                yield Prediction(
                    float(scores[name][i]),
                    self.threshold,
                    full[name].numpy(),
                    name,
                    full["fused"].numpy(),
                    tuple(m[i].float().cpu().numpy() for m in output.normality),
                    tuple(m[i].float().cpu().numpy() for m in output.abnormality),
                    Path(source) if isinstance(source, str | Path) else None,
                )

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors (teacher included, so that loading needs no network) and config.json, which
        names the other's SHA-256: one of them with another training's is noticed."""
        folder = Path(folder)
        state = {name: t.detach().cpu().contiguous() for name, t in self.model.state_dict().items()}
        write_atomically(folder / WEIGHTS, lambda temporary: save_file(state, temporary))
        settings = {"format": FORMAT, "threshold": self.threshold, "config": self.config.to_dict()}
        write_json(folder / SETTINGS, {**settings, "sha256": _sha256(folder / WEIGHTS)})
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "Detector":
        """The detector that `save` wrote. Nothing is unpickled, and no file but its two is read, not even the
        `teacher_weights` of its configuration. Raises DetectorError naming what is wrong."""
        folder, place = Path(folder), resolve_device(device)
        config, threshold, sha256 = _read_settings(folder)
        try:
            state = read_tensors(folder / WEIGHTS)
        except WeightsError as error:
            raise DetectorError(f"{folder / WEIGHTS} {error}; copy or train it again") from error
        try:
            teacher = empty_teacher(config.teacher, config.teacher_options)
            with torch.device("meta"):  # no memory before the file is known to fit
                needed = build_model(config, teacher).state_dict()
        except Exception as error:  # timm and torch raise a dozen types
            raise DetectorError(f"{folder / SETTINGS} is of no network that can be built: {error}") from error
        if wrong := misfits(state, needed):
            raise DetectorError(
                f"{folder / WEIGHTS} does not fit {folder / SETTINGS}: {wrong}; both files must come from "
                "the same training"
            )
        if sha256 not in (None, _sha256(folder / WEIGHTS)):
            raise DetectorError(
                f"{folder / WEIGHTS} is not the file that {folder / SETTINGS} was written for; both files "
                "must come from the same training: copy both or train it again"
            )
        model = build_model(config, teacher)
        model.load_state_dict(state)
        return cls(model.to(place), threshold)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(source, place: int, count: int) -> Tensor:
    """`read_image`; an error names the place of an image that has no path, if there are several."""
    try:
        return read_image(source)
    except ValueError as error:
        if count == 1 or isinstance(source, str | Path):
            raise
        kind = DataError if isinstance(error, DataError) else ValueError
        raise kind(f"image {place} of {count}: {error}") from error


def _read_settings(folder: Path) -> tuple[Config, float, str | None]:
    """Configuration, threshold, and the SHA-256 of the weights, which detectors of before did not name."""
    if not folder.is_dir():
        raise DetectorError(f"{folder} is no folder; give the folder that Detector.save or train wrote")
    path = folder / SETTINGS
    if not path.is_file():  # nor a pipe or a device, which may never end
        raise DetectorError(f"{path} does not exist; give the folder that Detector.save or train wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(
                f"format {settings['format']!r}, not {FORMAT}; train it again, or update dmdd_lite if it is "
                "newer"
            )
        threshold = settings["threshold"]
        if type(threshold) not in (int, float) or not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number, got {threshold!r}")
        return Config.from_dict(settings["config"]), float(threshold), settings.get("sha256")
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
