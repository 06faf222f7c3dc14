"""The repository as a reader finds it: its files, its lock file, its requirements, its README."""

import ast
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.cli.parser import get_main_parser  # type: ignore[import-untyped]

from command_folder import CommandFolder
from condensation.params import load_params, registry_names
from conftest import ROOT

TOP_LEVEL = {
    *("stages", "params.yaml", "dvc.yaml", "dvc.lock", "data", "results", "tests"),
    *("requirements.txt", "README.md", "pyproject.toml", "LICENSE"),
}
LARGEST = 2_000_000
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|tmp|work|mnt|var|opt)/\w")
REGISTRIES = {
    "network": ("networks.py", "NETWORKS"),
    "init": ("initialisers.py", "INITIALISERS"),
    "condense.distance": ("distances.py", "DISTANCES"),
    "condense.curvature.form": ("curvature.py", "CURVATURE_FORMS"),
    "condense.real_precision": ("precisions.py", "PRECISIONS"),
    "condense.network_precision": ("precisions.py", "PRECISIONS"),
    "networks.convnet.activation": ("layers.py", "ACTIVATIONS"),
    "networks.convnet.norm": ("normalisation.py", "NORMS"),
    "networks.convnet.pooling": ("layers.py", "POOLINGS"),
    "networks.resnet18.downsampling": ("deep_networks.py", "DOWNSAMPLINGS"),
    "evaluate.augmentation": ("augmentation.py", "AUGMENTATIONS"),
    "evaluate.protocol": ("protocols.py", "PROTOCOLS"),
    "condense.image_schedule": ("training.py", "SCHEDULES"),
}
"""A setting -> where the names that it takes are registered."""

HEADERS = {"network": "network", "initialiser": "init"}
"""The head of a column of a table -> the setting whose names stand below it."""

UNTOLD = {"init", "networks.convnet.activation", "networks.resnet18.downsampling"}
"""Settings that have no row in the table of those with names."""

PROGRAMS = {
    "git",
    "cd",
    "python",
    "python3",
    "pip",
    "dvc",
    "pytest",
    "ruff",
    "mypy",
    "source",
    ".",
    "torchrun",
}
README = (ROOT / "README.md").read_text()
READMES = [
    Path("README.md"),
    *sorted(path.relative_to(ROOT) for path in ROOT.glob("results/**/README.md")),
]
"""That of the repository, the benchmarks' and each study's."""
STUDIES = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("results/studies/*/dvc.lock"))
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def git(*arguments: str) -> str:
    """Return what Git says about this repository."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@cache
def files() -> tuple[Path, ...]:
    """Return the files that Git holds or would take."""
    listing = git("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    return tuple(ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file())


# Files


def test_the_top_level_holds_what_it_should() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_only_the_raw_data_are_large() -> None:
    large = [path for path in files() if path.stat().st_size > LARGEST]
    assert [path for path in large if not path.is_relative_to(ROOT / "data/mnist")] == []


def test_no_file_names_a_place_on_some_machine() -> None:
    found = []
    for path in files():
        content = path.read_bytes()
        if not path.is_relative_to(ROOT / "data") and b"\0" not in content:
            for number, line in enumerate(content.decode().splitlines(), start=1):
                if MACHINE_PATH.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line[:100]}")
    assert found == []


def test_outputs_are_in_git_or_in_the_cache() -> None:
    """Ignored by Git where DVC's cache holds them, and only there."""
    for stage in STAGES.values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            place = Path(stage.get("wdir", "."), path).as_posix()
            command = ["git", "check-ignore", "--quiet", "--no-index", f"{place}/"]
            ignored = subprocess.run(command, cwd=ROOT).returncode == 0
            assert ignored == options.get("cache", True), path


Command = Callable[..., str]
"""`(words of a command)` -> what it prints."""


