"""What is committed was run from top to bottom, is light, and opens in Colab and from papermill."""

import re

import nbformat
import pytest

from dmdd_lite.reproduce.notebook import NOTEBOOKS, notebook_parameters

PATHS = sorted(NOTEBOOKS.rglob("0*.ipynb"))
COLAB = "https://colab.research.google.com/github/dmdd-lite/dmdd-lite/blob/main/notebooks/"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, 4).cells


@pytest.fixture
def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def test_every_chapter_has_solutions():
    names = {path.relative_to(NOTEBOOKS).as_posix() for path in PATHS}
    solutions = {f"solutions/{name[:2]}_solutions.ipynb" for name in names if "/" not in name}
    assert solutions == {name for name in names if "/" in name} != set()


def test_executed_in_order_without_errors(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not {"error", "stderr"} & {output.get("name", output.output_type) for output in outputs}


def test_light_valid_and_of_no_machine(path):
    notebook, text = nbformat.read(path, 4), path.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    assert len(text) < 3_000_000
    assert "widget-view" not in text
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)


def test_one_parameters_cell_whose_fast_values_exist_and_are_checked(path, code):
    (tagged,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    known, fast = notebook_parameters(path), tagged.metadata["nbmake"]["mock"]
    assert {name: type(value) for name, value in fast.items()} == {name: type(known[name]) for name in fast}
    written = {line.split(":")[0] for line in tagged.source.splitlines() if line}
    assert set(known) == written, "papermill overlooks a line with a second '='"
    assert sum("check_injected()" in cell.source for cell in code) == 1


def test_opens_in_colab_from_its_own_path_and_links_lead_somewhere(path, cells, code):
    assert f"]({COLAB}{path.relative_to(NOTEBOOKS).as_posix()})" in cells[0].source
    install = [line.strip() for line in code[0].source.splitlines() if "pip" in line]
    assert code[0].source.startswith('import sys\n\nif "google.colab" in sys.modules:')
    assert len(install) == 1
    assert not re.search(r"torch|\s-e\s|--force|--upgrade|-U\b", install[0]), "Colab's PyTorch must stay"
    for cell in cells:
        for target in re.findall(r"\]\((?!https?:|#|data:|attachment:)([^)#]+)", cell.source):
            assert (path.parent / target).exists(), target
