"""Notebooks and whole tables on a disk that fills up or cannot be written to, and a kernel that is killed: an
error that names the file and the remedy, earlier results stay, and the same command goes on."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from builders import tree
from disks import FULL, READ_ONLY
from reproductions import arguments, planned, write_result_of

from dmdd_lite import locks, reproduce
from dmdd_lite.reproduction import jobs, schedule
from dmdd_lite.reproduction.board import Board, Run
from dmdd_lite.runner import NotebookError, run_notebook


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell("steps: int = 3", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_notebook_on_a_disk_that_fills_up(disk, tmp_path, tally):
    """The results of an earlier run stay; after room is made it runs. Braces in a path mean nothing."""
    source = write_notebook(tmp_path / "long.ipynb", "print('text ' * 100_000)", "print('end')")
    output = disk.folder / "{steps}" / "ran.ipynb"
    output.parent.mkdir()
    output.write_text("earlier")
    disk.fill(leave=300_000)
    with pytest.raises(NotebookError, match=rf"ran\.ipynb cannot be written .*{FULL}.*run it again"):
        run_notebook(source, output, {}, log=False)
    assert output.read_text() == "earlier"
    disk.empty()
    run_notebook(source, output, {}, log=False)
    assert tree(output.parent).keys() == {"ran.ipynb"}
    assert nbformat.read(output, 4).cells[-1].outputs[0].text == "end\n"
    tally("full disks")


def test_a_notebook_whose_kernel_is_killed(tmp_path, tally):
    source = write_notebook(
        tmp_path / "dead.ipynb", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(NotebookError, match=r"its Python process was killed.*\n.*ran\.unfinished\.ipynb"):
        run_notebook(source, tmp_path / "out/ran.ipynb", {}, log=False)
    assert tree(tmp_path / "out").keys() == {"ran.unfinished.ipynb"}
    tally("workers that died")


def test_a_notebook_that_another_process_runs(tmp_path, monkeypatch, tally):
    monkeypatch.setattr(locks, "PATIENCE", 0)
    source = write_notebook(tmp_path / "a.ipynb")
    with (
        locks.claim(tmp_path / "ran.lock", "held"),
        pytest.raises(NotebookError, match=rf"ran\.ipynb is run by process {os.getpid()} on .*wait for it"),
    ):
        run_notebook(source, tmp_path / "ran.ipynb", {})
    assert tree(tmp_path).keys() == {"a.ipynb"}
    tally("two writers of one folder")


def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(nuts, disk, capsys, tally):
    given = arguments(nuts, disk.folder / "out", categories=("nut",))
    disk.fill()
    assert reproduce.main(given) == 2
    assert f"out cannot be written to ({FULL}); choose another --results folder" in capsys.readouterr().err
    disk.empty()
    disk.remount("ro")
    assert reproduce.main(given) == 2
    assert f"out cannot be written to ({READ_ONLY})" in capsys.readouterr().err
    assert not tree(disk.folder)
    tally("full disks")
    tally("read-only folders")


def test_a_table_on_a_full_disk_keeps_its_results(nuts, tmp_path, disk, monkeypatch, capsys, tally):
    for job in planned(nuts, tmp_path):
        write_result_of(job)
    shutil.move(tmp_path / "out", disk.folder / "out")
    before = tree(disk.folder / "out")
    disk.fill()
    assert reproduce.main(arguments(nuts, disk.folder / "out", categories=("nut", "bolt"))) == 1
    assert f"{FULL}: '{disk.folder}/out/results.csv'; mend that" in capsys.readouterr().err
    assert tree(disk.folder / "out") == before
    tally("full disks")


def test_runs_whose_logs_cannot_be_written_fail_by_name(nuts, tmp_path, tally):
    runs = [Run(job) for job in planned(nuts, tmp_path)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/logs").touch()
    schedule.run_here(runs, [{}], Board(live=False))
    assert {run.state for run in runs} == {"failed"}
    assert all(f"{tmp_path}/out/logs" in run.detail for run in runs)
    tally("read-only folders")


def test_a_job_that_could_not_even_log_is_told_as_a_full_disk(nuts, tmp_path, disk, monkeypatch, tally):
    job = planned(nuts, tmp_path)[0]
    job = jobs.Job({**job.parameters, "results_dir": str(disk.folder / "out")})
    job.log.parent.mkdir(parents=True)
    monkeypatch.setattr(jobs.Process, "COMMAND", ("-c", "print('x' * 100_000)"))
    disk.fill()
    process = jobs.Process(job)
    process.wait()
    assert process.poll() != 0
    assert process.error() == f"{job.log.parent} cannot be written to ({FULL})"
    tally("full disks")
