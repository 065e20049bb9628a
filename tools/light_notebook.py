"""Make an executed notebook light enough to commit: pictures of at most 150 kB, no widgets, no stderr.

jupyter nbconvert --to notebook --execute --inplace notebooks/05_mvtec_reproduction.ipynb
python tools/light_notebook.py notebooks/*.ipynb
"""

import base64
import io
import sys

import nbformat
from PIL import Image

LIMIT = 150_000


def light_picture(data: str) -> str:
    """The same PNG (base64) in the most colours that fit the limit, at least 32."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    for colours in (256, 128, 64, 32):
        written = io.BytesIO()
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=20_000).save(
            written, "PNG", optimize=True
        )
        if written.tell() <= LIMIT:
            break
    return base64.b64encode(written.getvalue()).decode()


def lighten(path: str):
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = cell.get("outputs", [])
        kept = [
            o for o in outputs if o.get("name") != "stderr" and "widget-view" not in str(o.get("data", ""))
        ]
        for output in kept:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = light_picture(output.data["image/png"])
        if cell.cell_type == "code":
            cell.outputs = kept
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        lighten(name)
