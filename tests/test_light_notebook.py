"""What tools/light_notebook.py leaves of an executed notebook."""

import base64
import io
import runpy
from pathlib import Path

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

TOOL = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "light_notebook.py"))
WIDGET = {"application/vnd.jupyter.widget-view+json": {"version_major": 2, "model_id": "0"}, "text/plain": ""}


def png(side: int) -> str:
    """Noise, which no compression makes small."""
    written = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def lightened(path, outputs):
    notebook = new_notebook(cells=[new_code_cell("1", outputs=outputs)], metadata={"widgets": {"state": {}}})
    nbformat.write(notebook, path)
    TOOL["lighten"](str(path))
    return nbformat.read(path, 4)


def test_controls_and_warnings_go_and_pictures_fit_the_limit(tmp_path):
    streams = [new_output("stream", name=name, text=name) for name in ("stderr", "stdout")]
    shown = [new_output("display_data", data) for data in (WIDGET, {**WIDGET, "image/png": png(300)})]
    notebook = lightened(tmp_path / "n.ipynb", [*streams, *shown])
    line, explorer = notebook.cells[0].outputs
    assert line.text == "stdout"
    assert sorted(explorer.data) == ["image/png", "text/plain"]
    assert "widgets" not in notebook.metadata
    nbformat.validate(notebook)
    picture = base64.b64decode(explorer.data["image/png"])
    assert len(base64.b64decode(png(300))) > TOOL["LIMITS"][0] >= len(picture)
    assert Image.open(io.BytesIO(picture)).size == (300, 300)


def test_pictures_are_made_smaller_until_the_notebook_fits(tmp_path, monkeypatch):
    monkeypatch.setitem(TOOL["lighten"].__globals__, "WHOLE", 110_000)
    lightened(tmp_path / "n.ipynb", [new_output("display_data", {"image/png": png(300)})])
    assert (tmp_path / "n.ipynb").stat().st_size <= 110_000
