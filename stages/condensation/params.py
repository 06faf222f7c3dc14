"""The typed, checked view of params.yaml.

Every value is checked whenever any stage starts. Names of networks, distances and so on are read
from the source text of their registries rather than imported, so that a stage depends only on the
modules it computes with: adding a distance does not rerun `evaluate`.
"""

import argparse
import ast
import dataclasses
import difflib
import reprlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from condensation.counts import Ipc, mean_ipc
from condensation.loops import default_loops
from condensation.memory import says_out_of_memory
from condensation.settings_files import MixedKeys, SettingsLoader

Options = Mapping[str, int | float | str]
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_HERE = Path(__file__).parent
_OPTION_NAMES = {
    "activation": ("layers.py", "ACTIVATIONS"),
    "downsampling": ("deep_networks.py", "DOWNSAMPLINGS"),
    "norm": ("normalisation.py", "NORMS"),
    "pooling": ("layers.py", "POOLINGS"),
}
"""An option of a network that is a name -> where its names are registered."""


def _at_least(minimum: float) -> Any:
    return field(metadata={"minimum": minimum})


def _above(limit: float) -> Any:
    return field(metadata={"above": limit})


def _between(minimum: float, below: float) -> Any:
    return field(metadata={"minimum": minimum, "below": below})


def _choice(*names: str | int) -> Any:
    return field(metadata={"choices": names})


def _registered(file: str, registry: str) -> Any:
    """A name from a registry: the UPPER-CASE dict of a file."""
    return field(metadata={"registry": (file, registry)})


def _or_auto(limits: Any) -> Any:
    """A value within limits, or `auto`, which is None."""
    return field(metadata={**limits.metadata, "auto": True})