@pytest.fixture(scope="module")
def in_a_clone(
    command_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Command]:
    """Runs a command in a clone of the last commit."""
    folder = tmp_path_factory.mktemp("committed")
    git("clone", "--quiet", str(ROOT), str(folder / "clone"))
    environment = {**command_environment, "DVC_SITE_CACHE_DIR": str(folder / "site")}
    yield CommandFolder(folder / "clone", environment).run
    shutil.rmtree(folder)


def test_the_committed_results_are_those_of_the_committed_pipeline(in_a_clone: Command) -> None:
    """DVC would run no stage: settings, code and results are those of dvc.lock."""
    said = in_a_clone("dvc", "repro", "--dry", "--allow-missing")
    # DVC ends with status 0 whether or not there is something to run.
    assert re.findall("^Running stage '(.+)'", said, re.MULTILINE) == [] and "up to date" in said


@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_cells_are_those_of_the_committed_studies(
    study: Path, in_a_clone: Command
) -> None:
    """DVC would measure no arm again, nor draw the figures."""
    listed = json.loads(in_a_clone("dvc", "status", "--json", f"{study}/dvc.yaml"))
    stale = [name.rpartition(":")[2] for name in listed]
    measured = {path.name for path in (ROOT / study / "cells").iterdir()}
    assert [name for name in stale if name.rpartition("@")[2] in {"summarize", *measured}] == []


# Requirements


def canonical(name: str) -> str:
    """Return a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> tuple[set[str], set[str]]:
    """Return the packages of requirements.txt: to run the pipeline, and to develop it."""
    run, development = (ROOT / "requirements.txt").read_text().split("# Development tools")
    names = [
        {canonical(name) for name in re.findall(r"^([A-Za-z][\w.-]*)", part, re.MULTILINE)}
        for part in (run, development)
    ]
    return names[0], names[1]


def third_party(folder: str) -> set[str]:
    """Return the packages that provide what the Python files of a folder import."""
    names: set[str] = set()
    own = {path.stem for part in ("stages", "tests") for path in (ROOT / part).iterdir()}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    provided = packages_distributions()
    foreign = names - own - sys.stdlib_module_names
    return {canonical(provided[name][0]) for name in foreign}


WITH_TORCH = {"triton"}
"""What PyTorch brings where it has CUDA; elsewhere nothing imports it."""


def test_requirements_are_what_the_stages_import() -> None:
    assert required()[0] - {"dvc"} == third_party("stages") - WITH_TORCH


def test_requirements_are_enough_for_the_tests() -> None:
    run, development = required()
    assert third_party("tests") - WITH_TORCH <= run | development
    assert not run & development


# README.md


def mentioned(text: str) -> set[str]:
    """Return what is set as `code` within the prose of a text."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)))


@pytest.mark.parametrize("stage", STAGES)
def test_the_readme_names_each_stage(stage: str) -> None:
    assert stage in mentioned(README)


DESCRIBED = "condense.curvature.form"
"""The comment beside it says what each of its names is."""


@pytest.mark.parametrize("key", [key for key in REGISTRIES if key != DESCRIBED])
def test_params_and_readme_name_what_is_registered(key: str) -> None:
    """The comment beside a setting lists the names it takes: `noise | real | mean`, or `auto`."""
    names = registry_names(*REGISTRIES[key])
    setting = key.rpartition(".")[2]
    text = re.sub(r"\|\n +# *", "| ", (ROOT / "params.yaml").read_text())  # a list may go on
    lines = re.findall(rf"^ *{setting}: .*$", text, re.MULTILINE)
    lists = [
        re.findall(r"\w+", found) for found in re.findall(r"\w+(?: \| \w+)+", "\n".join(lines))
    ]
    assert [set(found) - {"auto"} for found in lists] == [set(names)]
    if key in ("network", "init", "condense.distance"):
        assert set(names) <= mentioned(README)


