"""Archives that want to leave their folder, fill the disk or pass for whole ones, and servers that misbehave.

After every one the surroundings of the chosen root are as before, and the root is either whole or not there.
"""

import hashlib
import io
import lzma
import os
import signal
import socket
import stat
import struct
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path
from shutil import rmtree

import pytest
from builders import spread
from hypothesis import given
from hypothesis import strategies as st
from test_download import PNG, Server, fetch, files_below, member, pack

from dmdd_lite import download
from dmdd_lite.download import ARCHIVE, MARKER, DownloadError, download_mvtec_ad, is_complete

TRAIN = "bottle/train/good/000.png"


def tar(*members: tuple[tarfile.TarInfo, bytes], sound=True) -> bytes:
    """An uncompressed tar of a sound little set, if wanted, and the members after it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info, content in [member(TRAIN, PNG)] * sound + list(members):
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def survey(folder: Path) -> dict:
    """Everything below a folder: kind, permissions, number of links, and content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        state = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(state.st_mode) else None
        found[str(path.relative_to(folder))] = state.st_mode, state.st_nlink * (content is not None), content
    return found


class Place:
    """A folder with things of the user's in it, and a root for the set that is not there yet."""

    def __init__(self, around: Path):
        self.around = around
        self.root = around / "data" / "mvtec_ad"
        self.root.parent.mkdir(parents=True)
        for name in ("outside.txt", "data/outside.txt"):
            (around / name).write_text("mine")

    def unpack(self, archive: bytes) -> DownloadError | None:
        """The error that the archive gave, having left all as it was, or None if the set is there, whole,
        of plain files, and all else is as it was."""
        given = self.root.parent / ARCHIVE
        given.write_bytes(archive)
        before = survey(self.around)
        try:
            download_mvtec_ad(
                self.root,
                "http://127.0.0.1:9/",
                hashlib.sha256(archive).hexdigest(),
                progress=False,
            )
        except DownloadError as error:
            assert survey(self.around) == before
            assert not is_complete(self.root)
            return error
        assert is_complete(self.root)
        for path in self.root.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWOTH), path
        self.forget()
        assert survey(self.around) == before
        return None

    def forget(self):
        rmtree(self.root, ignore_errors=True)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "around")


# ---- members that lead outside, and worse -------------------------------------------------------------


def link(name: str, target: str, kind=tarfile.SYMTYPE):
    return member(name, type=kind, linkname=target)


def with_pax(name: str, content=b"x", **headers):
    return member(name, content, pax_headers=headers)


