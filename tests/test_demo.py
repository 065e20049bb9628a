"""The demo around its runs, which tests/test_reproduce.py and tests/test_schedule.py hold."""

import argparse

import pytest
from reproductions import write_result_of

from dmdd_lite import demo


@pytest.fixture
def jobs(tmp_path):
    return [run.job for run in demo.plan(argparse.Namespace(results=tmp_path, iterations=None, jobs=1))]


def test_a_run_a_category_with_the_notebooks_defaults(jobs, tmp_path):
    assert [job.name for job in jobs] == ["fabric_seed0", "pcb_seed0", "lever_seed0"]
    config = jobs[0].config()
    assert (config.teacher, config.image_size, config.iterations) == ("tf_efficientnet_lite0.pypi", 128, 300)
    assert jobs[0].results == tmp_path


def test_what_was_done_before_is_told_and_not_done_again(jobs, tmp_path, capsys):
    for job in jobs:
        write_result_of(job)
    assert demo.main(["--results", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "done before" in told
    assert told.count("75.00") + told.count(" 75 ") >= 3 * len(jobs)


def test_a_run_that_fails_is_named_with_its_reason_and_its_log(jobs, tmp_path, capsys):
    for job in jobs:
        write_result_of(job, **({"batch_size": 4} if job.name == "pcb_seed0" else {}))
    assert demo.main(["--results", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "pcb_seed0" in told
    assert "batch_size" in told
    assert str(tmp_path / "logs" / "pcb_seed0.log") in told
    assert "fabric" not in told


@pytest.mark.parametrize("option", ["iterations", "jobs"])
def test_options_out_of_range_are_refused_before_anything_starts(jobs, tmp_path, capsys, option):
    assert demo.main(["--results", str(tmp_path / "new"), f"--{option}", "0"]) == 2
    assert f"{option} must be" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