def test_params_says_what_each_form_of_curvature_is() -> None:
    """`name, name: what it is | name: what it is`."""
    text = (ROOT / "params.yaml").read_text()
    (comment,) = re.findall(r"^ *form: \w+ +# (.*(?:\n +# .*)*)", text, re.MULTILINE)
    parts = re.sub(r"\n +# ", " ", comment).split(" | ")
    told = [name for part in parts for name in part.partition(":")[0].split(", ")]
    assert told == [*registry_names(*REGISTRIES[DESCRIBED])]


def tables() -> Iterator[list[list[str]]]:
    """Yield each table of the README as rows of cells, the header first."""
    for text in re.findall(r"(?:^\|.*\|\s*\n)+", README + "\n", re.MULTILINE):
        rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.strip()]
        yield [[cell.strip() for cell in row] for row in rows]


def test_tables_of_the_readme_name_what_exists() -> None:
    """First columns headed stage, network and so on hold names of the code."""
    known = {"stage": set(STAGES)}
    for header, key in HEADERS.items():
        known[header] = set(registry_names(*REGISTRIES[key]))
    heads, keys = set(), set()
    for head, *rows in tables():
        name = head[0].lower().strip("` *")
        if name in known:
            heads.add(name)
            written = {name.split("@")[0] for row in rows for name in mentioned(row[0])}
            assert written <= known[name], f"| {' | '.join(head)} |"
        for first, *others in rows:
            for key in mentioned(first) & REGISTRIES.keys():
                assert set(registry_names(*REGISTRIES[key])) <= mentioned(" ".join(others)), first
                keys.add(key)
    assert heads == known.keys() and keys == REGISTRIES.keys() - UNTOLD


def test_what_the_readme_sets_as_code_exists() -> None:
    """Files, settings and registries."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    modules = "\n".join(path.read_text() for path in files() if path.suffix == ".py")
    for name in mentioned(README):
        if re.fullmatch(r"[\w.<>-]+(/[\w.<>-]+)+/?|[\w-]+\.(py|txt|yaml|toml|lock)", name):
            check_file(name)
        elif re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name) and name.split(".")[0] in settings:
            section: Any = settings
            for part in name.split("."):
                assert part in section, f"README.md: no setting {name}"
                section = section[part]
        elif re.fullmatch(r"[A-Z][A-Z_]{3,}", name):
            assert re.search(rf"^{name}\b", modules, re.MULTILINE), f"README.md: no {name}"


def commands_of(text: str) -> list[str]:
    """Return each command of a README's blocks of shell commands."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line.removeprefix("$ ") for line in lines]
    return [part for line in commands for part in re.split(r"\s+(?:&&|;)\s+", line) if part]


def output_paths() -> list[str]:
    """Return what stages and commands write, which need not exist yet."""
    paths = [
        Path(stage.get("wdir", "."), next(iter(out)) if isinstance(out, dict) else out).as_posix()
        for stage in STAGES.values()
        for out in stage.get("outs", [])
    ]
    return [*paths, "data/raw/", "dvc_plots/", ".venv/", ".pytest_cache/"]


def check_file(name: str) -> None:
    """Check that a file that a README names exists, or is written by the pipeline."""
    written = any(name.startswith(path.split("${")[0]) for path in output_paths())
    assert (ROOT / name).exists() or written, f"there is no {name}"


