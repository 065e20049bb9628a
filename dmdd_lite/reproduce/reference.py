"""Published numbers on MVTec AD, in percent, and our results in a table beside them.

`reference.csv` holds the numbers as published (rows "mean": over the fifteen categories). They were measured
under different protocols, which the first row of a method names; none of them is ours.
"""

import json
from importlib import resources
from pathlib import Path

import pandas as pd

from ..evaluation import METRICS
from ..tables import PROTOCOL, cell, compare_with_paper, results_table

#: The metrics that other methods publish, by their names here and in headings.
PUBLISHED = {"image_auroc": "image", "pixel_auroc": "pixel", "aupro": "PRO"}
PAPER = "DMDD"


def load_reference() -> pd.DataFrame:
    """The published numbers: method, category (or "mean"), image_auroc, pixel_auroc, aupro (NaN = none) and
    protocol."""
    with resources.files(__package__).joinpath("reference.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def by_category(metric: str) -> pd.DataFrame:
    """One metric of the methods that publish it by category: a row a category, a column a method."""
    known = load_reference().query("category != 'mean'").dropna(subset=metric)
    return known.pivot(index="category", columns="method", values=metric)[
        list(dict.fromkeys(known["method"]))
    ]


def category_table(results: pd.DataFrame) -> pd.DataFrame:
    """Our DMDD by category, mean ± std over seeds in percent, beside the paper's and the baselines' numbers.

    The baselines' last row is their mean over the same categories as ours; the paper's number is in it only
    if these are all fifteen.
    """
    table = results_table(results)
    categories = [name for name in table.index if not name.startswith("mean of ")]
    table.columns = ["seeds", *(f"ours {metric}" for metric in METRICS)]
    complete = set(categories) == set(by_category("pixel_auroc").index)
    means = load_reference().query("category == 'mean'").set_index("method")
    paper = "/".join(f"{means.loc[PAPER, metric]:.2f}" for metric in ("pixel_auroc", "aupro"))
    table[f"{PAPER} (paper) pixel/PRO"] = [
        paper if complete and name not in categories else "-" for name in table.index
    ]
    published = {metric: by_category(metric) for metric in PUBLISHED}
    for method in published["pixel_auroc"].columns:
        columns = {m: values[method] for m, values in published.items() if method in values}
        heading = f"{method} {'/'.join(PUBLISHED[metric] for metric in columns)}"
        rows = [[name] if name in categories else categories for name in table.index]
        table[heading] = [_cell(columns.values(), row) for row in rows]
    return table


def _cell(columns, categories: list[str]) -> str:
    """Means over the categories, "-" where one of them is not published."""
    if not all(name in column.index for column in columns for name in categories):
        return "-"
    return "/".join(f"{column[categories].mean():.2f}" for column in columns)


def means_table(results: pd.DataFrame) -> pd.DataFrame:
    """Means over the categories in percent, ours and everyone's: image, pixel, PRO, protocol."""
    comparison = compare_with_paper(results)
    covers = comparison["DMDD covers"].iloc[0]
    ours = [comparison.loc[metric, "DMDD"] for metric in PUBLISHED]
    rows = {"**DMDD, ours**": [*ours, f"{PROTOCOL} ({covers})"]}
    if (plus := results[results["map"] == "plus"]).size:
        found = 100 * plus.groupby("category")[list(PUBLISHED)].mean().mean()
        rows["**DMDD+, ours**"] = [*(cell(found[metric]) for metric in PUBLISHED), "as above"]
    means = load_reference().query("category == 'mean'").set_index("method")
    for method, numbers in means.iterrows():
        cells = [cell(numbers[metric]) for metric in PUBLISHED]
        rows[method] = [*cells, numbers["protocol"]]
    return pd.DataFrame.from_dict(rows, "index", columns=[*PUBLISHED.values(), "protocol"])


def report(results_dir: str | Path, results: pd.DataFrame) -> str:
    """The whole of `results.md`: how the runs were made, all tables, in markdown. DMDD and DMDD+ apart."""
    parts = [
        "# MVTec AD: DMDD, our implementation, beside the paper's and the baselines' numbers",
        f"Percent. Ours: protocol {PROTOCOL}; mean ± standard deviation over the seeds.",
        "\n".join(settings(results_dir)),
        "## DMDD (map `fused`) by category",
        category_table(results).to_markdown(disable_numparse=True),
        "The last row of the baselines is their mean over the same categories as ours.",
    ]
    if "plus" in set(results["map"]):
        parts += ["## DMDD+ (map `plus`, ours alone) by category"]
        parts += [results_table(results, "plus").to_markdown(disable_numparse=True)]
    parts += ["## Means over the categories", means_table(results).to_markdown(disable_numparse=True)]
    return "\n\n".join(parts)


def settings(results_dir: str | Path) -> list[str]:
    """One line a configuration field that matters to a reader: its values in the folder's result files, and
    on which devices they were computed; more than one value is marked."""
    told = ("teacher", "teacher_weights", "image_size", "iterations", "batch_size")
    found: dict[str, dict[str, None]] = {}
    for path in sorted(Path(results_dir).glob("*_seed*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in told:
            value = values["config"][name]
            text = Path(value).name if name == "teacher_weights" else str(value)
            found.setdefault(name, {})[text or "the model's own"] = None
        found.setdefault("device", {})[values["device"]] = None
    return [f"- {name}: {', '.join(values)}" for name, values in found.items()]
