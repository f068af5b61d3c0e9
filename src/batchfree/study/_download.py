"""Fetching the published files of a data set, only when asked, and never half."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from batchfree.errors import DataError

__all__ = ["SOURCES", "Source", "cache_folder", "extract", "fetch"]


@dataclass(frozen=True)
class Source:
    """Where a data set is published: its files, each with the MD5 that its page or torchvision states."""

    folder: str  #: the published name of the folder that the files end up in
    files: tuple[tuple[str, str], ...]  #: (address, MD5)
    #: Whether the archives hold `folder` themselves, or its contents.
    archives_hold_folder: bool = False


_FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(
        "fashion-mnist",
        (
            (_FASHION_MNIST + "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            (_FASHION_MNIST + "train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            (_FASHION_MNIST + "t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            (_FASHION_MNIST + "t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    # torchvision fetches the pickled version; the binary one needs no unpickling.
    "cifar10": Source(
        "cifar-10-batches-bin",
        (("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
        archives_hold_folder=True,
    ),
    "pets": Source(
        "oxford-iiit-pet",
        (
            (_PETS + "images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            (_PETS + "annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
    ),
}


def cache_folder() -> Path:
    """Where data sets go that are fetched without a place being named: `$XDG_CACHE_HOME/batchfree`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchfree"


def fetch(data: str, parent: Path) -> Path:
    """Fetches the data set into the folder of its published name below `parent`, and returns that folder.

    Everything is fetched, checked and extracted beside it first, and moved there whole.

    Raises:
        DataError: a file cannot be fetched or is not the published one, or an archive is unsafe; nothing is left.
    """
    from torchvision.datasets.utils import download_url  # takes a second, and only this needs it

    source = SOURCES[data]
    final = parent / source.folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{source.folder}-") as scratch:
            whole = Path(scratch) / source.folder
            whole.mkdir()
            for address, md5 in source.files:
                name = address.rpartition("/")[2]
                is_archive = name.endswith(".tar.gz")
                download_url(address, scratch if is_archive else str(whole), filename=name, md5=md5)
                if is_archive:
                    extract(Path(scratch) / name, Path(scratch) if source.archives_hold_folder else whole)
                    (Path(scratch) / name).unlink()  # the next one needs the room
            _move(whole, final)
    # RuntimeError: torchvision's word for a wrong MD5; ValueError: urllib's for what is no address
    except (URLError, OSError, EOFError, RuntimeError, ValueError, tarfile.TarError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{data} could not be fetched into {parent}: {error}. The published files are needed: "
            f"{', '.join(address for address, _ in source.files)}. Check the connection and the room on the disk and "
            f"try again, or fetch and extract them by hand into {final} and pass --data-dir {parent}."
        ) from error
    return final


def extract(archive: Path, folder: Path) -> None:
    """Extracts a tar archive of plain files and folders into `folder`.

    Raises:
        DataError: a member would lie outside of `folder`, or is a link or a device.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            "this Python extracts archives without checking them. Python 3.10.12, 3.11.4, 3.12 or newer is needed. "
            "Update Python, or extract the archive by hand."
        )
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter=_only_plain)


def _only_plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    name = member.name
    # tarfile's own filter would turn an absolute name into a relative one; no published archive holds either.
    outside = name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")
    if outside or not (member.isfile() or member.isdir()):
        raise DataError(
            f"the archive holds {name!r}, which {'lies outside of it' if outside else 'is a link or a device'}. "
            f"Plain files and folders are expected. It is not the published archive: fetch it from the data set's page."
        )
    return tarfile.data_filter(member, folder)


def _move(whole: Path, final: Path) -> None:
    try:
        whole.rename(final)
    except OSError:
        if not final.is_dir():  # else another process was faster, with the same files
            raise
        shutil.rmtree(whole)
