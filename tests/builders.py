"""Images, masks, categories and tiny models that the tests share."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from dmdd_lite.data.samples import samples_root


def save_image(path: Path, array, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def encoded(array, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def deep_tiff(array: np.ndarray) -> bytes:
    """16-bit colours (H, W, 3), which Pillow cannot write: 8-bit ones of twice the width, renamed."""
    (height, width, _), file = array.shape, io.BytesIO()
    twice = Image.frombytes("RGB", (2 * width, height), array.astype("<u2").tobytes())
    twice.save(file, "TIFF")
    of_width = [struct.pack("<HHII", 256, 4, 1, n) for n in (2 * width, width)]
    return (
        file.getvalue()
        .replace(*of_width)
        .replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 16, 16, 16))
    )


def deep_png(array: np.ndarray) -> bytes:
    """As `deep_tiff`."""

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def palette(image: Image.Image, *colours) -> Image.Image:
    image = image.copy()
    image.putpalette([value for colour in colours for value in colour])
    return image


def disc(size=16, on=255, dtype=np.uint8) -> np.ndarray:
    mask = np.zeros((size, size), dtype)
    mask[4:9, 5:11] = on
    return mask


def make_category(root: Path, name="nut", defects=("hole", "scratch"), count=3) -> Path:
    """A sound category of 16 x 16 images of noise, all different."""
    folder, rng = root / name, np.random.default_rng(count)
    for i in range(count):
        for part in ("train/good", "test/good", *(f"test/{defect}" for defect in defects)):
            save_image(folder / f"{part}/{i:03}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
        for defect in defects:
            save_image(folder / f"ground_truth/{defect}/{i:03}_mask.png", disc())
    return folder


def some_samples(root: Path, category: str, size=64, train=2, good=2, per_defect=1) -> Path:
    """The first images of an embedded sample category, shrunk."""
    for split, count in (("train", train), ("test", good)):
        for path in sorted((samples_root() / category / split / "good").iterdir())[:count]:
            _shrink(path, root, size)
    for folder in sorted((samples_root() / category / "ground_truth").iterdir()):
        for mask in sorted(folder.iterdir())[:per_defect]:
            _shrink(mask, root, size)
            _shrink(samples_root() / category / "test" / folder.name / f"{mask.stem[:3]}.jpg", root, size)
    return root / category


def _shrink(path: Path, root: Path, size: int):
    target = (root / path.relative_to(samples_root())).with_suffix(".png")
    save_image(target, Image.open(path).resize((size, size)))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tiny_config(**changes):
    """A whole DMDD at 64 px that trains an iteration in some hundredths of a second: six iterations for the
    student, two for the MSN."""
    from dmdd_lite.config import Config

    options = {
        "teacher": "test_resnet",
        "teacher_weights": "random",
        "image_size": 64,
        "iterations": 8,
        "batch_size": 2,
        "precision": "float32",
    }
    return Config(**{**options, **changes})


def spread(start: int, stop: int, most: int) -> list[int]:
    """About so many numbers of start..stop - 1, evenly, the ends always."""
    return sorted({*range(start, stop, max(1, (stop - start) // most)), stop - 1})


def tiny_teacher():
    from dmdd_lite.teacher import build_teacher

    return build_teacher("test_resnet", "random")


def tiny_model(**changes):
    from dmdd_lite.model import build_model

    return build_model(tiny_config(**changes), tiny_teacher())


def tiny_trainer(data, **changes):
    from dmdd_lite.training import Trainer

    return Trainer(tiny_config(**changes), tiny_model(**changes), data)


def tiny_detector(thresholds=None, **changes):
    """Untrained, with DMDD+ unless plus=None."""
    from dmdd_lite.detector import Detector
    from dmdd_lite.facts import Facts
    from dmdd_lite.plus.fusion import Plus

    model = tiny_model(**changes)
    plus = None if model.config.plus is None else Plus(model.config, model.teacher.info)
    return Detector(model, plus, Facts(thresholds or {}))


def train_tiny(root: Path, folder: Path | None = None, every=500, watch=None, **changes):
    """A whole training of lever on the CPU; `changes` are of the tiny configuration."""
    from dmdd_lite.training import train

    return train(tiny_config(**changes), root, "lever", "", folder, "cpu", every, False, watch)


def stop_at(iteration: int):
    """Watches a training, and stops it as Ctrl-C does before that iteration is kept."""

    def watch(trainer):
        if trainer.iteration == iteration:
            raise KeyboardInterrupt

    return watch


def random_images(count: int, size: int = 64, seed: int = 0):
    import torch

    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def square_pairs(seed: int = 0):
    """Two pairs of noise, the anomaly in a square."""
    import torch

    from dmdd_lite.pairs import Pairs

    normal, noise = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(2, 64, 64)
    mask[:, 8:40, 16:44] = 1
    return Pairs(normal, torch.where(mask[:, None] > 0, noise, normal), mask)


def networks_of(detector):
    """All parameters and buffers of a detector, DMDD+'s included."""
    return detector._networks()


def state_of(module) -> dict:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(one, other) -> bool:
    """Bit by bit; of modules or of their states."""
    import torch

    one, other = (s if isinstance(s, dict) else s.state_dict() for s in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
