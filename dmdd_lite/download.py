"""MVTec AD, downloaded, verified and unpacked; or a message that says how to do it by hand.

MVTec AD (Bergmann et al., CVPR 2019) is licensed CC BY-NC-SA 4.0: not for commercial use. The official
archive holds one folder per category at its top level, beside license.txt and readme.txt. Its address has
changed several times, so it can be overridden, by argument or by the environment variable DMDD_MVTEC_URL;
what arrives is trusted only if its SHA-256 is the expected one.

Nothing half-done ever looks whole: the archive gets its name only once its hash is right, and the files are
unpacked into a hidden folder next to `root` that is renamed at the end. An interrupted download starts anew.
What a killed process left is hidden too, and cleared away by a later call.
"""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from lzma import LZMAError, LZMAFile
from pathlib import Path

import pooch
from tqdm.auto import tqdm

from .config import MVTEC_CATEGORIES

MVTEC_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
MVTEC_URL = (  # in use in mid 2026, when its predecessor had died; MVTEC_PAGE links to the current one
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
MVTEC_BYTES = 5_264_982_680  # of the archive; unpacked, its PNG files take about as much again
ARCHIVE = "mvtec_anomaly_detection.tar.xz"
URL_VARIABLE = "DMDD_MVTEC_URL"
MARKER = ".dmdd_mvtec_ad.json"  # written last; names the folders that a complete set has
MOST_BYTES, MOST_MEMBERS = 4 * MVTEC_BYTES, 100_000  # to be unpacked; the official archive has 7,000 members
MOST_AT_ONCE = 2**24  # bytes; only tar headers ask for more than a file's next piece
LONGEST_NAME = 500
TIMEOUT = 60  # seconds without a byte
STALE = 24 * 3600  # seconds after which a hidden folder is taken for a killed process's


class DownloadError(RuntimeError):
    """The data set could not be provided; the message says why, and the steps to do it by hand."""


def download_mvtec_ad(
    root: str | Path, url: str | None = None, sha256: str = MVTEC_SHA256, progress: bool = True
) -> Path:
    """Folder `root`, holding all categories; returns at once if it already does.

    The archive lands beside `root`. One already there with this SHA-256 is used and kept; a downloaded one is
    deleted after unpacking. Existing files in `root` are never touched: unless it is absent or
    empty, an incomplete `root` is an error. Raises DownloadError with the manual steps.
    """
    root = Path(root).expanduser().resolve()
    if is_complete(root):
        return root
    url = url or os.environ.get(URL_VARIABLE) or MVTEC_URL
    archive = root.parent / ARCHIVE
    try:
        _refuse_occupied(root)
        was_there = archive.is_file() and pooch.file_hash(str(archive)) == sha256.lower()
        if not was_there:
            _fetch(url, archive, root, sha256, progress)
        _unpack(archive, root, sha256, progress)
        if not was_there:
            archive.unlink(missing_ok=True)
    except (OSError, ValueError, EOFError, tarfile.TarError, LZMAError) as error:  # requests' are OSErrors
        if is_complete(root):  # another process was faster
            return root
        raise DownloadError(_manual_steps(root, url, sha256, error)) from error
    return root


def is_complete(root: str | Path) -> bool:
    """Whether `root` holds a whole set: what its marker names, or (unpacked by hand) all 15 categories."""
    root = Path(root)
    try:
        folders = json.loads((root / MARKER).read_text())["folders"]
        return bool(folders) and all((root / folder).is_dir() for folder in folders)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        parts = ("train/good", "test/good", "ground_truth")
        return all(_has_entries(root / name / part) for name in MVTEC_CATEGORIES for part in parts)


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _refuse_occupied(root: Path) -> None:
    """OSError if `root` holds something: it may be the user's own, or a set unpacked halfway."""
    if root.exists() and (not root.is_dir() or os.path.ismount(root)):
        raise FileExistsError(f"{root} is a file or a mount point; choose a folder below it or another root")
    if root.is_dir() and _has_entries(root):
        missing = [name for name in MVTEC_CATEGORIES if not (root / name).is_dir()]
        state = f"lacks {', '.join(missing)}" if missing else "has categories without images"
        raise FileExistsError(
            f"{root} is neither empty nor a complete MVTec AD ({state}); "
            "choose another root, or move away what is there"
        )


@contextmanager
def _workplace(root: Path) -> Iterator[Path]:
    """A hidden folder next to `root`, gone at the end, with those that killed processes left long ago."""
    root.parent.mkdir(parents=True, exist_ok=True)
    for left in root.parent.glob(f".{glob.escape(root.name)}.partial-*"):
        with suppress(OSError):  # another process was faster
            if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > STALE:
                shutil.rmtree(left, ignore_errors=True)
    folder = root.with_name(f".{root.name}.partial-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # renamed already if it holds the unpacked set


def _fetch(url: str, archive: Path, root: Path, sha256: str, progress: bool) -> None:
    """Downloads into a hidden folder; the archive gets its place once pooch has found the hash right."""
    with _workplace(root) as folder:
        free = shutil.disk_usage(folder).free
        if sha256.lower() == MVTEC_SHA256 and free < 2 * MVTEC_BYTES:
            needed = f"{2 * MVTEC_BYTES / 1e9:.1f} GB for the archive and its files"
            raise OSError(f"{archive.parent} has {free / 1e9:.1f} GB free, of {needed}")
        bar = tqdm(desc="MVTec AD", total=1, unit="B", unit_scale=True) if progress else False
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256.lower()}",
                fname=archive.name,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=TIMEOUT),
            )
        finally:
            if bar is not False:
                bar.close()
        os.replace(folder / archive.name, archive)


