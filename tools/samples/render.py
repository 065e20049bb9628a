"""Render the embedded samples: `python tools/samples/render.py OUT` writes dmdd_lite/data/samples.

Every picture is rendered from a seed of its own. A defective one and its mask come from one scene that is
rendered twice, with and without the defect; of the first TWINS of each kind both pictures are written.
"""

import sys
import zlib
from pathlib import Path

import fabric
import lever
import numpy as np
import pcb
from canvas import SIZE, Flaw, add_noise, changed_pixels, expose
from PIL import Image

CATEGORIES = {"fabric": fabric, "pcb": pcb, "lever": lever}
TRAIN = {"fabric": 60, "pcb": 60, "lever": 240}  # an object in any rotation needs more, see the README
GOOD, PER_DEFECT, TWINS = 20, 10, 4  # test images, and of each kind those with an undamaged twin
AREA = (0.003, 0.10)  # least and largest share of an image that a defect covers
ATTEMPTS = 20  # defects that are tried until one has an area in range
JPEG = {"format": "JPEG", "quality": 90, "subsampling": 0, "optimize": True, "progressive": True}


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose numbers belong to this key alone; words enter by their CRC-32."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng([0, *words])


def render_sample(category: str, kind: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (H, W, 3) uint8, the same scene without its defect, and the mask (H, W) bool of the defect.

    kind: "train" or "test" for good images, else the name of a defect. Outside the mask both are equal.
    """
    module, key = CATEGORIES[category], (category, kind, index)
    scene = module.draw_scene(generator(*key, "scene"))
    sound = expose(module.render(scene, Flaw()), scene.shot)
    flawed, mask = sound, np.zeros((SIZE, SIZE), dtype=bool)
    if kind in module.DEFECTS:
        flawed, mask = _with_defect(module, key, scene, sound)
    pictures = (np.where(mask[..., None], flawed, sound), sound)
    image, undamaged = (add_noise(picture, scene.shot, generator(*key, "noise")) for picture in pictures)
    return image, undamaged, mask


def _with_defect(module, key: tuple, scene, sound: np.ndarray):
    """Render defects until one has an area in AREA; returns the noise-free picture and its mask."""
    for attempt in range(ATTEMPTS):
        flaw = module.DEFECTS[key[1]](generator(*key, "defect", attempt), scene)
        flawed = expose(module.render(scene, flaw), scene.shot)
        mask = changed_pixels(flawed, sound)
        if AREA[0] <= mask.mean() <= AREA[1]:
            return flawed, mask
    raise RuntimeError(f"no defect of {key} covers a share of the image in {AREA}")


def write_sample(folder: Path, category: str, kind: str, index: int):
    """The files of one picture below the category's folder."""
    image, undamaged, mask = render_sample(category, kind, index)
    name = f"{index:03d}.jpg"
    if kind in ("train", "test"):
        return _save(folder / kind / "good" / name, image, **JPEG)
    _save(folder / "test" / kind / name, image, **JPEG)
    _save(folder / "ground_truth" / kind / f"{index:03d}_mask.png", mask, optimize=True)
    if index < TWINS:
        _save(folder / "undamaged" / kind / name, undamaged, **JPEG)


def _save(path: Path, pixels: np.ndarray, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def main(out: Path):
    for category, module in CATEGORIES.items():
        counts = {"train": TRAIN[category], "test": GOOD} | dict.fromkeys(module.DEFECTS, PER_DEFECT)
        for kind, count in counts.items():
            for index in range(count):
                write_sample(out / category, category, kind, index)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
