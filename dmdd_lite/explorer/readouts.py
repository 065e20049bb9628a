"""What the explorer says: a sentence, and tables in HTML."""

import base64
from html import escape

import numpy as np

from ..detector import PIXEL_QUANTILE
from ..plus.fusion import FLOOR
from .model import ALL_SCALES, WHOLE, Distance, Explorer, Reading

MAPS = {
    "fused": ("Fused", "DMDD: anomaly map of the segmentation network, in [0, 1]"),
    "plus": ("Plus", "DMDD+: the fused map and the position map together, in [0, 1]"),
    "normality": (
        "Normality",
        "1 - cosine of the normality features: departs from what a good part looks like",
    ),
    "abnormality": ("Abnormality", "1 - cosine of the abnormality features: resembles synthetic damage"),
    "position": ("Position", "Mahalanobis distance to good images' features at the same position"),
    "sum": ("Sum", "the branches' maps added"),
}
HINT = (
    "Click or arrow keys: choose a pixel. Wheel: zoom; drag: move; double click: the whole image. A map's "
    "title: choose the map whose threshold moves; the others are outlined where theirs start."
)
STYLE = """<style>
.dmdd-explorer { max-width: 1060px; }
.dmdd-explorer .dmdd-canvas { color: var(--jp-ui-font-color1, inherit); }
.dmdd-explorer .dmdd-bar { display: flex; gap: 10px; align-items: center; font-size: 13px; margin: 0 2px; }
.dmdd-explorer .dmdd-bar input { flex: 1 1 auto; appearance: none; height: 8px; border-radius: 4px; }
.dmdd-explorer .dmdd-bar output { min-width: 250px; font-variant-numeric: tabular-nums; }
.dmdd-explorer .dmdd-panels { display: grid; gap: 6px; margin: 6px 2px; }
.dmdd-explorer .dmdd-panels { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.dmdd-explorer .dmdd-panels figure { margin: 0; padding: 2px; border: 2px solid transparent; }
.dmdd-explorer .dmdd-panels .dmdd-chosen { border-color: currentColor; border-radius: 4px; }
.dmdd-explorer .dmdd-panels canvas { display: block; width: 100%; cursor: crosshair; }
.dmdd-explorer .dmdd-panels button { border: 0; padding: 0 0 2px; background: none; color: inherit; }
.dmdd-explorer .dmdd-panels button:enabled { cursor: pointer; }
.dmdd-explorer .dmdd-chosen button { font-weight: 600; }
.dmdd-explorer .dmdd-values { font-size: 12px; line-height: 1.6; font-variant-numeric: tabular-nums; }
.dmdd-explorer .widget-toggle-buttons button { padding: 0 9px; }
.dmdd-explorer .dmdd-caption { font-size: 12px; line-height: 1.4; opacity: .8; }
.dmdd-explorer .dmdd-name { font-size: 12px; line-height: 1.4; white-space: nowrap; overflow: hidden; }
.dmdd-explorer .dmdd-name { text-overflow: ellipsis; width: 0; min-width: 100%; }
.dmdd-explorer .dmdd-swatch { display: inline-block; width: 18px; height: 3px; vertical-align: middle; }
.dmdd-explorer .dmdd-swatch { margin: 0 4px 0 10px; border: 1px solid #333; }
.dmdd-explorer .dmdd-key { font-weight: 400; font-size: 12px; opacity: .9; }
.dmdd-explorer .widget-html-content img { width: 100%; display: block; margin-bottom: 3px; }
.dmdd-explorer .dmdd-heading { font-weight: 600; font-size: 13px; line-height: 1.6; }
.dmdd-explorer .dmdd-table { border-collapse: collapse; font-size: 13px; line-height: 1.5; width: 100%; }
.dmdd-explorer .dmdd-table th { text-align: left; font-weight: 400; opacity: .8; padding: 2px 12px 2px 0; }
.dmdd-explorer .dmdd-table td { text-align: right; font-variant-numeric: tabular-nums; padding: 2px 0; }
.dmdd-explorer .dmdd-table tr { border-top: 1px solid rgba(128, 128, 128, .35); }
.dmdd-explorer .dmdd-verdict { font-weight: 600; padding: 1px 9px; border-radius: 9px; color: #fff; }
</style>"""


