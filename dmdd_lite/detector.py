"""A trained detector: load, predict, save. DMDD decides alone, or DMDD+ where it was fitted."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .backbones.weights import WeightsError, misfits, read_tensors
from .config import Config
from .data.fingerprints import sha256
from .data.folders import open_folder
from .data.images import read_clipped, read_image, unit_range, warn_clipped
from .data.problems import DataError
from .facts import Facts
from .model import DMDD, build_model, full_size_maps, image_scores
from .prediction import Prediction
from .teacher import empty_teacher
from .utils import autocast, resolve_device, write_atomically, write_json

WEIGHTS, SETTINGS, FORMAT = "model.safetensors", "config.json", 7
PIXEL_QUANTILE = 0.999  # of held-out good pixels: their threshold
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
    """Finds and outlines defects. model: the trained DMDD; plus: DMDD+ or None; facts: 0.5 for every
    threshold that they lack."""

    def __init__(self, model: DMDD, plus=None, facts: Facts | None = None):
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.plus = None if plus is None else plus.eval()
        self.config, facts = model.config, facts or Facts()
        default = dict.fromkeys(map_names(self.config), 0.5)
        self.thresholds = default | facts.thresholds
        self.pixel_thresholds = default | facts.pixel_thresholds
        self.held_out, self.depth, self.made_from = facts.held_out, facts.depth, facts.made_from

    @property
    def device(self) -> torch.device:
        return self.model.teacher.mean.device

    @property
    def facts(self) -> Facts:
        return Facts(self.thresholds, self.pixel_thresholds, self.held_out, self.depth, self.made_from)

    @property
    def threshold(self) -> float:
        """Of the image score of the map that decides."""
        return self.thresholds[decisive_map(self.config)]

    @classmethod
    def calibrated(cls, model: DMDD, plus, good: Tensor, facts: Facts) -> "Detector":
        """With the thresholds of held-out good images, uint8 (N, 3, H, W): the maximum of their image scores,
        which a further good image exceeds about once in N + 1 times, and the 99.9 % quantile of their pixels.
        [ours] facts: depth and made_from."""
        detector = cls(model, plus, facts)
        found = [detector.maps(batch)[:2] for batch in good.split(8)]
        image, pixel = {}, {}
        for name in map_names(model.config):
            image[name] = torch.cat([scores[name] for _, scores in found]).double().max().item()
            pixels = torch.cat([maps[name].flatten() for maps, _ in found]).numpy()
            pixel[name] = float(np.quantile(pixels, PIXEL_QUANTILE))
        detector.thresholds, detector.pixel_thresholds, detector.held_out = image, pixel, len(good)
        return detector

    @torch.inference_mode()
    def output(self, images: Tensor):
        """The networks' own outputs, on their device, of images uint8 (B, 3, H, W): ModelOutput, and
        PlusOutput or None."""
        with autocast(self.device, self.config.precision):
            return self._output(unit_range(images, self.device))

    def _output(self, images: Tensor):
        features = self.model.teacher(images)
        output = self.model.of_features(images, features)
        return output, None if self.plus is None else self.plus(output.fused, features)

    @torch.inference_mode()
    def maps(self, images: Tensor):
        """Images uint8 (B, 3, *config.size) -> smoothed maps (B, *config.size) and image scores (B,), by name
        on the CPU, and the networks' own outputs, as of `output`."""
        *found, outputs = self._scored(self.output(images))
        maps, scores = ({name: values.cpu() for name, values in part.items()} for part in found)
        return maps, scores, outputs

    def _scored(self, outputs):
        output, plus = outputs
        maps = full_size_maps(output, self.config)
        if plus is not None:
            from .plus.fusion import plus_maps

            maps |= plus_maps(plus, self.config)
        maps = {name: maps[name] for name in map_names(self.config)}
        return maps, {name: image_scores(m) for name, m in maps.items()}, outputs

    def predict(
        self, source, batch_size: int = 8, tile: int | None = None, overlap: int = 64
    ) -> "Prediction | list[Prediction]":
        """Predict an image (path, PIL image, or array: integers, or float in [0, 1], (H, W[, 3 or 4]))
        -> Prediction; a folder (recursive) or a list of images -> list[Prediction], in order.

        tile: shorter side in pixels of the tiles in which large images are predicted, see
        `tiling.tiled_maps`; None = every image is resized as a whole. Warns of files that are no images, and
        of values that no training image could have. Raises DataError for a file that cannot be read or a
        folder without images, ValueError for anything else that is no image."""
        if isinstance(source, str | Path) and os.path.isdir(source):
            source = list(open_folder(source))
        if isinstance(source, list | tuple):
            return list(self.stream(source, batch_size, None, tile, overlap))
        return next(self.stream([source], batch_size, None, tile, overlap))

    def stream(
        self,
        images: Sequence,
        batch_size: int = 8,
        skipped: list[str] | None = None,
        tile: int | None = None,
        overlap: int = 64,
    ) -> Iterator[Prediction]:
        """Predictions one by one, a batch of images in memory at a time: for folders of any length.

        skipped: takes the messages of files that cannot be read, which are then left out. Raises as
        `predict`, at the image's turn; TypeError unless images is a list, a tuple or an array."""
        if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
            raise TypeError(f"stream takes a list of images, not {type(images).__name__}; see predict")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if tile is None:
            return self._stream(images, batch_size, skipped, self._whole_maps)
        if not 0 <= overlap < tile:
            raise ValueError(f"overlap must be from 0 to below tile, got overlap={overlap}, tile={tile}")
        from .tiling import tiled_maps

        predict = partial(tiled_maps, self, tile=tile, overlap=overlap, batch_size=batch_size)
        return self._stream(images, 1, skipped, lambda found: [predict(image) for image in found])

    def _whole_maps(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Maps of the input's size by name of each image, uint8 (3, H, W)."""
        size = self.config.image_size
        batch = torch.stack([read_image(image.permute(1, 2, 0).numpy(), size) for image in images])
        maps = self.maps(batch)[0]
        return [{name: values[i] for name, values in maps.items()} for i in range(len(images))]

    def _stream(self, images: Sequence, batch_size: int, skipped: list[str] | None, predict):
        for start in range(0, len(images), batch_size):
            found, clipped = [], []
            for number, source in enumerate(images[start : start + batch_size], start + 1):
                try:
                    image, high = _read(source, number, len(images), self.depth)
                except DataError as error:
                    if skipped is None:
                        raise
                    skipped.append(str(error))
                    continue
                found.append((source, image))
                clipped += [source] if high else []
            if clipped:
                warn_clipped(clipped, self.depth)
            if not found:
                continue
            for (source, image), maps in zip(found, predict([image for _, image in found]), strict=True):
                yield Prediction(
                    {name: values.numpy() for name, values in maps.items()},
                    {name: image_scores(values[None]).item() for name, values in maps.items()},
                    self.thresholds,
                    self.pixel_thresholds,
                    decisive_map(self.config),
                    tuple(image.shape[1:]),
                    Path(source) if isinstance(source, str | Path) else None,
                    self.depth,
                )

    def export(self, path: str | Path, images, batch: int | None = None) -> float:
        """Write the detector as .onnx or .pt2, see `export.export_detector`."""
        from .export import export_detector

        return export_detector(self, path, images, batch)

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors (teacher included, so that loading needs no network) and config.json, which
        holds the SHA-256 of the former, so that files of two trainings are not mixed."""
        folder = Path(folder)
        state = {name: t.detach().cpu().contiguous() for name, t in self._networks().state_dict().items()}
        write_atomically(folder / WEIGHTS, lambda temporary: save_file(state, temporary))
        settings = {"format": FORMAT, "facts": self.facts.to_dict(), "config": self.config.to_dict()}
        write_json(folder / SETTINGS, {**settings, "sha256": sha256(folder / WEIGHTS)})
        return folder

    def _networks(self) -> torch.nn.ModuleDict:
        plus = {} if self.plus is None else {"plus": self.plus}
        return torch.nn.ModuleDict({"dmdd": self.model, **plus})

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "Detector":
        """The detector that `save` wrote. Nothing is unpickled, and no file but its two is read, not even the
        `teacher_weights` of its configuration. Raises DetectorError naming the problem."""
        folder, place = Path(folder), resolve_device(device)
        config, facts, digest = _read_settings(folder)
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
        if digest != sha256(folder / WEIGHTS):
            raise DetectorError(
                f"{folder / WEIGHTS} is not the file that {folder / SETTINGS} was written for; both files "
                "must come from the same training: copy both or train it again"
            )
        detector = _build(config, teacher)
        detector._networks().load_state_dict(state)
        teacher.sha256 = facts.made_from.get("teacher", "")
        plus = None if detector.plus is None else detector.plus.to(place)
        return cls(detector.model.to(place), plus, facts)


def _build(config: Config, teacher) -> Detector:
    """A detector without weights."""
    plus = None
    if config.plus is not None:
        from .plus.fusion import Plus

        plus = Plus(config, teacher.info)
    return Detector(build_model(config, teacher), plus)


def _read(source, place: int, count: int, depth: int) -> tuple[Tensor, bool]:
    """`read_clipped`; an error names the position of an image that has no path, if there are several."""
    try:
        return read_clipped(source, None, depth)
    except ValueError as error:
        if count == 1 or isinstance(source, str | Path):
            raise
        kind = DataError if isinstance(error, DataError) else ValueError
        raise kind(f"image {place} of {count}: {error}") from error


def _read_settings(folder: Path) -> tuple[Config, Facts, str]:
    """Configuration, facts, and the SHA-256 of the weights. Raises DetectorError."""
    path = folder / SETTINGS
    if not path.is_file():  # nor a pipe or a device, which may never end
        raise DetectorError(f"{path} does not exist; give the folder that Detector.save or train wrote")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"format {settings['format']!r}, not {FORMAT}: another version, train it again")
        config = Config.from_dict(settings["config"])
        return config, Facts.from_dict(settings["facts"], map_names(config)), settings["sha256"]
    except KeyError as error:
        raise DetectorError(f"{path} is not a detector's configuration: it lacks {error}") from error
    except (OSError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DetectorError(f"{path} is not a detector's configuration: {error}") from error
