"""dvc.yaml against the code: a stage declares the modules it imports and the settings it reads.

DVC does not look into the scripts. What is not declared would not rerun a stage, and what is
declared in vain would rerun it in vain, so both directions are held.
"""

import ast
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from dvc.repo import Repo  # type: ignore[import-untyped]

from condensation.params import registry_names
from conftest import ROOT, leaves

STAGES = ROOT / "stages"
PACKAGE = STAGES / "condensation"
SCRIPTS = sorted(STAGES.glob("*.py"))
MODULES = sorted(STAGES.rglob("*.py"))
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
DECLARED: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BY_NETWORK = re.compile(
    rf"^(networks|baseline|evaluate)\.({'|'.join(registry_names('networks.py', 'NETWORKS'))}"
    r"|\$\{[^}]*\})(?=\.|$)"
)


class Stage(NamedTuple):
    """One stage of the expanded pipeline."""

    name: str
    script: Path
    modules: set[str]
    settings: list[tuple[Path, str]]


def expanded_stages() -> list[Stage]:
    """Return every stage as DVC sees it, one for each cell of a matrix."""
    stages = []
    with Repo(str(ROOT)) as repo:
        for stage in repo.index.stages:
            script = ROOT / next(word for word in shlex.split(stage.cmd) if word.endswith(".py"))
            files = [Path(dep.fs_path) for dep in stage.deps if dep.fs_path]
            settings = [
                (Path(dep.fs_path), key) for dep in stage.deps for key in getattr(dep, "params", [])
            ]
            modules = {relative(file) for file in files if file.is_relative_to(STAGES)}
            stages.append(Stage(stage.addressing, script, modules, settings))
    return stages


def relative(path: Path) -> str:
    """Return a path as dvc.yaml writes it."""
    return path.relative_to(ROOT).as_posix()


@cache
def read_settings(path: Path) -> dict[str, Any]:
    """Return a file of settings: the pipeline's, or that of a study."""
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


