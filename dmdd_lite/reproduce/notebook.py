"""Notebooks headless by papermill, which accepts parameters that do not exist: here they are refused."""

import ast
import os
from pathlib import Path

from ..options import shown

PACKAGE = Path(__file__).resolve().parent.parent
#: beside the package in a checkout; in it where a wheel was installed, which has the main job alone
NOTEBOOKS = next(filter(Path.is_dir, (PACKAGE / "notebooks", PACKAGE.parent / "notebooks")), PACKAGE)
REPRODUCTION = NOTEBOOKS / "05_mvtec_reproduction.ipynb"
#: papermill's `-p` makes numbers of digits, and nothing else but text
HINTS = {
    (int, str): " (papermill's -r passes text as it is)",
    (str, dict): " (papermill's -y takes a dict: -y 'name: {key: value}')",
}


class NotebookError(RuntimeError):
    """A cell of the notebook failed, or its files cannot be written."""


class KernelDied(NotebookError):
    """The notebook's process was killed: another attempt may succeed."""


def notebook_parameters(notebook: str | Path) -> dict:
    """Names and defaults of the notebook's parameters cell, all literals, as papermill sees them: it
    overlooks a line with a second '=', in a comment too."""
    from papermill import inspect_notebook

    found = inspect_notebook(str(notebook))
    return {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}


def check_parameters(notebook: str | Path, parameters: dict):
    """Raises ValueError for names that the notebook does not have, which papermill would accept; TypeError
    for a value of another type than the default's."""
    _check(Path(notebook).name, notebook_parameters(notebook), parameters)


def check_injected():
    """`check_parameters` inside a notebook, of what papermill has injected; without injection nothing."""
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    found = [i for i, source in enumerate(cells) if source.startswith("# Parameters\n")]
    if found:
        known, given = (_assigned(cells[i]) for i in (found[-1] - 1, found[-1]))
        values = {name: shell.user_ns[name] for name in given}
        _check("this notebook", {name: ast.literal_eval(node) for name, node in known.items()}, values)


def _check(notebook: str, known: dict, parameters: dict):
    """A whole number may stand for a float; height and width for the image_size of a notebook with settings,
    all of whose parameters go to Config."""
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ValueError(f"{notebook} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    for name, value in parameters.items():
        default = type(known[name])
        if name == "image_size" and "settings" in known and isinstance(value, list) and len(value) == 2:
            continue
        if type(value) not in ((float, int) if default is float else (default,)):
            hint = HINTS.get((type(value), default), "")
            told = f"must be {default.__name__}, got {shown(value)}{hint}"
            raise TypeError(f"parameter {name} of {notebook} {told}")


def _assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns, and what to each."""
    body = ast.parse(source).body
    pairs = [(node.targets[0], node.value) for node in body if isinstance(node, ast.Assign)]
    pairs += [(node.target, node.value) for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}


def run_notebook(notebook: str | Path, output: Path, parameters: dict, log: Path):
    """Execute `notebook` into `output`; what its cells print is appended to `log`.

    Raises ValueError or TypeError for a wrong parameter before anything is written, KernelDied, and
    NotebookError if a cell fails or a file cannot be written.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_parameters(notebook, parameters)
    os.environ.setdefault("DMDD_PROGRESS", "lines")
    target = str(output).replace("{", "{{").replace("}", "}}")  # papermill would look for parameters there
    quiet = ["--IPKernelApp.log_level=50"]  # of the kernel itself, on our terminal
    options = {"progress_bar": False, "kernel_name": "python3", "extra_arguments": quiet}
    try:
        for folder in (log.parent, output.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as text:
            options |= {"stdout_file": text, "stderr_file": text}
            papermill.execute_notebook(str(notebook), target, parameters, **options)
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise KernelDied("its Python process was killed, perhaps for lack of memory") from error
    except OSError as error:
        raise NotebookError(f"{output} or {log} cannot be written ({error})") from error
