"""Predict files, folders (with sub-folders) or patterns with a trained detector.

Writes to the --out folder:
  predictions.csv    path, score, threshold, decision, number and area (pixels) of regions
  overlays/*.jpg     the image with its anomaly map and the outlines of regions
  masks/*.png        white where the map exceeds the pixel threshold

Exit status: 0 all images predicted, 1 some could not be read, 2 nothing was started, 3 with --fail-on-anomaly
and an anomalous image, 130 interrupted (predictions.csv then holds the images done).
"""

import argparse
import csv
import glob
import os
import sys
from pathlib import Path

COLUMNS = ("path", "score", "threshold", "decision", "regions", "area")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dmdd_lite.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, help="folder that training wrote, such as run/detector")
    parser.add_argument("input", nargs="+", help="image files, folders, or patterns such as 'in/*.png'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--threshold", type=float, metavar="T", help="of image scores; default: calibrated")
    parser.add_argument("--fail-on-anomaly", action="store_true", help="exit status 3 if one is anomalous")
    parser.add_argument("--tile", type=int, metavar="PX", help="predict large images in tiles of this side")
    parser.add_argument("--overlap", type=int, default=64, metavar="PX", help="of tiles; %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    return parser.parse_args(arguments)


def find_inputs(inputs: list[str]) -> dict[Path, Path]:
    """Every image once, with the name of its pictures below overlays/ and masks/: its path below the folder
    that was given, or its file name. Raises DataError for an input without images."""
    from .data.folders import open_folder
    from .data.problems import DataError

    found: dict[Path, Path] = {}
    for text in inputs:
        matches = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            raise DataError(f"{text}: no such file or folder, and no file matches it as a pattern")
        for place in map(Path, matches):
            for path in open_folder(place) if place.is_dir() else [place]:
                found.setdefault(path, path.relative_to(place) if place.is_dir() else Path(path.name))
    return _distinct(found)


def _distinct(names: dict[Path, Path]) -> dict[Path, Path]:
    """The names, numbered where two images would write the same picture."""
    taken: set[str] = set()
    for path, name in names.items():
        stem, number = name.with_suffix(""), 1
        while str(stem).lower() in taken:
            number += 1
            stem = name.with_name(f"{name.stem}-{number}")
        taken.add(str(stem).lower())
        names[path] = stem
    return names


def predict_all(options: argparse.Namespace) -> int:
    """Predict and write everything; the exit status. Raises DataError, DetectorError, ValueError or OSError
    before any work."""
    from .detector import Detector
    from .utils import Progress, write_atomically

    names = find_inputs(options.input)
    detector = Detector.load(options.detector, options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    rows, skipped, paths = [], [], list(names)
    try:
        with Progress(len(paths), "predicting") as bar:
            found = detector.stream(paths, options.batch_size, skipped, options.tile, options.overlap)
            for prediction in found:
                rows.append(_write(prediction, options, names[prediction.path]))
                bar.update(len(rows) + len(skipped))
    finally:
        if rows:
            write_atomically(options.out / "predictions.csv", lambda path: _write_csv(path, rows))
    anomalous = sum(row["decision"] == "anomalous" for row in rows)
    print(f"{len(rows)} images, {anomalous} anomalous; results in {options.out}")
    for text in skipped:
        print(f"not predicted: {text}", file=sys.stderr)
    if skipped:
        return 1
    return 3 if anomalous and options.fail_on_anomaly else 0


def _write(prediction, options: argparse.Namespace, name: Path) -> dict:
    """Both pictures of one image; its row of the table."""
    from PIL import Image

    threshold = prediction.threshold if options.threshold is None else options.threshold
    regions = prediction.regions()
    for folder, suffix, picture in (
        ("overlays", ".jpg", prediction.overlay()),
        ("masks", ".png", Image.fromarray(prediction.mask())),
    ):
        path = options.out / folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return {
        "path": prediction.path,
        "score": f"{prediction.score:.6f}",
        "threshold": f"{threshold:.6f}",
        "decision": "anomalous" if prediction.score > threshold else "good",
        "regions": len(regions),
        "area": sum(region.area for region in regions),
    }


def _write_csv(path: Path, rows: list[dict]):
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from .data.problems import plain_warnings
    from .detector import DetectorError

    try:
        with plain_warnings():
            return predict_all(options)
    except (DetectorError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