def _precision() -> Any:
    # Not in the settings' text: files of float32 say nothing of it (`describe` in condense.py adds
    # others).
    limits = {**_registered("precisions.py", "PRECISIONS").metadata, "auto": True}
    return field(repr=False, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Settings of the stage `prepare`."""

    raw: str | None = _or_auto(field())
    image_size: int | None = _or_auto(_at_least(8))
    validation_per_class: int = _at_least(1)
    seed: int = _at_least(0)


@dataclass(frozen=True, kw_only=True)
class Initialize:
    """Settings of the stage `initialize`."""

    features: str = _choice("pixels", "embedding")
    epochs: int = _at_least(0)
    learning_rate: float = _above(0)


@dataclass(frozen=True, kw_only=True)
class BaselineNetwork:
    """How one network is trained on the real training set."""

    num_networks: int = _at_least(1)
    epochs: int = _at_least(1)
    learning_rate: float = _above(0)
    augmentation: str = _registered("augmentation.py", "AUGMENTATIONS")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Settings of the stage `baseline`."""

    seed: int = _at_least(0)
    min_steps: int = _at_least(0)
    batch_size: int = _at_least(1)
    momentum: float = _between(0, 1)
    weight_decay: float = _at_least(0)
    by_network: Mapping[str, BaselineNetwork] = field(metadata={"rest": BaselineNetwork})


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """The second-order term of the matching loss."""

    form: str = _registered("curvature.py", "CURVATURE_FORMS")
    weight: float = _at_least(0)
    schedule: str = _registered("training.py", "SCHEDULES")
    iterations: int | None = _or_auto(_at_least(1))
    layers: int | None = _or_auto(_at_least(1))
    probes: str = _choice("rademacher", "gradient")
    num_probes: int = _at_least(1)
    real_per_class: int | None = _or_auto(_at_least(1))
    every: int = _at_least(1)


@dataclass(frozen=True, kw_only=True)
class Condense:
    """Settings of the stage `condense`."""

    processes: int = field(repr=False, metadata=_at_least(1).metadata)  # no image depends on it
    iterations: int = _at_least(1)
    outer: int | None = _or_auto(_at_least(1))
    inner: int | None = _or_auto(_at_least(0))
    distance: str = _registered("distances.py", "DISTANCES")
    real_per_class: int = _at_least(1)
    real_precision: str | None = _precision()
    network_precision: str | None = _precision()
    augmentation: str | None = field(
        metadata={"choices": ("none", "dsa", "dsa_without_flip"), "auto": True}
    )
    image_learning_rate: float = _above(0)
    image_schedule: str = _registered("training.py", "SCHEDULES")
    image_momentum: float = _between(0, 1)
    network_learning_rate: float = _above(0)
    network_batch_size: int = _at_least(1)
    snapshots: tuple[int, ...] = _at_least(0)
    frames: int = _at_least(2)
    curvature: Curvature


@dataclass(frozen=True, kw_only=True)
class EvaluateNetwork:
    """How many of one network are trained."""

    num_networks: int = _at_least(1)
    snapshot_networks: int = _at_least(0)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of the stage `evaluate`."""

    networks: tuple[str, ...] = _registered("networks.py", "NETWORKS")
    images: str
    images_scale: str = _choice("auto", "normalised", "pixels")
    protocol: str = _registered("protocols.py", "PROTOCOLS")
    epochs: int | None = _or_auto(_at_least(1))
    batch_size: int | None = _or_auto(_at_least(1))
    learning_rate: float | None = _or_auto(_above(0))
    momentum: float | None = _or_auto(_between(0, 1))
    weight_decay: float | None = _or_auto(_at_least(0))
    augmentation: str | None = _or_auto(_registered("augmentation.py", "AUGMENTATIONS"))
    by_network: Mapping[str, EvaluateNetwork] = field(metadata={"rest": EvaluateNetwork})


@dataclass(frozen=True, kw_only=True)
class Render:
    """Settings of the stage `render`."""

    dpi: int = _at_least(30)
    real_examples: int = _at_least(1)


@dataclass(frozen=True, kw_only=True)
class Params:
    """All of params.yaml; the comments there say what each value does."""

    seed: int = _at_least(0)
    dataset: str = field(metadata={"registry": ("raw_data.py", "DATASETS"), "or_path": True})
    ipc: Ipc = field(metadata={"minimum": 1, "by_class": True})
    ipc_shares: str = _choice("equal", "proportional")
    sets: int = _at_least(1)
    network: str = _registered("networks.py", "NETWORKS")
    init: str = _registered("initialisers.py", "INITIALISERS")
    order: int = _choice(1, 2)
    split: str = _choice("test", "validation")
    device: str = _choice("auto", "cpu", "cuda")
    compile: str = _choice("auto", "on", "off")
    networks: Mapping[str, Options] = field(metadata={"options_of": ("networks.py", "NETWORKS")})
    prepare: Prepare
    initialize: Initialize
    baseline: Baseline
    condense: Condense
    evaluate: Evaluate
    render: Render

    @property
    def used_networks(self) -> dict[str, Options]:
        """The networks that some stage uses, with their options."""
        return {name: self.networks[name] for name in (self.network, *self.evaluate.networks)}

    @property
    def loops(self) -> tuple[int, int]:
        """Image steps for each network, and epochs of training it after each."""
        given = self.condense
        outer, inner = default_loops(mean_ipc(self.ipc), given.distance)
        return given.outer or outer, inner if given.inner is None else given.inner


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ValueError: A key is missing or unknown, or a value has the wrong type, lies out of range or
            is a name that nothing is registered under. The message names the key, what it got and
            what it takes.
        MixedKeys: Likewise, of the keys of a section.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except MixedKeys:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({_short(str(error))})") from None
    params: Params = _section(Params, values, "")
    for section, tables in (
        ("baseline", params.baseline.by_network),
        ("evaluate", params.evaluate.by_network),
    ):
        for name in params.evaluate.networks:
            if name not in tables:
                raise ValueError(
                    f"{section}.{name}: is missing; evaluate.networks lists '{name}', so it needs "
                    f"its settings there"
                )
    if isinstance(params.ipc, Mapping) and params.ipc_shares != "equal":
        raise ValueError(
            f"ipc_shares: got {params.ipc_shares} with a number for each class in ipc, takes equal"
        )
    for name in {params.network, *params.evaluate.networks} - params.networks.keys():
        raise ValueError(f"networks.{name}: is missing; the network '{name}' is used")
    if len(set(params.evaluate.networks)) != len(params.evaluate.networks):
        raise ValueError(
            f"evaluate.networks: got {list(params.evaluate.networks)}, takes each once"
        )
    late = [number for number in params.condense.snapshots if number > params.condense.iterations]
    if late:
        raise ValueError(
            f"condense.snapshots: got {late[0]}, takes iterations from 0 to condense.iterations "
            f"({params.condense.iterations})"
        )
    outer, inner = params.loops
    if inner == 0 and outer > 1:
        raise ValueError(
            f"condense.inner: got 0 with {outer} image steps for each network (condense.outer, or "
            "what ipc brings); without training between them all would see the same network: takes "
            "1 or more, or condense.outer 1"
        )
    return params


def load_params_of_network(description: str | None) -> tuple[Params, str]:
    """Read params.yaml, and the network that `--network` names: the start of a stage for each.

    Args:
        description: Of the script, for `--help`.

    Raises:
        ValueError: The network is not in evaluate.networks, or as of `load_params`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--network", required=True)
    name: str = parser.parse_args().network
    params = load_params(Path("params.yaml"))
    if name not in params.evaluate.networks:
        raise ValueError(f"--network: got {name}, takes {' | '.join(params.evaluate.networks)}")
    return params, name


def registry_names(file: str, registry: str) -> tuple[str, ...]:
    """Return the names in a registry of this package, read from its source text."""
    return tuple(_registry(file, registry))


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage; a user's mistake becomes one line on stderr and exit status 1.

    So do settings that take more memory than there is, and an interruption before the work begins,
    with exit status 130.

    Raises:
        RuntimeError: The code itself fails.
    """
    stage = Path(sys.argv[0]).stem
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{stage}: {error}")
    except MemoryError as error:
        sys.exit(f"{stage}: {_too_much(error)}")
    except RuntimeError as error:
        # Of enormous sizes the product overflows before memory is asked for.
        if not says_out_of_memory(error) and "calculation overflow" not in str(error):
            raise
        sys.exit(f"{stage}: {_too_much(error)}")
    except KeyboardInterrupt:
        print(f"{stage}: stopped by SIGINT; nothing had been finished", file=sys.stderr)
        sys.exit(130)


def _too_much(error: Exception) -> str:
    return (
        f"there is not enough memory ({_short(str(error))}); look at ipc, prepare.image_size, the "
        "widths of the networks, the batch sizes and condense.real_per_class"
    )


@cache
def _registry(file: str, registry: str) -> dict[str, str]:
    # Name -> name of the function or class, from the dict literal in the source.
    for node in ast.parse((_HERE / file).read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == registry:
            assert isinstance(node.value, ast.Dict), f"{registry} in {file} is not a dict literal"
            return {
                ast.literal_eval(key): ast.unparse(value)
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key is not None
            }
    raise AssertionError(f"no registry {registry} in {file}")


@cache
def _options(file: str, function: str) -> dict[str, type]:
    # Keyword-only arguments of a registered function and their types, from the source: of the
    # registry's own file, or of the one that it imports the function from.
    known = {"int": int, "float": float, "str": str, "bool": bool}
    for node in ast.parse((_HERE / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            arguments = node.args.kwonlyargs
            return {a.arg: known[ast.unparse(a.annotation)] for a in arguments if a.annotation}
        if isinstance(node, ast.ImportFrom) and function in [alias.name for alias in node.names]:
            return _options(f"{str(node.module).rpartition('.')[2]}.py", function)
    raise AssertionError(f"no function {function} in {file}")


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxdict = 8


def _shown(value: object) -> str:
    # A value of any size as a short text, on one line.
    return _REPR.repr(value)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _unknown(prefix: str, key: object, takes: list[str]) -> ValueError:
    near = difflib.get_close_matches(str(key), takes, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ValueError(f"{prefix}{_short(str(key))}: unknown key{hint} Takes: {', '.join(takes)}")


def _section(cls: Any, values: Any, prefix: str) -> Any:
    # Build the dataclass `cls` from a mapping, checking every key and value.
    if not isinstance(values, dict):
        raise ValueError(
            f"{prefix.rstrip('.') or 'params.yaml'}: got {_shown(values)}, takes a section"
        )
    fields = {f.name: f for f in dataclasses.fields(cls)}
    rest = next((f for f in fields.values() if "rest" in f.metadata), None)
    if rest is not None:
        del fields[rest.name]
    hints = get_type_hints(cls)
    networks = _registry("networks.py", "NETWORKS") if rest is not None else {}
    for key in values:
        if key not in fields and key not in networks:
            raise _unknown(prefix, key, [*fields, *networks])
    built: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in values:
            raise ValueError(f"{prefix}{name}: is missing")
        built[name] = _value(hints[name], values[name], f"{prefix}{name}", spec.metadata)
    if rest is not None:
        built[rest.name] = {
            key: _section(rest.metadata["rest"], values[key], f"{prefix}{key}.")
            for key in values
            if key in networks
        }
    return cls(**built)


def _value(hint: Any, value: Any, key: str, metadata: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{key}.")
    if "by_class" in metadata:
        hint, limits = int, {"minimum": metadata["minimum"]}
        if isinstance(value, dict) and value:
            return {
                name: _value(hint, item, f"{key}.{name}", limits) for name, item in value.items()
            }
    if "options_of" in metadata:
        return _network_options(value, key, *metadata["options_of"])
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or (not value and "registry" in metadata):
            raise ValueError(f"{key}: got {_shown(value)}, takes a list")
        return tuple(_value(get_args(hint)[0], item, key, metadata) for item in value)
    if get_origin(hint) is types.UnionType:
        if value == "auto":
            return None
        hint = get_args(hint)[0]
    takes = _describe(hint, metadata)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        hint_text = ""
        if hint in (int, float) and isinstance(value, str):
            hint_text = "; write numbers without quotes"
        raise ValueError(f"{key}: got {_shown(value)}, takes {takes}{hint_text}")
    if "or_path" in metadata and ("/" in value or value.endswith(".npz")):
        return value
    names = metadata.get("choices") or ()
    if "registry" in metadata:
        names = registry_names(*metadata["registry"])
    out_of_range = (
        (names and value not in names)
        or ("minimum" in metadata and not value >= metadata["minimum"])
        or ("above" in metadata and not value > metadata["above"])
        or ("below" in metadata and not value < metadata["below"])
        or value in (float("inf"), float("-inf"))
    )
    if out_of_range:
        near = difflib.get_close_matches(str(value), [str(name) for name in names], n=1)
        hint_text = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"{key}: got {_shown(value)}, takes {takes}{hint_text}")
    return value


def _describe(hint: Any, metadata: Mapping[str, Any]) -> str:
    """Say in words what a value may be."""
    names = metadata.get("choices") or ()
    if "registry" in metadata:
        names = registry_names(*metadata["registry"])
    auto = " | auto" if metadata.get("auto") else ""
    if "or_path" in metadata:
        auto = " | the path of a folder (with a /) or of an .npz file"
    if names:
        return " | ".join(str(name) for name in names) + auto
    text = _TYPE_NAMES[hint]
    if metadata.get("by_class"):
        auto = ", or one for each class by its name"
    if "minimum" in metadata:
        text += f" from {metadata['minimum']}"
    if "above" in metadata:
        text += f" above {metadata['above']}"
    if "below" in metadata:
        text += f" below {metadata['below']}"
    return text + auto


def _network_options(value: Any, key: str, file: str, registry: str) -> Mapping[str, Options]:
    # Check the section `networks`: for each network the keyword arguments of its function.
    if not isinstance(value, dict):
        raise ValueError(f"{key}: got {_shown(value)}, takes a section")
    functions = _registry(file, registry)
    for name, options in value.items():
        if name not in functions:
            raise _unknown(f"{key}.", name, list(functions))
        takes = _options(file, functions[name])
        if not isinstance(options, dict):
            raise ValueError(f"{key}.{name}: got {_shown(options)}, takes a section")
        for option, given in options.items():
            if option not in takes:
                raise _unknown(f"{key}.{name}.", option, list(takes))
            metadata: dict[str, Any] = {"minimum": 1} if takes[option] is int else {}
            if takes[option] is str:
                metadata["registry"] = _OPTION_NAMES[option]
            _value(takes[option], given, f"{key}.{name}.{option}", metadata)
    return value
