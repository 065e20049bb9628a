"""Notebooks and whole tables on a disk that fills up or cannot be written to, and a kernel that is killed: an
error that names the file and the remedy, earlier results stay, and the same command goes on."""

import shutil
from pathlib import Path

import nbformat
import pytest
from builders import tree
from disks import FULL, READ_ONLY
from reproductions import arguments, planned, write_result_of

from dmdd_lite.reproduce.__main__ import main
from dmdd_lite.reproduce.notebook import KernelDied, NotebookError, run_notebook


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell("steps: int = 3", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_notebook_on_a_disk_that_fills_up(disk, tmp_path, tally):
    """After room is made it runs."""
    source = write_notebook(tmp_path / "long.ipynb", "print('text ' * 100_000)", "print('end')")
    output, log = disk.folder / "out" / "ran.ipynb", tmp_path / "log"
    disk.fill(leave=300_000)
    with pytest.raises(NotebookError, match=rf"ran\.ipynb or .*log cannot be written .*{FULL}"):
        run_notebook(source, output, {}, log)
    disk.empty()
    run_notebook(source, output, {}, log)
    assert nbformat.read(output, 4).cells[-1].outputs[0].text == "end\n"
    tally("full disks")


def test_a_notebook_whose_kernel_is_killed(tmp_path, tally):
    source = write_notebook(
        tmp_path / "dead.ipynb", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(KernelDied, match="its Python process was killed"):
        run_notebook(source, tmp_path / "out/ran.ipynb", {}, tmp_path / "log")
    tally("workers that died")


def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(nuts, disk, capsys, tally):
    given = arguments(nuts, disk.folder / "out", categories=("nut",))
    disk.fill()
    assert main(given) == 2
    assert f"out cannot be written to ({FULL}); choose another --results folder" in capsys.readouterr().err
    disk.empty()
    disk.remount("ro")
    assert main(given) == 2
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
    assert main(arguments(nuts, disk.folder / "out", categories=("nut", "bolt"))) == 1
    assert f"{FULL}: '{disk.folder}/out/results.csv'; correct that" in capsys.readouterr().err
    assert tree(disk.folder / "out") == before
    tally("full disks")
