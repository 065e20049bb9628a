"""Make an executed notebook light enough to commit: no widgets, no stderr, large pictures as JPEG.

jupyter nbconvert --to notebook --execute --inplace notebooks/05_mvtec_reproduction.ipynb
python tools/light_notebook.py notebooks/*.ipynb
"""

import base64
import copy
import io
import sys

import nbformat
from PIL import Image

PNG = 200_000  # bytes up to which a picture stays a PNG
QUALITIES = (90, 80, 65, 50)  # of the JPEG pictures; the first with which the notebook fits
WHOLE = 2_900_000  # bytes of a notebook
WIDGET = "application/vnd.jupyter.widget-view+json"


def light_picture(output, quality: int):
    """Store the PNG of an output with its best compression, or as JPEG where that is larger than `PNG`."""
    data, sizes = output["data"], output.get("metadata", {})
    picture = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
    kind, written = "image/png", io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    if written.tell() > PNG:
        kind, written = "image/jpeg", io.BytesIO()
        picture.save(written, "JPEG", quality=quality, subsampling=0, optimize=True)
    data[kind] = base64.b64encode(written.getvalue()).decode()
    if "image/png" in sizes:  # the width in which it is shown
        sizes[kind] = sizes.pop("image/png")


def light_output(output, quality: int) -> bool:
    """Lighten an output in place; False if nothing of it is worth keeping: stderr, or controls alone.

    Controls are dead without their kernel; where a picture lies beside them, it is what stays.
    """
    data = output.get("data", {})
    controls = data.pop(WIDGET, None)
    if "image/png" in data:
        light_picture(output, quality)
        return True
    return controls is None and output.get("name") != "stderr"


def light_version(notebook, quality: int):
    """A copy of the notebook whose large pictures are JPEG files of this quality."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if light_output(output, quality)]
    return notebook


def lighten(path: str):
    notebook = nbformat.read(path, as_version=4)
    for quality in QUALITIES:
        light = light_version(notebook, quality)
        if len(nbformat.writes(light).encode()) <= WHOLE:
            break
    nbformat.write(light, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lighten(name)
