"""Generated settings: with each one the stages run, on tiny data, or give one clear message.

The long form tries 2,000 of them, in blocks, and is marked slow. It prints what came out.
"""

import contextlib
import importlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from condensation import params
from conftest import ROOT
from workspace import SMALL, change, make_workspace

STAGES = ("initialize", "condense", "baseline --network mlp", "evaluate --network mlp")
SHORT, LONG, BLOCKS = 40, 2_000, 10
WORDS = ("mlp", "convnet", "lenet", "auto", "none", "cuda", "hvp", "1e-3", "0.1", "", "ya\nml", "é")
ANYTHING: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 10**18, 10**400, -(10**18)]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.dates(),
    st.lists(st.integers(-1, 3), max_size=3),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.sampled_from(["width", "seed", "x"]), st.integers(0, 3), max_size=2),
)
RATES = st.one_of(st.floats(1e-6, 1.0), st.sampled_from([1e-30, 1e4, 1e30, 1e300]))
SMALL_NUMBERS = st.integers(1, 3)
SENSIBLE: dict[str, SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**70),
    "ipc": st.one_of(
        st.sampled_from([1, 2, 3, 20, 21, 10**400]),
        st.fixed_dictionaries({name: st.integers(1, 3) for name in ("zero", "one", "two")}),
        st.dictionaries(st.sampled_from(["zero", "one", "two", "tow"]), st.integers(0, 21)),
    ),
    "ipc_shares": st.sampled_from(["equal", "equal", "proportional"]),
    "network": st.sampled_from(["convnet", "lenet", "mlp"]),
    "init": st.sampled_from(params.registry_names("initialisers.py", "INITIALISERS")),
    "order": st.sampled_from([1, 2]),
    "split": st.sampled_from(["test", "validation"]),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "compile": st.sampled_from(["auto", "off"]),
    "networks.convnet.width": st.sampled_from([1, 2, 5, 10**7, 10**12]),
    "networks.convnet.depth": st.integers(1, 6),
    "networks.mlp.width": st.sampled_from([1, 2, 5, 10**10]),
    "networks.mlp.activation": st.sampled_from(["relu", "silu", "sigmoid", "softplus"]),
    "networks.convnet.activation": st.sampled_from(["relu", "silu", "sigmoid", "softplus"]),
    "baseline.min_steps": st.sampled_from([0, 1, 9]),
    "baseline.batch_size": st.sampled_from([1, 7, 60, 10**9]),
    "baseline.momentum": st.floats(0, 0.99),
    "baseline.weight_decay": RATES,
    "baseline.mlp.num_networks": SMALL_NUMBERS,
    "baseline.mlp.epochs": SMALL_NUMBERS,
    "baseline.mlp.learning_rate": RATES,
    "baseline.mlp.augmentation": st.sampled_from(
        params.registry_names("augmentation.py", "AUGMENTATIONS")
    ),
    "condense.iterations": SMALL_NUMBERS,
    "condense.outer": SMALL_NUMBERS,
    "condense.inner": st.sampled_from([0, 1, "auto"]),
    "condense.distance": st.sampled_from(params.registry_names("distances.py", "DISTANCES")),
    "condense.real_per_class": st.sampled_from([1, 2, 14, 15, 20, 21, 10**9]),
    "condense.real_precision": st.sampled_from(["float32", "bfloat16", "auto"]),
    "condense.network_precision": st.sampled_from(["float32", "bfloat16", "auto"]),
    "condense.augmentation": st.sampled_from(["none", "dsa", "dsa_without_flip", "auto"]),
    "condense.image_learning_rate": RATES,
    "condense.image_schedule": st.sampled_from(params.registry_names("training.py", "SCHEDULES")),
    "condense.image_momentum": st.floats(0, 0.99),
    "condense.network_learning_rate": RATES,
    "condense.network_batch_size": st.sampled_from([1, 3, 10**9]),
    "condense.snapshots": st.lists(st.integers(0, 4), max_size=3),
    "condense.curvature.weight": RATES,
    "condense.curvature.schedule": st.sampled_from(
        params.registry_names("training.py", "SCHEDULES")
    ),
    "condense.curvature.iterations": SMALL_NUMBERS,
    "condense.curvature.layers": SMALL_NUMBERS,
    "condense.curvature.num_probes": SMALL_NUMBERS,
    "evaluate.networks": st.permutations(["convnet", "lenet", "mlp"]),
    "evaluate.epochs": SMALL_NUMBERS,
    "evaluate.batch_size": st.sampled_from([1, 3, 10**9]),
    "evaluate.learning_rate": RATES,
    "evaluate.momentum": st.floats(0, 0.99),
    "evaluate.augmentation": st.sampled_from(
        params.registry_names("augmentation.py", "AUGMENTATIONS")
    ),
    "evaluate.mlp.num_networks": SMALL_NUMBERS,
    "evaluate.mlp.snapshot_networks": st.integers(0, 2),
}
"""Values that may be right, alone or together; what is not listed gets anything."""

