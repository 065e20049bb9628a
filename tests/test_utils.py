"""Atomic writing and progress lines."""

import pytest

from dmdd_lite.utils import Progress, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"aupro": float("nan")})
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("mode, quiet, expected", [("lines", 0, 10), ("lines", 5, 0), ("none", 0, 0)])
def test_progress_prints_a_line_every_tenth_but_not_too_often(monkeypatch, capsys, mode, quiet, expected):
    monkeypatch.setenv("DMDD_PROGRESS", mode)
    with Progress(100, "training") as bar:
        for done in [*range(3, 100, 3), 100]:
            bar.update(done, f"loss {done}", quiet)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == expected
    if expected:
        assert (lines[0][:16], lines[0][-7:]) == ("training 12/100 ", "loss 12")
        assert lines[-1].startswith("training 100/100")
