"""Mutated files: each is read as a valid one or refused with one line.

Nothing is allocated for what a file only announces. The long form, 10,000 inputs a reader, is
marked slow.
"""

import gzip
import hashlib
import io
import json
import random
import struct
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condensation import idx_datasets
from condensation.artefacts import SyntheticSet, encode_synthetic_set, read_synthetic_set
from condensation.idx_datasets import FASHION_MNIST_FILES, MNIST_FILES, check_idx, read_mnist
from condensation.own_images import read_own_images
from condensation.product import encode_png
from condensation.published_formats import read_published_sets
from condensation.randomness import generator
from condensation.raw_data import read_raw
from conftest import ROOT

SHORT, LONG = 300, 10_000
TRIALS = [SHORT, pytest.param(LONG, marks=pytest.mark.slow)]
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def synthetic_file() -> bytes:
    """Return the content of a valid synthetic set."""
    images = torch.randn(6, 1, 4, 5, generator=generator(0))
    mean, std, names = torch.tensor([0.1]), torch.tensor([0.3]), ("a", "b", "c")
    return encode_synthetic_set(SyntheticSet(images, (1, 3, 2), mean, std, names, {"seed": "0"}))


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with a few random changes: flips, cuts, insertions, numbers, moved pieces."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1) if draw.random() < 0.5 else draw.randrange(64)
        at = min(at, len(changed))
        match draw.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + draw.randrange(1, 40)]
            case 3:
                changed[at:at] = draw.randbytes(draw.randrange(1, 40))
            case 4:
                number = draw.choice(NUMBERS)
                size = draw.choice((1, 4, 8))
                order = draw.choice(("little", "big"))
                written = (number % 256**size).to_bytes(size, order)
                changed[at : at + size] = written
            case 5:
                piece = changed[at : at + draw.randrange(1, 40)]
                changed[draw.randrange(len(changed) + 1) :] = piece
            case 6:
                changed[at : at + 4] = draw.choice(
                    (b"null", b"1e99", b"[[[[", b'""""', b"\x00" * 4)
                )
    return bytes(changed)


def mutate_header(content: bytes, draw: random.Random) -> bytes:
    """Return a synthetic set whose header is valid JSON that says something else."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    hostile: Any = draw.choice(
        [None, -1, 0, 2**63, "I8", "F64", [], [0], [2**32, 2**32], [1, -1], {}, "x" * 10_000, True]
    )
    name = draw.choice([*header])
    if name == "__metadata__":
        description = json.loads(header[name]["description"])
        if draw.random() < 0.5:
            description[draw.choice(["format", "class_names", "seed", "new"])] = hostile
            header[name]["description"] = json.dumps(description)
        else:
            header[name]["description"] = draw.choice(
                ["[" * 100_000, '{"a":' * 5_000, "9" * 6_000, "NaN", "", "\ud800", "null", "[1]"]
            )
    elif draw.random() < 0.2:
        header[draw.choice(["images", "labels", "extra"])] = header.pop(name)
    else:
        header[name][draw.choice(["dtype", "shape", "data_offsets"])] = hostile
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def refused(read: Callable[[], object], path: Path) -> bool:
    """Return whether a file is refused; anything but a clear message is an error."""
    try:
        read()
    except ValueError as error:
        first, *rest = str(error).splitlines()
        named = (path.name, str(path.parent), "dataset: ")  # the last: in which folder
        assert type(error) is ValueError and any(part in first for part in named)
        # One line; of one's own images, one more for each thing that is wrong with them.
        assert not rest or (first.endswith("cannot be used:") and len(rest) < 30)
        return True
    return False


def fuzz(
    read: Callable[[], object], path: Path, make: Callable[[random.Random], bytes], trials: int,
    limit: int,
) -> Counter[bool]:  # fmt: skip
    """Write mutated files and read them; return how often they were refused."""
    outcome: Counter[bool] = Counter()
    tracemalloc.start()
    try:
        for trial in range(trials):
            content = make(random.Random(trial))
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            outcome[refused(read, path)] += 1
            grown = tracemalloc.get_traced_memory()[1] - before
            assert grown < limit + 40 * len(content), f"trial {trial}: {grown} bytes"
    finally:
        tracemalloc.stop()
    return outcome


def report(capsys: pytest.CaptureFixture[str], what: str, outcome: Counter[bool]) -> None:
    """Print the figures of a long form."""
    if outcome.total() >= LONG:
        with capsys.disabled():
            print(f"\n{what}: {outcome.total()} inputs, {outcome[True]} refused, none crashed")


@pytest.fixture
def limited_memory() -> object:
    """No 128 MiB more than now can be allocated, by whatever library."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.usefixtures("limited_memory")
