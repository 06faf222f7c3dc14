"""Downloads: whole and checked or not at all; and the formats of the published files."""

import errno
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from condensation import cifar, downloads, raw_data, svhn, tiny_imagenet
from condensation.downloads import RemoteFile, fetch
from condensation.raw_data import DATASETS, DOWNLOADS, read_raw
from condensation.raw_dataset import RawDataset
from condensation.resizing import resize
from condensation.sources import SOURCES

CONTENT = bytes(range(256)) * 1000


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `CONTENT`; the first `breaks` answers end in the middle.

    At `/gone` there is nothing, `/silent` gives no answer, and the length of `/odd` is no number.
    """

    breaks = 0
    over = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/silent":
            Server.over.wait(5)
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "odd" if self.path == "/odd" else str(len(CONTENT)))
        self.end_headers()
        broken, Server.breaks = Server.breaks > 0, Server.breaks - 1
        self.wfile.write(CONTENT[: len(CONTENT) // 2 if broken else None])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """Where the server is."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file.bin"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("breaks", [0, 2])
def test_a_broken_download_is_begun_anew(breaks: int, address: str, tmp_path: Path) -> None:
    Server.breaks = breaks
    fetch([RemoteFile("file.bin", address, md5(CONTENT))], tmp_path / "raw/own")
    assert [path.name for path in (tmp_path / "raw/own").iterdir()] == ["file.bin"]
    assert (tmp_path / "raw/own/file.bin").read_bytes() == CONTENT