def sentence(reading: Reading) -> str:
    verdict = "anomalous" if reading.is_anomalous else "good"
    text = f"{verdict}, score {reading.score:.2f}, {reading.regions} region{'s' * (reading.regions != 1)}"
    for name in ("precision", "recall"):
        if (value := getattr(reading, name)) is not None:
            text += f", {name} {value:.2f}"
    return text


def unit(explorer: Explorer, name: str, scale: int) -> str:
    """What the numbers of a map's threshold mean, and where it starts."""
    start = explorer.pixel_threshold(name, scale)
    scales, branches = 1 if scale else len(explorer.scales) - 1, len(explorer.detector.config.branches)
    parts = scales * (branches if name == "sum" else 1)
    unit = "1 − cosine" if parts == 1 else f"sum of {parts} distances 1 − cosine"
    if name in WHOLE:
        unit = "in [0, 1]"
    if name == "position":
        unit = f"log(1 + distance / {FLOOR})" + f", mean of {scales} scales" * (scales > 1)
    of = "held out of training" if scale == ALL_SCALES else "here"
    rule = f"the {PIXEL_QUANTILE:.1%} quantile of the pixels of the good images {of}"
    return f"{MAPS[name][0]}: {unit}. The outline starts at {rule}, {start:.3f}."


def legend(**lines: tuple[int, int, int]) -> str:
    """The meaning of the coloured lines in the pictures; _ in their names is a space."""
    swatches = "".join(
        f'<span class=dmdd-swatch style="background: rgb{colour}"></span>{name.replace("_", " ")}'
        for name, colour in lines.items()
    )
    return f"<div class=dmdd-key>{swatches}</div>"


def distance_table(found: list[Distance], x: int, y: int) -> str:
    names = [name for name in Distance._fields[1:] if getattr(found[0], name) is not None]
    rows = [(d.scale, *(f"{getattr(d, name):.3f}" for name in names)) for d in found]
    note = "Of the cell around the pixel, not smoothed. Branches: 1 − cosine to the teacher, from 0 to 2."
    if "position" in names:
        note += " Position: squared Mahalanobis distance over its channels, near 1 where good."
    return _table(f"Pixel ({x}, {y}): distances", [("", *names), *rows], note)


def reading_table(reading: Reading, truth: np.ndarray | None) -> str:
    verdict, colour = ("anomalous", "#b3261e") if reading.is_anomalous else ("good", "#1b6e3c")
    why = "no ground truth"
    if truth is not None:
        why = "nothing above the threshold" if truth.any() else "good image: nothing to find"
    none = f"– ({why})"
    shares = [none if v is None else f"{100 * v:.1f} %" for v in (reading.precision, reading.recall)]
    rows = [
        ("image score", f"{reading.score:.3f}"),
        ("image threshold", f"{reading.image_threshold:.3f}"),
        ("decision", f'<span class="dmdd-verdict" style="background: {colour}">{verdict}</span>'),
        ("pixel threshold", f"{reading.pixel_threshold:.3f}"),
        ("regions above", f"{reading.regions}, {100 * reading.share:.2f} % of the image"),
        ("pixel precision", shares[0]),
        ("pixel recall", shares[1]),
    ]
    return _table("The decision, and the outline at this threshold", rows)


def thumbnail(png: bytes, name: str, text: str) -> str:
    """A small picture that readers of the page can hear, too, with its name and a text below."""
    source = base64.b64encode(png).decode()
    picture = f'<img src="data:image/png;base64,{source}" alt="{escape(name)}" title="{escape(name)}">'
    return f"{picture}<div class=dmdd-name>{escape(name)}</div><div class=dmdd-caption>{text}</div>"


def _table(title: str, rows: list[tuple[str, ...]], note: str = "") -> str:
    """Rows of a name and values; the markup is the caller's."""
    body = "".join(
        f"<tr><th>{first}</th>{''.join(f'<td>{value}</td>' for value in rest)}</tr>" for first, *rest in rows
    )
    text = f"<div class=dmdd-heading>{title}</div><table class=dmdd-table>{body}</table>"
    return text + (f"<div class=dmdd-caption>{note}</div>" if note else "")
