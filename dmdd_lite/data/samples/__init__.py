"""Three sample categories in the MVTec AD layout, shipped as files of 256 px: `fabric` is a texture, `pcb` an
object in a fixed place, `lever` an object in any rotation.

The pictures are ours and under the licence of the code, Apache-2.0; tools/samples/render.py has drawn them.
A defective picture and its mask come from one scene that is drawn twice, with and without the defect. They
serve for learning and testing, and results on them say nothing about MVTec AD.
"""

from pathlib import Path

SAMPLES: tuple[str, ...] = ("fabric", "pcb", "lever")


def samples_root() -> Path:
    """The folder that holds the categories."""
    return Path(__file__).parent


def undamaged(test_image: Path) -> Path:
    """The picture of the same scene without the defect: equal outside the JPEG blocks that the mask touches.

    Raises ValueError where there is none: only the first few images of each kind of defect have one.
    """
    category, _, defect, name = test_image.parts[-4:]
    twin = samples_root() / category / "undamaged" / defect / name
    if not twin.is_file():
        raise ValueError(f"{test_image}: no undamaged picture of it is shipped")
    return twin