def check_settings(assignments: list[str], tmp_path: Path) -> None:
    """Check that the settings of `-S key=value` exist and take the values, all of them together."""
    settings: Any = yaml.safe_load((ROOT / "params.yaml").read_text())
    takes: list[tuple[dict[str, Any], str, list[Any]]] = []
    for assignment in assignments:
        key, _, given = assignment.partition("=")
        *sections, name = key.split(".")
        section = settings
        for part in sections:
            section = section.get(part, {})
        assert name in section, f"no setting {key}"
        if "(" not in given:
            values = [given] if given.startswith("[") else given.split(",")
            takes.append((section, name, [yaml.safe_load(value) for value in values]))
            section[name] = takes[-1][2][0]
    for section, name, loaded in takes:
        for value in loaded:
            section[name] = value
            (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
            load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_commands_of_a_readme_are_right(readme: Path, tmp_path: Path) -> None:
    """Programs, subcommands, options, stages, settings and files; nothing is run."""
    commands = commands_of((ROOT / readme).read_text())
    assert commands
    for line in commands:
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program, *arguments = words
        assert program in PROGRAMS or (ROOT / program).is_file(), f"{readme}: {line}"
        if program == "dvc":
            parsed = get_main_parser().parse_args(arguments)  # raises for what dvc does not take
            check_settings(getattr(parsed, "set_param", None) or [], tmp_path)
            if arguments[0] in ("repro", "exp") and getattr(parsed, "func", None):
                for target in getattr(parsed, "targets", None) or []:
                    known = target.split("@")[0] in STAGES or (ROOT / target).is_file()
                    assert known, f"{readme}: no stage {target}"
        for word in arguments if program not in ("git", "cd") else []:
            looks_like_file = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|txt|yaml|md)", word)
            if looks_like_file and not re.match(r"-|https?:", word):
                check_file(word.split("::")[0])


@pytest.mark.parametrize("expected", ["pip install -r requirements.txt", "pytest", "dvc repro"])
def test_the_readme_says_how_to_begin(expected: str) -> None:
    assert any(expected in line for line in commands_of(README))


def anchors(text: str) -> set[str]:
    """Return what links to the headings of a README end with, after `#`."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_of_a_readme_lead_somewhere(readme: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / readme).read_text())
    assert links
    for link in links:
        if not re.match(r"https?:|mailto:", link):
            name, _, anchor = link.partition("#")
            target = (ROOT / readme.parent / name).resolve() if name else ROOT / readme
            assert target in files() or target.is_dir(), f"{readme}: no {name}"
            assert not anchor or anchor in anchors(target.read_text()), f"{readme}: no #{anchor}"


@pytest.mark.parametrize("network", load_params(ROOT / "params.yaml").evaluate.networks)
def test_the_readme_tells_the_measured_figures(network: str) -> None:
    measured: dict[str, Any] = {}
    for stage in ("baseline", "evaluate"):
        path = ROOT / "results" / stage / network / "metrics.json"
        measured |= json.loads(path.read_text())[network]
    (row,) = [
        row for row in README.splitlines() if row.startswith(f"| `{network}` |") and "±" in row
    ]
    assert "{accuracy:.1f} ± {std:.1f} (n = {n})".format(**measured) in row
    assert "{ceiling:.2f} ± {ceiling_std:.2f} (n = {ceiling_n})".format(**measured) in row
    assert "{retained:.1f} %".format(**measured) in row


DATASETS = ROOT / "results/studies/datasets"
SUMMARY = (DATASETS / "summary.csv").read_text().splitlines()
MEASURED = {row["label"]: row for row in csv.DictReader(SUMMARY)}
"""What an arm is called -> its last iteration."""


@pytest.mark.parametrize("label", MEASURED)
def test_the_readme_tells_what_the_study_of_data_measured(label: str) -> None:
    published = yaml.safe_load((DATASETS / "params.yaml").read_text())["published"][label]
    last = MEASURED[label]
    mean, std = published[last["network"]]
    accuracy = float(last["accuracy"])
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    ours = f"{accuracy:.2f} ± {float(last['std']):.2f} (n = {last['networks']})"
    told = [cell.strip() for cell in line.strip("|").split("|")]
    difference = f"{accuracy - mean:+.2f}"
    assert told[:5] == [label, last["iteration"], ours, f"{mean} ± {std}", difference]
    tables = (DATASETS / "tables.md").read_text().splitlines()
    (row,) = [row for row in tables if row.startswith(f"| {label} |")]
    assert f"| {accuracy:.1f} ± " in row
