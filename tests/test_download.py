"""Downloading MVTec AD, with a small archive of the same structure served on this machine."""

import hashlib
import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmdd_lite import data, download
from dmdd_lite.download import ARCHIVE, MARKER, DownloadError, download_mvtec_ad, is_complete

PNG = (  # 1 x 1, white
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cc\xf8\x0f\x00\x01\x01\x01\x00\xb18\xf6\x14\x00\x00\x00\x00IEND\xaeB`\x82"
)
FILES = {
    f"{name}/{part}": PNG
    for name in ("bottle", "cable")
    for part in (
        "train/good/000.png",
        "test/good/000.png",
        "test/bent/000.png",
        "ground_truth/bent/000_mask.png",
    )
} | {"license.txt": b"CC BY-NC-SA 4.0", "readme.txt": b"MVTec AD"}


def member(name: str, content: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def pack(*extra: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar.xz like the official one, read-only folders included, and `extra` members at its end."""
    folders = sorted({str(p) for name in FILES for p in Path(name).parents} - {"."})
    members = [member(name, type=tarfile.DIRTYPE, mode=0o555) for name in folders]
    members += [member(name, content, mode=0o444) for name, content in FILES.items()]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for info, content in [*members, *extra]:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class Server:
    """Serves `body` at any path on 127.0.0.1; `status` and `cut` (bytes really sent) make it misbehave."""

    def __init__(self):
        self.body, self.status, self.cut, self.requests = pack(), 200, None, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body[: outer.cut])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{ARCHIVE}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(no_proxy):
    server = Server()
    yield server
    server.close()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data" / "mvtec_ad"


def fetch(root: Path, server: Server, **options) -> Path:
    return download_mvtec_ad(
        root, **{"url": server.url, "sha256": server.sha256, "progress": False} | options
    )


def assert_fails(root: Path, server: Server, reason: str, left: tuple[str, ...] = (), **options) -> None:
    """The call fails with `reason` and all manual steps, and leaves only `left` beside `root`."""
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch(root, server, **options)
    sha256 = options.get("sha256", server.sha256)
    for step in (
        download.MVTEC_PAGE,
        "CC BY-NC-SA 4.0",
        sha256,
        "tar -xJf",
        str(root),
        download.URL_VARIABLE,
    ):
        assert step in str(caught.value)
    assert not is_complete(root)
    assert not root.exists()
    found = [p.name for p in root.parent.iterdir()] if root.parent.exists() else []
    assert sorted(found) == sorted(left)


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_download_unpacks_all_and_a_second_call_asks_for_nothing(server, root, capfd):
    assert fetch(root, server) == root
    found = files_below(root)
    assert found.pop(MARKER)
    assert found == FILES
    assert [p.name for p in root.parent.iterdir()] == [root.name]  # neither archive nor temporary files
    assert (root / "bottle/train").stat().st_mode & 0o200  # the archive's read-only folders can be deleted
    assert "MVTec" not in capfd.readouterr().out
    assert server.requests == 1
    server.close()
    assert fetch(str(root), server) == root
    assert server.requests == 1
    assert data.open_category(root, "cable").labels.tolist() == [True, False]


def test_an_empty_root_is_filled_and_progress_is_shown(server, root, capfd):
    root.mkdir(parents=True)
    fetch(root, server, progress=True)
    assert "MVTec AD: 100%" in capfd.readouterr().err
    assert is_complete(root)


def test_url_from_the_environment(server, root, monkeypatch):
    monkeypatch.setenv(download.URL_VARIABLE, server.url)
    assert is_complete(fetch(root, server, url=None))


def test_an_archive_put_there_by_hand_is_used_and_kept(server, root):
    root.parent.mkdir()
    archive = root.parent / ARCHIVE
    archive.write_bytes(server.body)
    fetch(root, server)
    assert server.requests == 0
    assert archive.read_bytes() == server.body
    shutil.rmtree(root)
    archive.write_bytes(server.body[:100])  # someone else's broken download
    fetch(root, server)
    assert server.requests == 1
    assert is_complete(root)


def test_a_set_unpacked_by_hand_is_complete_and_half_of_one_is_not(server, root):
    for name in download.MVTEC_CATEGORIES:
        assert not is_complete(root)
        for part in ("train/good", "test/good", "ground_truth/bent"):
            (root / name / part).mkdir(parents=True)
            (root / name / part / "000.png").write_bytes(PNG)
    assert is_complete(root)
    assert fetch(root, server) == root
    shutil.rmtree(root / "zipper")
    before = files_below(root)
    with pytest.raises(DownloadError, match=r"neither empty nor a complete MVTec AD \(lacks zipper\)"):
        fetch(root, server)
    assert files_below(root) == before
    assert server.requests == 0


def test_a_marked_set_that_lost_a_category_is_not_complete(server, root):
    fetch(root, server)
    shutil.rmtree(root / "cable")
    assert not is_complete(root)
    (root / MARKER).write_text("[]")
    assert not is_complete(root)


def test_wrong_hash(server, root):
    assert_fails(root, server, "does not match", sha256="0" * 64)


def test_not_found(server, root):
    server.status = 404
    assert_fails(root, server, "404")


def test_server_gone(server, root):
    server.close()
    assert_fails(root, server, "Connection")


@pytest.mark.parametrize("url", ["ftp:/nothing", "", "file:///etc/hostname"])
def test_odd_addresses(server, root, url, monkeypatch):
    monkeypatch.setattr(download, "MVTEC_URL", "no address at all")  # what an empty one falls back to
    assert_fails(root, server, "could not be provided", url=url)


@pytest.mark.parametrize("cut", [0, 300])
def test_truncated_response(server, root, cut):
    server.cut = cut
    assert_fails(root, server, "IncompleteRead|does not match")
    server.cut = None
    assert is_complete(fetch(root, server))


def test_disk_too_small_is_said_before_downloading(server, root, monkeypatch):
    monkeypatch.setattr(download, "MVTEC_SHA256", server.sha256)
    monkeypatch.setattr(download, "MVTEC_BYTES", 10**18)
    assert_fails(root, server, "GB free")
    assert server.requests == 0


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside.txt", b"x"),
        member("bottle/../../outside.txt", b"x"),
        member("/tmp/dmdd_outside.txt", b"x"),
        member("C:/outside.txt", b"x"),
        member("bottle/link", type=tarfile.SYMTYPE, linkname="../../outside.txt"),
        member("bottle/inner", type=tarfile.SYMTYPE, linkname="train"),
        member("bottle/hard", type=tarfile.LNKTYPE, linkname="../../outside.txt"),
        member("bottle/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("bottle/pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda hostile: hostile[0].name,
)
def test_hostile_members_are_refused(server, root, tmp_path, hostile):
    server.body = pack(hostile)
    assert_fails(root, server, "refused|outside", left=(ARCHIVE,))
    assert [p.name for p in tmp_path.rglob("*")] == ["data", ARCHIVE]
    assert not Path("/tmp/dmdd_outside.txt").exists()


@pytest.mark.parametrize("body", [b"<html>not an archive</html>", b"", None])
def test_archives_of_something_else(server, root, body):
    server.body = pack()[:-200] if body is None else body
    assert_fails(root, server, "could not be provided", left=(ARCHIVE,))


def test_archive_without_categories(server, root, monkeypatch):
    monkeypatch.setitem(globals(), "FILES", {"readme.txt": b"empty"})
    server.body = pack()
    assert_fails(root, server, "holds no category", left=(ARCHIVE,))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_unpacking_leaves_nothing_and_is_resumed_from_the_archive(
    server, root, monkeypatch, error
):
    real, calls = download._only_plain, []

    def fail_halfway(info, folder):
        calls.append(info.name)
        if len(calls) > 20:
            assert any(root.parent.glob(".mvtec_ad.partial-*/bottle"))  # it had begun
            raise error
        return real(info, folder)

    monkeypatch.setattr(download, "_only_plain", fail_halfway)
    with pytest.raises((DownloadError, KeyboardInterrupt)):
        fetch(root, server)
    monkeypatch.setattr(download, "_only_plain", real)
    assert [p.name for p in root.parent.iterdir()] == [ARCHIVE]
    assert is_complete(fetch(root, server))
    assert server.requests == 1


def test_interrupted_download_leaves_nothing(server, root, monkeypatch):
    def interrupt(self, url, path, pooch):
        Path(path).write_bytes(server.body[:500])
        raise KeyboardInterrupt

    monkeypatch.setattr(download.pooch.HTTPDownloader, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(root, server)
    assert list(root.parent.iterdir()) == []


def test_losing_a_race_is_no_error(server, root, monkeypatch):
    real = download._unpack

    def after_another(*args):
        real(*args)
        return real(*args)  # finds root complete and cannot replace it

    monkeypatch.setattr(download, "_unpack", after_another)
    assert fetch(root, server) == root
    assert files_below(root).keys() == FILES.keys() | {MARKER}


def test_a_file_as_root_is_refused(server, root):
    root.parent.mkdir()
    root.write_text("mine")
    with pytest.raises(DownloadError, match="is a file or a mount point"):
        fetch(root, server)
    assert root.read_text() == "mine"
