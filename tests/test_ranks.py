"""Several processes at one condensation: the same images as one, and what happens when one dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.distributed.distributed_c10d import BackendConfig

from condensation.blocks import Block, assemble, deal
from condensation.curvature import CURVATURE_FORMS
from condensation.distances import DISTANCES
from condensation.matching import Curvature, Matched, draw_probes, make_matching_step
from condensation.randomness import generator
from condensation.ranks import BACKENDS
from conftest import HANGS, ROOT, random_images, tiny_network
from test_resuming import start, states, wait_until_at_work
from workspace import make_workspace, outputs, run_here, run_stage

SIZES = {"condense.iterations": 15, "condense.snapshots": [0, 3, 10]}


@pytest.mark.parametrize("num_sets, num_classes", [(1, 3), (1, 4), (2, 3), (3, 4), (5, 2)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_pair_is_dealt_out_once_and_evenly(
    num_sets: int, num_classes: int, size: int
) -> None:
    parts = [
        sorted((k, c) for sets, classes in blocks for k in sets for c in classes)
        for blocks in deal(num_sets, num_classes, size)
    ]
    whole = [(k, c) for k in range(num_sets) for c in range(num_classes)]
    assert [pair for part in parts for pair in part] == whole
    numbers = [len(part) for part in parts]
    assert max(numbers) - min(numbers) <= 1
    assert deal(num_sets, num_classes, 1) == [[Block(range(num_sets), range(num_classes))]]


def test_more_processes_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"condense.processes: got 4, takes at most .* \(3\)"):
        deal(1, 3, 4)


@pytest.mark.parametrize("form", [None, *CURVATURE_FORMS])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_a_step_are_the_step(form: str | None, size: int) -> None:
    """Two sets of three classes of different numbers of images, in float64."""
    network, theta = tiny_network("mlp")
    thetas = [theta, {name: value.flip(0) for name, value in theta.items()}]
    counts: tuple[int, ...] = (2, 1, 3)
    images, real = (random_images(2, n, stream="images") for n in (6, 12))
    batches = [of_set.split(4) for of_set in real]
    probes = [draw_probes(at, 1, generator(k, "probes")) for k, at in enumerate(thetas)]
    curvature = Curvature(CURVATURE_FORMS[form], 0.3, 4) if form else None

    def match(block: Block) -> Matched:
        sets, classes = (slice(each.start, each.stop) for each in block)
        step = make_matching_step(
            [network] * len(block.sets),
            DISTANCES["squared_euclidean"],
            curvature,
            counts[classes],
            block.classes.start,
        )
        return step(
            images[sets, block.rows(counts)],
            [batches[k][classes] for k in block.sets],
            thetas[sets],
            probes[sets],
            [[None] * len(block.classes) for _ in block.sets],
        )

    whole = match(Block(range(2), range(3)))
    parts = [(block, match(block)) for blocks in deal(2, 3, size) for block in blocks]
    for ours, expected in zip(assemble(parts, images, counts), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the processes that torchrun has started below a process: rank -> process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == launcher:
                words = (folder / "environ").read_bytes().split(b"\0")
                (rank,) = (int(word[5:]) for word in words if word.startswith(b"RANK="))
                found[rank] = int(folder.name)
        except (OSError, ValueError):
            continue
    return found


def kill_one(folder: Path, rank: int | None, number: signal.Signals) -> tuple[int, str]:
    """Start `condense`, send a signal to a rank, or to their parent, once they work together.

    Returns:
        The exit status, and what was said on stderr.
    """
    process = start(folder, "condense")
    wait_until_at_work(folder, process)
    ranks = ranks_of(process.pid)
    os.kill(process.pid if rank is None else ranks[rank], number)
    _, said = process.communicate(timeout=60)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < end, "a process goes on"
        time.sleep(0.01)
    return process.returncode, said


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Path]:
    """Two workspaces with initial images; in the first, one process has condensed them."""
    both = [make_workspace(tmp_path / name, **SIZES) for name in ("one", "several")]
    for folder in both:
        run_here(folder, "initialize", monkeypatch)
    run_here(both[0], "condense", monkeypatch)
    return both


def test_a_rank_that_dies_ends_the_run_and_others_go_on_to_the_same_images(
    folders: Sequence[Path],
) -> None:
    """Three classes on two processes, then on three."""
    one, several = folders
    make_workspace(several, **SIZES, **{"condense.processes": 2})
    status, said = kill_one(several, 1, signal.SIGKILL)
    compiled, message = said.splitlines()
    assert compiled.startswith("condense: compile: ")  # by one of the two
    assert status == 1 and message == (
        "condense: process 2 of 2 was ended by SIGKILL, and with it the run; the same command goes "
        "on from the last checkpoint, if there was one"
    )
    assert len(states(several)) == 1
    assert outputs(several).keys() == {"data/initial/synthetic.safetensors"}
    make_workspace(several, **SIZES, **{"condense.processes": 3})
    done = run_stage(several, "condense", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    resumed, compiled = done.stderr.splitlines()
    assert resumed.startswith("condense: goes on from .checkpoints/")
    assert compiled.startswith("condense: compile: ")
    assert done.stdout.count("in each of 3 processes") == 1
    assert outputs(several) == outputs(one)
    assert list(several.glob(".checkpoints/*")) == []


SCRIPT = """
import sys
import time
from pathlib import Path

