"""Runs a notebook headless with papermill, its parameters checked first."""

import ast
import os
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


class NotebookError(RuntimeError):
    """The notebook stopped; the message holds its own error and where the run can be read."""


def notebook_parameters(notebook: str | Path) -> dict:
    """Names and defaults of the notebook's parameters cell, whose values are literals.

    Python's own parser reads it: papermill 2.7's `inspect_notebook` misses every default that is "".
    """
    cells = nbformat.read(notebook, as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", ()))
    found = {}
    for line in ast.parse(source).body:
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        found[target.id] = ast.literal_eval(line.value)
    return found


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
    cell fails: then the notebook up to there lies beside `output` as `<name>.failed.ipynb`.
    """
    import papermill

    check_parameters(notebook, parameters)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".failed.ipynb")
    os.environ.setdefault("DMDD_PROGRESS", "lines")
    try:
        papermill.execute_notebook(
            str(notebook), str(partial), parameters, progress_bar=False, log_output=log, kernel_name="python3"
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.ename}: {error.evalue}\n(the run so far: {partial})") from error
    os.replace(partial, output)
    return output
