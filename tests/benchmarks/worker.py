"""One side of a case in a process of its own, which runs it whenever it is asked to.

A process for each side: the engine's is set up as the stages set themselves up, the reference's is
not; the peak of memory is that of one side; and the two take turns.
"""

import json
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.cases import KINDS, Case
from benchmarks.measure import Peak, Record, timed, work
from condensation.errors import one_line

SCRIPT = Path(__file__).with_name("benchmark.py")


class TooLong(Exception):
    """A run takes longer than there is time."""


class Died(Exception):
    """The process of a side has ended by itself; says which side, and why."""


class Worker:
    """A process for one side of a case, from outside."""

    def __init__(self, case: Case, side: str, device: torch.device) -> None:
        """Start it; it draws its inputs."""
        self._side, self._late, self._why = side, False, ""
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--serve", json.dumps([asdict(case), side, device.type])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str, seconds: float) -> Any:
        """Return the answer to `ready`, `run` (seconds), `peak`, `reserved` (bytes) or `work`.

        Raises:
            TooLong: There is none within `seconds`.
            Died: The process cannot give one, or has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        limit = threading.Timer(max(seconds, 0), self._stop)
        limit.start()
        try:
            with suppress(BrokenPipeError):  # it may have said why before it ended
                self._process.stdin.write(f"{what}\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
        if not line and self._late:
            raise TooLong
        answer = json.loads(line) if line else None
        if isinstance(answer, dict) and "error" in answer:
            self._why = answer["error"]
        elif line:
            return answer
        self._why = self._why or self._how_it_ended()
        raise Died(f"{self._side}: {self._why}")

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"


def serve(description: str, requests: TextIO, answers: TextIO) -> None:
    """Be such a process: answer each line with a line of JSON, an error with its text, the last."""
    try:
        _answer(description, requests, answers)
    except Exception as error:
        traceback.print_exc()
        said = {"error": one_line(f"{type(error).__name__}: {error}")}
        print(json.dumps(said), file=answers, flush=True)


def _answer(description: str, requests: TextIO, answers: TextIO) -> None:
    sizes, side, device_type = json.loads(description)
    case, device = Case(**sizes), torch.device(device_type)
    run = KINDS[case.kind].make(case, device, side)
    peak = Peak(device)
    for request in requests:
        what = request.strip()
        answer: Any = None
        if what == "run":
            answer = timed(run, device)
        elif what == "peak":
            answer = peak.bytes()
        elif what == "reserved":
            answer = peak.reserved_bytes()
        elif what == "work":
            answer = work_of(case, side, device)
        print(json.dumps(answer), file=answers, flush=True)


def work_of(case: Case, side: str, device: torch.device) -> Record:
    """Return the FLOP and bytes of a step: those of one class of one set, as often as there are."""
    one = replace(case, classes=1, sets=1)
    of_one = work(KINDS[case.kind].make(one, device, side))
    return {name: value * case.classes * case.sets for name, value in of_one.items()}
