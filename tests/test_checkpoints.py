"""Checkpoints: whose they are, what they hold, and what happens where they cannot be kept."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import baseline
import condense
import evaluate
from condensation import checkpoints as module
from condensation.checkpoints import Checkpoints, checkpoint_folder
from condensation.fingerprints import fingerprint
from condensation.interruption import Interrupted, Interruption
from condensation.params import Params, load_params
from condensation.states import State, decode_state, encode_state
from conftest import ROOT, leaves
from workspace import change

STATE = State(
    {
        "theta/b": torch.tensor([1.5, -0.0]),
        "theta/a": torch.arange(3),
        "draws": torch.Generator().get_state(),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "none": torch.empty(0, dtype=torch.int64),
    },
    {"losses": [[0.1, 1e-300]], "iteration": 7, "nothing": None},
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test is in a folder of its own and writes at each step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_SECONDS", "0")
    return tmp_path


def test_a_state_comes_back_bit_for_bit_and_in_order() -> None:
    read = decode_state(encode_state(STATE))
    assert read.record == STATE.record
    assert list(read.tensors) == list(STATE.tensors), "sums over parameters depend on their order"
    for name, value in STATE.tensors.items():
        assert read.tensors[name].dtype == value.dtype
        assert read.tensors[name].numpy().tobytes() == value.numpy().tobytes()


def test_tensors_that_share_memory_can_be_written() -> None:
    images = torch.randn(2, 3)
    read = decode_state(encode_state(State({"all": images, "first": images[0], "t": images.T})))
    assert torch.equal(read.tensors["first"], images[0])
    assert torch.equal(read.tensors["t"], images.T)


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 40, 200, -1])
def test_a_torn_file_is_ignored_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    with pytest.raises(KeyboardInterrupt), Checkpoints("condense", "f") as checkpoints:
        checkpoints.piece("images").offer(lambda: STATE)
        raise KeyboardInterrupt
    (path,) = folder.glob(".checkpoints/condense-f-0/*")
    path.write_bytes(path.read_bytes()[:cut])
    with Checkpoints("condense", "f") as checkpoints:
        capsys.readouterr()
        assert checkpoints.piece("images").load() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "images.state: is ignored and this work begins anew" in line


def test_any_flipped_bit_is_noticed() -> None:
    content = encode_state(STATE)
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ValueError, match="not what was written"):
            decode_state(bytes(flipped))


def test_what_is_finished_is_removed_and_what_is_not_is_kept(folder: Path) -> None:
    with pytest.raises(ValueError), Checkpoints("condense", "f") as checkpoints:
        checkpoints.piece("images").offer(lambda: STATE)
        raise ValueError("a mistake")
    assert [path.name for path in folder.glob(".checkpoints/*")] == ["condense-f-0"]
    with Checkpoints("condense", "g") as checkpoints:  # another experiment leaves it alone
        assert checkpoints.piece("images").load() is None
        checkpoints.piece("images").offer(lambda: STATE)
    assert [path.name for path in folder.glob(".checkpoints/*")] == ["condense-f-0"]
    with Checkpoints("condense", "f") as checkpoints:
        state = checkpoints.piece("images").load()
        assert state is not None and state.record == STATE.record
    assert list(folder.glob(".checkpoints/*")) == []


@pytest.mark.parametrize("given, seconds", [(None, 60.0), ("7.5", 7.5)])
def test_nothing_is_written_before_its_time(
    given: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a minute, unless another interval is set."""
    monkeypatch.delenv("CHECKPOINT_SECONDS")
    if given is not None:
        monkeypatch.setenv("CHECKPOINT_SECONDS", given)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    made = []

    def make() -> State:
        made.append(clock[0])
        return STATE

    with Checkpoints("condense", "f") as checkpoints:
        piece = checkpoints.piece("images")
        for passed in (0.0, 0.99, 1.0, 1.01, 1.99, 2.0):
            clock[0] = 1000 + passed * seconds
            piece.offer(make)
    assert made == [1000 + seconds, 1000 + 2 * seconds]


def test_an_offer_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_SECONDS", "60")
    with Checkpoints("condense", "f") as checkpoints:
        piece = checkpoints.piece("images")
        start = time.perf_counter()
        for _ in range(10_000):
            piece.offer(lambda: STATE)
        assert time.perf_counter() - start < 0.5  # 50 microseconds each; measured: below 1


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_a_wrong_interval_is_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_SECONDS", given)
    with Checkpoints("condense", "f") as checkpoints:
        with pytest.raises(ValueError, match=f"CHECKPOINT_SECONDS: got '{given}', takes a number"):
            checkpoints.piece("images")