def test_mutated_synthetic_sets(
    trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = tmp_path / "set.safetensors", synthetic_file()

    def make(draw: random.Random) -> bytes:
        return mutate_header(content, draw) if draw.random() < 0.4 else mutate(content, draw)

    outcome = fuzz(lambda: read_and_check(path), path, make, trials, limit=2_000_000)
    assert outcome[True] > trials // 2
    report(capsys, "synthetic sets", outcome)


@pytest.mark.usefixtures("limited_memory")
def test_a_synthetic_set_larger_than_the_memory(tmp_path: Path) -> None:
    """A file with holes, of which the disk holds next to nothing."""
    path, size = tmp_path / "set.safetensors", 2**30
    images = {"dtype": "F32", "shape": [1, 1, 2**14, 2**14], "data_offsets": [0, size]}
    header = json.dumps({"images": images}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(ValueError, match="cannot be read as a synthetic set"):
        read_synthetic_set(path)


def read_and_check(path: Path) -> None:
    """Read a synthetic set; what is returned must be sound."""
    read = read_synthetic_set(path)
    assert len(read.counts) == len(read.class_names) and min(read.counts) > 0
    assert len(read.images) == sum(read.counts) and read.images.dtype == torch.float32
    assert read.images.isfinite().all() and read.pixels.isfinite().all()
    assert read.mean.shape == read.std.shape == read.images.shape[1:2] and (read.std > 0).all()
    assert all(isinstance(text, str) for text in (*read.metadata.values(), *read.class_names))


def idx(array: torch.Tensor) -> bytes:
    """Return an array of bytes in the idx format."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files in place of the published ones; returns their decompressed contents."""
    images = torch.randint(0, 256, (12, 28, 28), generator=generator(0))
    contents = dict(zip(MNIST_FILES, [idx(images), idx(torch.arange(12) % 10)] * 2, strict=True))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content, mtime=0))
        monkeypatch.setitem(MNIST_FILES, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(idx_datasets, "LARGEST", 20_000)
    return contents


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.usefixtures("limited_memory")
def test_mutated_raw_files(
    trials: int,
    small_mnist: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Mutated before compression, with the sha256 of that, or after it."""
    name = next(iter(small_mnist))
    path, content, packed = tmp_path / name, small_mnist[name], (tmp_path / name).read_bytes()

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return mutate(packed, draw)
        changed = mutate(content, draw)
        monkeypatch.setitem(MNIST_FILES, name, hashlib.sha256(changed).hexdigest())
        return gzip.compress(changed, mtime=0)

    outcome = fuzz(lambda: read_mnist(tmp_path), path, make, trials, limit=2_000_000)
    assert outcome[True] > trials // 2
    report(capsys, "raw files", outcome)


def arrays_file() -> bytes:
    """Return an `.npz` file of one's own images."""
    images = torch.randint(0, 256, (12, 8, 8), generator=generator(0)).to(torch.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, images=images.numpy(), labels=np.arange(12) % 3)
    return buffer.getvalue()


def published_file() -> bytes:
    """Return a synthetic set as others publish theirs."""
    images = torch.randn(6, 1, 4, 5, generator=generator(0))
    buffer = io.BytesIO()
    torch.save({"data": [[images, torch.arange(3).repeat_interleave(2)]]}, buffer)
    return buffer.getvalue()


def mutate_member(content: bytes, draw: random.Random) -> bytes:
    """Return a zip archive of which one file is mutated, with the checksum of that."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as before,
        zipfile.ZipFile(buffer, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as to,
    ):
        chosen = draw.choice(before.namelist())
        for name in before.namelist():
            member = before.read(name)
            to.writestr(name, mutate(member, draw) if name == chosen else member)
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "own.npz": (arrays_file, lambda path: read_own_images(path, None, 0)),
    "published.pt": (published_file, read_published_sets),
}


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.usefixtures("limited_memory")
def test_mutated_archives(
    name: str, trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_content, read = ARCHIVES[name]
    path, content = tmp_path / name, make_content()

    def make(draw: random.Random) -> bytes:
        return mutate_member(content, draw) if draw.random() < 0.6 else mutate(content, draw)

    outcome = fuzz(lambda: read(path), path, make, trials, limit=2_000_000)
    assert outcome[True] > trials // 2
    report(capsys, f"files like {name}", outcome)


@pytest.mark.parametrize("trials", TRIALS)
def test_mutated_pictures(trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One's own images in a folder: a picture is read, or named."""
    for label in ("a", "b"):
        for number in range(2):
            folder = tmp_path / "train" / label
            folder.mkdir(parents=True, exist_ok=True)
            image = torch.rand(1, 8, 8, generator=generator(number))
            (folder / f"{number}.png").write_bytes(encode_png(image))
    path = tmp_path / "train/b/1.png"
    content = path.read_bytes()
    outcome = fuzz(
        lambda: read_own_images(tmp_path, None, 0),
        path,
        lambda draw: mutate(content, draw),
        trials,
        limit=2_000_000,
    )
    assert outcome[True] > trials // 2
    report(capsys, "pictures", outcome)


def test_fashion_mnist_from_a_folder_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `prepare.raw` names one; each file has its content's checksum, however it is packed."""
    images = torch.randint(0, 256, (24, 28, 28), generator=generator(0)).byte()
    parts = [images[:14], torch.arange(14) % 10, images[14:], torch.arange(10)]
    for name, part in zip(FASHION_MNIST_FILES, parts, strict=True):
        content = idx(part)
        (tmp_path / name).write_bytes(gzip.compress(content, 1))
        monkeypatch.setitem(FASHION_MNIST_FILES, name, hashlib.sha256(content).hexdigest())
    raw = read_raw("fashion_mnist", tmp_path, None, 0)
    assert torch.equal(torch.cat([raw.train_images, raw.test_images])[:, 0], images)
    assert raw.train_labels.tolist() == [*range(10), *range(4)] and len(raw.test_labels) == 10
    assert raw.class_names[0] == "T-shirt/top" and len(raw.class_names) == 10
    assert read_raw("fashion_mnist", tmp_path, 14, 0).test_images.shape == (10, 1, 14, 14)
    (tmp_path / name).write_bytes(gzip.compress(idx(torch.arange(9))))
    with pytest.raises(ValueError, match=rf"{name}: is not .*; prepare\.raw takes auto or the fol"):
        read_raw("fashion_mnist", tmp_path, None, 0)


def test_a_file_that_decompresses_to_more_than_is_published(
    small_mnist: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / next(iter(small_mnist))
    path.write_bytes(gzip.compress(bytes(200_000_000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than 20000 bytes"):
        read_mnist(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("name", MNIST_FILES)
def test_the_published_files_are_below_the_limit(name: str) -> None:
    with gzip.open(ROOT / "data/mnist" / name) as file:
        content = file.read()
    assert len(content) <= idx_datasets.LARGEST
    check_idx(content, 3 if "images" in name else 1, name)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not of the idx format: begins with , not 00000801"),
        (b"\0\0\x0d\x01" + bytes(8), "begins with 00000d01, not 00000801"),
        (b"\0\0\x08\x01\xff\xff\xff\xff" + b"\1", "announces 4294967295 bytes and holds 1"),
        (b"\0\0\x08\x01\0\0\0\0", "announces 0 bytes and holds 0"),
    ],
)
def test_what_is_not_idx_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"labels: .*{message}"):
        check_idx(content, 1, "labels")


def test_labels_that_do_not_fit_the_images(
    small_mnist: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = [*small_mnist][1]
    for labels in (torch.arange(11) % 10, torch.arange(12)):
        content = idx(labels)
        monkeypatch.setitem(MNIST_FILES, name, hashlib.sha256(content).hexdigest())
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match="its labels are not one digit for each image"):
            read_mnist(tmp_path)
