"""One run of the pipeline's own stages in a folder of its own.

`.checkpoints/studies/<digest>/` holds the settings and whatever the stages write. The name is a
digest of the settings and of the code, so that a run that was interrupted goes on, by the stages'
own checkpoints, and is never continued with another code. Prepared data are made once for all runs
that have the same.
"""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from condensation.files import write_at_once
from condensation.settings_files import SettingsLoader
from condensation.study_settings import Settings, changed, digest

if sys.platform != "win32":
    import fcntl

STAGES = Path(__file__).resolve().parent.parent
ROOT = STAGES.parent
FOLDER = ROOT / ".checkpoints/studies"
OUTPUTS = ("prepared", "initial", "condensed")
"""What of data/ the stages write."""


class DivergedError(ValueError):
    """The images or a network of a run are no numbers any more."""


class Run:
    """A run of the stages with some settings.

    Attributes:
        folder: Where it takes place.
        values: All settings, nested as in params.yaml.
    """

    def __init__(self, settings: Settings) -> None:
        """Name the run; nothing happens yet.

        Args:
            settings: Changes to the repository's params.yaml, by their dotted keys.

        Raises:
            ValueError: There is no such setting.
        """
        committed = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), SettingsLoader)
        self.values: dict[str, Any] = changed(committed, settings)
        self.folder = FOLDER / digest([self.values, code_digest()])

    @property
    def networks(self) -> list[str]:
        """The networks that are evaluated."""
        networks: list[str] = self.values["evaluate"]["networks"]
        return networks

    def complete(self) -> None:
        """Run the stages that have not been finished.

        Raises:
            DivergedError: The images or a network are no numbers any more.
            ValueError: A stage fails otherwise, for instance at a setting it does not take.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.values, sort_keys=False)
        write_at_once(self.folder / "params.yaml", text.encode())
        for name in self.networks:
            # Accuracies are compared with ceilings afterwards, if at all: a study does not.
            text = json.dumps({name: {"ceiling": 100.0}})
            write_at_once(self.folder / f"results/baseline/{name}/metrics.json", text.encode())
        prepared = self.folder / "data/prepared"
        if not prepared.exists():
            prepared.parent.mkdir(exist_ok=True)
            prepared.unlink(missing_ok=True)  # a link to what has been removed
            prepared.symlink_to(prepare(self.values))
        for stage in (
            "initialize",
            "condense",
            *(f"evaluate --network {n}" for n in self.networks),
        ):
            if not any(row["stage"] == stage and row["status"] == 0 for row in self.attempts()):
                self._attempt(stage)

    def attempts(self) -> list[dict[str, Any]]:
        """Return the stages that have been run: stage, status, seconds, cpu_seconds."""
        path = self.folder / "attempts.json"
        attempts: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        return attempts

    def seconds(self, stage: str, kind: str = "seconds") -> float:
        """Return how long a stage took, in all attempts together.

        Args:
            stage: The beginning of its name; an empty text stands for all stages.
            kind: `seconds`, or `cpu_seconds` for those of all processors together.
        """
        rows = [row for row in self.attempts() if row["stage"].startswith(stage)]
        return round(sum(float(row[kind]) for row in rows), 2)

    def remove(self) -> None:
        """Remove the folder, whose results have been taken."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _attempt(self, stage: str) -> None:
        start, before = time.perf_counter(), time.process_time()
        status = 1
        try:
            run_script(self.folder, stage)
            status = 0
        finally:
            row = {
                "stage": stage,
                "status": status,
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - before, 2),
            }
            text = json.dumps([*self.attempts(), row])
            write_at_once(self.folder / "attempts.json", text.encode())


def prepare(values: dict[str, Any]) -> Path:
    """Make the prepared data of some settings, unless they are there, and return their folder.

    Arms that are run at once have them made by one, and wait for it.
    """
    own = {"dataset": values["dataset"], "prepare": values["prepare"]}
    name = f"prepared-{digest(own)}"
    folder = FOLDER / f"{name}-{code_digest()[:8]}"
    with _one_process(FOLDER / f"{name}.lock"):
        if not (folder / "finished").exists():
            for older in FOLDER.glob(f"{name}-*"):
                shutil.rmtree(older, ignore_errors=True)
            _prepare(folder, values)
    return folder / "data/prepared"


def _prepare(folder: Path, values: dict[str, Any]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (ROOT / "data/raw").mkdir(exist_ok=True)
    for raw in (ROOT / "data").iterdir():
        link = folder / "data" / raw.name
        if raw.name not in OUTPUTS and not link.is_symlink():
            link.symlink_to(raw)
    write_at_once(folder / "params.yaml", yaml.safe_dump(values, sort_keys=False).encode())
    run_script(folder, "prepare")
    (folder / "finished").touch()


@contextmanager
def _one_process(path: Path) -> Generator[None]:
    # The others wait, by a lock on a file, which the system takes from a process that dies; where
    # it has no such locks (Windows) none waits.
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_script(folder: Path, stage: str) -> None:
    """Run a stage, `evaluate --network mlp` for instance, in a folder.

    As its script does, and in this process: PyTorch takes longer to start than many a stage to run.
    Interrupted, the stage writes its checkpoint and ends this process as it would its own.

    Raises:
        DivergedError: The images or a network are no numbers any more.
        ValueError: The stage fails otherwise.
        SystemExit: The stage was interrupted.
    """
    name, *arguments = stage.split()
    script = STAGES / f"{name}.py"
    here, argv = Path.cwd(), sys.argv
    try:
        os.chdir(folder)
        sys.argv = [str(script), *arguments]
        with _leaving_no_modules():
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:  # of a user's mistake the code is the message
        if not isinstance(ended.code, str):
            raise
        kind = DivergedError if "not finite" in ended.code else ValueError
        raise kind(ended.code) from None
    finally:
        os.chdir(here)
        sys.argv = argv


@contextmanager
def _leaving_no_modules() -> Generator[None]:
    # A checkpoint is of the code that is loaded: a stage has to find what it would in a process of
    # its own, whether or not another has run before it in this one.
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            source = getattr(sys.modules[name], "__file__", None)
            if source and Path(source).resolve().is_relative_to(STAGES):
                del sys.modules[name]
                parent, _, own = name.rpartition(".")
                if parent in sys.modules:
                    vars(sys.modules[parent]).pop(own, None)


@cache
def code_digest() -> str:
    """Return 16 hexadecimal digits that differ when the code of the stages does.

    The code of studies is left out: it has no part in the numbers.
    """
    sources = [*STAGES.rglob("*.py"), *STAGES.rglob("*.cpp")]
    files = sorted(file for file in sources if not file.stem.startswith(("stud", "summ")))
    content = b"".join(file.name.encode() + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()[:16]


def commit() -> tuple[str | None, bool]:
    """Return the commit that the repository is at, and whether the code differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "stages", "params.yaml")
        return git("rev-parse", "HEAD"), changes != ""
    except (OSError, subprocess.CalledProcessError):
        return None, False
