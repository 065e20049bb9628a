"""Archives that write outside their folder, are damaged, or are unpacked by a process that is killed: nothing
outside the root changes, and the root is either complete or not there."""

import os
import signal
import stat
import tarfile
from pathlib import Path

import pytest
import test_download
from builders import tree
from test_download import ARCHIVE, FILES, PNG, fetch, member, pack

from dmdd_lite.data.download import DownloadError, is_complete

server = test_download.server  # a fixture


@pytest.fixture
def root(tmp_path):
    """Of the data set; the folder above has a file of the user's."""
    (tmp_path / "data").mkdir()
    (tmp_path / "outside.txt").write_text("mine")
    return tmp_path / "data" / "mvtec_ad"


def link(name: str, target: str, kind=tarfile.SYMTYPE):
    return member(name, type=kind, linkname=target)


REFUSED = {
    "parent": [member("../outside.txt", b"x")],
    "folder outside": [member("../made", type=tarfile.DIRTYPE)],
    "link out": [link("bottle/out", "../../../outside.txt")],
    "absolute link": [link("bottle/out", "/etc/hostname")],
    "file through a link": [link("out", ".."), member("out/outside.txt", b"x")],
    "file through two links": [link("a", "."), link("a/b", ".."), member("a/b/outside.txt", b"x")],
    "link within": [link("bottle/in", "train")],
    "hard link out": [link("bottle/hard", "../../outside.txt", tarfile.LNKTYPE)],
    "hard link to a link": [link("a", "../outside.txt"), link("b", "a", tarfile.LNKTYPE)],
    "device": [member("bottle/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "pipe": [member("bottle/pipe", type=tarfile.FIFOTYPE)],
    "pax path up": [member("bottle/x", b"x", pax_headers={"path": "../../outside.txt"})],
    "file where a folder is": [member("bottle", b"x")],
}


@pytest.mark.parametrize("hostile", REFUSED.values(), ids=REFUSED)
def test_hostile_members_are_refused(server, root, tmp_path, hostile):
    server.body = pack(*hostile)
    with pytest.raises(DownloadError, match="By hand"):
        fetch(root, server)
    assert tree(tmp_path) == {"outside.txt": b"mine", f"data/{ARCHIVE}": server.body}
    assert os.listdir(root.parent) == [ARCHIVE]


WITHIN = {
    "absolute": member("/dmdd_outside.txt", b"x"),  # tarfile takes the slash away
    "setuid": member("bottle/x", b"x", mode=0o6777),
    "no permissions": member("bottle/x", b"x", mode=0),
}


@pytest.mark.parametrize("odd", WITHIN.values(), ids=WITHIN)
def test_odd_members_stay_within_the_root_as_plain_files(server, root, odd):
    server.body = pack(odd)
    assert is_complete(fetch(root, server))
    assert tree(root).keys() == FILES.keys() | {odd[0].name.lstrip("/")}
    assert not Path("/dmdd_outside.txt").exists()
    bits = stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH
    assert not [path for path in root.rglob("*") if path.lstat().st_mode & bits]


OTHERS = {
    "page": b"<html>please log in</html>",
    "cut": pack()[:-200],
    "zip": b"PK\3\4" + bytes(99),
    "without categories": pack(files={"readme.txt": b"MVTec AD"}),
    "half a set": pack(files={name: PNG for name in FILES if not name.startswith("zipper")}),
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_is_no_whole_archive_leaves_no_data_set(server, root, body):
    """Even if its hash is the expected one."""
    server.body = body
    with pytest.raises(DownloadError, match="By hand"):
        fetch(root, server)
    assert os.listdir(root.parent) == [ARCHIVE]


def interrupt(*_, **__):
    raise KeyboardInterrupt


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("stop", [interrupt, die], ids=["Ctrl-C", "SIGKILL"])
@pytest.mark.parametrize("where", ["tarfile.data_filter", "os.replace", "pooch.core.hash_matches"])
def test_what_is_stopped_leaves_no_root_and_the_next_call_completes(server, root, monkeypatch, stop, where):
    """While unpacking, before the renaming, before the hash of a download is known."""
    process = os.fork()
    if not process:
        monkeypatch.setattr(where, stop)
        try:
            fetch(root, server)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == (1 if stop is interrupt else -signal.SIGKILL)
    assert not root.exists()
    assert is_complete(fetch(root, server))
    assert tree(root) == FILES
