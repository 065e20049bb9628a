"""A detector as one file that needs neither this package nor Python: ONNX, or a program of torch.export.

Input `images`: uint8 (B, H, W, 3), RGB, resized to the size of the configuration with an antialiased bilinear
filter, as Pillow's `resize` is. Outputs: `score` (B,) and `map` (B, H, W) of the map that decides, float32.
The metadata, a JSON text named `dmdd_lite`, holds threshold, map_name, image_size and configuration. [ours]
"""

import copy
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data.folders import open_folder
from .data.images import load_images
from .detector import Detector, decisive_map
from .utils import write_atomically
from .version import __version__

NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the extra `export`
OPSET = 18
TOLERANCE = 1e-4  # by which a map may differ from the detector's in float32
COMPARED = 32  # images at most with which a file is compared
METADATA = "dmdd_lite"


class ExportError(RuntimeError):
    """The detector cannot be exported, or the file does not decide as it does."""


class Exported(nn.Module):
    """forward: images uint8 (B, H, W, 3) -> score (B,), map (B, H, W), in float32 on the CPU."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.model, self.plus = detector.model, detector.plus
        self.detector, self.name = [detector], decisive_map(detector.config)  # a list: no module, no weights

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        detector = self.detector[0]
        maps, scores, _ = detector._scored(detector._output(images.permute(0, 3, 1, 2).float() / 255))
        return scores[self.name], maps[self.name]


def export_detector(detector: Detector, path: str | Path, images, batch: int | None = None) -> float:
    """Write `path`, .onnx or .pt2, after a comparison with the detector in float32 on `images`, whatever
    `Detector.predict` takes, COMPARED at most; batch: fixed number of images, None = any. Returns and prints
    by how much the maps differ.

    Raises ExportError for another suffix, a missing package, or a file whose maps differ by more than
    TOLERANCE or whose decisions do: then nothing is written.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ExportError(f"{path}: the suffix must be .onnx or .pt2")
    missing = [name for name in NEEDED if path.suffix == ".onnx" and find_spec(name) is None]
    if missing:
        raise ExportError(f"{', '.join(missing)} not installed: pip install 'dmdd-lite[export]'")
    single = _in_float32(detector)
    shown = _read(images, single).permute(0, 2, 3, 1).contiguous()
    module = Exported(single).eval()
    size, example = single.config.image_size, shown[: batch or 2]
    if len(example) < (batch or 2):
        example = example.repeat(batch or 2, 1, 1, 1)[: batch or 2]
    dynamic = ({0: torch.export.Dim("batch", min=1, max=4096)},) if batch is None else None
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=dynamic, strict=False)
    told = {
        "threshold": single.threshold,
        "map_name": decisive_map(single.config),
        "image_size": size,
        "version": __version__,
        "config": detector.config.to_dict(),
    }
    difference = float("nan")

    def write(temporary: Path):
        nonlocal difference
        save = _save_onnx if path.suffix == ".onnx" else _save_program
        difference = _compare(save(program, temporary, told), module, shown, batch, single.threshold)

    write_atomically(path, write)
    print(f"{path}: maps differ by at most {difference:.1e} on {len(shown)} images, all decisions equal")
    return difference


def _read(source, detector: Detector) -> Tensor:
    """The first COMPARED images of what `Detector.predict` takes, uint8 (N, 3, H, W)."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        source = open_folder(source)
    sources = source if isinstance(source, list | tuple) else [source]
    return load_images(sources[:COMPARED], detector.config.image_size, None, detector.depth)


def _in_float32(detector: Detector) -> Detector:
    """A copy on the CPU that computes in single precision."""
    model = copy.deepcopy(detector.model).cpu()
    model.config = detector.config.replace(precision="float32", compile=False)
    plus = None if detector.plus is None else copy.deepcopy(detector.plus).cpu()
    found = Detector(model, plus, detector.facts)
    for values in (v for part in (model, plus) if part for v in (*part.parameters(), *part.buffers())):
        values.data = values.data.clone(memory_format=torch.contiguous_format)  # no views of larger tensors
    return found


def _save_onnx(program, path: Path, told: dict):
    """Write the file; a function that runs it."""
    import onnx
    import onnxruntime

    names = {"input_names": ["images"], "output_names": ["score", "map"]}
    converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)
    model = converted.model_proto
    onnx.helper.set_model_props(model, {METADATA: json.dumps(told)})
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def _save_program(program, path: Path, told: dict):
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(told)})
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda images: [values.detach().numpy() for values in module(images)]


def _compare(run, module: Exported, shown: Tensor, batch: int | None, threshold: float) -> float:
    """The largest difference of two maps. Raises ExportError."""
    difference, step = 0.0, batch or 1
    for start in range(0, len(shown), step):
        images = shown[start : start + step]
        filled = torch.cat((images, images[:1].expand(step - len(images), -1, -1, -1)))
        with torch.no_grad():
            expected = [values.numpy() for values in module(filled)]
        scores, maps = run(filled)
        difference = max(difference, float(np.abs(maps - expected[1]).max()))
        if ((scores > threshold) != (expected[0] > threshold)).any():
            raise ExportError("the exported file decides otherwise than the detector")
    if not difference <= TOLERANCE:
        raise ExportError(f"maps of the exported file differ by {difference:.1e}, more than {TOLERANCE}")
    return difference
