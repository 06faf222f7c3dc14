"""One arm of a study: its settings tuned on the validation split, or itself measured.

python stages/study.py tune results/studies/<study> <arm>   -> tuning/<arm>.csv
python stages/study.py cell results/studies/<study> <arm>   -> cells/<arm>/

The pipeline's own stages do the work, in a folder of its own; run again after an interruption, it
goes on from there.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from condensation.files import together
from condensation.study_records import (
    describe,
    device_of,
    protocols_of,
    read_chosen,
    tuning_score,
    write_cell,
    write_tuning,
)
from condensation.study_runs import DivergedError, Run, commit
from condensation.study_settings import Arm, Study, load_study
from condensation.study_tuning import Score, Search, Values, search


def main() -> None:
    """Do one of the two for one arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tune", "cell"])
    parser.add_argument("study", type=Path, help="its folder")
    parser.add_argument("arm", help="a key of `arms` in its params.yaml")
    given = parser.parse_args()
    study = load_study(given.study)
    arm = study.arm(given.arm)
    if given.what == "tune":
        tune(study, arm)
    else:
        measure(study, arm)


def tune(study: Study, arm: Arm) -> None:
    """Try the arm's grid, and write what came of each point."""
    runs: list[Run] = []

    def attempt(values: Values) -> Score:
        run = Run({**arm.settings, **arm.tuning, "split": "validation", **values})
        runs.append(run)
        print(f"study: {study.folder.name}: {arm.key}: tries {describe(values)}", flush=True)
        try:
            run.complete()
            score = tuning_score(run)
        except DivergedError as error:
            print(f"study: {describe(values)} diverges: {error}", flush=True)
            return Score(None, None, 0, run.seconds(""))
        print(f"study: {describe(values)}: {score.accuracy}% (n = {score.n} sets)", flush=True)
        return score

    found = search(arm.grid, arm.extensions, attempt) if arm.grid else Search([], {}, [])
    write_tuning(study.folder / f"tuning/{arm.key}.csv", found)
    for run in runs:
        run.remove()


def measure(study: Study, arm: Arm) -> None:
    """Run the arm with its chosen values, and keep what was measured."""
    chosen = read_chosen(study.folder / f"tuning/{arm.key}.csv")
    run = Run({**arm.settings, **chosen})
    print(f"study: {study.folder.name}: {arm.key}: {describe(chosen) or 'measures'}", flush=True)
    run.complete()
    revision, modified = commit()
    packages = ("torch", "numpy")
    record: dict[str, Any] = {
        "study": study.folder.name,
        "arm": arm.key,
        "panel": arm.panel,
        "label": arm.label,
        "chosen": chosen,
        "commit": revision,
        "modified": modified,
        "device": device_of(run),
        "versions": {"python": sys.version.split()[0], **{p: version(p) for p in packages}},
        "seconds": {
            "initialize": run.seconds("initialize"),
            "condense": run.seconds("condense"),
            "condense_cpu": run.seconds("condense", "cpu_seconds"),
            "evaluate": run.seconds("evaluate"),
        },
        "protocols": protocols_of(run),
        "settings": run.values,
    }
    with together():
        write_cell(study.folder / f"cells/{arm.key}", run, record)
    run.remove()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"study: {error}")
