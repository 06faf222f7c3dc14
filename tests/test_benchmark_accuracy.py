"""The measurement of accuracy compares like with like; it is written, drawn and gone on with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import accuracy, benchmark, figures
from benchmarks.figures import curves
from benchmarks.measure import Record
from benchmarks.summaries import summarise
from benchmarks.tables import show_accuracy
from benchmarks.ways import BFLOAT16, REFERENCE, WAYS, Problem
from condensation import datasets, draws, real_images
from condensation.artefacts import set_path
from condensation.curvature import CURVATURE_FORMS
from condensation.datasets import Dataset, normalised, write_prepared
from condensation.devices import has_bfloat16
from condensation.image_sets import load_image_set
from condensation.networks import Network, Theta, init_theta
from condensation.params import Params
from condensation.protocols import Protocol
from workspace import make_workspace, run_here, small_dataset

CPU = torch.device("cpu")
SETTINGS = accuracy.settings()


def tiny(**changes: object) -> Params:
    """Return the settings of the measurement, for an MLP of 8 units and 3 iterations."""
    matching = replace(SETTINGS.condense, iterations=3, real_per_class=5)
    small = {"network": "mlp", "networks": {"mlp": {"width": 8}}, "condense": matching}
    return replace(SETTINGS, **{**small, **changes})  # type: ignore[arg-type]


def problem_of(params: Params) -> Problem:
    return Problem(params, small_dataset(20, "train"), CPU)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and images are drawn as ever, and then in float64."""

    def double(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return normalised(images, mean, std).double()

    def theta(network: Network, generator: torch.Generator, device: torch.device) -> Theta:
        return {
            name: value.double() for name, value in init_theta(network, generator, device).items()
        }

    monkeypatch.setattr(draws, "init_theta", theta)
    for module in (datasets, real_images):
        monkeypatch.setattr(module, "normalised", double)


@pytest.mark.usefixtures("in_float64")
def test_reference_and_engine_give_the_same_images() -> None:
    """Each image to 1e-8, and they change by far more than that."""
    problem = problem_of(tiny())
    by_reference, by_engine = ([*WAYS[name](problem, False)] for name in (REFERENCE, "engine"))
    assert len(by_reference) == len(by_engine) == 3
    before: Tensor = problem.initial()
    for theirs, ours in zip(by_reference, by_engine, strict=True):
        assert theirs.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
        assert (ours - before).abs().max() > 1e-4
        before = ours


@pytest.mark.parametrize("options", [{}, {"ipc": 2, "outer": 3, "inner": 2}])
def test_the_engine_is_that_of_the_stage(
    options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the very images that `condense` writes."""
    params, _ = accuracy.sized(tiny(seed=4), options)
    matching = params.condense
    changes: dict[str, object] = {
        **{key: getattr(params, key) for key in ("seed", "ipc", "init", "order", "compile")},
        **{
            f"condense.{key}": getattr(matching, key)
            for key in (
                *("iterations", "outer", "inner", "real_per_class", "augmentation"),
                *("image_learning_rate", "image_schedule", "image_momentum"),
                "network_learning_rate",
            )
        },
    }
    folder = make_workspace(tmp_path, **{**changes, "condense.snapshots": [1]})
    for stage in ("initialize", "condense"):
        run_here(folder, stage, monkeypatch)
    images = dict(enumerate(WAYS["engine"](problem_of(params), False), start=1))
    for iteration in (1, 3):
        written = load_image_set(set_path(folder / "data/condensed", 0, iteration))
        assert torch.equal(images[iteration], written.images)


def test_bfloat16_is_another_way_and_only_measured_where_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problem_of(tiny())
    exact, lowered = ([*WAYS[name](problem, False)][-1] for name in ("engine", BFLOAT16))
    assert 0 < (lowered - exact).abs().max() / exact.abs().max() < 0.1
    for able in ({"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", able.copy)
        assert has_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", {"avx2": True}.copy)
    assert not has_bfloat16(CPU)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command on tiny settings and data, without what it does to its process."""
    monkeypatch.setattr(accuracy, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(accuracy, "set_determinism", lambda: None)
    monkeypatch.setattr(accuracy, "load", lambda: (small_dataset(20, "train"), scoring()))
    monkeypatch.setattr(accuracy, "settings", tiny)
    monkeypatch.setattr(accuracy, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(accuracy, "PROTOCOL", Protocol(epochs=2, augmentation="none"))
    monkeypatch.setattr(accuracy, "SCORED", (1, 3))
    monkeypatch.setattr(accuracy, "COMPARED", (1, 3))
    for module in (benchmark, figures):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--device", "cpu"])
    return tmp_path


def scoring() -> Dataset:
    return small_dataset(10, "test")


def test_the_command_writes_draws_and_goes_on(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "SEEDS", (0, 1))
    accuracy.main()
    (path,) = small.glob("accuracy-cpu-*.json")
    first = json.loads(path.read_text())
    assert {*first["machine"]} >= {"device", "torch"}
    assert {*first["seeds"]["0"]} == {"engine", "ways", "date", "commit"}
    assert path.with_suffix(".png").stat().st_size > 0
    assert capsys.readouterr().out.count("not measured") == 1

    measured: list[int] = []
    measure = accuracy.measure

    def watched(problem: Problem, scoring: Dataset) -> Record:
        measured.append(problem.params.seed)
        return measure(problem, scoring)

    monkeypatch.setattr(accuracy, "measure", watched)
    monkeypatch.setattr(accuracy, "SEEDS", (0, 1, 2))
    accuracy.main()
    second = json.loads(path.read_text())
    assert measured == [2]
    assert {seed: second["seeds"][seed] for seed in ("0", "1")} == first["seeds"]
    assert second["ways"][REFERENCE]["n"] == 3 and second["ways"][BFLOAT16] is None
    found = second["ways"]["engine"]
    assert found["iterations"] == [0, 1, 3] and found["difference"][0] == 0
    assert 0 <= found["largest_relative_difference"]["1"] < 1e-4
    assert 0 < second["ways"][REFERENCE]["largest_relative_rounding"] < 1e-4

    matching = replace(tiny().condense, image_learning_rate=0.3)
    monkeypatch.setattr(accuracy, "settings", lambda: tiny(condense=matching))
    accuracy.main()
    assert measured == [2, 0, 1, 2]  # figures of other settings are not gone on with


def test_other_numbers_of_images_have_a_file_of_their_own(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "SEEDS", (0,))
    monkeypatch.setattr(accuracy, "measure", lambda *_: of_seed(80, None))
    drawn: list[str] = []

    def draw(written: Record) -> Figure:
        figure = curves(written)
        drawn.append(figure.axes[0].get_xlabel())
        return figure

    monkeypatch.setattr(accuracy, "curves", draw)
    for options in ([], ["--ipc", "2"], ["--ipc", "2", "--real", "9"], ["--real", "5"]):
        monkeypatch.setattr("sys.argv", ["accuracy.py", "--device", "cpu", *options])
        accuracy.main()
    settings = {
        path.stem.removesuffix(f"cpu-{torch.get_num_threads()}-threads"): json.loads(
            path.read_text()
        )["settings"]
        for path in small.glob("*.json")
    }
    sizes = {name: (used["ipc"], used["real_per_class"]) for name, used in settings.items()}
    # The tiny settings have five real images: a number that is theirs is not another one.
    assert sizes == {
        "accuracy-": (1, 5),
        "accuracy-ipc-2-": (2, 5),
        "accuracy-ipc-2-real-9-": (2, 9),
    }
    assert "(9 real ones in a batch)" in capsys.readouterr().out
    assert drawn[2] == "iterations (2 images a class from 9 real ones)"
    usual = SETTINGS.ipc, SETTINGS.condense.real_per_class
    assert usual == figures.USUAL


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ipc": 0}, "--ipc: got 0, takes a number from 1"),
        ({"inner": 3}, "--inner: nothing is trained without --outer from 2"),
    ],
)
def test_options_that_are_no_measurement_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        accuracy.sized(SETTINGS, options)


@pytest.mark.usefixtures("in_float64")
def test_reference_and_engine_take_any_number_of_images_and_train_between_image_steps() -> None:
    params, prefix = accuracy.sized(tiny(), {"ipc": 2, "real": 4, "outer": 3, "inner": 2})
    assert prefix == "accuracy-ipc-2-real-4-outer-3-inner-2-"
    described = accuracy.described(params)
    assert (described["outer"], described["inner"]) == (3, 2)
    assert "outer" not in accuracy.described(tiny())
    problem, untrained = problem_of(params), problem_of(accuracy.sized(tiny(), {"ipc": 2})[0])
    assert len(problem.initial()) == 2 * 3
    first = next(WAYS["engine"](untrained, False))
    for theirs, ours in zip(*(WAYS[name](problem, False) for name in [*WAYS][:2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
        assert (ours - first).abs().max() > 1e-3


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("form", CURVATURE_FORMS)
def test_reference_and_engine_give_the_same_images_by_order_2(form: str) -> None:
    params, prefix = accuracy.of_order_2(*accuracy.sized(tiny(), {"ipc": 2}), form)
    assert prefix == f"accuracy-ipc-2-{form}-"
    assert accuracy.described(params)["curvature"]["form"] == form
    problem, first_order = problem_of(params), problem_of(accuracy.sized(tiny(), {"ipc": 2})[0])
    without = next(WAYS["engine"](first_order, False))
    for theirs, ours in zip(*(WAYS[name](problem, False) for name in [*WAYS][:2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
        assert (ours - without).abs().max() > 1e-4


def of_seed(theirs: float, ours: float | None, apart: float = 1e-6) -> Record:
    """A seed's record: two networks on the images of each way, one percent above and below."""

    def one(value: float) -> Record:
        iterations = (0, *accuracy.SCORED)
        return {
            "accuracy": {f"{i}": [value - 1, value + 1] for i in iterations},
            "relative_difference": {f"{i}": apart * i for i in accuracy.COMPARED},
            "relative_rounding": apart,
        }

    ways = {REFERENCE: one(theirs), "engine": one(theirs), BFLOAT16: ours and one(ours)}
    return {"ways": ways}


def test_figures_are_over_seeds_and_differences_taken_seed_by_seed() -> None:
    seeds = {"0": of_seed(80, 81), "1": of_seed(84, 84.5, 3e-6), "2": of_seed(82, 82)}
    found = summarise(seeds)
    assert found[REFERENCE] == {
        "iterations": [0, 5, 10, 25],
        "mean": [82] * 4,
        "sd": [2] * 4,
        "n": 3,
        "largest_relative_rounding": 3e-6,
    }
    assert found["engine"]["difference"] == found["engine"]["half_width_95"] == [0] * 4
    assert found[BFLOAT16]["difference"] == [0.5] * 4
    # Student's quantile for three pairs, 4.303, times the standard error 0.5 / sqrt(3).
    assert found[BFLOAT16]["half_width_95"] == [1.242] * 4
    assert found[BFLOAT16]["largest_relative_difference"] == {
        "1": pytest.approx(3e-6),
        "25": pytest.approx(75e-6),
    }


def test_of_one_seed_no_spread_is_shown_and_what_is_not_measured_is_left_out() -> None:
    found = summarise({"0": of_seed(80, None)})
    assert found["engine"]["sd"] == found["engine"]["half_width_95"] == [None] * 4
    assert found[BFLOAT16] is None
    about = {"device": "CPU, 2 threads", "processor": "some", "torch": "2"}
    file = {"machine": about, "settings": accuracy.described(SETTINGS), "ways": found}
    table = show_accuracy(file)
    trained, _ = accuracy.sized(SETTINGS, {"ipc": 10, "outer": 3, "inner": 2})
    between = "3 image steps an iteration, 2 epochs between two"
    file_of_training = {**file, "settings": accuracy.described(trained)}
    assert between in show_accuracy(file_of_training) and between not in table
    (axes,) = curves(file_of_training).axes
    assert axes.get_xlabel() == f"iterations (10 images a class from 24 real ones, with {between})"
    curved, _ = accuracy.of_order_2(SETTINGS, "", "hvp")
    file_of_order_2 = {**file, "settings": accuracy.described(curved)}
    assert "the term `hvp`; 2 networks" in show_accuracy(file_of_order_2)
    (axes,) = curves(file_of_order_2).axes
    assert axes.get_xlabel().endswith("(1 images a class from 24 real ones, with the term `hvp`)")
    assert table.count("not measured") == 1 and "nan" not in table and "+0.00" in table
    (axes,) = curves(file).axes
    assert [line.get_label() for line in axes.lines] == [REFERENCE, "engine"]
    assert not axes.collections


def test_what_is_missing_or_other_data_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "PREPARED", tmp_path)
    with pytest.raises(ValueError, match=r"train_images.npy: cannot be read .*`dvc repro prepare`"):
        accuracy.load()
    write_prepared(tmp_path, small_dataset(20, "train"), scoring(), torch.arange(1))
    with pytest.raises(ValueError, match=r"got 3 classes, zero, one, two, .*takes MNIST"):
        accuracy.load()
