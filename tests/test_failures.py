"""What stops a condensation, what is warned of once, and files that cannot be written."""

import base64
import csv
import dataclasses
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from condensation.artefacts import read_synthetic_set, write_synthetic_set
from condensation.condensation_progress import Condensation
from condensation.distances import DISTANCES
from condensation.documents import Picture, to_html
from condensation.downloads import RemoteFile, fetch
from condensation.files import check_writable, together, write_at_once, write_bytes
from condensation.health import (
    EXPLODED,
    FAR,
    Warned,
    Watch,
    all_finite,
    not_finite,
    without_gradient,
)
from condensation.matching import match_class
from condensation.networks import build_network, init_theta
from condensation.normalisation import NORMS, has_norm
from condensation.randomness import generator
from condensation.states import State
from render import read_table
from workspace import make_workspace, outputs, run_here, run_stage

NAMES = ("a", "b")
COUNTS = (1, 2)
IMAGES = torch.randn(1, 3, 1, 4, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(bad: float) -> None:
    assert not_finite(torch.tensor([[1.0, 2.0]]), IMAGES, COUNTS, NAMES) is None
    lost = not_finite(torch.tensor([[1.0, bad]]), IMAGES, COUNTS, NAMES)
    assert lost == "the matching loss is not finite (classes: b)"
    images = IMAGES.clone()
    images[0, 2, 0, 1, 2] = bad
    lost = not_finite(torch.tensor([[1.0, 2.0]]), images, COUNTS, NAMES)
    assert lost == "the synthetic images are not finite (classes: b)"
    assert all_finite({"w": IMAGES}) and not all_finite({"v": IMAGES, "w": images})


class Looks:
    """Looks at iterations of these classes one after another."""

    def __init__(self, normalised: bool = True) -> None:
        """Remember nothing yet."""
        self._watch = Watch(NAMES, COUNTS, normalised)
        self.said: list[Warned] = []

    def __call__(
        self, loss: float = 1.0, gradient: Tensor = IMAGES, images: Tensor = IMAGES
    ) -> list[str]:
        """Return what is said; the first iteration had a loss of 2."""
        losses, zero = torch.tensor([[loss, 0.0]]), without_gradient(gradient, COUNTS)
        found = self._watch.look(5, losses, 2.0, zero, images, self.said)
        self.said += found
        return [each.text for each in found]


def test_an_exploding_loss_is_warned_of_once() -> None:
    look = Looks()
    assert look(2.0) == look(2 * EXPLODED) == []
    (line,) = look(3 * EXPLODED)
    assert line.startswith("the matching loss of iteration 5 is 30, 2 at first; look at")
    assert look(4 * EXPLODED) == []
    assert [(each.kind, each.classes) for each in look.said] == [("explosion", ())]


def test_a_zero_gradient_is_warned_of_once_with_its_reason() -> None:
    look, gradient, images = Looks(), IMAGES.clone(), IMAGES.clone()
    gradient[:, 2] = 0  # one of the two images of b
    assert look(gradient=gradient, images=images) == []
    gradient[:, 1] = 0
    (line,) = look(gradient=gradient, images=images)
    assert "is zero at iteration 5 for the classes b: the network does not respond" in line
    gradient[:, 0] = 0
    images[:, 0] = -0.4
    (line,) = look(gradient=gradient, images=images)
    assert "is zero at iteration 5 for the classes a: its images are constant" in line
    assert look(gradient=gradient, images=images) == []
    kinds = [(each.kind, each.classes) for each in look.said]
    assert kinds == [("no_gradient", ("b",)), ("no_gradient", ("a",))]


def test_a_zero_gradient_is_said_to_be_in_so_many_sets() -> None:
    images = IMAGES.repeat(3, 1, 1, 1, 1)
    gradient = images.clone()
    gradient[1:, 0] = 0
    (line,) = Looks()(gradient=gradient, images=images)
    assert "for the classes a in 2 of 3 sets: the network does not respond" in line


def test_without_norms_constant_images_are_no_reason() -> None:
    gradient, images = IMAGES.clone(), IMAGES.clone()
    gradient[:, 0], images[:, 0] = 0, -0.4
    (line,) = Looks(normalised=False)(gradient=gradient, images=images)
    assert "the network does not respond to its images" in line
    (line,) = Looks(normalised=False)(images=images * 2 * FAR)
    assert "pixels are beyond" in line and "init" not in line


def test_pixels_far_away_are_warned_of_once() -> None:
    look, images = Looks(), IMAGES.clone()
    images[0, 2, 0, 0, 0] = -FAR  # the second image of b
    assert look(images=images) == []
    images[0, 2, 0, 0, 0] = -2 * FAR
    (line,) = look(images=images)
    assert line.startswith("pixels are beyond 1000 (normalised) at iteration 5 for the classes b;")
    assert "and at init" in line and look(images=images) == []


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_seen(norm: str) -> None:
    network = build_network("convnet", (1, 16, 16), 2, {"width": 16, "depth": 2, "norm": norm})
    assert has_norm(network.module) == (norm != "none")


@pytest.mark.parametrize("pixel", [0.0, -0.42])
def test_an_instance_norm_has_nothing_to_normalise_in_zeros(pixel: float) -> None:
    """Every channel is constant but for rounding: no gradient, or one that explodes."""
    network = build_network("convnet", (1, 28, 28), 2)
    theta = init_theta(network, generator(0, "theta"), "cpu")
    real = torch.randn(4, 1, 28, 28, generator=generator(0, "real"))
    lengths = [
        match_class(
            theta, network, images, real, 0, DISTANCES["squared_euclidean"], None, []
        ).gradient.norm()
        for images in (torch.full((1, 1, 28, 28), pixel), real[:1])
    ]
    ratio = float(lengths[0] / lengths[1])
    if pixel == 0:
        assert ratio == 0 or ratio > 1e4
    else:  # black: its border differs from what the convolution puts around it
        assert 0.01 < ratio < 100


def test_a_diverging_condensation_stops_and_keeps_its_last_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(
        tmp_path, **{"condense.image_learning_rate": 1e30, "condense.image_schedule": "constant"}
    )
    run_here(folder, "initialize", monkeypatch)
    messages = []
    for _ in range(2):  # the second time it goes on from the first, and says the same
        with pytest.raises(ValueError, match="condense.image_learning_rate, condense.dist") as stop:
            run_here(folder, "condense", monkeypatch)
        messages.append(str(stop.value))
    assert messages[0] == messages[1] and messages[0].startswith("iteration ")
    assert "not finite (classes: zero, one, two)" in messages[0]
    kept = read_synthetic_set(folder / messages[0].rpartition(" are in ")[2])
    assert kept.images.isfinite().all() and kept.images.shape == (6, 1, 16, 16)
    assert outputs(folder).keys() == {"data/initial/synthetic.safetensors"}


def test_a_zero_gradient_is_said_by_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigmoid units do not respond to images as bright as this; the stage goes on."""
    folder = make_workspace(tmp_path, **{"networks.mlp.activation": "sigmoid"})
    run_here(folder, "initialize", monkeypatch)
    path = folder / "data/initial/synthetic.safetensors"
    initial = read_synthetic_set(path)
    initial.images[2:4] = 1e6
    write_synthetic_set(path, initial)
    run_here(folder, "condense", monkeypatch)
    with (folder / "results/condense/warnings.csv").open() as file:
        kept = [tuple(row.values()) for row in csv.DictReader(file)]
    compiled, far, line = capsys.readouterr().err.splitlines()
    assert far.startswith("condense: pixels are beyond 1000 (normalised) at iteration 1 for")
    assert compiled.startswith("condense: compile: ")
    assert line.startswith(
        "condense: the image gradient is zero at iteration 1 for the classes one"
    )
    said = [text.removeprefix("condense: ") for text in (far, line)]
    assert kept == [("1", "far", "one", said[0]), ("1", "no_gradient", "one", said[1])]


def test_images_of_zeros_are_warned_of_by_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network with instance norms, each class by its name."""
    folder = make_workspace(
        tmp_path,
        **{"network": "convnet", "init": "zeros", "order": 1, "condense.image_learning_rate": 1.0},
    )
    run_here(folder, "initialize", monkeypatch)
    run_here(folder, "condense", monkeypatch)
    with (folder / "results/condense/warnings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} <= {"far", "no_gradient"}
    assert {name for row in rows for name in row["classes"].split(", ")} == {"zero", "one", "two"}


def test_what_was_said_is_known_after_an_interruption() -> None:
    done = Condensation.begin(IMAGES, 2)
    done.warnings = [Warned(3, "far", ("a", "b"), "far away"), Warned(4, "explosion", (), "up")]
    state = done.state()
    read = State(state.tensors, json.loads(json.dumps(state.record)))
    assert Condensation.of(read, torch.device("cpu")).warnings == done.warnings


@pytest.mark.parametrize(
    "stage, key",
    [
        ("baseline --network mlp", "baseline.mlp.learning_rate"),
        ("evaluate --network mlp", "evaluate.learning_rate"),
    ],
)
def test_a_diverging_training_names_the_setting(
    stage: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    for before in ("initialize", "condense", "baseline --network mlp"):
        run_here(folder, before, monkeypatch)
    make_workspace(tmp_path, **{key: 1e30})
    before_files = outputs(folder)
    with pytest.raises(ValueError, match=rf"network \d diverged.*look at .*{key}"):
        run_here(folder, stage, monkeypatch)
    assert outputs(folder) == before_files, "the last good results are still there"


@pytest.mark.parametrize(
    "changes",
    [{"evaluate.networks": ["mlp", "vgg11"]}, {"network": "vgg11", "evaluate.networks": ["mlp"]}],
    ids=["to be evaluated", "to condense on"],
)
def test_every_stage_refuses_a_network_that_another_could_not_use(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first minute of work, not after the last stage but one."""
    stages = ("initialize", "baseline --network mlp", "condense", "evaluate --network mlp")
    folder = make_workspace(tmp_path)
    for stage in stages:
        run_here(folder, stage, monkeypatch)
    before = outputs(folder)
    make_workspace(tmp_path, **changes)
    for stage in stages:
        with pytest.raises(ValueError, match="'vgg11': got images of 16 x 16, takes 32 x 32"):
            run_here(folder, stage, monkeypatch)
    assert outputs(folder) == before


def test_of_a_small_class_a_batch_takes_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = []
    for number in (20, 21):  # each class has 20
        folder = make_workspace(tmp_path / str(number), **{"condense.real_per_class": number})
        for stage in ("initialize", "condense"):
            run_here(folder, stage, monkeypatch)
        learned.append(read_synthetic_set(folder / "data/condensed/synthetic.safetensors").images)
    assert torch.equal(*learned)


def test_more_images_than_the_initial_set_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path, ipc=21, init="real")
    with pytest.raises(
        ValueError, match="ipc: got 21, with init real: class 'zero': has 20 images"
    ):
        run_here(folder, "initialize", monkeypatch)


def test_a_set_of_another_dataset_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    run_here(folder, "initialize", monkeypatch)
    path = folder / "data/initial/synthetic.safetensors"
    initial = read_synthetic_set(path)
    for images, names, message in (
        (initial.images[..., :8], initial.class_names, r"are \(1, 16, 8\), those of the dataset"),
        (initial.images, ("x", "y", "z"), "its classes are not the 3 of the dataset"),
    ):
        changed = dataclasses.replace(initial, images=images, class_names=names)
        write_synthetic_set(path, changed)
        with pytest.raises(ValueError, match=message):
            run_here(folder, "condense", monkeypatch)


# Files


def test_files_take_their_places_together(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "folder" / "b"
    write_bytes(first, b"old")
    with together():
        write_bytes(first, b"new")
        write_bytes(second, b"new")
        assert first.read_bytes() == b"old" and not second.exists()
    assert first.read_bytes() == second.read_bytes() == b"new"
    with pytest.raises(ValueError), together():
        write_bytes(first, b"newer")
        raise ValueError("the stage fails")
    assert first.read_bytes() == b"new"
    write_bytes(first, b"alone again")
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "folder", "b"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leftover, others = (
        tmp_path / f".loss.csv.{gone.pid}.unfinished",
        tmp_path / ".loss.csv.1.unfinished",
    )
    leftover.write_bytes(b"half")
    others.write_bytes(b"half")
    write_at_once(path, b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {"loss.csv", others.name}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can have more than 300 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"good")
    for write in (write_bytes, write_at_once):
        with pytest.raises(OSError) as error:
            write(path, bytes(1000))
        assert str(error.value) == f"{path}: cannot be written (File too large)"
    with pytest.raises(OSError, match="cannot be written"), together():
        write_bytes(tmp_path / "other", b"small")
        write_bytes(path, bytes(1000))
    assert path.read_bytes() == b"good" and [*tmp_path.iterdir()] == [path]


def test_a_full_disk_at_the_end_of_a_stage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],  # what is printed must not go to a file: it would be full
) -> None:
    """The last good outputs stay, all of them."""
    folder = make_workspace(tmp_path)
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    before = outputs(folder)
    make_workspace(tmp_path, seed=1)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"\.safetensors: cannot be written \(File too large\)"):
        run_here(folder, "condense", monkeypatch)
    assert outputs(folder) == before


def test_of_several_sets_a_full_disk_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The second one is larger: its metadata do not fit any more."""
    folder = make_workspace(tmp_path, sets=2)
    count = 0

    def fill(*_: object) -> bytes:
        nonlocal count
        count += 1
        return bytes(100 if count == 1 else 1000)

    monkeypatch.setattr("condensation.artefacts.encode_synthetic_set", fill)
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)  # to a file, which would be full
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"set-1/synthetic\.safetensors: cannot be written"):
        run_here(folder, "initialize", monkeypatch)
    assert outputs(folder) == {}


def test_a_full_disk_ends_a_download_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """It is no fault of the network, which another attempt could pass."""
    published, asked = tmp_path / "published", []

    def ask(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return urllib.request.urlopen(*arguments, **options)

    published.write_bytes(bytes(200_000))
    monkeypatch.setattr("condensation.downloads.urlopen", ask)
    request.getfixturevalue("full_disk")
    path = tmp_path / "raw/file"
    with pytest.raises(OSError) as error:
        fetch([RemoteFile("file", published.as_uri(), "")], path.parent)
    assert str(error.value) == f"{path}: cannot be written (File too large)"
    assert len(asked) == 1 and [*tmp_path.iterdir()] == [published]


def test_a_folder_that_cannot_be_written_to_is_said_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "something temporary")

    asked: list[object] = []
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("condensation.downloads.urlopen", lambda *_, **__: asked.append(_))
    with pytest.raises(OSError) as error:
        fetch([RemoteFile("file", "http://file", "")], tmp_path)
    assert str(error.value) == f"{tmp_path / 'file'}: cannot be written (Read-only file system)"
    assert not asked


def test_a_report_takes_pictures_that_have_no_place_yet(tmp_path: Path) -> None:
    """Figures and report of a run take their places together."""
    picture = tmp_path / "a.png"
    picture.write_bytes(b"old")
    with together():
        write_bytes(picture, b"new")
        page = to_html("Title", [Picture(picture, "It")])
        assert picture.read_bytes() == b"old"
    assert base64.b64encode(b"new").decode() in page


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise OSError(number, os.strerror(number), "something temporary")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError) as error:
        check_writable(tmp_path / "results" / "loss.csv")
    path = tmp_path / "results" / "loss.csv"
    assert str(error.value) == f"{path}: cannot be written ({os.strerror(number)})"


def test_a_file_in_the_way_of_a_folder_is_said_by_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    run_here(folder, "initialize", monkeypatch)
    (folder / "results").write_text("in the way")
    done = run_stage(folder, "condense")
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr == "condense: results/condense/loss.csv: cannot be written (Not a directory)\n"
    )