TINY: dict[str, Any] = {
    "condense.iterations": 2,
    "condense.outer": 1,
    "condense.inner": 1,
    "condense.snapshots": [0],
    "evaluate.epochs": 2,
    "evaluate.networks": ["convnet", "lenet", "mlp"],
    "baseline.min_steps": 0,
    "baseline.mlp.epochs": 1,
    **{f"{stage}.mlp.num_networks": 1 for stage in ("baseline", "evaluate")},
}


def all_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys of all values and sections."""
    found = []
    for name, value in values.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += all_keys(value, f"{prefix}{name}.")
    return found


COMMITTED: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
# A number of networks or steps that is far too large is no mistake, only long.
LONG_WHEN_LARGE = (
    *("epochs", "min_steps", "num_networks", "snapshot_networks"),
    *("iterations", "outer", "inner"),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Draw the text of a params.yaml."""
    values = change(yaml.safe_load(yaml.safe_dump(COMMITTED)), {**SMALL, **TINY})
    for key in draw(st.lists(st.sampled_from([*SENSIBLE]), max_size=5, unique=True)):
        change(values, {key: draw(SENSIBLE[key])})
    if draw(st.integers(0, 2)) == 0:
        key = draw(st.sampled_from(all_keys(COMMITTED)))
        if key.endswith(LONG_WHEN_LARGE + ("num_probes",)):
            value: Any = draw(st.one_of(st.none(), st.text(max_size=4), st.integers(-3, 3)))
        else:
            value = draw(ANYTHING)
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        match draw(st.integers(0, 5)):
            case 0:
                del section[name]
            case 1:
                section[draw(st.text(max_size=8))] = value
            case _:
                section[name] = value
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(text)))
        broken = [
            "\t",
            ": ",
            "- ",
            "&a ",
            "*a",
            "seed: 1\n",
            "{[",
            "!!python/object:x ",
            "\0",
            "? ",
        ]
        text = text[:at] + draw(st.sampled_from(broken)) + text[at + draw(st.integers(0, 9)) :]
    return text


def outcome(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the stages; return `runs`, or what the one that stops is about."""
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    for stage in STAGES:
        name, *arguments = stage.split()
        monkeypatch.setattr("sys.argv", [f"stages/{name}.py", *arguments])
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                params.run_stage(importlib.import_module(name).main)
        except SystemExit as stop:
            message = stop.code
            assert isinstance(message, str), message
            assert message.startswith(f"{name}: ") and len(message) > len(name) + 15
            assert "\n" not in message and len(message) < 800, message
            return "one message, at once" if name == STAGES[0] else "one message, from the work"
    return "runs"


def try_settings(
    block: int, examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Try generated settings; return what came out, how often."""
    folder = make_workspace(tmp_path)
    monkeypatch.chdir(folder)
    found: Counter[str] = Counter()

    @seed(block)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(text=texts())
    def run(text: str) -> None:
        found[outcome(folder, text, monkeypatch)] += 1

    run()
    return found


@pytest.fixture
def limited_memory() -> object:
    """A machine with 3 GiB more than is used now."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("limited_memory")
def test_generated_settings_run_or_give_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form."""
    found = try_settings(0, SHORT, tmp_path, monkeypatch)
    assert found["runs"] >= SHORT // 8 and found["one message, at once"] >= SHORT // 8


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, BLOCKS + 1))
@pytest.mark.usefixtures("limited_memory")
def test_many_generated_settings(
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = try_settings(block, LONG // BLOCKS, tmp_path, monkeypatch)
    assert found.total() >= LONG // BLOCKS
    with capsys.disabled():
        print(f"\nblock {block}: {found.total()} settings: {dict(sorted(found.items()))}")
