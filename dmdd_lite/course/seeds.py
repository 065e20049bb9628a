"""Results of the running example, pcb, over three seeds: made once by `COMMAND`, loaded by the chapters."""

from importlib.resources import files

import pandas as pd

COMMAND = (
    "python benchmarks/ablation.py --data pcb=dmdd_lite/data/samples/pcb "
    "--teacher tf_efficientnet_lite0.pypi "
    "--image-size 128 --iterations 300 --batch-size 8 --seeds 0 1 2 "
    "--rows plain good pairs ngm aim summed no_attention channel spatial coordinate self msn_alone full"
)


def load_seeds() -> pd.DataFrame:
    """One line per row of the ablation, seed and map; metrics and recalls as fractions of 1."""
    with files(__package__).joinpath("pcb_ablation.csv").open(encoding="utf-8") as table:
        return pd.read_csv(table)


def mean_and_std(results: pd.DataFrame, by: list[str], metrics: list[str]) -> pd.DataFrame:
    """Mean ± standard deviation over the seeds, in percent, as text: one line per group of the columns `by`,
    in the order of their first appearance."""
    groups = (100 * results.set_index(by)[metrics]).groupby(level=by, sort=False)
    mean, spread = groups.mean(), groups.std()
    return pd.DataFrame(
        {
            name: [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean[name], spread[name], strict=True)]
            for name in metrics
        },
        index=mean.index,
    )
