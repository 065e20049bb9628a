"""What tools/light_notebook.py leaves of an executed notebook."""

import base64
import io
import runpy
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

TOOL = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "light_notebook.py"))
WIDGET = "application/vnd.jupyter.widget-view+json"
VIEW = {"version_major": 2, "version_minor": 0, "model_id": "0"}


def png(side: int) -> str:
    """Noise, which no compression makes small."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


@pytest.fixture
def lightened(tmp_path):
    outputs = [
        new_output("stream", name="stderr", text="a warning"),
        new_output("stream", name="stdout", text="a line"),
        new_output("display_data", {WIDGET: VIEW, "text/plain": "a progress bar"}),
        new_output("display_data", {WIDGET: VIEW, "text/plain": "explorer", "image/png": png(300)}),
    ]
    notebook = new_notebook(cells=[new_code_cell("1", outputs=outputs)], metadata={"widgets": {"state": {}}})
    nbformat.write(notebook, tmp_path / "n.ipynb")
    TOOL["lighten"](str(tmp_path / "n.ipynb"))
    return nbformat.read(tmp_path / "n.ipynb", 4)


def test_controls_go_and_their_picture_stays(lightened):
    line, explorer = lightened.cells[0].outputs
    assert line.text == "a line"
    assert sorted(explorer.data) == ["image/png", "text/plain"]
    assert "widgets" not in lightened.metadata
    nbformat.validate(lightened)


def test_pictures_fit_the_limit(lightened):
    picture = base64.b64decode(lightened.cells[0].outputs[1].data["image/png"])
    assert len(base64.b64decode(png(300))) > TOOL["LIMITS"][0] >= len(picture)
    assert Image.open(io.BytesIO(picture)).size == (300, 300)


def test_pictures_are_made_smaller_until_the_notebook_fits(tmp_path, monkeypatch):
    monkeypatch.setitem(TOOL["lighten"].__globals__, "WHOLE", 110_000)
    cell = new_code_cell("1", outputs=[new_output("display_data", {"image/png": png(300)})])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    TOOL["lighten"](str(tmp_path / "n.ipynb"))
    assert (tmp_path / "n.ipynb").stat().st_size <= 110_000
    picture = nbformat.read(tmp_path / "n.ipynb", 4).cells[0].outputs[0].data["image/png"]
    assert TOOL["LIMITS"][2] < len(base64.b64decode(picture)) <= TOOL["LIMITS"][1]