REFUSED = {
    "parent": [member("../outside.txt", b"x")],
    "deep parent": [member("a/../../b", b"x")],
    "far parent": [member("../" * 40 + "tmp/dmdd_outside.txt", b"x")],
    "inner parent": [member("bottle/../bottle/x", b"x")],
    "folder outside": [member("../made", type=tarfile.DIRTYPE)],
    "absolute": [member("/tmp/dmdd_outside.txt", b"x")],
    "twice absolute": [member("//tmp/dmdd_outside.txt", b"x")],
    "drive": [member("C:/outside.txt", b"x")],
    "drive with backslash": [member("C:\\outside.txt", b"x")],
    "drive without slash": [member("C:outside.txt", b"x")],
    "share": [member("\\\\server\\share\\outside.txt", b"x")],
    "backslashes up": [member("..\\outside.txt", b"x")],
    "mixed slashes up": [member("bottle\\../..\\outside.txt", b"x")],
    "link out": [link("bottle/out", "../../outside.txt")],
    "absolute link": [link("bottle/out", "/etc/hostname")],
    "link within": [link("bottle/in", "train")],
    "file through a link": [link("out", ".."), member("out/outside.txt", b"x")],
    "file through two links": [link("a", "."), link("a/b", ".."), member("a/b/outside.txt", b"x")],
    "file onto a link": [link("out", "../outside.txt"), member("out", b"x")],
    "hard link out": [link("bottle/hard", "../outside.txt", tarfile.LNKTYPE)],
    "absolute hard link": [link("bottle/hard", "/etc/hostname", tarfile.LNKTYPE)],
    "hard link to a link": [link("a", "../outside.txt"), link("b", "a", tarfile.LNKTYPE)],
    "character device": [member("bottle/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "block device": [member("bottle/disk", type=tarfile.BLKTYPE, devmajor=8)],
    "pipe": [member("bottle/pipe", type=tarfile.FIFOTYPE)],
    "unknown kind": [member("bottle/odd", b"x", type=b"Z")],
    "file where a folder is": [member("bottle", b"x")],
    "file below a file": [member(f"{TRAIN}/x", b"x")],
    "folder as the marker": [member(f"{MARKER}/x", b"x")],
    "long name": [member("n" * 300, b"x")],
    "longer than a path may be": [member("n/" * 4000 + "x", b"x")],
    "NUL": [with_pax("bottle/x", path="bottle/x\0/../../outside.txt")],
    "empty path": [with_pax("bottle/x", path="")],
    "pax path up": [with_pax("bottle/x", path="../outside.txt")],
    "pax link": [member("bottle/x", type=tarfile.SYMTYPE, linkname="x", pax_headers={"linkpath": "../.."})],
    "line break": [member("bottle/a\nb", b"x")],
    "escape sequence": [member("bottle/\x1b[2J", b"x")],
    "mark of direction": [member("bottle/\u202egnp.exe", b"x")],
    "bytes that are no text": [member(os.fsdecode(b"bottle/\xff\xfe"), b"x")],
}


@pytest.mark.parametrize("hostile", REFUSED.values(), ids=REFUSED)
def test_members_that_are_refused(place, tally, hostile):
    error = place.unpack(xz(tar(*hostile)))
    assert error
    assert "By hand:" in str(error)
    assert not Path("/tmp/dmdd_outside.txt").exists()
    tally("hostile archives")


HARMLESS = {
    "setuid": [member("bottle/x", b"x", mode=0o6777), member("bottle/y", type=tarfile.DIRTYPE, mode=0o7777)],
    "no permissions": [member("bottle/x", b"x", mode=0)],
    "another's file": [member("bottle/x", b"x", uid=0, gid=0, uname="root", gname="root")],
    "twice": [member(TRAIN, b"again")],
    "current folder": [member("./bottle/./x", b"x"), member(".", type=tarfile.DIRTYPE, mode=0)],
    "dots": [member("bottle/...", b"x"), member("bottle/..x", b"x")],
    "unicode": [member("bottle/\uff0e\uff0e/\u2025/e\u0301/\xe9", b"x")],
    "shell": [member("bottle/$(touch x);`id`~ -rf %2e%2e", b"x")],
    "own marker": [member(MARKER, b'{"folders": ["nothing"]}')],
}


@pytest.mark.parametrize("odd", HARMLESS.values(), ids=HARMLESS)
def test_members_that_are_odd_but_harmless(place, tally, odd):
    assert place.unpack(xz(tar(*odd))) is None
    tally("hostile archives")


PARTS = st.sampled_from(
    [
        *("..", ".", "", "/", "\\", "~", "C:", "bottle", "train", "good", "000.png", "link", "outside.txt"),
        *("..\\..", "\u202e", "\n", "e\u0301", "\uff0e\uff0e", "%2e%2e", ". .", ".. ", "n" * 200, "nul"),
        MARKER,
    ]
)
SEPARATORS = st.sampled_from("//\\")
NAMES = st.builds(lambda parts, by: by.join(parts), st.lists(PARTS, min_size=1, max_size=5), SEPARATORS)
KINDS = st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.DIRTYPE] * 2 + list(b"123467DKSVxgL"))
MEMBERS = st.builds(
    lambda name, kind, target, mode: (name, kind if isinstance(kind, bytes) else bytes([kind]), target, mode),
    NAMES, KINDS, NAMES, st.integers(0, 0o7777),
)  # fmt: skip


