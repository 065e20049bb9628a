"""Notebook hygiene: what is committed opens on GitHub and in Colab, is light, was run from top to bottom, and
keeps the rhythm of the course."""

import re
import statistics

import nbformat
import pytest

from dmdd_lite.reproduce.notebook import NOTEBOOKS, notebook_parameters

CHAPTERS = sorted(NOTEBOOKS.glob("*.ipynb"))
SOLUTIONS = sorted(NOTEBOOKS.glob("solutions/*.ipynb"))
COLAB = "https://colab.research.google.com/github/dmdd-lite/dmdd-lite/blob/main/"


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, 4).cells


def code_of(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def test_every_chapter_has_solutions():
    assert [path.name[:2] for path in CHAPTERS] == ["01", "02", "03", "04", "05"]
    assert [path.name for path in SOLUTIONS] == [f"{path.name[:2]}_solutions.ipynb" for path in CHAPTERS]


@each(CHAPTERS + SOLUTIONS)
def test_light_valid_and_without_widget_state(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 500_000
    assert "widgets" not in notebook.metadata
    assert "widget-view" not in path.read_text(encoding="utf-8")
    assert notebook.metadata.kernelspec.name == "python3"


@each(CHAPTERS + SOLUTIONS)
def test_executed_in_order_without_errors(path):
    code = code_of(read(path))
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert "stderr" not in {output.get("name") for output in outputs}


@each(CHAPTERS + SOLUTIONS)
def test_one_parameters_cell_whose_fast_values_exist_and_are_checked(path):
    tagged = [cell for cell in read(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    known = notebook_parameters(path)
    fast = tagged[0].metadata["nbmake"]["mock"]
    assert {name: type(value) for name, value in fast.items()} == {name: type(known[name]) for name in fast}
    written = {line.split(":")[0] for line in tagged[0].source.splitlines() if line}
    assert set(known) == written, "papermill overlooks a line with a second '='"
    assert sum("check_injected()" in cell.source for cell in code_of(read(path))) == 1


@each(CHAPTERS + SOLUTIONS)
def test_opens_in_colab_from_its_own_path(path):
    cells = read(path)
    address = f"{COLAB}notebooks/{path.relative_to(NOTEBOOKS).as_posix()}"
    assert f"]({address})" in cells[0].source
    install = code_of(cells)[0].source
    assert install.startswith('import sys\n\nif "google.colab" in sys.modules:')
    commands = [line.strip() for line in install.splitlines() if "pip" in line]
    assert len(commands) == 1
    assert not re.search(r"torch|\s-e\s|--force|--upgrade|-U\b", commands[0])
    assert all("%pip" not in cell.source for cell in code_of(cells)[1:])


@each(CHAPTERS + SOLUTIONS)
def test_no_path_of_the_machine_it_ran_on(path):
    assert not re.search(r"/(home|root|Users|work|tmp)/", path.read_text(encoding="utf-8"))


@each(CHAPTERS + SOLUTIONS)
def test_short_cells_and_prose_between_them(path):
    cells = read(path)
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code_of(cells)]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 25
    kinds = "".join(cell.cell_type[0] for cell in cells)
    assert "ccc" not in kinds


@each(CHAPTERS + SOLUTIONS)
def test_every_picture_has_a_caption(path):
    cells = read(path)
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            after = cells[number + 1]
            assert after.cell_type == "markdown", cell.source
            assert re.match(r"\*[^*]", after.source), cell.source


@each(CHAPTERS)
def test_opens_with_the_aim_and_closes_with_recap_limits_and_exercises(path):
    cells = read(path)
    for promise in ("**What you will learn", "**Prerequisites", "**Time"):
        assert promise in cells[0].source
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    *_, recap, limits, exercises = re.split(r"^## (?=Recap|Limits|Exercises)", text, flags=re.MULTILINE)
    assert (recap[:5], limits[:6], exercises[:9]) == ("Recap", "Limits", "Exercises")
    assert 3 <= len(re.findall(r"^\d+\. ", exercises, flags=re.MULTILINE)) <= 5


@each(CHAPTERS + SOLUTIONS)
def test_links_between_the_pages_lead_somewhere(path):
    for cell in read(path):
        for target in re.findall(r"\]\((?!https?:|#|data:|attachment:)([^)#]+)", cell.source):
            assert (path.parent / target).exists(), target


def test_pictures_in_figures_are_written_by_notebooks_and_light():
    for picture in (NOTEBOOKS.parent / "figures").glob("*"):
        assert re.match(r"(0[1-5]|demo)_\w+\.png$", picture.name)
        assert picture.stat().st_size <= 150_000
