"""The benchmark measures what it says, on the smallest cases; its figures draw what it wrote."""

import io
import json
import mmap
import re
import signal
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import benchmark, cases, measure
from benchmarks.cases import ALL, CUDA_LADDER, GROWTH, KINDS, LADDER, Case, grown
from benchmarks.figures import growth, measured
from benchmarks.measure import Effort, Peak, Record, interleave, not_recorded, rates, spread, work
from benchmarks.summaries import summarise
from benchmarks.tables import show, show_accuracy
from benchmarks.worker import Died, TooLong, Worker, serve
from condensation import derivatives, fused, matching, recording, stacked_classes
from condensation.curvature import CURVATURE_FORMS

CPU = torch.device("cpu")
TINY = Case(classes=2, real=3, size=16, network="convnet-4-2")


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a side does to its process, it would do to the one of the tests."""
    monkeypatch.setattr(cases, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(cases, "set_determinism", lambda: None)
    monkeypatch.setattr(cases, "choose_kernels", lambda *_: "")
    monkeypatch.setattr(matching, "REAL_BLOCK", dict(matching.REAL_BLOCK))
    for module, name in ((matching, "STREAMS"), (fused, "cuda_blocks"), (recording, "recordable")):
        monkeypatch.setattr(module, name, getattr(module, name))


def ask(case: Case, side: str, *requests: str) -> list[object]:
    """Return what a worker answers."""
    answers = io.StringIO()
    description = json.dumps([asdict(case), side, "cpu"])
    serve(description, io.StringIO("".join(f"{line}\n" for line in requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("side", ["reference", "engine"])
def test_a_step_is_timed_and_its_work_counted(side: str, form: str) -> None:
    case = Case(**{**asdict(TINY), "form": form})
    ready, seconds, peak, reserved, amount = ask(
        case, side, "ready", "run", "peak", "reserved", "work"
    )
    assert ready is None and isinstance(seconds, float) and seconds > 0
    assert isinstance(peak, int) and peak >= 0 and reserved is None
    assert isinstance(amount, dict) and amount["flop"] > 0 and amount["bytes"] > amount["flop"] / 99


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("step", "ladder on CUDA", "processes")]
)
def test_every_side_of_every_kind_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "published_loops", lambda ipc: (2, 1))
    monkeypatch.setattr(cases, "NETWORKS", 2)
    monkeypatch.setattr(cases, "EPOCHS", dict.fromkeys(cases.EPOCHS, 1))
    monkeypatch.setattr(cases, "TESTED", 4)
    case = Case(**{**asdict(TINY), "kind": kind})
    sides = KINDS[kind].sides(CPU)
    if not sides:
        pytest.skip("the device has no bfloat16")
    for side in sides:
        (seconds,) = ask(case, side, "run")
        assert isinstance(seconds, float) and seconds > 0
    assert KINDS["processes"].sides(CPU)[0] == "1 process"


@pytest.mark.parametrize("form", cases.FORMS[1:])
def test_a_step_of_order_2_with_real_gradients_in_bfloat16_is_timed(form: str) -> None:
    if not KINDS["step in bfloat16"].sides(CPU):
        pytest.skip("the device has no bfloat16")
    (seconds,) = ask(
        Case(**{**asdict(TINY), "kind": "step in bfloat16", "form": form}), "engine", "run"
    )
    assert isinstance(seconds, float) and seconds > 0


@pytest.mark.parametrize("form", cases.ALONE)
def test_a_form_whose_reference_is_not_timed_is_measured_by_itself(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(**{**asdict(TINY), "kind": "step by itself", "form": form})
    assert KINDS[case.kind].sides(CPU) == ("engine",)
    (seconds,) = ask(case, "engine", "run")
    assert isinstance(seconds, float) and seconds > 0
    worker = MagicMock()
    answers = {"run": 0.5, "peak": 7, "reserved": None}
    worker.ask.side_effect = lambda what, _: answers[what]
    monkeypatch.setattr(benchmark, "EFFORT", {"cpu": Effort(0, 1, 1)})
    found = benchmark.measure(case, {"engine": worker}, CPU, np.inf, False)
    # No operations a second: they are counted where the reference calculates.
    expected = {"first_call": 0.5, "seconds": spread([0.5]), "peak_bytes": 7}
    assert found == {"sides": {"engine": expected}, "times_as_fast": 1}


@pytest.mark.parametrize("side", CUDA_LADDER[1:])
def test_the_ladder_on_cuda_is_put_together_as_it_says(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device `meta`: all is the same but the compilation, and `autocast` is not for it."""
    compiled: list[str] = []

    def watch(name: str, module: ModuleType) -> None:
        make = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            compiled.append(name)
            return make(*arguments)

        monkeypatch.setattr(module, name, counted)

    watch("compiled_gradient", derivatives)
    watch("compiled_transform", stacked_classes)
    autocast = MagicMock()
    monkeypatch.setattr(torch, "autocast", autocast)
    with torch.compiler.set_stance("force_eager"):
        cases.cuda_ladder(TINY, torch.device("meta"), side)()
    rung = CUDA_LADDER.index(side)
    assert {*compiled} == ({"compiled_gradient", "compiled_transform"} if rung >= 2 else set())
    assert (fused.cuda_blocks is cases.no_blocks) == (rung < 3)
    assert (recording.recordable is not_recorded) == (rung < 4)
    assert (matching.STREAMS == 1) == (rung < 5)
    assert autocast.called == (rung == 6)


