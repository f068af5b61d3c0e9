"""Fetching over a real connection, from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import FashionMNIST, OxfordIIITPet

from batchfree.errors import DataError
from batchfree.study._data import load_data
from batchfree.study._download import SOURCES, Source, extract, fetch
from tests.study.published import write_fashion_mnist, write_pets


class Site:
    """A folder that is served, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.requests: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                site.requests.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def source(self, like: Source) -> Source:
        """Where the site has the files of `like`, with their present MD5."""
        files = []
        for address, _ in like.files:
            name = address.rpartition("/")[2]
            path = self.folder / name
            md5 = hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else "0" * 32
            files.append((f"http://127.0.0.1:{self.server.server_port}/{name}", md5))
        return Source(like.folder, tuple(files), like.archives_hold_folder)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    yield site
    site.close()


@pytest.fixture
def pets_site(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    write_pets(tmp_path / "pets")
    for part in ("images", "annotations"):
        with tarfile.open(site.folder / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "pets" / part, part)
    monkeypatch.setitem(SOURCES, "pets", site.source(SOURCES["pets"]))
    return site


def test_addresses_and_checksums_are_those_that_torchvision_has() -> None:
    assert SOURCES["pets"].files == OxfordIIITPet._RESOURCES
    assert SOURCES["fashion-mnist"].files == tuple(
        (FashionMNIST.mirrors[0] + name, md5) for name, md5 in FashionMNIST.resources
    )


def test_pets_are_fetched_once_when_asked_and_read(
    pets_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "data"
    with pytest.raises(DataError, match="Pass --download"):
        load_data("pets", data_dir=str(place), image_size=8)
    assert pets_site.requests == []
    assert not place.exists()
    data = load_data("pets", data_dir=str(place), image_size=8, download=True)
    assert len(data.train_images) == 12
    assert [path.name for path in place.iterdir()] == ["oxford-iiit-pet"]
    assert sorted(path.name for path in (place / "oxford-iiit-pet").iterdir()) == ["annotations", "images"]
    asked = len(pets_site.requests)
    assert load_data("pets", data_dir=str(place), image_size=8, download=True).fingerprint() == data.fingerprint()
    assert len(pets_site.requests) == asked


def test_fashion_mnist_goes_to_the_cache_where_no_place_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion_mnist(site.folder)
    for part in ("train", "t10k"):
        labels = site.folder / f"{part}-labels-idx1-ubyte"
        labels.with_suffix(".gz").write_bytes(gzip.compress(labels.read_bytes()))  # all four are, as published
    monkeypatch.setitem(SOURCES, "fashion-mnist", site.source(SOURCES["fashion-mnist"]))
    monkeypatch.setattr("batchfree.study._data.FASHION_MNIST_FOLDER", tmp_path / "no-debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"--download.*apt-get install dataset-fashion-mnist"):
        load_data("fashion-mnist")
    assert len(load_data("fashion-mnist", download=True).train_images) == 30
    assert (tmp_path / "cache" / "batchfree" / "fashion-mnist" / "train-labels-idx1-ubyte.gz").exists()
    assert len(load_data("fashion-mnist").train_images) == 30


def test_the_archive_of_cifar10_brings_its_own_folder(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(site.folder / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/test_batch.bin": b"abc"})
    monkeypatch.setitem(SOURCES, "cifar10", site.source(SOURCES["cifar10"]))
    folder = fetch("cifar10", tmp_path / "data")
    assert folder == tmp_path / "data" / "cifar-10-batches-bin"
    assert (folder / "test_batch.bin").read_bytes() == b"abc"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-bin"]


@pytest.mark.parametrize("fault", ["absent", "changed", "no server"])
def test_a_fetch_that_fails_leaves_nothing_and_says_what_to_do(
    pets_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    last = pets_site.folder / "annotations.tar.gz"
    if fault == "absent":
        last.unlink()
    elif fault == "changed":
        last.write_bytes(last.read_bytes() + b"x")
    else:
        pets_site.close()
    place = tmp_path / "data"
    with pytest.raises(DataError, match=r"pets could not be fetched.*annotations\.tar\.gz.*try again.*--data-dir"):
        load_data("pets", data_dir=str(place), download=True)
    assert list(place.iterdir()) == []


def test_a_folder_that_another_process_brought_meanwhile_is_kept(pets_site: Site, tmp_path: Path) -> None:
    there = tmp_path / "data" / "oxford-iiit-pet" / "images" / "theirs.jpg"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"theirs")
    assert fetch("pets", tmp_path / "data") == tmp_path / "data" / "oxford-iiit-pet"
    assert [path.name for path in there.parent.iterdir()] == ["theirs.jpg"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["oxford-iiit-pet"]


def write_archive(path: Path, files: dict[str, bytes], links: tuple[tarfile.TarInfo, ...] = ()) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for link in links:
            archive.addfile(link)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", ["../x", "images/../../x", "/{outside}/x", "..", "images\\..\\..\\x"])
def test_a_member_that_would_lie_outside_is_refused(tmp_path: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "outside" / "inside"
    inside.mkdir(parents=True)
    write_archive(tmp_path / "bad.tar.gz", {"good": b"1", name.format(outside=outside): b"2"})
    with pytest.raises(DataError, match="lies outside"):
        extract(tmp_path / "bad.tar.gz", inside)
    assert [path.name for path in outside.iterdir()] == ["inside"]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("../target", tarfile.SYMTYPE),
        ("/etc/passwd", tarfile.SYMTYPE),
        ("good", tarfile.LNKTYPE),
        ("", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, target: str, kind: bytes) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "target").mkdir()
    write_archive(tmp_path / "bad.tar.gz", {"good": b"1"}, (link("way", target, kind),))
    with pytest.raises(DataError, match="link or a device"):
        extract(tmp_path / "bad.tar.gz", tmp_path / "inside")
    assert list((tmp_path / "target").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "inside").iterdir()) == ["good"]


def test_an_unsafe_archive_leaves_no_folder_behind(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(site.folder / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/a": b"1", "../x": b"2"})
    monkeypatch.setitem(SOURCES, "cifar10", site.source(SOURCES["cifar10"]))
    with pytest.raises(DataError, match="lies outside"):
        fetch("cifar10", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
