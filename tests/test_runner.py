"""Headless notebooks: parameters are checked before anything runs, failures are told in one line."""

import nbformat
import papermill
import pytest

from dmdd_lite.runner import REPRODUCTION, NotebookError, check_parameters, notebook_parameters, run_notebook


@pytest.fixture
def notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(
            'root: str = ""  # a folder\nsteps: int = 3', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell("if steps > 5:\n    raise ValueError(f'{steps} steps')\nprint(steps)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_runs_with_its_parameters(notebook, tmp_path):
    output = run_notebook(notebook, tmp_path / "out" / "ran.ipynb", {"steps": 4}, log=False)
    cells = nbformat.read(output, 4).cells
    assert cells[-1].outputs[0].text == "4\n"


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ({"step": 4}, ValueError, "small.ipynb has no parameter step; it has root, steps"),
        ({"steps": "4"}, TypeError, "parameter steps of small.ipynb must be int, got '4'"),
        ({"root": 4}, TypeError, "must be str"),
    ],
)
def test_wrong_parameters_write_nothing(notebook, tmp_path, parameters, error, message):
    with pytest.raises(error, match=message):
        run_notebook(notebook, tmp_path / "out" / "ran.ipynb", parameters)
    assert not (tmp_path / "out").exists()


def test_a_failing_cell_is_told_and_its_notebook_kept_apart(notebook, tmp_path):
    with pytest.raises(NotebookError, match=r"ValueError: 9 steps\n.*ran\.unfinished\.ipynb"):
        run_notebook(notebook, tmp_path / "ran.ipynb", {"steps": 9}, log=False)
    assert not (tmp_path / "ran.ipynb").exists()
    assert (tmp_path / "ran.unfinished.ipynb").exists()


def test_the_main_job_has_exactly_these_parameters():
    assert {name: type(value) for name, value in notebook_parameters(REPRODUCTION).items()} == {
        "data_root": str,
        "category": str,
        "texture_root": str,
        "teacher": str,
        "teacher_weights": str,
        "teacher_options": dict,
        "image_size": int,
        "iterations": int,
        "batch_size": int,
        "seed": int,
        "device": str,
        "results_dir": str,
    }


def test_defaults_pass_their_own_check():
    check_parameters(REPRODUCTION, notebook_parameters(REPRODUCTION))


@pytest.mark.parametrize("parameters, error", [({"steps": 4}, None), ({"step": 4}, "no parameter step")])
def test_a_notebook_itself_refuses_what_papermill_lets_pass(notebook, tmp_path, parameters, error):
    document = nbformat.read(notebook, 4)
    check = "from dmdd_lite.runner import check_injected\n\ncheck_injected()"
    document.cells.insert(1, nbformat.v4.new_code_cell(check))
    nbformat.write(document, notebook)
    arguments = (str(notebook), str(tmp_path / "ran.ipynb"), parameters)
    if error is None:
        cells = papermill.execute_notebook(*arguments, progress_bar=False).cells
        assert cells[-1].outputs[0].text == "4\n"
    else:
        with pytest.raises(papermill.PapermillExecutionError, match=f"{error}; it has root, steps"):
            papermill.execute_notebook(*arguments, progress_bar=False)
