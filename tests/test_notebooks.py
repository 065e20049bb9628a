"""Notebook hygiene: what is committed opens on GitHub, is light, and was run from top to bottom."""

import re

import nbformat
import pytest

from dmdd_lite.runner import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, 4).cells


def test_there_are_notebooks():
    assert PATHS


def test_light_valid_and_without_widget_state(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


def test_executed_in_order_without_errors(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds


def test_one_parameters_cell(cells):
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1


def test_no_path_of_the_machine_it_ran_on(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)


def test_short_cells_and_prose_between_them(cells):
    code = [[line for line in c.source.splitlines() if line.strip()] for c in cells if c.cell_type == "code"]
    assert sorted(map(len, code))[len(code) // 2] <= 8
    assert max(map(len, code)) <= 25
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in cells)
    assert "ccc" not in kinds