def test_finished_pieces_are_not_done_again(folder: Path) -> None:
    with pytest.raises(ValueError), Checkpoints("evaluate", "f") as checkpoints:
        assert checkpoints.piece("0").once(lambda: 12.345678901234567) == 12.345678901234567
        raise ValueError("a mistake")
    with Checkpoints("evaluate", "f") as checkpoints:
        assert checkpoints.piece("0").once(lambda: 0.0) == 12.345678901234567
        assert checkpoints.piece("1").once(lambda: 1.0) == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_work_after_its_step(
    folder: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    steps = []
    with pytest.raises(Interrupted) as stopped, Checkpoints("condense", "f") as checkpoints:
        for step in range(5):
            if step == 2:
                signal.raise_signal(number)
            steps.append(step)
            checkpoints.piece("images").offer(lambda: STATE)
    assert steps == [0, 1, 2] and stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    said = capsys.readouterr().err
    assert said == f"condense: stopped by {number.name}; the same command goes on from there\n"


def test_no_further_piece_is_begun_after_a_signal() -> None:
    with pytest.raises(Interrupted), Checkpoints("evaluate", "f") as checkpoints:
        signal.raise_signal(signal.SIGTERM)
        checkpoints.piece("0").once(lambda: pytest.fail("was begun"))


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Checkpoints("condense", "f"):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_ignored_signals_stay_ignored() -> None:
    """As under `nohup`, or in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interruption = Interruption()
        interruption.listen()
        signal.raise_signal(signal.SIGINT)
        interruption.check()
        interruption.ignore()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_works_without_listening() -> None:
    errors = []

    def work() -> None:
        try:
            with Checkpoints("condense", "f") as checkpoints:
                checkpoints.piece("images").offer(lambda: STATE)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


# Several processes


HOLD = """
import sys
from condensation.checkpoints import Checkpoints
from condensation.states import State
with Checkpoints("condense", "f") as checkpoints:
    checkpoints.piece("images").offer(lambda: State(record={"iteration": 99}))
    print(checkpoints.folder.name, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is at the same work."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "PYTHONPATH": str(ROOT / "stages")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "condense-f-0\n"
    yield process
    process.kill()
    process.communicate()


def test_two_processes_at_the_same_work_have_a_folder_each(
    folder: Path, other: "subprocess.Popen[str]"
) -> None:
    with Checkpoints("condense", "f") as checkpoints:
        assert checkpoints.folder is not None and checkpoints.folder.name == "condense-f-1"
        assert checkpoints.piece("images").load() is None
        checkpoints.piece("images").offer(lambda: STATE)
    assert [path.name for path in folder.glob(".checkpoints/*")] == ["condense-f-0"]
    other.communicate("\n")
    assert other.returncode == 0 and list(folder.glob(".checkpoints/*")) == []


def test_what_a_killed_process_left_is_taken_over(
    folder: Path, other: "subprocess.Popen[str]"
) -> None:
    other.kill()
    other.wait()
    with Checkpoints("condense", "f") as checkpoints:
        assert checkpoints.folder is not None and checkpoints.folder.name == "condense-f-0"
        state = checkpoints.piece("images").load()
        assert state is not None and state.record == {"iteration": 99}


def test_what_is_30_days_old_is_removed_unless_it_is_used(
    folder: Path, other: "subprocess.Popen[str]"
) -> None:
    parent = folder / ".checkpoints"
    for name in ("baseline-mlp-a-0", "condense-b-0"):
        (parent / name).mkdir()
        (parent / name / "images.state").write_bytes(b"")
    a_month_ago, minute = time.time() - 30 * 24 * 3600, 60
    for path in parent.rglob("*"):
        when = a_month_ago + (minute if "condense-b-0" in path.parts else -minute)
        os.utime(path, (when, when))
    with Checkpoints("evaluate", "g"):
        names = {path.name for path in parent.iterdir()}
    assert names == {"condense-b-0", "condense-f-0", "evaluate-g-0"}


def test_queued_experiments_keep_theirs_in_the_repository(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC deletes the copy that an experiment failed in."""
    assert checkpoint_folder() == folder / ".checkpoints"
    temporary = folder / ".dvc/tmp/exps/tmpabc"
    temporary.mkdir(parents=True)
    monkeypatch.chdir(temporary)
    assert checkpoint_folder() == folder / ".checkpoints"


# Where nothing can be kept


def test_a_full_disk_is_said_once_and_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(module, "write_at_once", full)
    with Checkpoints("condense", "f") as checkpoints:
        piece = checkpoints.piece("images")
        for _ in range(3):
            piece.offer(lambda: STATE)
        assert piece.once(lambda: 3) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("condense: goes on without a checkpoint: ")
    assert line.endswith("images.state: cannot be written (No space left on device)")


def test_a_folder_that_cannot_be_made_is_said_and_the_work_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".checkpoints").write_text("in the way")
    with Checkpoints("condense", "f") as checkpoints:
        checkpoints.piece("images").offer(lambda: STATE)
        assert checkpoints.piece("images").load() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "goes on without a checkpoint" in line and ".checkpoints" in line


# The name


SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
DECLARED: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CPU = torch.device("cpu")


def identity(stage: str, params: Params) -> str:
    """Return the name of a stage's checkpoint, without its input files."""
    found = {
        "condense": lambda: condense.determinants(params, CPU),
        "baseline": lambda: baseline.determinants(params, "convnet", CPU),
        "evaluate": lambda: evaluate.determinants(params, "convnet", CPU),
    }[stage]()
    return fingerprint(found, [])


OTHER_VALUES: dict[str, Any] = {
    "order": 2,
    "network": "mlp",
    "init": "noise",
    "split": "validation",
    "compile": "off",
    "ipc_shares": "proportional",
    "initialize.features": "embedding",
    **{f"baseline.{name}.augmentation": "shift" for name in SETTINGS["networks"]},
    "condense.outer": 3,
    "condense.inner": 3,
    "condense.distance": "cosine",
    "condense.augmentation": "dsa",
    "condense.image_schedule": "constant",
    "condense.snapshots": [0],
    "condense.curvature.form": "ggn",
    "condense.curvature.probes": "rademacher",
    "condense.curvature.schedule": "linear_decay",
    **{f"condense.curvature.{name}": 2 for name in ("real_per_class", "iterations", "layers")},
    "condense.real_precision": "bfloat16",
    "condense.network_precision": "bfloat16",
    "prepare.image_size": 32,
    "evaluate.images_scale": "pixels",
    "evaluate.protocol": "dsa",
    "evaluate.augmentation": "none",
    **{f"evaluate.{name}": 3 for name in ("epochs", "batch_size")},
    **{f"evaluate.{name}": 0.5 for name in ("learning_rate", "momentum", "weight_decay")},
    "evaluate.networks": ["convnet"],
    **{f"networks.{name}.activation": "silu" for name in SETTINGS["networks"]},
    **{f"networks.{name}.norm": "layer" for name in SETTINGS["networks"]},
    "networks.convnet.pooling": "max",
    "networks.resnet18.downsampling": "avg",
}
"""Of settings that are no numbers; others are halved, or one is added to them."""

FIXED = {"dataset", "device", "evaluate.images", "prepare.raw"}
"""The device is looked at itself, or the files are."""


@pytest.mark.parametrize("stage", ["condense", "baseline", "evaluate"])
def test_the_name_depends_on_each_setting_of_the_stage_and_on_no_other(
    stage: str, folder: Path
) -> None:
    declared = [
        key.replace("${item.network}", "convnet").replace("${network}", SETTINGS["network"])
        for key in DECLARED[stage]["params"]
    ]
    before = identity(stage, load_params(ROOT / "params.yaml"))
    checked = 0
    for key in leaves(SETTINGS):
        if key in FIXED:
            continue
        value: Any = SETTINGS
        for part in key.split("."):
            value = value[part]
        other = OTHER_VALUES.get(key)
        if other is None:
            other = value / 2 if isinstance(value, float) else value + 1
        (folder / "params.yaml").write_text(
            yaml.safe_dump(change(copy.deepcopy(SETTINGS), {key: other}))
        )
        after = identity(stage, load_params(folder / "params.yaml"))
        matters = any(key == name or key.startswith(f"{name}.") for name in declared)
        if key == "condense.processes":  # as many as one likes go on with the work of others
            matters = False
        assert (after != before) == matters, key
        checked += 1
    assert checked > 40


def test_the_name_depends_on_the_content_of_the_inputs_and_on_the_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "data").mkdir()
    (folder / "data/a").write_text("1")
    names = {fingerprint({}, [folder / "data"])}
    (folder / "data/a").write_text("2")
    names.add(fingerprint({}, [folder / "data"]))
    (folder / "data/b").write_text("")
    names.add(fingerprint({}, [folder / "data"]))
    monkeypatch.setattr(torch, "__version__", "0.0")
    names.add(fingerprint({}, [folder / "data"]))
    source = folder / "stages" / "other.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    monkeypatch.setattr("condensation.fingerprints.STAGES", source.parent)
    monkeypatch.syspath_prepend(source.parent)
    __import__("other")
    names.add(fingerprint({}, [folder / "data"]))
    source.write_text("x = 2")
    names.add(fingerprint({}, [folder / "data"]))
    assert len(names) == 6
    assert all(len(name) == 16 for name in names)


def test_settings_may_be_dataclasses() -> None:
    condense_settings = load_params(ROOT / "params.yaml").condense
    other = dataclasses.replace(condense_settings, iterations=7)
    assert fingerprint({"a": condense_settings}, []) != fingerprint({"a": other}, [])
    assert fingerprint({"a": other}, []) == fingerprint({"a": dataclasses.asdict(other)}, [])
