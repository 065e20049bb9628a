"""`make demo`: notebook 05 on the three embedded categories, then the table and where the pictures are."""

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

from .evaluation import METRICS, collect_results, results_table
from .runner import NOTEBOOKS, NotebookError, run_notebook
from .samples import SAMPLE_CATEGORIES

NOTEBOOK = NOTEBOOKS / "05_mvtec_reproduction.ipynb"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmdd_lite.demo", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/demo"), help="folder of the results")
    parser.add_argument("--figures", type=Path, help="also copy the map pictures there")
    parser.add_argument("--iterations", type=int, help="instead of the notebook's default")
    options = parser.parse_args(arguments)
    show_prints()
    began = time.monotonic()
    for number, category in enumerate(SAMPLE_CATEGORIES, start=1):
        print(f"\n[{number}/{len(SAMPLE_CATEGORIES)}] {category}", flush=True)
        parameters = {"category": category, "results_dir": str(options.results.resolve())}
        if options.iterations:
            parameters["iterations"] = options.iterations
        try:
            run_notebook(NOTEBOOK, options.results / f"05_{category}.ipynb", parameters)
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1
    results = collect_results(options.results)
    results = results[results["category"].isin(SAMPLE_CATEGORIES)]
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        for picture in sorted((options.results / "figures").glob("*_maps.png")):
            shutil.copy(picture, options.figures / f"demo_{picture.name}")
    print(f"\n{summary(results, options.results, time.monotonic() - began)}")
    return 0


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


def summary(results, folder: Path, seconds: float) -> str:
    """What a newcomer needs at the end: the numbers, what they mean, and where to look."""
    table = results_table(results)
    return "\n".join(
        [
            f"DMDD on the embedded samples, {seconds / 60:.1f} minutes. Fused map in percent, 100 is best:",
            "",
            table[["seeds", *METRICS]].to_markdown(),
            "",
            "image_auroc: are defective images ranked above good ones?   aupro: are their defects outlined?",
            f"pictures:  {folder / 'figures'}",
            f"notebooks: {folder / '05_*.ipynb'} (open one in JupyterLab)",
            f"numbers:   {folder / '<category>_seed0.json'}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