sys.path.insert(0, "{stages}")
import torch
import torch.distributed as dist
from condensation.ranks import joined, launch, started_by_torchrun

def broken(*arguments):
    raise RuntimeError("CUDA error: an illegal memory access\\nwas encountered")

cpu = torch.device("cpu")
if not started_by_torchrun():
    try:
        launch(Path(__file__), 2, cpu)
    except ValueError as error:
        sys.exit(f"condense: {{error}}")
with joined(cpu) as ranks:
    if not ranks.first:
        dist.all_reduce = broken
    elif {late}:
        time.sleep(50)
    ranks.agree(0)
"""


@pytest.mark.parametrize("late", [False, True], ids=["at it", "still at work"])
def test_an_error_of_an_operation_of_all_is_told_once(tmp_path: Path, late: bool) -> None:
    """Not that of the other process, which then fails to reach the first, alone, or is ended."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(stages=ROOT / "stages", late=late))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANGS,
    )
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.startswith(
        "condense: a process of 2 was ended by an error"
    )
    error = "process 2: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert said.count(error) == 1
    assert "and with it the run; the same command goes on from the last checkpoint" in said


AGREEING = """
import sys
from pathlib import Path

sys.path.insert(0, "{stages}")
import torch
from condensation.ranks import BACKENDS, joined, launch, started_by_torchrun
from condensation.states import State

BACKENDS["meta"] = BACKENDS["cpu"]
device = torch.device("meta")
if not started_by_torchrun():
    launch(Path(__file__), 2, device)
    sys.exit()
with joined(device) as ranks:
    agreed = ranks.agree(ranks.index + 3)
    state = ranks.share(State({{"image": torch.ones(2)}}) if ranks.first else None)
    Path(f"{{ranks.index}}.txt").write_text(f"{{agreed}} {{state.tensors['image'].tolist()}}")
"""


def test_what_is_agreed_on_and_shared_waits_for_no_device(tmp_path: Path) -> None:
    """On a device without numbers, which a process that waited for one would fail at."""
    script = tmp_path / "script.py"
    script.write_text(AGREEING.format(stages=ROOT / "stages"))
    subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANGS,
    )
    carriers = BackendConfig(BACKENDS["cuda"]).get_device_backend_map()
    assert carriers == {"cpu": "gloo", "cuda": "nccl"}
    said = {(tmp_path / f"{index}.txt").read_text() for index in (0, 1)}
    assert said == {"4 [1.0, 1.0]"}


