"""Downloading MVTec AD, with a small archive of the same structure served on this machine."""

import hashlib
import io
import os
import stat
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from builders import encoded, tree

from dmdd_lite.config import MVTEC_CATEGORIES
from dmdd_lite.data import download
from dmdd_lite.data.download import ARCHIVE, DownloadError, download_mvtec_ad, is_complete
from dmdd_lite.data.layout import open_category

PNG = encoded(np.full((1, 1), 255, np.uint8), "PNG")
PARTS = ("train/good/000.png", "test/good/000.png", "test/bent/000.png", "ground_truth/bent/000_mask.png")
FILES = {f"{name}/{part}": PNG for name in MVTEC_CATEGORIES for part in PARTS} | {"license.txt": b"CC"}


def member(name: str, content: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in {"size": len(content), **attributes}.items():
        setattr(info, key, value)
    return info, content


def pack(*extra: tuple[tarfile.TarInfo, bytes], files=FILES) -> bytes:
    """A tar.xz like the official one, read-only folders included, and `extra` members at its end."""
    folders = sorted({str(p) for name in files for p in Path(name).parents} - {"."})
    members = [member(name, type=tarfile.DIRTYPE, mode=0o555) for name in folders]
    members += [member(name, content, mode=0o444) for name, content in files.items()]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=0, format=tarfile.PAX_FORMAT) as tar:
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

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", download.URL_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "MVTEC_BYTES", 1000)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data" / "mvtec_ad"


def fetch(root: Path, server: Server, **options) -> Path:
    sha256 = hashlib.sha256(server.body).hexdigest()
    return download_mvtec_ad(root, **{"url": server.url, "sha256": sha256, "progress": False} | options)


def test_download_unpacks_all_and_a_second_call_asks_for_nothing(server, root, capfd):
    root.mkdir(parents=True)  # an empty folder is filled
    assert fetch(root, server, progress=True) == root
    assert "100%" in capfd.readouterr().err
    assert tree(root) == FILES
    assert os.listdir(root.parent) == [root.name]  # neither archive nor temporary files
    assert (root / "bottle/train").stat().st_mode & stat.S_IWUSR
    assert fetch(str(root), server) == root
    assert server.requests == 1
    assert open_category(root, "cable").labels.tolist() == [True, False]


def test_an_archive_downloaded_by_hand_is_used_and_kept(server, root):
    root.parent.mkdir()
    archive = root.parent / ARCHIVE
    archive.write_bytes(server.body)
    assert is_complete(fetch(root, server))
    assert server.requests == 0
    assert archive.read_bytes() == server.body


def test_half_a_set_is_not_complete_and_left_alone(server, root):
    fetch(root, server)
    (root / "zipper/train/good/000.png").unlink()
    before = tree(root)
    assert not is_complete(root)
    with pytest.raises(DownloadError, match="neither empty nor a complete"):
        fetch(root, server)
    assert tree(root) == before
    assert server.requests == 1


FAULTS = {
    "wrong hash": ({"sha256": "0" * 64}, {}, "does not match"),
    "not found": ({}, {"status": 404}, "404"),
    "no address": ({"url": "no address at all"}, {}, "Invalid"),
    "other protocol": ({"url": "file:///etc/hostname"}, {}, "InvalidSchema"),
    "nobody there": ({"url": "http://127.0.0.1:9/"}, {}, "Connection"),
    "cut": ({}, {"cut": 300}, "IncompleteRead|does not match"),
    "small disk": ({}, {"needed": 10**18}, "GB free"),
}


@pytest.mark.parametrize("options, state, reason", FAULTS.values(), ids=FAULTS)
def test_failed_downloads_leave_nothing(server, root, monkeypatch, options, state, reason):
    """They fail with the reason and the manual steps; what cannot fit is not asked for."""
    vars(server).update(state)
    monkeypatch.setattr(download, "MVTEC_BYTES", state.get("needed", 1000))
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch(root, server, **options)
    for step in (download.MVTEC_PAGE, "CC BY-NC-SA", "tar -xJf", str(root), download.URL_VARIABLE):
        assert step in str(caught.value)
    assert not root.parent.exists() or os.listdir(root.parent) == []
    assert "needed" not in state or server.requests == 0
