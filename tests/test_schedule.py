"""Jobs on this machine: locks, shares of GPUs and cores, so many at a time, and the table that shows them."""

import fcntl
import io
import subprocess
import sys

import pytest
from reproductions import arguments, planned, write_result_of, written

from dmdd_lite import reproduce
from dmdd_lite.evaluation import METRICS
from dmdd_lite.reproduction import board, jobs, schedule
from dmdd_lite.reproduction.board import Board, Run, table
from dmdd_lite.reproduction.jobs import Note, claim, holder

# ---- locks --------------------------------------------------------------------------------------------


def test_a_lock_ends_with_its_process(nuts, tmp_path):
    job = planned(nuts, tmp_path)[0]
    hold = "import sys, fcntl; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX)\n"
    hold += "f.write('process 7 on x'); f.flush(); print('held', flush=True); sys.stdin.read()"
    job.lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", hold, str(job.lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert holder(job) == "process 7 on x"
        with pytest.raises(jobs.Busy, match="process 7 on x"), claim(job, patience=0.3):
            pass
        process.kill()
    assert holder(job) == ""
    with claim(job, patience=0):
        assert "process" in holder(job)
    assert holder(job) == ""


# ---- this machine -------------------------------------------------------------------------------------


def test_places_share_gpus_and_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(schedule, "cores", lambda: 8)

    def seen(jobs, device, gpus):
        return [
            (place.get("CUDA_VISIBLE_DEVICES"), place["OMP_NUM_THREADS"])
            for place in schedule.places(jobs, device, gpus)
        ]

    assert seen(None, "auto", ["2", "5"]) == [("2", "4"), ("5", "4")]
    assert seen(3, "cuda", ["2", "5"]) == [("2", "2"), ("5", "2"), ("2", "2")]
    assert seen(None, "auto", []) == [(None, "8")]
    assert seen(3, "cpu", ["2", "5"]) == [(None, "2")] * 3
    assert seen(None, "cuda:1", ["0", "1"]) == [(None, "8")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert seen(2, "auto", []) == [(None, "1")] * 2


@pytest.mark.parametrize(
    "given, count, names", [("", 2, ["0", "1"]), ("3, GPU-ab", 2, ["3", "GPU-ab"]), ("7", 0, [])]
)
def test_gpus_are_those_that_this_process_may_use(monkeypatch, given, count, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(schedule.torch.cuda, "device_count", lambda: count)
    assert schedule.gpu_names() == names


class Pretended:
    """A process that has its result, or its failure, the second time it is looked at."""

    most = now = 0

    def __init__(self, job, environment):
        self.job, self.looks = job, 0
        Pretended.now += 1
        Pretended.most = max(Pretended.most, Pretended.now)
        Pretended.environments.append(environment)

    def poll(self):
        self.looks += 1
        if self.looks < 2:
            return None
        if self.job.parameters["seed"] == 1:
            return 1
        write_result_of(self.job)
        return 0

    def note(self):
        return Note(f"{self.looks}/2", "ngm 1")

    def error(self):
        return "ValueError: no"

    def stop(self):
        pass

    def wait(self):
        Pretended.now -= 1


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(schedule, "Process", Pretended)
    monkeypatch.setattr(schedule, "POLL", 0.01)
    Pretended.most = Pretended.now = 0
    Pretended.environments = []


def test_so_many_at_a_time_and_failures_stop_no_other(nuts, tmp_path, pretended, capsys):
    runs = [Run(job) for job in planned(nuts, tmp_path, "--seeds", "0", "1", "2")]
    schedule.run_here(runs, [{"PLACE": "a"}, {"PLACE": "b"}], Board(live=False))
    assert Pretended.most == 2
    assert {place["PLACE"] for place in Pretended.environments} == {"a", "b"}
    states = {run.job.name: (run.state, run.detail) for run in runs}
    assert states["nut_seed0"] == states["bolt_seed2"] == ("done", "")
    assert states["nut_seed1"] == states["bolt_seed1"] == ("failed", "ValueError: no")
    assert len(Pretended.environments) == 6


def test_what_another_command_runs_is_left_to_it_and_taken_up_when_it_lets_go(nuts, tmp_path, pretended):
    runs = [Run(job) for job in planned(nuts, tmp_path)]
    theirs, ours = runs
    theirs.job.lock.parent.mkdir(parents=True)
    seen = []

    class Watch(Board):
        def show(self, shown):
            seen.append((theirs.state, ours.state))
            if ours.state == "done":
                lock.close()

    lock = open(theirs.job.lock, "a")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    schedule.run_here(runs, [{}], Watch())
    assert ("elsewhere", "done") in seen
    assert [run.state for run in runs] == ["done", "done"]


def test_what_another_command_has_finished_is_not_run_again(nuts, tmp_path, pretended):
    runs = [Run(job) for job in planned(nuts, tmp_path)]
    write_result_of(runs[1].job)
    schedule.run_here(runs, [{}], Board(live=False))
    assert len(Pretended.environments) == 1
    assert [run.state for run in runs] == ["done", "done"]


# ---- the end of a run beside the next one -------------------------------------------------------------


class Tailed:
    """A process that is scoring from the second look on, and ends when `may_end` says so."""

    def __init__(self, job, environment):
        self.job, self.environment, self.looks = job, environment, 0
        Tailed.alive.append(self)
        here = [other for other in Tailed.alive if other.environment is environment]
        Tailed.seen.append((len(here), sum(not other.note().scoring for other in here)))

    def poll(self):
        self.looks += 1
        if not Tailed.may_end(self):
            return None
        if self.job.name in Tailed.failing:
            return 1
        write_result_of(self.job)
        return 0

    def note(self):
        return Note("scoring") if self.looks > 1 else Note("1/6", "ngm 1")

    def error(self):
        return "ValueError: no"

    def stop(self):
        Tailed.stopped.append(self.job.name)

    def wait(self):
        Tailed.alive.remove(self)


class Bounded(Board):
    """Ends a test that would go on for ever."""

    shows = 0

    def show(self, runs):
        self.shows += 1
        assert self.shows < 500, [(run.job.name, run.state) for run in runs]


@pytest.fixture
def tailed(monkeypatch):
    monkeypatch.setattr(schedule, "Process", Tailed)
    monkeypatch.setattr(schedule, "POLL", 0.001)
    Tailed.alive, Tailed.seen, Tailed.stopped, Tailed.failing = [], [], [], ()
    Tailed.may_end = lambda process: process.looks > 5


GPU = {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_gpu_gets_the_next_run_while_the_last_is_scoring(nuts, tmp_path, tailed):
    runs = [Run(job) for job in planned(nuts, tmp_path)]
    Tailed.may_end = lambda process: len(Tailed.seen) == 2  # the first waits for the second
    schedule.run_here(runs, [GPU], Bounded())
    assert Tailed.seen == [(1, 1), (2, 1)]
    assert [run.state for run in runs] == ["done", "done"]


@pytest.mark.parametrize("places", [1, 2])
def test_a_gpu_has_one_tail_at_a_time(nuts, tmp_path, tailed, places):
    runs = [Run(job) for job in planned(nuts, tmp_path, "--seeds", *"01234")]
    schedule.run_here(runs, [dict(GPU) for _ in range(places)], Bounded())
    assert max(Tailed.seen) == (2, 1)
    assert max(computing for _, computing in Tailed.seen) == 1
    assert {run.state for run in runs} == {"done"}


@pytest.mark.parametrize("environment", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_a_cpu_has_no_tails(nuts, tmp_path, tailed, environment):
    runs = [Run(job) for job in planned(nuts, tmp_path, "--seeds", "0", "1")]
    schedule.run_here(runs, [environment], Bounded())
    assert Tailed.seen == [(1, 1)] * 4


def test_a_tail_that_fails_stops_no_other(nuts, tmp_path, tailed):
    runs = [Run(job) for job in planned(nuts, tmp_path, "--seeds", "0", "1")]
    Tailed.failing = (runs[0].job.name, runs[3].job.name)
    schedule.run_here(runs, [GPU], Bounded())
    assert [run.state for run in runs] == ["failed", "done", "done", "failed"]
    assert runs[0].detail == "ValueError: no"
    assert Tailed.alive == []


def test_an_interrupt_stops_tails_too(nuts, tmp_path, tailed):
    runs = [Run(job) for job in planned(nuts, tmp_path)]
    Tailed.may_end = lambda process: False

    class Impatient(Bounded):
        def show(self, shown):
            super().show(shown)
            if len(Tailed.alive) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        schedule.run_here(runs, [GPU], Impatient())
    assert sorted(Tailed.stopped) == sorted(run.job.name for run in runs)
    assert Tailed.alive == []


@pytest.mark.slow
def test_the_next_run_begins_during_a_tail_that_then_fails(data, notebook, tmp_path):
    options = reproduce.parse(arguments(data, tmp_path, notebook=notebook))
    first, second = runs = [Run(job) for job in reproduce.plan(options)]
    (tmp_path / f"follower_{first.job.name}").write_text(second.job.name)
    (tmp_path / f"break_tail_{first.job.name}").touch()
    told = io.StringIO()
    schedule.run_here(runs, [GPU], Board(told, live=False))
    assert (first.state, first.detail) == ("failed", "RuntimeError: broken in its tail")
    assert second.state == "done"
    assert f"{first.job.name}  running  scoring" in told.getvalue()
    assert written(tmp_path) == [second.job.name]


# ---- the live table -----------------------------------------------------------------------------------


@pytest.fixture
def runs(nuts, tmp_path, monkeypatch):
    done, running, failed, waiting = [
        Run(job) for job in planned(nuts, tmp_path, "--seeds", "0", "1", categories=("nut", "bolt"))
    ]
    done.end(
        "done", result={"metrics": {"fused": dict.fromkeys(METRICS, 0.75) | {"aupro": 0.5}}, "seconds": 90.0}
    )
    monkeypatch.setattr(board.time, "monotonic", lambda: 1000.0)
    running.start()
    running.note = Note("50/600", "ngm 0.1  aim 0.2")
    failed.start()
    monkeypatch.setattr(board.time, "monotonic", lambda: 1030.0)
    failed.end("failed", "ValueError: no")
    return [done, running, failed, waiting]


def test_the_table_tells_state_iteration_minutes_and_metrics(runs):
    assert table(runs, 20, 100) == [
        "run         state    iteration  minutes  image AUROC  pixel AUROC  AUPRO",
        "nut_seed0   done                    1.5        75.00        75.00  50.00",
        "bolt_seed0  running     50/600      0.5                                   ngm 0.1  aim 0.2",
        "nut_seed1   failed                  0.5                                   ValueError: no",
        "bolt_seed1  waiting",
        "4 runs: 1 failed, 1 running, 1 done, 1 waiting",
    ]


def test_a_small_terminal_shows_first_what_asks_for_attention(runs):
    lines = table(runs, 4, 30)
    assert [line.split()[0] for line in lines] == ["run", "nut_seed1", "bolt_seed0", "4"]
    assert max(map(len, lines)) <= 30


def test_a_log_has_a_line_for_every_change_and_a_terminal_one_table(runs, capsys):
    plain = Board(live=False)
    plain.show(runs)
    plain.show(runs)
    assert capsys.readouterr().out.splitlines() == [
        "nut_seed0  done  1.5 min  image AUROC 75.00  pixel AUROC 75.00  AUPRO 50.00",
        "bolt_seed0  running  50/600  0.5 min  ngm 0.1  aim 0.2",
        "nut_seed1  failed  0.5 min  ValueError: no",
    ]
    live = Board(live=True)
    live.show(runs)
    live.show(runs)
    first, second = capsys.readouterr().out.split("\x1b[6F")
    assert first == second
    assert first.count("\n") == 6
