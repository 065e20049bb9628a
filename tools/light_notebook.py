"""Make an executed notebook light enough to commit: small pictures, no widgets, no stderr.

jupyter nbconvert --to notebook --execute --inplace notebooks/05_mvtec_reproduction.ipynb
python tools/light_notebook.py notebooks/*.ipynb
"""

import base64
import copy
import io
import sys

import nbformat
from PIL import Image

LIMITS = (
    100_000,
    85_000,
    70_000,
    55_000,
    40_000,
)  # bytes of a picture; the first that makes it fit
WHOLE = 480_000  # bytes of a notebook
WIDGET = "application/vnd.jupyter.widget-view+json"


def light_picture(data: str, limit: int) -> str:
    """The same PNG (base64) in the most colours that fit the limit, at least 32."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    for colours in (256, 128, 64, 32):
        written = io.BytesIO()
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=20_000).save(
            written, "PNG", optimize=True
        )
        if written.tell() <= limit:
            break
    return base64.b64encode(written.getvalue()).decode()


def light_output(output, limit: int) -> bool:
    """Lighten an output in place; False if nothing of it is worth keeping: stderr, or controls alone.

    Controls are dead without their kernel; where a picture lies beside them, it is what stays.
    """
    data = output.get("data", {})
    controls = data.pop(WIDGET, None)
    if "image/png" in data:
        data["image/png"] = light_picture(data["image/png"], limit)
        return True
    return controls is None and output.get("name") != "stderr"


def light_version(notebook, limit: int):
    """A copy of the notebook whose pictures have at most `limit` bytes each."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if light_output(output, limit)]
    return notebook


def lighten(path: str):
    notebook = nbformat.read(path, as_version=4)
    for limit in LIMITS:
        light = light_version(notebook, limit)
        if len(nbformat.writes(light).encode()) <= WHOLE:
            break
    nbformat.write(light, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lighten(name)
