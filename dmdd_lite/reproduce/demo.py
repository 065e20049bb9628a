"""`make demo`: notebook 05 on the three embedded categories, then the table and where the pictures are. The
same command resumes after an interruption and repeats nothing finished."""

import argparse
import sys
from pathlib import Path

from ..data.samples import SAMPLES
from .notebook import REPRODUCTION, notebook_parameters
from .run import CannotStart, Job, environments, exit_status, local_client, run_jobs

TOLD = """The embedded samples, in percent, 100 is best.

DMDD (map fused):
{fused}

DMDD+ (map plus), by which the detectors decide:
{plus}

image_auroc: are defective images ranked above good ones?   aupro: are their defects outlined?
pictures:  {folder}/figures
notebooks: {folder}/notebooks (open one in JupyterLab)
numbers:   {folder}/<category>_seed0.json"""


def demo(options: argparse.Namespace) -> dict[str, str]:
    """All of it; the failures by name. Raises CannotStart."""
    from ..tables import collect_results  # here: the workers, which import this module, need no PyTorch
    from .plan import setting_problems, stale, unfinished
    from .report import table

    folder = options.results
    common = notebook_parameters(REPRODUCTION) | {"results_dir": str(folder.resolve())}
    common |= {"iterations": options.iterations} if options.iterations is not None else {}
    jobs = [Job({**common, "category": category}) for category in SAMPLES]
    if problems := setting_problems(jobs, options.jobs):
        raise CannotStart(problems)
    (left, done), failed = unfinished(jobs), {}
    if problems := stale(done):
        raise CannotStart(problems)
    if left:
        print(f"training on {', '.join(SAMPLES)}; logs in {folder / 'logs'}", flush=True)
        with local_client(environments(options.jobs, "auto")) as client:
            failed = run_jobs(client, left)
    results = collect_results(folder)
    results = results[results["category"].isin(SAMPLES)]
    if not failed:
        tables = {of: table(results, of) for of in ("fused", "plus")}
        print(f"\n{TOLD.format(folder=folder, **tables)}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmdd_lite.reproduce.demo", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/demo"), help="folder of the results")
    parser.add_argument("--iterations", type=int, help="instead of the notebook's default")
    parser.add_argument("--jobs", type=int, default=len(SAMPLES), help="categories at a time")
    options = parser.parse_args(arguments)
    return exit_status(lambda: demo(options))


if __name__ == "__main__":
    sys.exit(main())