def test_nothing_is_left_of_a_download_that_fails(address: str, tmp_path: Path) -> None:
    Server.breaks = downloads.ATTEMPTS
    files = [RemoteFile("file.bin", address, md5(CONTENT)), RemoteFile("b", address, "")]
    with pytest.raises(OSError, match=rf"/own: has no file\.bin, b; put them .*{address}.*md5 is"):
        fetch(files, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_another_file_than_the_published_is_refused(address: str, tmp_path: Path) -> None:
    Server.breaks = 0
    (tmp_path / "a").write_text("here already")
    files = [RemoteFile("a", "", ""), RemoteFile("b", address, "0" * 32)]
    with pytest.raises(OSError, match=rf"has no b; .*md5 is {md5(CONTENT)}, not 0000"):
        fetch(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_is_not_published_any_more_is_said(address: str, tmp_path: Path) -> None:
    gone = address.replace("/file.bin", "/gone")
    with pytest.raises(OSError) as caught:
        fetch([RemoteFile("file.bin", gone, "")], tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: has no file.bin; put them there") and gone in message
    assert message.endswith("could not be downloaded (HTTP Error 404: Not Found)")


def test_a_server_that_is_silent_is_not_waited_for(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert downloads.TIMEOUT == 30
    monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    Server.over.clear()
    silent = address.replace("/file.bin", "/silent")
    try:
        with pytest.raises(OSError, match=r"could not be downloaded \(timed out\)$"):
            fetch([RemoteFile("file.bin", silent, "")], tmp_path)
    finally:
        Server.over.set()
    assert [*tmp_path.iterdir()] == []


def test_a_length_that_is_no_number_is_none(address: str, tmp_path: Path) -> None:
    Server.breaks = 0
    odd = address.replace("/file.bin", "/odd")
    fetch([RemoteFile("file.bin", odd, md5(CONTENT))], tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def no_network(*_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize("is_link", [False, True])
def test_an_empty_folder_that_was_there_stays(
    is_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    if is_link:
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
    else:
        folder.mkdir()
    monkeypatch.setattr(downloads, "urlopen", no_network)
    with pytest.raises(OSError, match=r"/own: has no a; put them there, .* \(no network\)$"):
        fetch([RemoteFile("a", "http://a", "")], folder)
    assert [*folder.iterdir()] == []


def test_a_folder_that_cannot_be_removed_hides_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "rmdir", refuse)
    monkeypatch.setattr(downloads, "urlopen", no_network)
    with pytest.raises(OSError, match=r"/own: has no a; put them there, .* \(no network\)$"):
        fetch([RemoteFile("a", "http://a", "")], tmp_path / "own")
    assert [*(tmp_path / "own").iterdir()] == []


@pytest.mark.parametrize("name", [name for name, files in DOWNLOADS.items() if files])
def test_without_a_network_the_files_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "urlopen", no_network)
    with pytest.raises(OSError) as caught:
        read_raw(name, None, None, 0)
    message = str(caught.value)
    assert message.startswith(f"data/raw/{name}: has no ") and "prepare.raw" in message
    assert message.endswith("could not be downloaded (no network)") and "\n" not in message
    for file in DOWNLOADS[name]:
        assert file.name in message and file.address in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(ValueError, match=r"is missing.*; prepare\.raw takes auto or the folder of"):
        read_raw(name, tmp_path, None, 0)
    for file in DOWNLOADS[name]:
        (tmp_path / f"data/raw/{name}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/raw/{name}/{file.name}").write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"; remove what is damaged, and prepare downloads it again, from ht"
    ):
        read_raw(name, None, None, 0)


@pytest.mark.parametrize(
    "name, other", [("cifar10", "cifar-100-python"), ("cifar100", "cifar-10-batches-py")]
)
def test_the_folder_of_another_dataset_does_not_stand_for_an_archive(
    name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"data/raw/{name}/{other}").mkdir(parents=True)
    asked: list[str] = []
    monkeypatch.setattr(raw_data, "fetch", lambda files, _: asked.extend(f.name for f in files))
    with pytest.raises(ValueError, match="is missing"):
        read_raw(name, None, None, 0)
    assert asked == [file.name for file in DOWNLOADS[name]]


def test_a_missing_file_of_mnist_is_told_with_how_to_have_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data/mnist/.*missing.*git checkout data/mnist$"):
        read_raw("mnist", None, None, 0)


def test_the_registries_know_the_same_datasets() -> None:
    assert DATASETS.keys() == DOWNLOADS.keys() == SOURCES.keys()


def element(kind: int, data: bytes) -> bytes:
    """Return an element of a MAT-file; up to four bytes in the short form."""
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def matrix(name: str, array: np.ndarray, compressed: bool) -> bytes:
    """Return a matrix of bytes in MATLAB's format."""
    parts = [
        element(6, struct.pack("<II", 9, 0)),
        element(5, struct.pack(f"<{array.ndim}i", *array.shape)),
        element(1, name.encode()),
        element(2, array.tobytes(order="F")),
    ]
    whole = element(14, b"".join(parts))
    if not compressed:
        return whole
    packed = zlib.compress(whole)
    return struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize("compressed", [False, True])
def test_svhn(compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    images = np.arange(4 * 5 * 3 * 7, dtype=np.uint8).reshape(4, 5, 3, 7)
    labels = np.array([[1], [10], [2], [3], [9], [10], [5]], np.uint8)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        content = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
        content += matrix("X", images, compressed) + matrix("y", labels, compressed)
        (tmp_path / name).write_bytes(content)
        files.append(RemoteFile(name, "", md5(content)))
    monkeypatch.setattr(svhn, "SVHN_FILES", files)
    raw = svhn.read_svhn(tmp_path)
    assert raw.train_images.shape == (7, 3, 4, 5) and raw.test_labels.tolist()[:2] == [1, 0]
    assert np.array_equal(raw.train_images.numpy(), images.transpose(3, 2, 0, 1))
    for file in files:
        (tmp_path / file.name).write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"train_32x32\.mat: is not .*test_32x32\.mat: is not the"):
        svhn.read_svhn(tmp_path)
    for damaged in (b"", content[:300]):
        with pytest.raises(ValueError, match="set: is (not a|a damaged) MAT-file"):
            svhn.read_matrices(damaged, "set")


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize(
    ("name", "published", "key", "read"),
    [
        ("cifar10", CIFAR10, "labels", cifar.read_cifar10),
        ("cifar100", CIFAR100, "fine_labels", cifar.read_cifar100),
    ],
)
def test_cifar(
    name: str,
    published: type[CIFAR10],
    key: str,
    read: Callable[[Path], RawDataset],
    unpacked: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.arange(3 * 3072, dtype=np.int64).reshape(3, 3072).astype(np.uint8)
    contents = {
        file_name: pickle.dumps({"data": pixels, key: [0, 1, 2]})
        for file_name, _ in (*published.train_list, *published.test_list)
    }
    meta = published.meta["filename"]
    contents[meta] = pickle.dumps({published.meta["key"]: ["plane", "car", "bird"]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for file_name, content in contents.items():
            member = tarfile.TarInfo(f"{published.base_folder}/{file_name}")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    for part in ("train_list", "test_list"):
        checked = [[each, md5(contents[each])] for each, _ in getattr(published, part)]
        monkeypatch.setattr(published, part, checked)
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": md5(contents[meta])})
    file = RemoteFile("cifar.tar.gz", "", md5(archive.getvalue()))
    monkeypatch.setattr(cifar, f"{name.upper()}_FILES", [file])
    if unpacked:
        folder = tmp_path / published.base_folder
        folder.mkdir()
        for file_name, content in contents.items():
            (folder / file_name).write_bytes(content)
        monkeypatch.setitem(raw_data.DOWNLOADS, name, (file,))
        monkeypatch.setattr(raw_data, "DATA", tmp_path)
    else:
        (tmp_path / file.name).write_bytes(archive.getvalue())
    raw = read(tmp_path)
    count = 3 * len(published.train_list)
    assert raw.train_images.shape == (count, 3, 32, 32) and raw.class_names[1] == "car"
    assert np.array_equal(raw.test_images.flatten(1).numpy(), pixels)
    assert raw.test_labels.tolist() == [0, 1, 2]
    last = tmp_path / published.base_folder / published.train_list[-1][0]
    broken = last if unpacked else tmp_path / file.name
    broken.write_bytes(b"no")
    message = "are not all there as published" if unpacked else "is not the published file"
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    if unpacked:
        with pytest.raises(ValueError, match=r"without that folder, cifar\.tar\.gz is taken$"):
            read(tmp_path)
        (tmp_path / file.name).write_bytes(archive.getvalue())
        again = read(tmp_path)
        assert torch.equal(again.train_images, raw.train_images), "of the archive beside it"


def test_tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def jpeg(value: int, mode: str) -> bytes:
        content = io.BytesIO()
        Image.new(mode, (64, 64), value if mode == "L" else (value, 0, 0)).save(content, "JPEG")
        return content.getvalue()

    members: dict[str, str | bytes] = {
        "wnids.txt": "n2\nn1\nn3\n",
        "words.txt": "n1\tcrane, bird\nn2\tcrane\nn3\tox\nn4\tother\n",
        "val/val_annotations.txt": "val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t0\t0\t9\t9\n",
        "val/images/val_0.JPEG": jpeg(9, "L"),
        "val/images/val_1.JPEG": jpeg(90, "L"),
        "train/n1/images/n1_0.JPEG": jpeg(10, "L"),
        "train/n2/images/n2_0.JPEG": jpeg(200, "RGB"),
        "train/n3/images/n3_0.JPEG": jpeg(30, "L"),
    }
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    file = RemoteFile(path.name, "", md5(path.read_bytes()))
    monkeypatch.setattr(tiny_imagenet, "TINY_IMAGENET_FILES", [file])
    raw = tiny_imagenet.read_tiny_imagenet(tmp_path)
    assert raw.class_names == ("crane", "crane (n2)", "ox")
    assert raw.train_labels.tolist() == [0, 1, 2] and raw.test_labels.tolist() == [1, 0]
    assert raw.train_images[:, 0, 0, 0].tolist() == pytest.approx([10, 200, 30], abs=3)
    assert raw.test_images.float().mean((1, 2, 3)).tolist() == pytest.approx([9, 90], abs=3)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"200\.zip: is not the published file"):
        tiny_imagenet.read_tiny_imagenet(tmp_path)


def test_resized_images_are_means_of_the_central_square() -> None:
    images = torch.arange(2 * 3 * 4 * 8, dtype=torch.uint8).reshape(2, 3, 4, 8)
    assert torch.equal(resize(images, 4), images[..., 2:6])
    square = torch.full((1, 1, 8, 8), 7, dtype=torch.uint8)
    square[..., 4:] = 201
    small = resize(square, 2)[0, 0]
    assert small.dtype == torch.uint8 and (small[:, 0] < 50).all() and (small[:, 1] > 150).all()
    assert resize(square, 16).shape == (1, 1, 16, 16)