@given(members=st.lists(MEMBERS, min_size=1, max_size=4))
def test_names_made_of_hostile_parts(tmp_path_factory, tally, members):
    place = Place(tmp_path_factory.mktemp("random") / "around")
    made = [
        member(name, b"x" if kind in (b"0", b"x", b"g", b"L") else b"", type=kind, linkname=target, mode=mode)
        for name, kind, target, mode in members
    ]
    place.unpack(xz(tar(*made)))
    rmtree(place.around)
    tally("hostile archives")


# ---- more than a disk or a memory holds ------------------------------------------------------------------


def test_a_bomb_ends_at_the_limit(place, monkeypatch, tally):
    bomb = xz(tar(member("bottle/zeros", bytes(2**24)), member("bottle/x", b"x")))
    assert len(bomb) < 2**24 / 1000
    assert place.unpack(bomb) is None
    monkeypatch.setattr(download, "MOST_BYTES", 2**23)
    assert "more than 8388608 bytes" in str(place.unpack(bomb))
    tally("hostile archives", 2)


def test_many_members_end_at_the_limit(place, monkeypatch, tally):
    many = xz(tar(*(member(f"bottle/{i}") for i in range(60))))
    monkeypatch.setattr(download, "MOST_MEMBERS", 60)
    assert "or 60 members" in str(place.unpack(many))
    monkeypatch.setattr(download, "MOST_MEMBERS", 61)
    assert place.unpack(many) is None
    tally("hostile archives", 2)


@pytest.mark.parametrize("size", [8**11 - 1, 10**13, 2**63, 2**70])
def test_sizes_that_are_only_claimed(place, tally, size):
    info = member("bottle/x", b"")[0]
    info.size = size
    head = info.tobuf(tarfile.GNU_FORMAT)
    assert place.unpack(xz(tar()[:1024] + head + bytes(10240)))
    tally("hostile archives")


@pytest.mark.parametrize("size", [10**11, 2**63, 10**30, -1])
def test_holes_larger_than_a_disk(place, tally, size):
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "bottle/hole"}
    sparse["GNU.sparse.realsize"] = str(size)
    assert place.unpack(xz(tar(with_pax("bottle/x", b"0\n".ljust(512, b"\0"), **sparse))))
    tally("hostile archives")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME], ids=str)
def test_headers_that_would_fill_the_memory(place, tally, kind):
    head = member("bottle/x", type=kind)[0]
    head.size = 2**26
    bomb = xz(tar()[:1024] + head.tobuf() + bytes(2**26) + bytes(1024))
    tracemalloc.start()
    error = place.unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "67108864 bytes at once" in str(error)
    assert peak < 2**25
    tally("hostile archives")


def test_zeros_after_the_end_are_not_read_for_ever(place, monkeypatch, tally):
    monkeypatch.setattr(download, "MOST_BYTES", 2**20)
    monkeypatch.setattr(download, "MOST_AT_ONCE", 2**20)
    assert place.unpack(xz(tar() + bytes(2**19))) is None
    assert "more than 1048576 in all" in str(place.unpack(xz(tar() + bytes(2**23))))
    tally("hostile archives", 2)


# ---- archives that are not whole -------------------------------------------------------------------------


def test_archives_cut_at_any_byte(place, depth, tally):
    whole = xz(tar(member("cable/train/good/000.png", PNG)))
    cuts = spread(0, len(whole), depth(60, 10**6))
    for cut in cuts:
        assert place.unpack(whole[:cut]), cut
    tally("damaged archives", len(cuts))