def test_the_side_that_is_not_deterministic_leaves_the_process_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[bool] = []
    monkeypatch.setattr(cases, "set_determinism", lambda: said.append(True))
    for side in cases.DETERMINISM:
        cases.determinism(TINY, CPU, side)()
    assert said == [True]


def test_what_is_for_another_device_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "ALL", (Case(kind="ladder on CUDA"),))
    monkeypatch.setattr(benchmark, "ceilings", lambda *_: written()["ceilings"])
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu"])
    benchmark.main()
    (path,) = tmp_path.glob("*.json")
    assert [*json.loads(path.read_text())["cases"].values()] == [None]
    assert capsys.readouterr().out.count("not measured") == 1


def test_work_is_that_of_products_and_operands() -> None:
    linear, inputs = nn.Linear(3, 5, bias=False), torch.ones(2, 3)
    with torch.no_grad():
        found = work(lambda: _run(linear, inputs))
    assert found == {"flop": 2 * 2 * 3 * 5, "bytes": 4 * (2 * 3 + 3 * 5 + 2 * 5)}


def _run(module: nn.Module, inputs: torch.Tensor) -> None:
    module(inputs)


def test_sides_take_turns_and_the_first_call_is_apart() -> None:
    said: list[str] = []
    seconds = {"a": iter([9.0, 1.0, 2.0, 3.0]), "b": iter([8.0, 5.0, 5.0, 5.0])}

    def timer(name: str) -> float:
        said.append(name)
        return next(seconds[name])

    found = interleave({"a": lambda: timer("a"), "b": lambda: timer("b")}, Effort(0, 3, 9))
    assert said == ["a", "b"] * 4
    assert found["a"]["first_call"] == 9
    quartiles = {"median": 2, "lower_quartile": 1.5, "upper_quartile": 2.5, "n": 3}
    assert found["a"]["seconds"] == quartiles
    assert rates(10, quartiles)["upper_quartile"] == pytest.approx(10 / 1.5, rel=1e-3)
    assert spread([4.0]) == {"median": 4, "lower_quartile": 4, "upper_quartile": 4, "n": 1}


def test_every_case_has_a_name_of_its_own_and_what_is_to_be_shown_is_there() -> None:
    assert len({case.name for case in ALL}) == len(ALL)
    for form in cases.FORMS:
        for ipc, classes, real in ((1, 10, 64), (10, 100, 64), (50, 100, 256)):
            assert Case(form=form, ipc=ipc, classes=classes, real=real) in ALL
    assert {form for each in ALL if (form := each.form) != cases.ORDER_1} == {*CURVATURE_FORMS}
    assert {case for key in GROWTH for case in grown(key)} <= {*ALL}
    assert {case.kind for case in ALL} == {*KINDS}


def written() -> Record:
    """A file of the benchmark in which two cases are measured."""
    side = {
        "first_call": 3.0,
        "seconds": spread([1.0, 2.0, 4.0]),
        "peak_bytes": 2**20,
        "flop_per_second": rates(10, spread([1.0])),
        "bytes_per_second": rates(5, spread([1.0])),
    }
    rate = rates(20, spread([1.0]))
    measured_case = {"sides": {"reference": side, "engine": side}, "times_as_fast": 1.0}
    some = {case.name for case in grown("ipc")[:2]}
    return {
        "machine": {"device": "CPU, 2 threads", "processor": "some", "torch": "2"},
        "ceilings": {"matmul_float32_flop_per_second": rate, "copy_bytes_per_second": rate},
        "cases": {case.name: measured_case if case.name in some else None for case in ALL},
    }


