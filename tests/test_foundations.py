"""Random streams, atomic files, workers, devices, and how a stage ends."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from condensation.devices import choose_device
from condensation.files import write_array, write_bytes, write_csv, write_json
from condensation.params import run_stage
from condensation.randomness import generator
from condensation.workers import parallel_map
from conftest import ROOT


def draw(seed: int, *stream: str | int) -> list[int]:
    return torch.randint(0, 2**62, (4,), generator=generator(seed, *stream)).tolist()


def test_streams_are_named_and_independent() -> None:
    assert draw(0, "real", 1) == draw(0, "real", 1)
    streams: list[tuple[int, *tuple[str | int, ...]]] = [
        (0, "real", 1),
        (0, "real", 2),
        (0, "theta", 1),
        (1, "real", 1),
        (0, "real", "1"),
    ]
    assert len({tuple(draw(*stream)) for stream in streams}) == len(streams)


def test_the_numbers_of_a_stream_are_fixed() -> None:
    """A change here changes every result ever made with a seed."""
    assert generator(0, "theta", 1).initial_seed() == 2461161906666370850


def test_a_failed_write_leaves_the_last_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    path = tmp_path / "new" / "file"
    write_bytes(path, b"good")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"half")
    assert path.read_bytes() == b"good" and list(path.parent.iterdir()) == [path]


def test_files_are_readable_and_the_same_each_time(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["x", "y"], [(1, "a,b"), (2, "")])
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,"a,b"\n2,\n'
    write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}\n'
    write_array(tmp_path / "a.npy", np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert (tmp_path / "a.npy").stat().st_mode & 0o777 == 0o644


def test_workers_keep_the_order_and_use_one_thread_each() -> None:
    before = torch.get_num_threads()
    results = parallel_map(lambda x: (x, torch.get_num_threads()), range(7), torch.device("cpu"))
    assert results == [(x, 1) for x in range(7)]
    assert torch.get_num_threads() == before


def test_a_workers_error_reaches_the_caller() -> None:
    def fail(x: int) -> int:
        raise ValueError(f"item {x}")

    with pytest.raises(ValueError, match="item 0"):
        parallel_map(fail, range(3), torch.device("cpu"))


@pytest.mark.parametrize(
    "name, available, chosen",
    [
        *(("cpu", available, "cpu") for available in (False, True)),
        *(("auto", False, "cpu"), ("auto", True, "cuda"), ("cuda", True, "cuda")),
    ],
)
def test_devices(name: str, available: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(name) == torch.device(chosen)


def test_cuda_where_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: got cuda, but PyTorch finds no CUDA device"):
        choose_device("cuda")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    """After some tensors of 40 MB, twenty more touch no new page: 0 of 195,000 without it."""
    script = (
        "import resource, torch\n"
        "from condensation.allocator import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): torch.ones(10_000_000)\n"
        "before = faults()\n"
        "for _ in range(20): torch.ones(10_000_000)\n"
        "print(faults() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "stages")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1000


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")


def more_than_there_is() -> None:
    torch.empty(2**50)


def more_than_can_be_counted() -> None:
    torch.empty(2**62)


@pytest.mark.parametrize(
    "main, said",
    [
        (out_of_memory, "CUDA out of memory"),
        (more_than_there_is, "can't allocate memory"),
        (more_than_can_be_counted, "overflow"),
    ],
)
def test_too_little_memory_for_pytorch_is_one_line_of_the_stage(
    main: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA and on the CPU, whose error is a plain RuntimeError."""
    monkeypatch.setattr("sys.argv", ["stages/evaluate.py"])
    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    line = rf"evaluate: there is not enough memory \(.*{said}.*\); look at ipc, .*"
    assert re.fullmatch(line, str(ended.value.code))  # printed to stderr, status 1


def test_a_failure_of_the_code_is_raised() -> None:
    def main() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        run_stage(main)


def test_an_interruption_before_the_work_is_one_line_and_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stages/evaluate.py", "--network", "mlp"])

    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        run_stage(main)
    assert isinstance(ended.value, SystemExit) and ended.value.code == 130
    assert capsys.readouterr() == (
        "",
        "evaluate: stopped by SIGINT; nothing had been finished\n",
    )