def test_tars_cut_at_any_block_do_not_pass_for_smaller_ones(place, depth, tally):
    whole = tar(member("cable/train/good/000.png", PNG), member("license.txt", b"CC"))
    end = len(whole.rstrip(b"\0"))
    cuts = sorted({*range(0, end + 1, 512), *spread(0, end + 1, depth(20, 10**6))})
    for cut in cuts:
        assert place.unpack(xz(whole[:cut])), cut
        broken = bytearray(whole)
        if cut < end - 512 and cut % 512 == 0 and whole[cut + 257 : cut + 262] == b"ustar":
            broken[cut] ^= 1  # a header whose sum is wrong
            assert place.unpack(xz(bytes(broken))), cut
    tally("damaged archives", len(cuts))


def test_archives_with_a_flipped_bit_give_the_right_files_or_none(place, depth, tally, monkeypatch):
    whole = xz(tar(member("cable/train/good/000.png", PNG)))
    found = []
    monkeypatch.setattr(place, "forget", lambda: (found.append(files_below(place.root)), rmtree(place.root)))
    bits = spread(0, 8 * len(whole), depth(80, 10**6))
    for bit in bits:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        place.unpack(bytes(broken))
    for files in found:
        assert files.pop(MARKER)
        assert files == {TRAIN: PNG, "cable/train/good/000.png": PNG}
    tally("damaged archives", len(bits))


@given(data=st.binary(max_size=3000), seed=st.integers(0, 2**32))
def test_any_bytes_as_a_tar(tmp_path_factory, tally, data, seed):
    place = Place(tmp_path_factory.mktemp("random") / "around")
    whole = bytearray(tar(member("cable/train/good/000.png", PNG)))
    at = seed % len(whole)
    whole[at : at + len(data)] = data
    place.unpack(xz(bytes(whole)))
    assert place.unpack(data)
    rmtree(place.around)
    tally("damaged archives", 2)


OTHERS = {
    "nothing": b"",
    "zeros": bytes(2000),
    "page": b"<html>",
    "tar": tar(),
    "xz of nothing": xz(b""),
    "xz of a page": xz(b"<html>"),
    "xz of a block": xz(bytes(512)),
    "zip": b"PK\3\4" + bytes(99),
    "gzip": b"\x1f\x8b" + bytes(99),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_something_else(place, tally, other):
    assert place.unpack(other)
    tally("damaged archives")


def test_a_marker_of_someone_else_is_no_set(tmp_path, tally):
    for text in (
        "[" * 100_000,
        '{"folders": 3}',
        '{"folders": ["\\u0000"]}',
        '{"folders": [[]]}',
        "\udcff",
        "{}",
    ):
        (tmp_path / MARKER).write_bytes(text.encode("utf-8", "surrogatepass"))
        assert not is_complete(tmp_path)
        tally("damaged archives")


# ---- servers ---------------------------------------------------------------------------------------------


class RawServer:
    """Sends prepared bytes, one reply a connection, then closes, or hangs for as long as it lives."""

    def __init__(self, *replies: bytes, hang=False):
        self.replies, self.hang, self.over = list(replies), hang, threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/{ARCHIVE}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        for reply in self.replies:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(reply)
                if self.hang:
                    self.over.wait(30)
                elif reply.endswith(b"reset"):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self):
        self.over.set()
        self.socket.close()


