"""Runs a notebook headless with papermill, its parameters checked first."""

import ast
import logging
import os
import sys
from pathlib import Path

from . import locks
from .options import shown

PACKAGE = Path(__file__).resolve().parent
#: where the notebooks are: beside the package in a checkout, in it where a wheel was installed (the main job
#: alone)
NOTEBOOKS = next(filter(Path.is_dir, (PACKAGE / "notebooks", PACKAGE.parent / "notebooks")), PACKAGE)
REPRODUCTION = NOTEBOOKS / "05_mvtec_reproduction.ipynb"  # the main job: one category and seed

#: papermill's `-p` makes numbers of digits, and nothing else but text
HINTS = {
    (int, str): " (papermill's -r passes text as it is)",
    (str, dict): " (papermill's -y takes a dict: -y 'name: {key: value}')",
}


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
        _check_type(f"parameter {name} of {Path(notebook).name}", value, known[name])


def _check_type(name: str, value, default):
    """TypeError unless the value is of the default's type; a whole number may stand for a float."""
    allowed = (float, int) if type(default) is float else (type(default),)
    if type(value) not in allowed:
        wanted = type(default).__name__
        hint = HINTS.get((type(value), type(default)), "")
        raise TypeError(f"{name} must be {wanted}, got {shown(value)}{hint}")


def run_notebook(notebook: str | Path, output: str | Path, parameters: dict, log: bool = True) -> Path:
    """Execute `notebook` with `parameters` into `output`; with log, its prints appear here as they come.

    Raises ValueError or TypeError for a wrong parameter before anything is written, and NotebookError when
    `output` cannot be written, another process runs the notebook into it, or a cell fails. Until it is done
    the notebook lies beside `output` as `<name>.unfinished.ipynb`.
    """
    check_parameters(notebook, parameters)
    output = Path(output)
    partial = output.with_suffix(".unfinished.ipynb")
    os.environ.setdefault("DMDD_PROGRESS", "lines")
    try:
        with locks.claim(output.with_suffix(".lock"), f"{output} is run"):
            _execute(notebook, partial, parameters, log)
            os.replace(partial, output)
    except locks.Busy as error:
        raise NotebookError(f"{error}; wait for it, or use another folder") from error
    except OSError as error:
        raise NotebookError(f"{output} cannot be written ({error}); mend that, then run it again") from error
    return output


def _execute(notebook: str | Path, partial: Path, parameters: dict, log: bool):
    import papermill
    from nbclient.exceptions import DeadKernelError

    target = str(partial).replace("{", "{{").replace("}", "}}")  # papermill would look for parameters there
    try:
        papermill.execute_notebook(
            str(notebook), target, parameters, progress_bar=False, log_output=log, kernel_name="python3"
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.ename}: {error.evalue}\n(the run so far: {partial})") from error
    except DeadKernelError as error:
        raise NotebookError(
            f"its Python process was killed, perhaps for lack of memory\n(the run so far: {partial})"
        ) from error


def show_prints():
    """Let papermill's log show what the cells print, without its own remarks on cells and files."""
    own = ("Executing", "Ending", "Input", "Output", "<Figure")

    def wanted(record: logging.LogRecord) -> bool:
        text = record.getMessage().rstrip()
        record.msg, record.args = text.replace("\n", "\n  "), ()
        return bool(text.strip()) and not text.startswith(own)

    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(wanted)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    logging.getLogger("papermill").addHandler(handler)
    logging.getLogger("papermill").setLevel(logging.INFO)


def check_injected():
    """For a notebook, after its parameters: papermill on its own sets unknown names in silence, here they are
    a ValueError that lists the known ones, and a value of another type than the default's is a TypeError.
    Does nothing where no parameters were injected."""
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    found = [i for i, source in enumerate(cells) if source.startswith("# Parameters\n")]
    if not found:
        return
    known, given = _assigned(cells[found[-1] - 1]), _assigned(cells[found[-1]])
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"this notebook has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    for name in given:
        _check_type(f"parameter {name}", shell.user_ns[name], ast.literal_eval(known[name]))


def _assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns, and what to each, those with a type last."""
    body = ast.parse(source).body
    pairs = [(node.targets[0], node.value) for node in body if isinstance(node, ast.Assign)]
    pairs += [(node.target, node.value) for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}
