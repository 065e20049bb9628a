"""Notebooks by papermill: parameters are checked before anything runs, by the command and by the notebook."""

import nbformat
import papermill
import pytest

from dmdd_lite.reproduce.notebook import NotebookError, run_notebook


@pytest.fixture
def notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(
            'root: str = ""  # a folder\nsteps: int = 3', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from dmdd_lite.reproduce.notebook import check_injected\n\ncheck_injected()"
        ),
        nbformat.v4.new_code_cell("if steps > 5:\n    raise ValueError(f'{steps} steps')\nprint(steps)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_prints_are_logged_and_a_failing_cell_is_told(notebook, tmp_path):
    """Braces in a path mean nothing."""
    output, log = tmp_path / "{steps}" / "ran.ipynb", tmp_path / "logs" / "ran.log"
    run_notebook(notebook, output, {"steps": 4}, log)
    assert nbformat.read(output, 4).cells[-1].outputs[0].text == log.read_text() == "4\n"
    with pytest.raises(NotebookError, match="ValueError: 9 steps"):
        run_notebook(notebook, output, {"steps": 9}, log)


def test_wrong_parameters_write_nothing(notebook, tmp_path):
    with pytest.raises(TypeError, match=r"parameter steps of small\.ipynb must be int, got '4'"):
        run_notebook(notebook, tmp_path / "out" / "ran.ipynb", {"steps": "4"}, tmp_path / "out" / "log")
    assert not (tmp_path / "out").exists()


def test_a_notebook_itself_refuses_what_papermill_accepts(notebook, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter step; it has root, steps"):
        papermill.execute_notebook(str(notebook), str(tmp_path / "a.ipynb"), {"step": 4}, progress_bar=False)
