"""Atomic writing and progress lines."""

import pytest

from dmdd_lite.files import Progress, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_json_refuses_nan_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"aupro": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode, expected", [("lines", 10), ("none", 0)])
def test_progress_prints_a_line_every_tenth(monkeypatch, capsys, mode, expected):
    monkeypatch.setattr(Progress, "QUIET", 0.0)
    monkeypatch.setenv("DMDD_PROGRESS", mode)
    with Progress(100, "training") as bar:
        for done in range(3, 100, 3):
            bar.update(done, f"loss {done}")
        bar.update(100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == expected
    if expected:
        assert lines[0].startswith("training 12/100")
        assert lines[0].endswith("loss 12")
        assert lines[-1].startswith("training 100/100")


def test_progress_is_silent_about_what_is_over_at_once(monkeypatch, capsys):
    monkeypatch.setenv("DMDD_PROGRESS", "lines")
    with Progress(10, "reading") as bar:
        for done in range(11):
            bar.update(done)
    assert capsys.readouterr().out == ""