@pytest.mark.parametrize(
    "name, content",
    [
        ("train_images.npy", b"\x93NUMPY"),
        ("train_labels.npy", b""),
        ("statistics.json", b"{}"),
        ("statistics.json", b"[" * 100_000),
    ],
)
def test_damaged_prepared_data_are_named(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    (folder / "data/prepared" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: cannot be read .*run prepare again") as error:
        run_here(folder, "initialize", monkeypatch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read (.* No such file"),
        ("", "cannot be read (Expecting value"),
        ("[" * 100_000, "cannot be read ("),
        ("[]", "has no number mlp.ceiling"),
        ("{}", "has no number mlp.ceiling"),
        ('{"mlp": {"ceiling": null}}', "has no number mlp.ceiling"),
    ],
)
def test_a_ceiling_that_is_not_there_is_said_before_the_work(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    path = folder / "results/baseline/mlp/metrics.json"
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_text(content)
    place = "results/baseline/mlp/metrics.json: "
    with pytest.raises(ValueError, match=re.escape(place) + message.replace("(", r"\(")) as error:
        run_here(folder, "evaluate --network mlp", monkeypatch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "iteration,loss\n", "a,b\n1,2\n"])
def test_a_damaged_table_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="loss.csv: (cannot be read|has no)") as error:
        read_table(path, "iteration", "loss")
    assert "\n" not in str(error.value)


def test_what_the_stages_before_write_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_workspace(tmp_path)
    with pytest.raises(ValueError, match="^data/initial: is missing; the stages before"):
        run_here(folder, "condense", monkeypatch)
