"""What each change of a configuration gains or loses, row by row."""

import pandas as pd
from matplotlib.figure import Figure

from ..figures import INK, new_figure, styled
from .panels import ANOMALOUS, GOOD, OTHERS


@styled
def plot_row_differences(results: pd.DataFrame, metrics: dict[str, str], full: str) -> Figure:
    """One panel a metric, a line a row, a colour a data set: points above or below the mean of the row
    `full`; a small dot a seed, a large one their mean.

    results: columns row, data, seed and the metrics as fractions of 1, lines in the order to be drawn;
    metrics: titles by column. The band is the range of the full row's own seeds. Several data sets have a
    legend; a single one has none. Raises ValueError if a data set lacks the full row.
    """
    rows, sets = list(dict.fromkeys(results["row"])), list(dict.fromkeys(results["data"]))
    lacking = [data for data in sets if not _lines(results, full, data).any()]
    if lacking:
        raise ValueError(f"no row {full!r} to compare with for {', '.join(lacking)}")
    fig = new_figure(2.2 + 1.9 * len(metrics), 1.3 + 0.24 * len(rows))
    panels = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    colours = dict(zip(sets, [GOOD, ANOMALOUS, *OTHERS], strict=False))
    for ax, (metric, title) in zip(panels, metrics.items(), strict=True):
        for number, data in enumerate(sets):
            shift = (number - (len(sets) - 1) / 2) * 0.5 / len(sets)  # data sets beside each other
            gains = _gains(results, metric, full, data)
            band = gains[full]
            ax.axvspan(band.min(), band.max(), color=colours[data], alpha=0.15, linewidth=0)
            for place, row in enumerate(rows):
                _plot_seeds(ax, gains.get(row), place + shift, colours[data])
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set(title=title, xlabel="points", yticks=range(len(rows)), yticklabels=rows)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    if len(sets) == 1:
        fig.suptitle(f"{sets[0]}: difference to the mean of {full!r}", fontsize=12)
        return fig
    handles = [panels[0].plot([], [], "o", color=colour)[0] for colour in colours.values()]
    fig.legend(handles, sets, loc="outside upper center", ncols=len(sets), title=f"difference to {full!r}")
    return fig


def _lines(results: pd.DataFrame, row: str, data: str) -> pd.Series:
    return (results["row"] == row) & (results["data"] == data)


def _gains(results: pd.DataFrame, metric: str, full: str, data: str) -> dict[str, pd.Series]:
    """By row, every seed's distance to the full row's mean, in points."""
    own = results[results["data"] == data]
    level = own.loc[own["row"] == full, metric].mean()
    return {row: 100 * (part[metric] - level) for row, part in own.groupby("row", sort=False)}


def _plot_seeds(ax, gains: pd.Series | None, height: float, colour: str):
    if gains is None:  # not run on this data set
        return
    ax.plot(gains, [height] * len(gains), ".", color=colour, alpha=0.45, markersize=5)
    ax.plot([gains.mean()], [height], "o", color=colour, markersize=6)
