"""What is told at the end, from the result files of the folder: tables, results.csv, the figure."""

from pathlib import Path

from ..course.figures import save_figure
from ..course.plots.baselines import plot_baselines
from ..evaluation import METRICS
from ..tables import collect_results, results_table
from ..utils import write_atomically
from .reference import report


def conclude(folder: Path, failed: dict[str, str]) -> str:
    """Write results.csv, results.md and figures/05_baselines.png of the folder's results; the summary."""
    results, told = collect_results(folder), []
    if len(results):
        write_atomically(folder / "results.csv", lambda path: results.to_csv(path, index=False))
        text = report(folder, results) + "\n\n![by category](figures/05_baselines.png)\n"
        write_atomically(folder / "results.md", lambda path: path.write_text(text, encoding="utf-8"))
        save_figure(plot_baselines(results), folder / "figures" / "05_baselines.png")
        for of, name in (("fused", "DMDD (map fused)"), ("plus", "DMDD+ (map plus)")):
            if of in set(results["map"]):
                told += [f"{name}, percent, mean ± std over seeds:", "", table(results, of), ""]
        told += [f"beside the paper and baselines: {folder}/results.md, figures/05_baselines.png"]
    if failed:
        told += ["", f"{len(failed)} runs failed; the same command tries them again:"]
        told += [f"- {name}: {message}" for name, message in failed.items()]
    return "\n".join(told)


def table(results, of: str) -> str:
    """Percent by category in markdown, of one map."""
    return results_table(results, of)[["seeds", *METRICS]].to_markdown(disable_numparse=True)