@cache
def imported(path: Path) -> frozenset[Path]:
    """Return the modules of stages/ that a file imports itself, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    found: set[Path] = set()
    for name in names:
        for end in range(1, name.count(".") + 2):  # importing a.b runs a as well
            base = STAGES.joinpath(*name.split(".")[:end])
            files = (base.with_suffix(".py"), base / "__init__.py")
            found.update(file for file in files if file.is_file())
    return frozenset(found)


def closure(path: Path) -> set[Path]:
    """Return a file and all modules of stages/ that run when it does."""
    seen, waiting = {path}, [path]
    while waiting:
        new = imported(waiting.pop()) - seen
        seen |= new
        waiting.extend(new)
    return seen


EXPANDED = expanded_stages()


@pytest.mark.parametrize("stage", [pytest.param(stage, id=stage.name) for stage in EXPANDED])
def test_a_stage_depends_on_the_modules_it_imports(stage: Stage) -> None:
    """Directly and through others; an empty `__init__.py` cannot change a result.

    A module has the source that it compiles beside it.
    """
    modules = closure(stage.script)
    modules |= {file.with_suffix(".cpp") for file in modules if file.with_suffix(".cpp").is_file()}
    needed = {relative(file) for file in modules if file.read_text().strip()}
    assert stage.modules == needed


def test_every_script_is_a_stage_and_every_module_is_used() -> None:
    assert sorted({stage.script for stage in EXPANDED}) == SCRIPTS
    for stage in EXPANDED:
        name, of_study = stage.name.split("@")[0], "dvc.yaml:" in stage.name
        assert name == stage.script.stem or (of_study and stage.script.stem not in DECLARED)
    assert {file for path in SCRIPTS for file in closure(path)} == set(MODULES)


@pytest.mark.parametrize("path", [pytest.param(path, id=relative(path)) for path in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    """Scripts import the package; nothing imports a script, and no module leads back to itself."""
    assert not imported(path) & set(SCRIPTS)
    assert all(path not in closure(module) for module in imported(path) - {path})
    assert path not in imported(path)


def test_no_module_hides_one_of_the_standard_library() -> None:
    """stages/ comes first on a script's path, so stages/random.py would be everyone's `random`."""
    names = {path.stem for path in MODULES} | {PACKAGE.name}
    assert not names & set(sys.stdlib_module_names)


# Settings. `networks.*.width` stands for the width of any network: which ones there are is the
# reader's choice, and the cells of a matrix differ in nothing else.


def any_network(key: str) -> str:
    """Return a key with its network, named or templated, replaced by `*`."""
    return BY_NETWORK.sub(r"\1.*", key)


KEYS = {any_network(key) for key in leaves(SETTINGS)}


def under(key: str) -> set[str]:
    """Return the keys of the values that a key covers: itself, or a whole section."""
    return {leaf for leaf in KEYS if leaf == key or leaf.startswith(f"{key}.")}


def declared_keys(name: str) -> list[str]:
    """Return the keys as dvc.yaml has them; a stage that runs elsewhere names the file, too."""
    keys: list[str] = []
    for entry in DECLARED[name]["params"]:
        keys += entry["../params.yaml"] if isinstance(entry, dict) else [entry]
    return keys


def declared(name: str) -> set[str]:
    """Return the keys of the values that a stage declares."""
    return {leaf for key in declared_keys(name) for leaf in under(any_network(key))}


@pytest.mark.parametrize("stage", [pytest.param(stage, id=stage.name) for stage in EXPANDED])
def test_declared_settings_exist(stage: Stage) -> None:
    for path, key in stage.settings:
        value: Any = read_settings(path)
        for part in key.split("."):
            assert part in value, f"{stage.name}: {key} is not in {relative(path)}"
            value = value[part]


def test_every_setting_is_of_some_stage() -> None:
    """And every stage names its settings: none takes the file as a whole."""
    assert all(
        isinstance(key, str) and under(any_network(key))
        for stage in DECLARED
        for key in declared_keys(stage)
    )
    assert set().union(*map(declared, DECLARED)) == KEYS


class SettingsRead(ast.NodeVisitor):
    """Collects the settings that a script reads, as `settings.epochs` after an assignment.

    Attributes:
        keys: Dotted keys; a section that is used as a whole is a key too.
    """

    def __init__(self, script: Path) -> None:
        """Read a script."""
        tree = ast.parse(script.read_text())
        self.keys: set[str] = set()
        self._names: dict[str, str] = {}  # of a variable -> the key it holds, "" for all settings
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and node.annotation is not None:
                if ast.unparse(node.annotation) == "Params":
                    self._bind(node.arg, "")
        assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        for _ in range(3):  # a name may come from another that is assigned further down
            for assignment in assignments:
                self._assign(assignment)
        self.visit(tree)

    def _bind(self, name: str, key: str) -> None:
        assert self._names.setdefault(name, key) == key, f"'{name}' holds two kinds of settings"

    def _assign(self, node: ast.Assign) -> None:
        (target,) = node.targets
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for name, value in pairs:
            if isinstance(name, ast.Name | ast.Attribute):
                if isinstance(value, ast.Call) and ast.unparse(value.func) == "load_params":
                    self._bind(ast.unparse(name), "")
                elif (key := self._key(value)) is not None and key not in KEYS:
                    self._bind(ast.unparse(name), key)

    def _key(self, node: ast.expr) -> str | None:
        if (held := self._names.get(ast.unparse(node))) is not None:  # also by self._params
            return held
        if isinstance(node, ast.Attribute | ast.Subscript):
            base = self._key(node.value)
            if base is None:
                return None
            part = node.attr if isinstance(node, ast.Attribute) else "*"
            # baseline.by_network[name] in the code is baseline.<name> in the file.
            return f"{base}.{part}".lstrip(".").replace(".by_network", "")
        return None

    def _visit_value(self, node: ast.expr) -> None:
        key = self._key(node)
        if key:
            self.keys.add(key)
        elif key is None:
            self.generic_visit(node)
        if isinstance(node, ast.Subscript):
            self.visit(node.slice)

    visit_Name = visit_Attribute = visit_Subscript = _visit_value

    def visit_Assign(self, node: ast.Assign) -> None:
        """Pass over a section that only gets a shorter name."""
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        for value in values:
            if (key := self._key(value)) is None or key in KEYS:
                self.visit(value)

    def visit_Call(self, node: ast.Call) -> None:
        """Take a copy of all settings for a use of each."""
        if ast.unparse(node.func) == "dataclasses.asdict" and self._key(node.args[0]) == "":
            self.keys.update(KEYS)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Pass over checks: what only raises an error changes no result."""
        if not isinstance(node.body[0], ast.Raise):
            self.generic_visit(node)


PIPELINE = [path for path in SCRIPTS if path.stem in DECLARED]
"""The scripts that read params.yaml; those of the studies read the study's."""


@pytest.mark.parametrize("script", [pytest.param(path, id=path.stem) for path in PIPELINE])
def test_a_stage_declares_the_settings_it_reads(script: Path) -> None:
    read = {leaf for key in SettingsRead(script).keys for leaf in under(key)}
    assert declared(script.stem) == read


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem) for p in MODULES if p.parent == PACKAGE]
)
def test_modules_take_values_rather_than_all_settings(path: Path) -> None:
    """Only the scripts read params.yaml, so that the test above sees every setting that is read."""
    if path.stem != "params":
        assert PACKAGE / "params.py" not in imported(path)
