"""What is wrong with data: errors that end the work, and warnings that go into the result file."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MAX_LISTED = 20


class DataError(ValueError):
    """All problems found in a data set, in one message; `problems` holds every one of them."""

    def __init__(self, problems: str | Sequence[str], where: str = ""):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.where = where
        super().__init__(self.problems, where)  # so that it survives pickling between processes

    def __str__(self) -> str:
        return self._told().encode("utf-8", "backslashreplace").decode()  # for names that are no text

    def _told(self) -> str:
        if len(self.problems) == 1 and not self.where:
            return self.problems[0]
        count = len(self.problems)
        lines = [f"{count} problem{'s' * (count > 1)} in {self.where or 'the data'}:"]
        lines += [f"  - {problem}" for problem in self.problems[:MAX_LISTED]]
        if count > MAX_LISTED:
            lines.append(f"  and {count - MAX_LISTED} more")
        return "\n".join(lines)


class DataWarning(UserWarning):
    """Something about the data that falsifies results unless it is meant; the text names files and remedy."""


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The texts of the DataWarnings that the block causes, which go on to whoever listens."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        yield told
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        told += [str(warning.message)] if issubclass(warning.category, DataWarning) else []


def counted(names: Sequence, what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) != 1)}"


def some(names: Sequence, most: int = 5) -> str:
    """The first of many names."""
    shown = [str(name) for name in names[:most]]
    return ", ".join([*shown, f"{len(names) - most} more"] if len(names) > most else shown)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within the block, a warning is one line on stderr, without the code that raised it: for commands."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        yield
