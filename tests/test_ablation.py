"""The ablation: grids that resume and repeat nothing, failures, refusals, the tables."""

import json
import os
import signal
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import tree

from dmdd_lite.config import Config
from dmdd_lite.evaluation import METRICS
from dmdd_lite.training import Trainer

ROOT = Path(__file__).parent.parent
ENDS = ("csv", "md", "png")
TINY = (
    "--teacher test_resnet --teacher-weights random --image-size 64 --iterations 4 --batch-size 2 "
    '--set precision="float32" --device cpu'
)


@pytest.fixture(scope="module")
def bench(scripts):
    """The modules of the ablation. Its command leaves Ctrl-C's answer to SIGTERM, and tells lines."""
    before, told = signal.getsignal(signal.SIGTERM), os.environ.get("DMDD_PROGRESS")
    names = ("ablation", "ablation_rows", "ablation_report")
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    signal.signal(signal.SIGTERM, before)
    if told is None:
        os.environ.pop("DMDD_PROGRESS", None)


def arguments(root, out, *more) -> list[str]:
    return [*TINY.split(), "--data", f"bracket={root}/lever", "--out", str(out), *more]


@pytest.fixture
def here(bench, monkeypatch):
    """The names of the trainings that were started. The row `.broken` fails."""
    started, run_job = SimpleNamespace(names=[], broken=""), bench.ablation.run_job

    def noted(job):
        started.names.append(job.name)
        if job.row == started.broken:
            raise MemoryError("it broke")
        run_job(job)

    monkeypatch.setattr(bench.ablation, "run_job", noted)
    return started


@pytest.fixture(scope="module")
def grid(bench, root, tmp_path_factory):
    """Two rows that train and one that does not."""
    out = tmp_path_factory.mktemp("grid") / "ablation"
    assert bench.ablation.main(arguments(root, out, "--rows", "full", "plain", "sigma_2")) == 0
    return out


@pytest.mark.slow
def test_a_grid_is_kept_and_later_rows_train_what_they_must(bench, root, grid, here, monkeypatch, capsys):
    """Rows that only score train nothing, one with the full row's student its MSN alone."""
    assert {path.name for path in grid.parent.iterdir()} == {"ablation", *map("ablation.{}".format, ENDS)}
    before, steps, step = tree(grid), [], Trainer.step
    words = ["--rows", "full", "plain", "sigma_2", "summed", "no_attention"]
    monkeypatch.setattr(Trainer, "step", lambda self: steps.append(self.iteration) or step(self))
    assert bench.ablation.main(arguments(root, grid, *words)) == 0
    assert (here.names, steps) == (["full_bracket_seed0"], [3])
    assert before.items() <= tree(grid).items()
    full, summed, plain = (
        json.loads(tree(grid)[f"{row}_bracket_seed0.json"]) for row in ("full", "summed", "no_attention")
    )
    assert summed["config"] == {**full["config"], "plain_weight": 1.0}
    assert plain["config"] == {**full["config"], "msn_attention": []}
    assert f"| {100 * full['metrics']['fused']['aupro']:.2f} " in capsys.readouterr().out
    assert bench.ablation.main(arguments(root, grid, *words, "--iterations", "8")) == 2
    told = capsys.readouterr().err
    assert "full_bracket_seed0.json was made with other settings (iterations: 4 -> 8)" in told


def test_all_problems_are_told_before_anything_starts(bench, root, tmp_path, capsys):
    words = arguments(root, tmp_path / "out", "--textures", "nowhere", "--teacher-weights", "none.pth")
    assert bench.ablation.main([*words, "--data", f"a={root}/cat", f"a={root}/lever"]) == 2
    told = capsys.readouterr().err
    for part in ("a name of its own", "nowhere: no such", "no category named 'cat'", "none.pth cannot"):
        assert part in told


@pytest.mark.slow
def test_a_failed_row_is_named_and_the_others_go_on(bench, root, tmp_path, here, capsys):
    words = arguments(root, tmp_path / "out", "--rows", "aim", "plain")
    here.broken = "aim"
    assert bench.ablation.main(words) == 1
    assert "aim_bracket_seed0: failed: MemoryError: it broke" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["plain_bracket_seed0.json"]


@pytest.mark.slow
def test_seeds_are_averaged_unless_they_differ_in_more_than_the_seed(bench, tmp_path):
    values = np.array([0.5, 0.75, 0.625])
    for seed, value in enumerate(values):
        made = {
            "row": "full",
            "data": "one",
            "seed": seed,
            "seconds": 10.0 + seed,
            "base": Config().to_dict(),
        }
        made |= {"metrics": {"fused": dict.fromkeys(METRICS, value)}, "config": Config(seed=seed).to_dict()}
        made |= {"zones": {"fused": {"centre": None, "edge": 0.25, "rim": 0.5}}}
        (tmp_path / f"full_one_seed{seed}.json").write_text(json.dumps(made))
    (tmp_path / ".full_one_seed0-x1.json").write_text("")  # killed while it was written
    table = bench.ablation_report.quality_table(bench.ablation_report.collect(tmp_path), "one")
    told = ["AUPRO", "seeds", "centre recall", "edge recall", "seconds"]
    assert table.loc["full", told].tolist() == ["62.50 ± 12.50", 3, "-", "25.00 ± 0.00", "11 ± 1"]
    made["config"] = Config(seed=2, aim_weight=3.0).to_dict()
    (tmp_path / "full_one_seed2.json").write_text(json.dumps(made))
    told = r"full_one_seed2\.json is of other settings than full_one_seed0\.json: aim_weight: 1\.0 -> 3"
    with pytest.raises(ValueError, match=told):
        bench.ablation_report.collect(tmp_path)
