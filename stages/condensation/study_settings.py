"""A study as data: its params.yaml, read and put together into the settings of each arm.

An arm is one condensation with its settings, repeated over independent sets. Its settings are those
of the repository's params.yaml, changed by `base`, by those of its panel and by its own, in this
order; keys are dotted, as `-S` takes them. Arms of one panel are drawn and compared together.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from condensation.settings_files import SettingsLoader

Settings = Mapping[str, Any]
"""Dotted key -> value."""

Grid = Mapping[str, Sequence[float]]
"""Dotted key -> the values that are tried, ascending."""

SECTIONS = ("title", "reference", "targets", "base", "tune", "panels", "arms", "published")
OF_TUNE = ("extensions", "settings", "grid")
OF_PANEL = ("title", "grid", "extensions", "tuning", "timed")
OF_ARM = ("panel", "label", "grid")


@dataclass(frozen=True)
class Arm:
    """One condensation of a study.

    Attributes:
        key: Its name in the file, and of its results.
        panel: The key of its panel.
        label: What the figures call it.
        settings: All that differ from the repository's params.yaml.
        grid: What is tuned on the validation split; empty where nothing is.
        extensions: How often the grid is extended while the best value lies at its edge.
        tuning: Settings of the runs of its tuning beside these; always on the validation split.
    """

    key: str
    panel: str
    label: str
    settings: Settings
    grid: Grid
    extensions: int
    tuning: Settings


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        folder: Where it is; its name is that of the study.
        title: What it asks, in a line.
        reference: The label of the arm of each panel that the others are compared with.
        targets: Accuracies, in percent, that the time to reach is told of.
        panels: Key -> title.
        untimed: The keys of panels whose seconds say nothing, as their arms shared the device.
        arms: By their keys.
        published: Label -> network -> published mean and standard deviation, in percent.
    """

    folder: Path
    title: str
    reference: str | None
    targets: tuple[float, ...]
    panels: Mapping[str, str]
    untimed: frozenset[str]
    arms: Mapping[str, Arm]
    published: Mapping[str, Mapping[str, Sequence[float]]]

    def arm(self, key: str) -> Arm:
        """Return one arm.

        Raises:
            ValueError: There is none of that name.
        """
        if key not in self.arms:
            raise ValueError(f"{self.folder}: got the arm {key}, takes {' | '.join(self.arms)}")
        return self.arms[key]

    def of_panel(self, panel: str) -> list[Arm]:
        """Return the arms of a panel, in the order of the file."""
        return [arm for arm in self.arms.values() if arm.panel == panel]


def load_study(folder: Path) -> Study:
    """Read a study's params.yaml.

    Raises:
        ValueError: The file cannot be read, has an unknown key, or an arm names no panel.
    """
    path = folder / "params.yaml"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), SettingsLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    _check_keys(path, "the study", values, SECTIONS, needed=("title", "base", "panels", "arms"))
    tune = values.get("tune") or {}
    _check_keys(path, "tune", tune, OF_TUNE)
    tuning = tune.get("settings") or {}
    panels = {key: panel or {} for key, panel in values["panels"].items()}
    for key, panel in panels.items():
        if not isinstance(panel.get("timed", True), bool):
            raise ValueError(
                f"{path}: panels.{key}.timed: got {panel['timed']!r}, takes true | false"
            )
    arms = {}
    for key, own in values["arms"].items():
        _check_keys(path, f"arms.{key}", own, needed=("panel",))
        name = own["panel"]
        if name not in panels:
            raise ValueError(f"{path}: arms.{key}.panel: got {name}, takes {' | '.join(panels)}")
        layers = (values["base"], _without(panels[name], OF_PANEL), _without(own, OF_ARM))
        grids = [part["grid"] for part in (own, panels[name], tune) if "grid" in part]
        grid = (grids[0] if grids else None) or {}
        for tuned, tried in grid.items():
            _check_grid(f"{path}: grid of arms.{key}: {tuned}", tried)
        label = str(own.get("label", key.removeprefix(f"{name}-")))
        settings = {setting: value for layer in layers for setting, value in layer.items()}
        extensions = panels[name].get("extensions", tune.get("extensions", 0))
        own_tuning = {**tuning, **panels[name].get("tuning", {})}
        arms[key] = Arm(key, name, label, settings, grid, extensions, own_tuning)
        split = arms[key].tuning.get("split", "validation")
        if split != "validation":
            raise ValueError(
                f"{path}: arms.{key}: split of its tuning: got {split}, takes validation"
            )
    return Study(
        folder=folder,
        title=values["title"],
        reference=values.get("reference"),
        targets=tuple(values.get("targets") or ()),
        panels={key: str(panel.get("title", key)) for key, panel in panels.items()},
        untimed=frozenset(key for key, panel in panels.items() if not panel.get("timed", True)),
        arms=arms,
        published=values.get("published") or {},
    )


def changed(values: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a copy of nested settings with some of them changed by their dotted keys.

    Raises:
        ValueError: There is no such setting.
    """
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = copy
        for part in sections:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict) or name not in section:
            raise ValueError(f"{key}: there is no such setting in params.yaml")
        section[name] = value
    return copy


def digest(value: object) -> str:
    """Return 16 hexadecimal digits that differ when a value of JSON does."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _check_keys(
    path: Path,
    what: str,
    values: object,
    takes: Sequence[str] | None = None,
    needed: Sequence[str] = (),
) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {what}: got {values!r}, takes a section")
    problems: Iterator[str] = iter(
        [f"{key}: is missing" for key in needed if key not in values]
        + [
            f"{key}: unknown; takes {', '.join(takes)}"
            for key in values
            if takes and key not in takes
        ]
    )
    for problem in problems:
        raise ValueError(f"{path}: {what}: {problem}")


def _check_grid(what: str, tried: Sequence[float]) -> None:
    numbers = isinstance(tried, list) and all(isinstance(value, int | float) for value in tried)
    if not numbers or not tried or sorted({*tried}) != tried or tried[0] <= 0:
        raise ValueError(f"{what}: got {tried!r}, takes a list of numbers above 0, ascending")