def reply(body: bytes, status="200 OK", length=None, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


BODY = pack()
FAULTS = {
    "nothing": b"",
    "no reply": b"hello\r\n\r\n",
    "half a header": reply(BODY)[:30],
    "closed in the middle": reply(BODY[: len(BODY) // 2], length=len(BODY)),
    "reset in the middle": reply(BODY[:400], length=len(BODY)) + b"reset",
    "less than announced": reply(BODY, length=len(BODY) + 1),
    "more than announced": reply(BODY, length=len(BODY) - 1),
    "announces no number": reply(BODY, length="many"),
    "announces less than nothing": reply(BODY[:-1], length=-5),
    "one byte more": reply(BODY + b"\0"),
    "empty": reply(b""),
    "404": reply(b"<html>", "404 Not Found"),
    "500": reply(BODY, "500 Internal Server Error"),
    "403 with a page": reply(b"<html>moved</html>", "403 Forbidden"),
    "page instead": reply(b"<html>please log in</html>"),
    "redirect to itself": reply(b"", "302 Found", 0, "Location: /again"),
    "redirect to a file": reply(b"", "302 Found", 0, "Location: file:///etc/hostname"),
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "not gzip": reply(b"plain", "200 OK", None, "Content-Encoding: gzip"),
}


def ask(place: Place, server) -> Path:
    return download_mvtec_ad(place.root, server.url, hashlib.sha256(BODY).hexdigest(), progress=False)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_server_that_fails_and_then_works(place, no_proxy, tally, fault):
    server = RawServer(*[fault] * 40)  # one a redirect
    before = survey(place.around)
    with pytest.raises(DownloadError, match="By hand"):
        ask(place, server)
    assert survey(place.around) == before
    server.close()
    again = RawServer(reply(BODY))
    assert is_complete(ask(place, again))
    again.close()
    tally("failing servers")


@pytest.mark.parametrize("sent", [0, 40, 500])
def test_a_server_that_hangs_is_given_up(place, no_proxy, monkeypatch, tally, sent):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server = RawServer(reply(BODY)[:sent], hang=True)
    before, began = survey(place.around), time.monotonic()
    with pytest.raises(DownloadError, match="timed out"):
        ask(place, server)
    assert time.monotonic() - began < 10
    assert survey(place.around) == before
    server.close()
    tally("failing servers")


# ---- kills -----------------------------------------------------------------------------------------------


def killed(place: Place, url: str, patch) -> None:
    """A download in a process that `patch(stop)` makes call `stop` somewhere, and that is killed there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            patch(lambda *_, **__: (os.write(writing, b"x"), time.sleep(60)))
            download_mvtec_ad(place.root, url, hashlib.sha256(BODY).hexdigest(), progress=False)
        finally:
            os._exit(1)
    os.close(writing)
    reached = os.read(reading, 1)  # nothing, if it ended before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    assert reached == b"x"


def at_member(number: int):
    def patch(stop):
        real, seen = download._only_plain, []

        def count(*given):
            seen.append(1)
            return stop() if len(seen) > number else real(*given)

        download._only_plain = count

    return patch


def in_place_of(owner, name: str):
    return lambda stop: setattr(owner, name, stop)


KILLS = {
    "before the first file": at_member(0),
    "among the folders": at_member(5),
    "among the files": at_member(20),
    "before the last file": at_member(25),
    "before the marker": in_place_of(download.json, "dumps"),
    "before the renaming": in_place_of(Path, "rename"),
    "while the hash is taken": in_place_of(download.pooch.core, "hash_matches"),
    "before the archive is in place": in_place_of(download.os, "replace"),
    "while downloading": lambda stop: setattr(download.pooch.HTTPDownloader, "__call__", half(stop)),
}


def half(stop):
    def call(self, url, path, pooch):
        Path(path).write_bytes(BODY[:500])
        stop()

    return call


@pytest.mark.parametrize("patch", KILLS.values(), ids=KILLS)
def test_a_killed_process_leaves_nothing_that_looks_whole(place, no_proxy, tally, patch):
    server = Server()
    server.body = BODY
    killed(place, server.url, patch)
    assert not is_complete(place.root)
    assert not place.root.exists()
    left = [p for p in place.root.parent.iterdir() if p.name not in ("outside.txt", ARCHIVE)]
    assert [p.name.startswith(".mvtec_ad.partial-") for p in left] == [True]
    assert is_complete(fetch(place.root, server))  # the leftover is in nobody's way
    assert left[0].exists()  # it could be another process's
    place.forget()
    for path in (left[0], *left[0].iterdir()):
        os.utime(path, (0, time.time() - download.STALE - 60))
    assert is_complete(fetch(place.root, server))
    assert not left[0].exists()
    server.close()
    tally("kills of a download")
