"""MVTec AD, downloaded, verified and unpacked; or a message that says how to do it by hand.

MVTec AD (Bergmann et al., CVPR 2019) is licensed CC BY-NC-SA 4.0: not for commercial use. The official
archive holds one folder per category at its top level, beside license.txt and readme.txt. Its address has
changed several times, so it can be overridden, by argument or by the environment variable DMDD_MVTEC_URL;
what arrives is trusted only if its SHA-256 is the expected one.

Nothing half-done ever looks whole: the archive gets its name only once its hash is right, and the files are
unpacked into a hidden folder next to `root` that is renamed at the end. An interrupted download starts anew.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tarfile
from lzma import LZMAError
from pathlib import Path

import pooch
from tqdm.auto import tqdm

MVTEC_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
MVTEC_URL = (  # in use in mid 2026, when its predecessor had died; MVTEC_PAGE links to the current one
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
MVTEC_BYTES = 5_264_982_680  # of the archive; unpacked, its PNG files take about as much again
MVTEC_CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)
ARCHIVE = "mvtec_anomaly_detection.tar.xz"
URL_VARIABLE = "DMDD_MVTEC_URL"
MARKER = ".dmdd_mvtec_ad.json"  # written last; names the folders that a complete set has


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
            _fetch(url, archive, sha256, progress)
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
    except (OSError, ValueError, KeyError, TypeError):
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


def _fetch(url: str, archive: Path, sha256: str, progress: bool) -> None:
    """Downloads under a temporary name, deleted on failure; pooch renames it once the hash is right."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(archive.parent).free
    if sha256.lower() == MVTEC_SHA256 and free < 2 * MVTEC_BYTES:
        needed = f"{2 * MVTEC_BYTES / 1e9:.1f} GB for the archive and its files"
        raise OSError(f"{archive.parent} has {free / 1e9:.1f} GB free, of {needed}")
    bar = tqdm(desc="MVTec AD", total=1, unit="B", unit_scale=True) if progress else False
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256.lower()}",
            fname=archive.name,
            path=archive.parent,
            downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=60),
        )
    finally:
        if bar is not False:
            bar.close()


def _unpack(archive: Path, root: Path, sha256: str, progress: bool) -> None:
    """Unpacks into a hidden sibling of `root`, marks it as complete, and renames it to `root`."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4, 3.12 or later")
    partial = root.with_name(f".{root.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        with tarfile.open(archive, "r:xz") as tar:
            for member in tqdm(tar, "unpacking", unit=" files", disable=not progress):
                tar.extract(member, partial, filter=_only_plain)
        folders = sorted(path.name for path in partial.iterdir() if (path / "train" / "good").is_dir())
        if not folders:
            raise ValueError(f"{archive} holds no category folder with train/good at its top level")
        (partial / MARKER).write_text(json.dumps({"sha256": sha256, "folders": folders}, indent=1))
        if root.is_dir():
            root.rmdir()  # empty, or this fails
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well


def _only_plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """A filter for tarfile: "data", but plain files and folders only, and no absolute names even stripped."""
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"refused {member.name!r}: neither a file nor a folder")
    if member.name.startswith(("/", "\\")) or ":" in member.name.split("/")[0]:
        raise ValueError(f"refused {member.name!r}: an absolute path")
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
