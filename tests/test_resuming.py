"""Stages that are killed and run again end with the bytes of a run that nothing interrupted."""

import csv
import itertools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from condensation.checkpoints import Checkpoint
from condensation.states import State
from workspace import make_workspace, outputs, run_here, run_stage, stage_command

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SOAK = 25
"""Times that the long test kills `condense`."""


def start(folder: Path, stage: str, seconds: str = "0") -> "subprocess.Popen[str]":
    """Start a stage that writes a checkpoint after every step; signals act as in a shell."""

    def as_in_a_shell() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        stage_command(stage),
        cwd=folder,
        env={**os.environ, "CHECKPOINT_SECONDS": seconds, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_shell,
    )


def states(folder: Path) -> dict[Path, int]:
    """Return the checkpoints in a folder and when they were written."""
    found = {}
    for path in folder.glob(".checkpoints/*/*.state"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def wait_until_at_work(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Return when the stage has written some checkpoints, or has ended."""
    before, seen = states(folder), 0
    while seen < 3 and process.poll() is None:
        now = states(folder)
        seen += now != before
        before = now
        time.sleep(0.001)


def kill_at_work(folder: Path, stage: str, number: signal.Signals) -> str:
    """Start a stage, send it a signal once it has written some checkpoints; return its message."""
    process = start(folder, stage)
    wait_until_at_work(folder, process)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    expected = -number if number == signal.SIGKILL else 128 + number
    assert process.returncode == expected, message
    return message


def test_a_process_that_is_killed_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of the test below: one kill with each signal."""
    settings = {"condense.iterations": 15, "condense.snapshots": [0, 3, 10]}
    folders = [make_workspace(tmp_path / name, **settings) for name in ("whole", "killed")]
    for folder in folders:
        run_here(folder, "initialize", monkeypatch)
    run_here(folders[0], "condense", monkeypatch)

    folder = folders[1]
    for number in SIGNALS:
        before = Counter(states(folder).keys())
        message = kill_at_work(folder, "condense", number)
        assert len(states(folder)) == 1
        if before:
            assert message.startswith("condense: goes on from .checkpoints/condense-")
        if number != signal.SIGKILL:
            end = f"condense: stopped by {number.name}; the same command goes on from there\n"
            assert message.endswith(end)
        assert outputs(folder).keys() == {"data/initial/synthetic.safetensors"}
    done = run_stage(folder, "condense", OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "goes on from .checkpoints/" in done.stderr
    assert list(folder.glob(".checkpoints/*")) == []
    assert outputs(folder) == outputs(folders[0])
    text = (folder / "results/condense/timing.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["iteration"]) for row in rows] == [*range(14), 15]  # the frames
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where each of the stages has run without an interruption."""
    folder = make_workspace(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for stage in ("initialize", *STAGES):
            run_here(folder, stage, monkeypatch)
    return folder


STAGES = ("baseline --network mlp", "condense", "evaluate --network mlp")


@pytest.mark.parametrize("seconds", ["0", "60"], ids=["each step", "at the signal"])
@pytest.mark.parametrize("every", [1, 5])
def test_stages_that_are_stopped_after_every_few_steps_end_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, seconds: str
) -> None:
    """SIGTERM after each step, or each fifth; the networks of two stages train side by side."""
    monkeypatch.setenv("CHECKPOINT_SECONDS", seconds)
    folder = make_workspace(tmp_path)
    run_here(folder, "initialize", monkeypatch)
    offer, offers, stops = Checkpoint.offer, itertools.count(1), Counter[str]()
    signals: list[signal.Signals] = []  # one for each run: a second one would end the process

    def offer_and_stop(self: Checkpoint, make_state: Callable[[], State]) -> None:
        if next(offers) % every == 0 and not signals:
            signals.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # to the main thread, as from outside
            while self._interruption.number is None:  # the main thread takes it
                time.sleep(0.001)
        offer(self, make_state)

    monkeypatch.setattr(Checkpoint, "offer", offer_and_stop)
    for stage in STAGES:
        while True:
            signals.clear()
            try:
                run_here(folder, stage, monkeypatch)
                break
            except SystemExit as stop:
                assert stop.code == 128 + signal.SIGTERM
                stops[stage] += 1
                assert stops[stage] < 200, "makes no progress"
    assert min(stops.values()) >= 2 and set(stops) == set(STAGES)
    assert outputs(folder) == outputs(finished)
    assert list(folder.glob(".checkpoints/*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, ipc, order, iterations", [("convnet", 2, 2, 60), ("mlp", 1, 1, 200)]
)
def test_soak(
    network: str,
    ipc: int,
    order: int,
    iterations: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`condense` killed at random moments, from its start on, until it has finished anyway.

    If it finishes before it was killed and has gone on often enough, it is begun again.
    """
    settings = {"network": network, "ipc": ipc, "order": order, "condense.iterations": iterations}
    whole = make_workspace(tmp_path / "whole", **settings)
    for stage in ("initialize", "condense"):
        assert run_stage(whole, stage, OMP_NUM_THREADS="1").returncode == 0
    expected = outputs(whole)

    draw = random.Random(0)
    kills: Counter[str] = Counter()
    resumed = finished = 0
    folder = make_workspace(tmp_path / "killed", **settings)
    begin = time.monotonic()
    assert run_stage(folder, "initialize").returncode == 0
    start_up = time.monotonic() - begin  # most of it is the import of PyTorch
    while kills.total() < SOAK or resumed < SOAK // 2 or not finished:
        assert kills.total() < 4 * SOAK, "makes no progress"
        process, before = start(folder, "condense"), states(folder)
        number = draw.choice(SIGNALS)
        longest = 2 * start_up  # every other time it is at work already, however busy the machine
        if draw.random() < 0.5:
            longest = 0.5
            while process.poll() is None and states(folder) == before:
                time.sleep(0.001)
        try:
            _, said = process.communicate(timeout=draw.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            kills[number.name] += 1
        resumed += "goes on from .checkpoints/" in said
        if process.returncode == 0:
            finished += 1
            assert outputs(folder) == expected
            for path in (*folder.glob("results/condense/*"), *folder.glob("data/condensed/**/*")):
                if path.is_file():
                    path.unlink()
    with capsys.disabled():
        each = ", ".join(f"{count} {name}" for name, count in sorted(kills.items()))
        print(
            f"\n{network}, ipc {ipc}, order {order}: {kills.total()} kills ({each}), {resumed} "
            f"times gone on from a checkpoint, {finished} times finished, every time the same bytes"
        )
