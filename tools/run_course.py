"""Run notebooks in place, as their readers would, and keep light outputs: `make notebooks`.

Each runs in an empty folder of its own, so that nothing is loaded from an earlier run; the pictures that it
writes to results/figures are copied to figures/. A notebook that fails is left as it was.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from light_notebook import lighten
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def run(path: Path, figures: Path):
    """Execute one notebook with its defaults."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}})
        client.execute()
        for picture in sorted(Path(folder, "results/figures").glob(f"{path.name[:2]}_*.[pg]*")):
            shutil.copy(picture, figures / picture.name)
    nbformat.write(notebook, path)
    lighten(str(path))


def main(names: list[str]):
    course = [ROOT / "notebooks", ROOT / "notebooks/solutions"]
    paths = [Path(name) for name in names] or [p for f in course for p in sorted(f.glob("*.ipynb"))]
    for path in paths:
        began = time.monotonic()
        run(path, ROOT / "figures")
        minutes, size = (time.monotonic() - began) / 60, path.stat().st_size / 1000
        print(f"{path.relative_to(ROOT)}  {minutes:.1f} minutes  {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main([str(Path(name).resolve()) for name in sys.argv[1:]])
