"""Runs a notebook headless with papermill, its parameters checked first."""

import ast
import os
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


class NotebookError(RuntimeError):
    """The notebook stopped; the message holds its own error and where the run can be read."""


def notebook_parameters(notebook: str | Path) -> dict:
    """Names and defaults of the notebook's parameters cell, whose values are literals.

    As papermill sees them: it overlooks a line with a second '=', in a comment too.
    """
    from papermill import inspect_notebook

    found = inspect_notebook(str(notebook))
    return {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}


def check_parameters(notebook: str | Path, parameters: dict):
    """papermill takes unknown names in silence; here they are a ValueError that lists the known ones, and a
    value of another type than the default's is a TypeError."""
    known = notebook_parameters(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"{Path(notebook).name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    for name, value in parameters.items():
        if type(value) is not type(known[name]):
            wanted = type(known[name]).__name__
            raise TypeError(f"parameter {name} of {Path(notebook).name} must be {wanted}, got {value!r}")


def run_notebook(notebook: str | Path, output: str | Path, parameters: dict, log: bool = True) -> Path:
    """Execute `notebook` with `parameters` into `output`; with log, its prints appear here as they come.

    Raises ValueError or TypeError for a wrong parameter before anything is written, and NotebookError when a
    cell fails. Until it is done the notebook lies beside `output` as `<name>.unfinished.ipynb`.
    """
    import papermill

    check_parameters(notebook, parameters)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".unfinished.ipynb")
    os.environ.setdefault("DMDD_PROGRESS", "lines")
    try:
        papermill.execute_notebook(
            str(notebook), str(partial), parameters, progress_bar=False, log_output=log, kernel_name="python3"
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.ename}: {error.evalue}\n(the run so far: {partial})") from error
    os.replace(partial, output)
    return output


def check_injected():
    """For a notebook, after its parameters: papermill on its own sets unknown names in silence, here they are
    a ValueError that lists the known ones. Does nothing where no parameters were injected."""
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    found = [i for i, source in enumerate(cells) if source.startswith("# Parameters\n")]
    if not found:
        return
    known = _assigned(cells[found[-1] - 1])
    unknown = [name for name in _assigned(cells[found[-1]]) if name not in known]
    if unknown:
        raise ValueError(f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


def _assigned(source: str) -> list[str]:
    """The names that a cell assigns, those with a type last."""
    body = ast.parse(source).body
    targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