LATER = """
import sys

sys.path.insert(0, "{stages}")
import condense

condense.LOOKED_AT_LATER["cpu"] = 1
condense.main()
"""


@pytest.mark.parametrize("seconds", ["60", "0"])
def test_processes_that_look_later_come_to_the_same_images(
    seconds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by torchrun; without a checkpoint, or with one at each step."""
    few = {"condense.iterations": 7, "condense.frames": 2, "condense.snapshots": [0]}
    one, several = (make_workspace(tmp_path / name, **few) for name in ("one", "several"))
    for folder in (one, several):
        run_here(folder, "initialize", monkeypatch)
    run_here(one, "condense", monkeypatch)
    script = several / "script.py"
    script.write_text(LATER.format(stages=ROOT / "stages"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", script],
        cwd=several,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CHECKPOINT_SECONDS": seconds},
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    assert "in each of 2 processes" in done.stdout
    assert outputs(several) == outputs(one)


def test_a_mistake_that_all_processes_find_is_said_once(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path, **{"condense.processes": 2})
    done = run_stage(folder, "condense", OMP_NUM_THREADS="1")
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("condense: data/initial: is missing")


ALONE = """
import sys
from pathlib import Path

sys.path.insert(0, "{stages}")
import torch
from condensation.ranks import joined, launch, started_by_torchrun

cpu = torch.device("cpu")
if not started_by_torchrun():
    try:
        launch(Path(__file__), 2, cpu)
    except ValueError as error:
        sys.exit(f"condense: {{error}}")
with joined(cpu) as ranks:
    if not ranks.first:
        raise OSError("no space left")
    ranks.agree(0)
"""


def test_a_mistake_that_one_process_finds_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ALONE.format(stages=ROOT / "stages"))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANGS,
    )
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.count("process 2: OSError: no space left") == 1


def test_a_divergence_of_all_processes_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(
        tmp_path,
        **{
            "condense.processes": 2,
            "condense.image_learning_rate": 1e30,
            "condense.image_schedule": "constant",
        },
    )
    run_here(folder, "initialize", monkeypatch)
    done = run_stage(folder, "condense", OMP_NUM_THREADS="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("look at condense.image_learning_rate") == 1
    assert done.stderr.splitlines()[-1].startswith("condense: iteration ")
    assert not (folder / "data/condensed").exists()


@pytest.mark.slow
def test_interrupted_ranks_go_on_to_the_same_images(folders: Sequence[Path]) -> None:
    """However they are stopped: by a signal to their parent, or when it or the first rank dies."""
    one, several = folders
    for processes, rank, number, expected in (
        (2, None, signal.SIGTERM, 143),
        (3, None, signal.SIGINT, 130),
        (2, None, signal.SIGKILL, -9),
        (2, 0, signal.SIGKILL, 1),
    ):
        make_workspace(several, **SIZES, **{"condense.processes": processes})
        status, said = kill_one(several, rank, number)
        assert status == expected, said
        if number != signal.SIGKILL:
            end = f"condense: stopped by {number.name}; the same command goes on from there\n"
            assert said.endswith(end)
        assert "Traceback" not in said and len(states(several)) == 1
    make_workspace(several, **SIZES, **{"condense.processes": 1})
    assert run_stage(several, "condense", OMP_NUM_THREADS="1").returncode == 0
    assert outputs(several) == outputs(one)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_sets_and_classes_are_shared(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets, unequal classes, batch norm and augmentation."""
    settings = {"sets": 2, "ipc": {"zero": 1, "one": 3, "two": 2}, "network": "convnet"}
    more = {"networks.convnet.norm": "batch", "condense.augmentation": "dsa"}
    made = []
    for number in (1, processes):
        folder = make_workspace(
            tmp_path / str(number), **settings, **more, **{"condense.processes": number}
        )
        run_here(folder, "initialize", monkeypatch)
        done = run_stage(folder, "condense", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        made.append(outputs(folder))
    assert made[0] == made[1]