def test_the_table_and_the_figure_show_what_is_measured_and_say_what_is_not() -> None:
    table = show(written())
    assert table.count("not measured") == len(ALL) - 2
    assert "2 (1.5 to 3)" in table and "50%" in table and "25%" in table
    assert [size for size, _ in measured(written(), "ipc", "engine")] == [1, 10]
    axes = growth(written()).axes
    assert len(axes) == 2 * len(GROWTH)
    assert [line.get_label() for line in axes[len(GROWTH)].lines] == ["reference", "engine"]
    assert np.asarray(axes[len(GROWTH)].lines[0].get_ydata()).tolist() == [1, 1]  # MiB


def test_a_side_that_raises_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no lack of time; the same reason at each request after it."""
    broken = Case(**{**asdict(TINY), "network": "nothing"})
    assert ask(broken, "engine", "ready", "run") == [{"error": "KeyError: 'nothing'"}]
    assert "Traceback" in capsys.readouterr().err
    with closing(Worker(broken, "engine", CPU)) as worker:
        for what in ("ready", "run"):
            with pytest.raises(Died, match="^engine: KeyError: 'nothing'$"):
                worker.ask(what, 60)


def test_a_process_that_is_killed_says_by_what_and_one_that_is_late_is_late() -> None:
    with closing(Worker(TINY, "reference", CPU)) as worker:
        worker._process.send_signal(signal.SIGSEGV)
        with pytest.raises(Died, match="^reference: ended by SIGSEGV$"):
            worker.ask("ready", 60)
    with closing(Worker(TINY, "reference", CPU)) as worker:
        for _ in range(2):
            with pytest.raises(TooLong):
                worker.ask("ready", 0)


def test_what_died_is_written_shown_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = MagicMock(side_effect=Died("engine: RuntimeError: out of memory"))
    monkeypatch.setattr(benchmark, "Worker", lambda *_: MagicMock(ask=asked))
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "ALL", (TINY, Case(kind="ladder on CUDA")))
    monkeypatch.setattr(benchmark, "ceilings", lambda *_: written()["ceilings"])
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu"])
    for _ in range(2):
        benchmark.main()
        (path,) = tmp_path.glob("*.json")
        case = json.loads(path.read_text())["cases"][TINY.name]
        assert case["died"] == "engine: RuntimeError: out of memory" and case["date"]
        table = capsys.readouterr().out
        assert f"{TINY.name}: engine: RuntimeError: out of memory" in table.splitlines()
        assert table.count("not measured") == 1
        number = asked.call_count
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu", "--again"])
    benchmark.main()
    assert asked.call_count == 2 * number
    file = {**written(), "cases": {case.name: {"died": "why"} for case in ALL}}
    assert measured(file, "ipc", "engine") == [] and growth(file)


@pytest.mark.slow
def test_the_command_writes_the_file_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "EFFORT", {"cpu": Effort(0, 1, 1)})
    monkeypatch.setattr(benchmark, "ALL", (TINY, Case(kind="processes", classes=2, real=8)))
    monkeypatch.setattr(benchmark, "ceilings", lambda *_: written()["ceilings"])
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--only", "^step", "--device", "cpu"])
    benchmark.main()
    (path,) = tmp_path.glob("*.json")
    first = json.loads(path.read_text())
    assert [case is None for case in first["cases"].values()] == [False, True]
    monkeypatch.setattr("sys.argv", ["benchmark.py", "--device", "cpu"])
    benchmark.main()
    second = json.loads(path.read_text())
    assert second["cases"][TINY.name] == first["cases"][TINY.name]
    assert {*second["cases"]["processes, order 1, ipc 1, classes 2, real 8"]["sides"]} >= {
        "1 process"
    }
    assert LADDER[0] in capsys.readouterr().out


def test_each_ceiling_is_measured_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, str]] = []

    def multiply(a: torch.Tensor, *_: torch.Tensor) -> None:
        seen.append((a.dtype, torch.get_float32_matmul_precision()))

    monkeypatch.setattr(measure, "_multiply", multiply)
    monkeypatch.setattr(measure, "CEILING_SIZE", {"cpu": 4})
    monkeypatch.setattr(measure, "COPIED_BYTES", {"cpu": 64})
    monkeypatch.setattr(measure, "CEILINGS", {"cpu": measure.CEILINGS["cuda"]})
    before = torch.get_float32_matmul_precision()
    found = measure.ceilings(CPU, Effort(0, 1, 1))
    assert [*dict.fromkeys(seen)] == [
        (torch.float32, "highest"),
        (torch.float32, "high"),
        (torch.bfloat16, "highest"),
    ]
    assert torch.get_float32_matmul_precision() == before
    assert {f"matmul_{name}_flop_per_second" for name in measure.CEILINGS["cpu"]} <= {*found}


def test_the_share_is_of_the_ceiling_in_the_precision_of_the_row() -> None:
    """A row of before has none: on CUDA its convolutions were in TF32; its bytes are read, too."""
    assert cases.precision(TINY, torch.device("cuda"), "engine") == "tf32"
    assert cases.precision(TINY, CPU, "reference") == "float32"
    assert cases.precision(TINY, CPU, LADDER[-1]) == "bfloat16"
    lowered = replace(TINY, kind="step in bfloat16")
    found = [cases.precision(lowered, CPU, side) for side in ("reference", "engine")]
    assert found == ["float32", "bfloat16"]
    assert cases.precision(replace(lowered, ipc=50, real=64), CPU, "engine") == "float32"
    assert cases.precision(replace(lowered, form="hvp"), CPU, "engine") == "float32"
    file = written()
    rate = {name: rates(value, spread([1.0])) for name, value in (("tf32", 40), ("bfloat16", 80))}
    more = {f"matmul_{name}_flop_per_second": value for name, value in rate.items()}
    (name, *_) = (name for name, case in file["cases"].items() if case is not None)
    sides = file["cases"][name]["sides"]
    lower = {**sides["engine"], "precision": "bfloat16"}
    lower["operator_bytes_per_second"] = lower.pop("bytes_per_second")
    file["cases"] = {name: {"sides": {"reference": sides["reference"], "engine": lower}}}
    file["ceilings"] |= more

    def shares(device: str) -> list[str]:
        table = show({**file, "machine": {**file["machine"], "device": device}}).splitlines()
        return [" ".join(line.split()[-2:]) for line in table if line.startswith(name)]

    assert shares("CPU, 2 threads") == ["50% 25%", "12% 25%"]
    assert shares("NVIDIA H100") == ["25% 25%", "12% 25%"]
    del file["ceilings"]["matmul_tf32_flop_per_second"]
    assert shares("NVIDIA H100") == ["1 25%", "12% 25%"]


COMMITTED = sorted(benchmark.RESULTS.glob("*.json"))
ACCURACIES = [path for path in COMMITTED if path.name.startswith("accuracy-")]
SPEEDS = [path for path in COMMITTED if path not in ACCURACIES]


@pytest.mark.parametrize("path", SPEEDS, ids=lambda p: p.stem)
def test_the_committed_figures_are_read(path: Path) -> None:
    assert re.search(r"\d%$", show(json.loads(path.read_text())), re.M)


@pytest.mark.parametrize("path", ACCURACIES, ids=lambda p: p.stem)
def test_the_committed_accuracies_are_read_and_are_those_of_their_seeds(path: Path) -> None:
    written = json.loads(path.read_text())
    assert written["ways"] == summarise(written["seeds"])
    table = show_accuracy(written).splitlines()
    for way, found in written["ways"].items():
        rows = [line for line in table if re.match(rf"{way}  +\d", line)]
        assert len(rows) == (0 if found is None else len(found["iterations"]))
        assert all(re.search(r"  \d+\.\d\d( ± \d+\.\d\d)?  +\d", row) for row in rows)


def touch(megabytes: int) -> None:
    """Take memory from the system, not from what an allocator has kept, and give it back."""
    with mmap.mmap(-1, megabytes * 10**6) as memory:
        for place in range(0, len(memory), mmap.PAGESIZE):
            memory[place] = 1


def test_the_peak_is_what_was_there_at_most_since_the_beginning() -> None:
    """Neither what was there before it, nor only what is there at the end."""
    touch(120)
    peak = Peak(CPU)
    touch(40)
    assert 0.9 * 40e6 < peak.bytes() < 1.5 * 40e6
