"""The benchmark: reference and engine side by side, into `results/benchmarks/<device>.json`.

A run goes on with the cases that the file does not have yet, and stops when its time is over; what
has not run is null in the file, and "not measured" in the table. A case of which a process died is
there with the reason, and tried again with `--again` alone. Each case has its own date and commit.
Time and memory are those of processes of their own (`worker.py`), which take turns.
"""

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stages"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.cases import ALL, KINDS, NETWORKS, Case, precision
from benchmarks.measure import Effort, Record, ceilings, interleave, rates, rounded
from benchmarks.tables import show
from benchmarks.worker import Died, TooLong, Worker, serve
from condensation.devices import choose_device
from condensation.files import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results/benchmarks"
EFFORT = {"cpu": Effort(10, fewest=3, most=15), "cuda": Effort(4, fewest=3, most=15)}
"""By type of device."""
FEW = Effort(seconds=10, fewest=1, most=15)
"""Of an iteration, which takes minutes on a CPU and is many steps in itself."""


def machine(device: torch.device) -> Record:
    """Return what the figures were measured on."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {threads()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def threads() -> str:
    """Return the number of threads in words."""
    return f"{torch.get_num_threads()} threads"


def processor() -> str:
    """Return the processor's name, and what it calculates with."""
    try:
        (name,) = re.findall("^model name\\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[:1]
    except (OSError, ValueError):
        name = platform.processor()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def commit() -> str:
    """Return the commit of the code, with a + where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "stages", "tests")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except FileNotFoundError:  # no Git: a copy of the files alone
        return ""


def result_file(about: Record, prefix: str = "") -> Path:
    """Return the file of the figures of a machine."""
    name = re.sub("[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    return RESULTS / f"{prefix}{name}.json"


Workers = dict[str, Worker]
"""Of a case, the process of each side."""


def make_ready(workers: Workers, end: float, first: bool) -> None:
    """Wait until the processes of a case are ready; with their first call, if it is asked for.

    Not that of the reference, which compiles nothing: processes that all use an accelerator get
    slices of its time, and hold each other up.
    """
    for side, worker in workers.items():
        for what in ("ready", "run") if first and side != "reference" else ("ready",):
            with suppress(TooLong, Died):  # which come again when it is measured
                worker.ask(what, end - time.monotonic())


def measure(case: Case, workers: Workers, device: torch.device, end: float, called: bool) -> Record:
    """Measure one case.

    Args:
        case: What it is.
        workers: Of its sides, ready.
        device: Where they are.
        end: Until when, of `time.monotonic`.
        called: Whether their first call has been made, beside those of others, and so not timed.

    Raises:
        TooLong: There was not enough time.
        Died: A process has ended.
    """

    def ask(worker: Worker, what: str) -> Any:
        return worker.ask(what, end - time.monotonic())

    sides = [*workers]
    timers = {side: partial(ask, worker, "run") for side, worker in workers.items()}
    found = interleave(timers, FEW if case.kind == "iteration" else EFFORT[device.type])
    if called:
        for each in found.values():
            each["first_call"] = None
    for side, worker in workers.items():
        spent = found[side]["seconds"]
        if case.kind != "processes":  # whose work is done elsewhere
            found[side]["peak_bytes"] = ask(worker, "peak")
            if (reserved := ask(worker, "reserved")) is not None:
                found[side]["reserved_bytes"] = reserved
        if case.kind == "evaluation":
            found[side]["networks_per_second"] = rates(NETWORKS, spent)
        if case.kind.startswith("step") and "reference" in workers:
            # The same operations for both: what the reference calculates.
            amount = ask(worker, "work")
            flop = amount["flop"] if side == "reference" else found["reference"]["flop"]
            found[side] |= {
                "precision": precision(case, device, side),
                "flop": flop,
                "operator_bytes": amount["bytes"],
                "flop_per_second": rates(flop, spent),
                "operator_bytes_per_second": rates(amount["bytes"], spent),
            }
    first, last = (found[side]["seconds"]["median"] for side in (sides[0], sides[-1]))
    return {"sides": found, "times_as_fast": rounded(first / last)}


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-budget", type=float, default=1200, help="seconds (1200)")
    parser.add_argument("--only", default="", help="regular expression: cases whose name has it")
    parser.add_argument("--again", action="store_true", help="measure again what the file has")
    parser.add_argument(
        *("--ready-at-once", "-r"),
        type=int,
        default=1,
        help="cases whose first calls are made side by side, and not timed (1)",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, sys.stdin, sys.stdout)
        return
    device = choose_device(given.device)
    end = time.monotonic() + given.time_budget
    about = machine(device)
    path = result_file(about)
    found = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases: dict[str, Record | None] = {case.name: found.get(case.name) for case in ALL}
    stamp = {"date": f"{datetime.date.today()}", "commit": commit()}
    written = {
        "machine": about,
        "ceilings": {**ceilings(device, EFFORT[device.type]), **stamp},
        "cases": cases,
    }
    chosen = [
        case
        for case in ALL
        if re.search(given.only, case.name) and (given.again or cases[case.name] is None)
        if KINDS[case.kind].sides(device)
    ]
    several = given.ready_at_once > 1
    for first in range(0, len(chosen), given.ready_at_once):
        batch = chosen[first : first + given.ready_at_once]
        if time.monotonic() > end:
            break
        with ExitStack() as stack:
            ready = [
                {
                    side: stack.enter_context(closing(Worker(case, side, device)))
                    for side in KINDS[case.kind].sides(device)
                }
                for case in batch
            ]
            with ThreadPoolExecutor(len(batch)) as threads:
                getting = [threads.submit(make_ready, workers, end, several) for workers in ready]
                for each in getting:
                    each.result()
            for case, workers in zip(batch, ready, strict=True):
                print(f"{case.name} ...", file=sys.stderr, flush=True)
                try:
                    cases[case.name] = {**measure(case, workers, device, end, several), **stamp}
                except TooLong:
                    continue  # a shorter one may still fit
                except Died as reason:
                    cases[case.name] = {"died": f"{reason}", **stamp}
                write_json(path, written)
    write_json(path, written)
    print(show(written))


if __name__ == "__main__":
    main()
