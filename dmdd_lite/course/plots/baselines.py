"""Ours beside other methods, category by category."""

import pandas as pd
from matplotlib.figure import Figure

from ...config import MVTEC_CATEGORIES
from ...reproduce.reference import PAPER, PUBLISHED, by_category, load_reference
from ..figures import INK, WIDTH, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS

_TITLES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "PRO"}
_MARKERS = ("v", "s", "D", "^")  # of the baselines, in the order of reference.csv


@styled
def plot_baselines(results: pd.DataFrame, of: str = "fused") -> Figure:
    """One panel a metric, in percent; a row a category of `results` (as `tables.collect_results`): ours
    with the range over its seeds, the baselines that publish it, dashed the mean that the paper states.

    The baselines' protocols are their own, see `reference.csv`.
    """
    ours = results[results["map"] == of]
    known = [name for name in MVTEC_CATEGORIES if name in set(ours["category"])]
    names = known + sorted(set(ours["category"]) - set(known))
    paper = load_reference().query("category == 'mean'").set_index("method").loc[PAPER]
    fig = new_figure(WIDTH, 1.3 + 0.3 * len(names))
    panels, legend = fig.subplots(1, len(PUBLISHED), sharey=True), {}
    for ax, metric in zip(panels, PUBLISHED, strict=True):
        seeds = 100 * ours.groupby("category")[metric].agg(["min", "mean", "max"]).loc[names]
        ax.hlines(range(len(names)), seeds["min"], seeds["max"], color=INK, linewidth=2)
        legend["ours"] = ax.plot(seeds["mean"], range(len(names)), "o", color=INK, markersize=8)[0]
        _plot_published(ax, metric, names, legend)
        if pd.notna(paper[metric]):
            name = "DMDD (paper), mean of 15"
            legend[name] = ax.axvline(paper[metric], color=INK, linestyle="--", linewidth=1.2)
        ax.set(title=f"{_TITLES[metric]}, %", yticks=range(len(names)), yticklabels=names)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    fig.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=len(legend))
    return fig


def _plot_published(ax, metric: str, names: list[str], legend: dict):
    """The baselines' values of these categories, each method in one colour and shape wherever it stands."""
    methods = list(by_category("pixel_auroc").columns)
    baselines = by_category(metric).reindex(names).dropna(axis="columns", how="all")
    for method, marker, colour in zip(methods, _MARKERS, (GOOD, ANOMALOUS, *OTHERS), strict=False):
        if method in baselines:
            style = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "", "alpha": 0.85}
            legend[method] = ax.plot(baselines[method], range(len(names)), **style)[0]
