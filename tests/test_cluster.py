"""Over a Dask cluster on this machine: every result once, though a worker is killed during its task."""

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest
from reproductions import arguments, until, written

from dmdd_lite import reproduce
from dmdd_lite.reproduction import cluster
from dmdd_lite.reproduction.board import Board, Run
from dmdd_lite.reproduction.jobs import Job, finished

pytest.importorskip("distributed", reason="dask.distributed is not installed: pip install 'dmdd-lite[dask]'")

WAIT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s"}


@contextmanager
def started(*arguments: str, log: Path):
    """A Dask process that is killed at the end, whatever happens."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}", *arguments[1:]]
    with (
        open(log, "w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **WAIT}
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def scheduler(stack: ExitStack, folder: Path) -> str:
    """Start one on a free port; its address is in its log."""
    log = folder / "scheduler.log"
    stack.enter_context(started("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", log=log))
    return until(lambda: re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())).group()


def worker(stack: ExitStack, address: str, folder: Path, name: str) -> subprocess.Popen:
    """A worker with a GPU, as it says."""
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--resources", "GPU=1", "--name", name]
    options += ["--local-directory", str(folder / name)]
    return stack.enter_context(started("worker", address, *options, log=folder / f"{name}.log"))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A scheduler; its workers belong to the tests."""
    with ExitStack() as stack:
        yield scheduler(stack, tmp_path_factory.mktemp("dask"))


@pytest.mark.slow
def test_four_results_each_once_though_a_worker_is_killed(data, notebook, address, tmp_path, capsys):
    last, killed = "pcb_seed1", []
    hold = tmp_path / f"hold_{last}"  # where it waits when its first checkpoint is written
    hold.touch()

    def kill_its_worker():
        try:
            until((tmp_path / last / "checkpoint.pt").exists, 240)
            process = re.search(r"process (\d+)", (tmp_path / f"locks/{last}.lock").read_text()).group(1)
            status = Path(f"/proc/{process}/status").read_text()
            killed.append(int(re.search(r"PPid:\s+(\d+)", status).group(1)))
            os.kill(killed[0], signal.SIGKILL)
        finally:
            hold.unlink()

    with ExitStack() as stack:
        for name in ("first", "second"):
            worker(stack, address, tmp_path, name)
        killer = threading.Thread(target=kill_its_worker)
        killer.start()
        given = arguments(data, tmp_path, "--seeds", "0", "1", "--scheduler", address, notebook=notebook)
        assert reproduce.main(given) == 0
        killer.join()
    names = [f"{category}_seed{seed}" for category in ("fabric", "pcb") for seed in (0, 1)]
    assert killed
    assert sorted(path.stem for path in tmp_path.glob("*_seed*.json")) == names
    assert written(tmp_path) == names
    assert "goes on from iteration 2" in (tmp_path / f"logs/{last}.log").read_text()
    rows = pd.read_csv(tmp_path / "results.csv").query("map == 'fused'")
    assert sorted(rows["category"] + "_seed" + rows["seed"].astype(str)) == names
    assert "| mean of 2  | 4 " in (tmp_path / "results.md").read_text()
    assert "4 runs: 4 waiting" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_client_interrupts_stops_on_the_worker_too(data, notebook, address, tmp_path):
    given = arguments(data, tmp_path, categories=("pcb",), notebook=notebook)
    (job,) = reproduce.plan(reproduce.parse(given))
    (tmp_path / "hold_pcb_seed0").touch()
    checkpoint = tmp_path / "pcb_seed0/checkpoint.pt"

    class Impatient(Board):
        def show(self, runs):
            if checkpoint.exists():
                raise KeyboardInterrupt

    with ExitStack() as stack:
        worker(stack, address, tmp_path, "third")
        with cluster.connect(address) as client, pytest.raises(KeyboardInterrupt):
            cluster.run_on_cluster([Run(job)], client, Impatient())
        until(lambda: "stopped; the next start" in job.log.read_text(), 30)
    assert checkpoint.exists()
    assert not job.result.exists()


@pytest.mark.slow
def test_every_worker_must_see_the_data(address, tmp_path, capsys):
    given = arguments(tmp_path / "none", tmp_path / "out", "--scheduler", address)
    with ExitStack() as stack:
        worker(stack, address, tmp_path, "fourth")
        assert reproduce.main(given) == 2
    assert re.search(r"none: no such folder.*\(worker tcp://127", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_no_scheduler_is_told(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    given = arguments(data, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    assert reproduce.main(given) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


# ---- without a cluster --------------------------------------------------------------------------------


class Ended:
    """A task that has ended."""

    def __init__(self, result=None, error=None):
        self.result, self.exception = lambda: result, lambda: error


@pytest.fixture
def job(data, tmp_path):
    return reproduce.plan(reproduce.parse(arguments(data, tmp_path, categories=("pcb",))))[0]


def result_text(job: Job, seconds: float) -> str:
    config = pd.Series(job.config().to_dict()).to_json()
    return f'{{"config": {config}, "metrics": {{"fused": {{}}}}, "seconds": {seconds}}}'


def test_a_result_from_another_disk_is_written_here_and_one_that_is_here_stays(job):
    for seconds in (1.5, 2.5):  # the second stands for what a worker's own copy would say
        run = Run(job)
        cluster._collect(run, Ended({"result": result_text(job, seconds)}))
        assert run.state == "done"
        assert finished(job)["seconds"] == 1.5


@pytest.mark.parametrize(
    "task, detail",
    [
        (Ended({"error": "ValueError: no"}), "ValueError: no"),
        (Ended(error=cluster.Killed("killed by SIGKILL")), "Killed: killed by SIGKILL"),
    ],
)
def test_a_failed_task_is_a_failed_run(job, task, detail):
    run = Run(job)
    cluster._collect(run, task)
    assert (run.state, run.detail) == ("failed", detail)
    assert not job.result.exists()


def test_events_show_who_runs_what(job):
    run = Run(job)
    event = {"name": job.name, "worker": "tcp://a:1", "note": ["50/600", "ngm 0.1"]}
    cluster._read_events([run], [(0.0, event | {"note": ["", ""]}), (1.0, event)])
    assert (run.state, run.note.progress, run.detail) == ("running", "50/600", "tcp://a:1")


@pytest.mark.parametrize("codes, outcome", [((75, 0), "result"), ((1,), "error"), ((-9,), cluster.Killed)])
def test_only_a_killed_process_is_worth_another_try(job, monkeypatch, codes, outcome):
    left = list(codes)

    class Pretended:
        def __init__(self, started):
            self.job = started

        def error(self):
            return "why"

        def stop(self):
            pass

        def wait(self):
            pass

    def attend(process, session):
        code = left.pop(0)
        if code == 0:
            process.job.result.write_text(result_text(job, 1.0))
        return code

    monkeypatch.setattr(cluster, "Process", Pretended)
    monkeypatch.setattr(cluster, "_attend", attend)
    values = {"parameters": job.parameters, "notebook": ""}
    if outcome is cluster.Killed:
        with pytest.raises(cluster.Killed, match="why"):
            cluster.run_job(values, "session")
    else:
        assert list(cluster.run_job(values, "session")) == [outcome]
    assert not left
