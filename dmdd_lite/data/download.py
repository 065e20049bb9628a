"""MVTec AD, downloaded, verified and unpacked; or an error with the manual steps.

MVTec AD (Bergmann et al., CVPR 2019) is licensed CC BY-NC-SA 4.0: not for commercial use. Its address has
changed several times; DMDD_MVTEC_URL overrides it. Only an archive with the expected SHA-256 is unpacked.
"""

import os
import shutil
import tarfile
import tempfile
from lzma import LZMAError
from pathlib import Path

import pooch
from tqdm.auto import tqdm

from ..config import MVTEC_CATEGORIES

MVTEC_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
MVTEC_URL = (  # in use in mid 2026; MVTEC_PAGE links to the current one
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
MVTEC_BYTES = 5_264_982_680  # of the archive; unpacked, its PNG files take about as much again
ARCHIVE = "mvtec_anomaly_detection.tar.xz"
URL_VARIABLE = "DMDD_MVTEC_URL"
MANUAL = """MVTec AD could not be provided in {root}:
{error}
The address tried was {url}
By hand:
  1. Open {page} and download {archive.name} (about 4.9 GiB).
     Licence: CC BY-NC-SA 4.0, not for commercial use.
     (A new address can also be given as url=... or in the environment variable {variable}.)
  2. Compare its SHA-256 (sha256sum {archive.name}), expected:
     {sha256}
  3. Put it at {archive} and call this again, or unpack it into an empty folder yourself:
     mkdir -p "{root}" && tar -xJf {archive.name} -C "{root}"
     so that {root}/bottle and its 14 siblings exist."""


class DownloadError(RuntimeError):
    """The data set could not be provided; the message says why, and the steps to do it by hand."""


def download_mvtec_ad(
    root: str | Path, url: str | None = None, sha256: str = MVTEC_SHA256, progress: bool = True
) -> Path:
    """Folder `root`, holding all categories; returns at once if it already does.

    The archive lands beside `root`. One that is there with this SHA-256 is used and kept; a downloaded one is
    deleted after unpacking. Files in `root` are never changed. Raises DownloadError with the manual steps.
    """
    root = Path(root).expanduser().resolve()
    url, archive = url or os.environ.get(URL_VARIABLE) or MVTEC_URL, root.parent / ARCHIVE
    by_hand = archive.exists()
    try:
        if is_complete(root):
            return root
        _check_room(root, by_hand)
        downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**20, timeout=60)
        pooch.retrieve(url, f"sha256:{sha256}", archive.name, archive.parent, downloader=downloader)
        _unpack(archive, root, progress)
        if not by_hand:
            archive.unlink()
    except (OSError, ValueError, EOFError, tarfile.TarError, LZMAError) as error:
        told = f"{type(error).__name__}: {error}"
        steps = {"page": MVTEC_PAGE, "archive": archive, "sha256": sha256, "variable": URL_VARIABLE}
        raise DownloadError(MANUAL.format(root=root, error=told, url=url, **steps)) from error
    return root


def is_complete(root: str | Path) -> bool:
    """Whether `root` holds all 15 categories, each with training images, test images and masks."""
    parts = ("train/good", "test/good", "ground_truth")
    folders = [Path(root) / name / part for name in MVTEC_CATEGORIES for part in parts]
    return all(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def _check_room(root: Path, by_hand: bool):
    """OSError if `root` holds something, the user's own or an incomplete set, or if the disk is too small."""
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"{root} is neither empty nor a complete MVTec AD; choose another root")
    root.parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(root.parent).free, (1 if by_hand else 2) * MVTEC_BYTES
    if free < needed:
        raise OSError(f"{root.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")


def _unpack(archive: Path, root: Path, progress: bool):
    """Unpack beside `root` and rename, so that an interrupted or refused archive leaves no `root`."""
    if not hasattr(tarfile, "data_filter"):
        raise OSError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4, 3.12 or later")
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.partial-", dir=root.parent) as folder:
        unpacked = Path(folder, root.name)
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, "unpacking", unit=" files", disable=None if progress else True):
                tar.extract(member, unpacked, filter=_plain)
        if not is_complete(unpacked):
            raise ValueError(f"{archive} does not hold all 15 categories")
        os.replace(unpacked, root)


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's "data" filter (nothing outside the folder), and no links, which that allows, nor devices."""
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"refused {member.name!r}: neither a file nor a folder")
    return tarfile.data_filter(member, folder)
