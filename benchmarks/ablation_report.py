"""The ablation's results as a tidy table, as markdown for every data set, and as a figure."""

import json
from pathlib import Path

import pandas as pd
from ablation_rows import BY_NAME, FULL
from grid import setting_changes

from dmdd_lite.config import Config
from dmdd_lite.course.figures import save_figure
from dmdd_lite.course.plots.ablation import plot_row_differences
from dmdd_lite.evaluation import METRICS
from dmdd_lite.options import differences
from dmdd_lite.tables import cell
from dmdd_lite.utils import write_atomically

ZONES = ("centre", "edge", "rim")
COLUMNS = ("row", "data", "seed", "map", *METRICS, *ZONES, "seconds")
NAMES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "pixel_ap": "pixel AP",
    "edge": "edge recall",
    "centre": "centre recall",
}
JUDGED = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")
INPUTS = ("normality", "abnormality")  # what the fused map can be compared with


def collect(folder: str | Path) -> pd.DataFrame:
    """All result files of a folder: a line a row, data set, seed and map, numbers as fractions of 1, in the
    order of ROWS. Raises ValueError naming a file that is no result, or of another base configuration, or
    that differs from another seed of its row and data set in more than the seed."""
    lines, bases, seeds = [], [], {}
    for path in sorted(Path(folder).glob("[!.]*_seed*.json")):  # hidden: a file half written
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            run = [values[key] for key in ("row", "data", "seed")]
            for name, metrics in values["metrics"].items():
                zones = [values["zones"][name][key] for key in ZONES]
                lines.append([*run, name, *(metrics[key] for key in METRICS), *zones, values["seconds"]])
            made = {key: values[key] for key in ("settings", "config", "files") if key in values}
            first, before = seeds.setdefault((run[0], run[1]), (path, made))
            changed = [text for text in setting_changes(before, made) if not text.startswith("seed:")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result file ({error!r}); move it away") from error
        if changed:
            raise ValueError(f"{path} is of other settings than {first.name}: {'; '.join(changed)}")
        if "base" in values:  # baselines have none
            weights = Path(values["base"]["teacher_weights"]).name  # whose folder differs by machine
            bases.append(Config.from_dict({**values["base"], "teacher_weights": weights}))
        if bases and (changed := differences(bases[0], bases[-1])):
            raise ValueError(f"{path} is of different base settings: {'; '.join(changed)}")
    table = pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(ZONES, float))  # None to NaN
    known = {name: place for place, name in enumerate(BY_NAME)}
    place = table["row"].map(lambda name: known.get(name, len(known)))
    order = table.assign(place=place).sort_values(["data", "place", "row", "seed"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def mean_and_std(values: pd.Series, digits: int = 2) -> str:
    """'98.70 ± 0.12', the standard deviation only of more than one seed; '-' of none."""
    return cell(values.mean(), values.std(), digits)


def quality_table(results: pd.DataFrame, data: str, of: str = "fused") -> pd.DataFrame:
    """Percent, mean ± std over the seeds: a line a row, columns seeds, the metrics of the map `of`, recall of
    edge and centre, and seconds of training."""
    own = results[(results["data"] == data) & (results["map"] == of)]
    lines = {}
    for row, part in own.groupby("row", sort=False):
        cells = {name: mean_and_std(100 * part[column]) for column, name in NAMES.items()}
        lines[row] = {"seeds": len(part), **cells, "seconds": mean_and_std(part["seconds"], 0)}
    return pd.DataFrame.from_dict(lines, orient="index")


def msn_table(results: pd.DataFrame, data: str) -> pd.DataFrame:
    """What fusing costs: the sum's metrics in percent, and how many points the fused map is behind the better
    of the branches, mean ± std over the seeds."""
    own, keys = results[results["data"] == data], ["row", "seed"]
    fused = own[own["map"] == "fused"].set_index(keys)[list(JUDGED)]
    inputs = own[own["map"].isin(INPUTS)].groupby(keys, sort=False)[list(JUDGED)].max()
    behind, lines = 100 * (inputs.loc[fused.index] - fused), {}
    for row, part in own[own["map"] == "sum"].groupby("row", sort=False):
        cells = {f"sum: {NAMES[m]}": mean_and_std(100 * part[m]) for m in JUDGED}
        lost = {f"behind: {NAMES[m]}": mean_and_std(behind.loc[row][m]) for m in JUDGED}
        lines[row] = {**cells, **lost}
    return pd.DataFrame.from_dict(lines, orient="index")


def markdown(results: pd.DataFrame) -> str:
    """Both tables of every data set."""
    text = "Percent, mean ± std over seeds; weights of the last iteration, nothing chosen on the test set.\n"
    for data in dict.fromkeys(results["data"]):
        titles = ("fused map", "the sum of the maps, and points that the fused map is behind its best input")
        for title, table in zip(titles, (quality_table, msn_table), strict=True):
            text += f"\n## {data}: {title}\n\n{table(results, data).to_markdown(disable_numparse=True)}\n"
    return text


def write_report(folder: str | Path) -> str:
    """Write `<folder>.csv`, `.md` and, of the data sets that have the full row, `.png`; returns the `.md`.
    Raises ValueError as `collect`."""
    folder, results = Path(folder), collect(folder)
    text = markdown(results)
    rounded = results.round({name: 6 for name in (*METRICS, *ZONES)})
    csv, md, png = (folder.with_name(folder.name + end) for end in (".csv", ".md", ".png"))
    write_atomically(csv, lambda path: rounded.to_csv(path, index=False))
    write_atomically(md, lambda path: path.write_text(text, encoding="utf-8"))
    compared = set(results.loc[results["row"] == FULL, "data"])
    fused = results[(results["map"] == "fused") & results["data"].isin(compared)]
    if len(fused):
        save_figure(plot_row_differences(fused, NAMES, FULL), png)
    return text
