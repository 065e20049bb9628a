"""`make demo`: notebook 05 on the three embedded categories at a time, then the table and where the pictures
are. The same command goes on after an interruption and repeats nothing finished."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from .evaluation import METRICS, collect_results, results_table
from .reproduction.board import Board, Run
from .reproduction.jobs import INTERRUPTED, Job, interrupt_on_sigterm
from .reproduction.schedule import places, run_here
from .runner import REPRODUCTION, notebook_parameters
from .samples import SAMPLES


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all done, 1 a run failed, 2 nothing was started, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m dmdd_lite.demo", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/demo"), help="folder of the results")
    parser.add_argument("--figures", type=Path, help="also copy the map pictures there")
    parser.add_argument("--iterations", type=int, help="instead of the notebook's default")
    parser.add_argument("--jobs", type=int, default=len(SAMPLES), help="categories at a time")
    options = parser.parse_args(arguments)
    interrupt_on_sigterm()
    began = time.monotonic()
    try:
        runs = plan(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        print(f"training on {', '.join(SAMPLES)}; logs in {runs[0].job.log.parent}", flush=True)
        run_here(runs, places(options.jobs, "auto"), Board())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints and repeats nothing finished")
        return INTERRUPTED
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        print(f"{run.job.name}: {run.detail}\n  log: {run.job.log}", file=sys.stderr)
    if failed:
        return 1
    results = collect_results(options.results)
    results = results[results["category"].isin(SAMPLES)]
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        for picture in sorted((options.results / "figures").glob("*_maps.png")):
            shutil.copy(picture, options.figures / f"demo_{picture.name}")
    ran = any(run.began is not None for run in runs)
    took = f"{(time.monotonic() - began) / 60:.1f} minutes" if ran else "done before"
    print(f"\n{summary(results, options.results, took)}")
    return 0


def plan(options: argparse.Namespace) -> list[Run]:
    """A run a category, with the notebook's defaults. Raises ValueError for an option out of range."""
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    common = notebook_parameters(REPRODUCTION) | {"results_dir": str(options.results.resolve())}
    if options.iterations is not None:
        common["iterations"] = options.iterations
    jobs = [Job({**common, "category": category}) for category in SAMPLES]
    jobs[0].config()  # raises
    return [Run(job) for job in jobs]


def summary(results, folder: Path, took: str) -> str:
    """What a newcomer needs at the end: the numbers, what they mean, and where to look."""
    tables = {of: results_table(results, of)[["seeds", *METRICS]].to_markdown() for of in ("fused", "plus")}
    return "\n".join(
        [
            f"The embedded samples, {took}. In percent, 100 is best.",
            "",
            "DMDD (map fused):",
            tables["fused"],
            "",
            "DMDD+ (map plus), by which the detectors decide:",
            tables["plus"],
            "",
            "image_auroc: are defective images ranked above good ones?   aupro: are their defects outlined?",
            f"pictures:  {folder / 'figures'}",
            f"notebooks: {folder / 'notebooks'} (open one in JupyterLab)",
            f"numbers:   {folder / '<category>_seed0.json'}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
