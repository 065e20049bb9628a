"""The live table of a reproduction: rewritten in place on a terminal, else one line for every change."""

import dataclasses
import shutil
import sys
import time

from .jobs import Job, Note

#: The order of the rows when there is no room for all of them: what asks for attention comes first.
STATES = ("failed", "running", "elsewhere", "done", "waiting")
COLUMNS = ("run", "state", "iteration", "minutes", "image AUROC", "pixel AUROC", "AUPRO", "")


NOTHING = Note()


@dataclasses.dataclass
class Run:
    """What is known of a job while the table is made: a state of STATES, its last note, and its outcome."""

    job: Job
    state: str = "waiting"
    note: Note = NOTHING
    detail: str = ""  # why it failed, or who else works on it
    result: dict | None = None
    began: float | None = None
    seconds: float = 0.0

    @property
    def open(self) -> bool:
        return self.state not in ("done", "failed")

    def start(self):
        self.state, self.note, self.detail, self.began = "running", NOTHING, "", time.monotonic()

    def end(self, state: str, detail: str = "", result: dict | None = None):
        """A run that was done before has the seconds of its training, else those that went by here."""
        if self.began is not None:
            self.seconds = time.monotonic() - self.began
        elif result:
            self.seconds = result["seconds"]
        self.state, self.detail, self.result = state, detail, result

    def cells(self) -> tuple[str, ...]:
        running = self.state == "running"
        seconds = time.monotonic() - self.began if running else self.seconds
        metrics = self.result["metrics"]["fused"] if self.result else {}
        numbers = [
            f"{100 * metrics[m]:.2f}" if m in metrics else "" for m in ("image_auroc", "pixel_auroc", "aupro")
        ]
        told = self.note.losses if running else self.detail
        minutes = f"{seconds / 60:.1f}" if seconds else ""
        return (self.job.name, self.state, self.note.progress if running else "", minutes, *numbers, told)


def table(runs: list[Run], rows: int, width: int) -> list[str]:
    """At most `rows` lines of at most `width` characters: a heading, the runs in their own order or as many
    of them as fit, and the sum of all states."""
    room = max(1, rows - 2)
    shown = sorted(runs, key=lambda run: STATES.index(run.state))[:room] if len(runs) > room else runs
    grid = [COLUMNS, *(run.cells() for run in shown)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(COLUMNS) - 1)]
    lines = []
    for name, state, *numbers, told in grid:
        left = [name.ljust(widths[0]), state.ljust(widths[1])]
        right = [text.rjust(w) for text, w in zip(numbers, widths[2:], strict=True)]
        lines.append("  ".join([*left, *right, told]).rstrip()[:width])
    return [*lines, f"{summary(runs)}"[:width]]


def summary(runs: list[Run]) -> str:
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    told = [f"{count} {state}" for state, count in counts.items() if count]
    return f"{len(runs)} runs: {', '.join(told)}"


class Board:
    """Shows the runs whenever `show` is called; `live` is chosen by whether `stream` is a terminal."""

    def __init__(self, stream=None, live: bool | None = None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty() if live is None else live
        self.height = 0  # of the table on the screen
        self.told: dict[str, tuple] = {}

    def show(self, runs: list[Run]):
        if self.live:
            self._redraw(runs)
            return
        for run in runs:
            change = (run.state, run.note.progress, run.detail)
            if change != self.told.get(run.job.name, ("waiting", "", "")):
                self.told[run.job.name] = change
                print(self._line(run), file=self.stream, flush=True)

    def _redraw(self, runs: list[Run]):
        """Over the last table: up, then every line anew, and what is below it cleared."""
        size = shutil.get_terminal_size()
        lines = table(runs, size.lines - 2, size.columns - 1)
        up = f"\x1b[{self.height}F" if self.height else ""
        text = "".join(f"{line}\x1b[K\n" for line in lines)
        self.stream.write(f"{up}{text}\x1b[J")
        self.stream.flush()
        self.height = len(lines)

    @staticmethod
    def _line(run: Run) -> str:
        name, state, iteration, minutes, *numbers, told = run.cells()
        named = [f"{c} {n}" for c, n in zip(COLUMNS[4:7], numbers, strict=True) if n]
        spent = f"{minutes} min" if minutes and state != "elsewhere" else ""
        return "  ".join(text for text in (name, state, iteration, spent, *named, told) if text)