def _unpack(archive: Path, root: Path, sha256: str, progress: bool) -> None:
    """Unpacks into a hidden sibling of `root`, marks it as complete, and renames it to `root`."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4, 3.12 or later")
    with _workplace(root) as partial:
        _extract(archive, partial, progress)
        folders = sorted(path.name for path in partial.iterdir() if (path / "train" / "good").is_dir())
        if not folders:
            raise ValueError(f"{archive} holds no category folder with train/good at its top level")
        (partial / MARKER).write_text(json.dumps({"sha256": sha256, "folders": folders}, indent=1))
        if root.is_dir():
            root.rmdir()  # empty, or this fails
        partial.rename(root)


def _extract(archive: Path, folder: Path, progress: bool) -> None:
    """All of the archive, to its last byte; ValueError if it is larger than a data set or ends too early."""
    size = 0
    with _Tar(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for number, member in enumerate(tqdm(tar, "unpacking", unit=" files", disable=not progress)):
            size += member.size
            if size > MOST_BYTES or number >= MOST_MEMBERS:
                raise ValueError(f"refused {archive}: more than {MOST_BYTES} bytes or {MOST_MEMBERS} members")
            tar.extract(member, folder, filter=_only_plain)
        if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken header for the end
            raise ValueError(f"{archive} is damaged: its list of files ends too early")
        while stream.read(2**20):  # the checksum of the compressed data comes last
            pass


class _Tar(LZMAFile):
    """What is in a .tar.xz, and the `last` piece that was read of it, in pieces that the memory can take."""

    last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_AT_ONCE or self.tell() > MOST_BYTES + MOST_AT_ONCE:
            raise ValueError(f"refused: {size} bytes at once, or more than {MOST_BYTES} in all")
        self.last = super().read(size)
        return self.last


def _only_plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """A filter for tarfile: "data", but plain files and folders only, and no absolute names even stripped."""
    name, parts = member.name, re.split(r"[/\\]", member.name)
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"refused {name!r}: neither a file nor a folder")
    if not parts[0] or ":" in parts[0]:
        raise ValueError(f"refused {name!r}: an absolute path")
    if ".." in parts or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"refused {name[:LONGEST_NAME]!r}: it leads outside, is too long or does not print")
    return tarfile.data_filter(member, folder)


def _manual_steps(root: Path, url: str, sha256: str, error: Exception) -> str:
    archive = root.parent / ARCHIVE
    return f"""MVTec AD could not be provided in {root}:
{type(error).__name__}: {error}
The address tried was {url}
By hand:
  1. Open {MVTEC_PAGE} and download {ARCHIVE} (about 4.9 GiB).
     Licence: CC BY-NC-SA 4.0, not for commercial use.
     (A new address can also be given as url=... or in the environment variable {URL_VARIABLE}.)
  2. Compare its SHA-256 (sha256sum {ARCHIVE}), expected:
     {sha256}
  3. Put it at {archive} and call this again, or unpack it into an empty folder yourself:
     mkdir -p "{root}" && tar -xJf {ARCHIVE} -C "{root}"
     so that {root / "bottle"} and its 14 siblings exist."""
