"""Several processes at one condensation, each with its part of the sets and classes.

The pairs (set, class) are dealt out in order, a run of consecutive ones to each process, which
matches them and updates their images. Random numbers are drawn by name, so every process draws
what it needs without asking; only images travel, when a network is trained on those of a whole set
and at the end of an iteration, with a few numbers of each class, and what a checkpoint holds. At
each step they agree on whether to write one. The processes are started and
watched by torchrun (`torch.distributed.run`): `launch` starts it on this machine, and by hand it
starts them on several.

Shapes: K = independent sets, C = classes, N = synthetic images of a set, class after class.
"""

import contextlib
import datetime
import logging
import os
import signal
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Generator, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from condensation.blocks import Block, bounds, deal
from condensation.interruption import Interrupted
from condensation.networks import Theta
from condensation.states import State, decode_state, encode_state

if TYPE_CHECKING:  # to load it takes time, and one process alone does without
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

BACKENDS = {"cpu": "cpu:gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Type of device -> what carries the numbers in the host's memory, and those on the device."""

LOST = 75
"""Exit status of a process that is well but has lost another."""

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others; one that dies on this machine is noticed at once."""

SHUTDOWN_SECONDS = 60
"""How long the others may take to stop, when one has died or the run is interrupted."""


ALIKE_SECONDS = 5
"""How long a process that fails waits, for the first to say the same and to end them all."""


class Ranks:
    """The processes at one condensation, as one of them sees them; here it is the only one.

    Attributes:
        index: Of this process, from 0.
        size: How many there are.
    """

    index = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.index == 0

    def blocks(self, num_sets: int, num_classes: int) -> list[Block]:
        """Return this process's part of the pairs of K sets and C classes.

        Raises:
            ValueError: There are fewer pairs than processes.
        """
        return deal(num_sets, num_classes, self.size)[self.index]

    def gather(self, values: Tensor, counts: Sequence[int]) -> None:
        """Bring each pair's rows from the process whose part it is to all, in place.

        Args:
            values: (K, N, ...), contiguous.
            counts: Rows of each class; their sum is N.
        """

    def gather_thetas(self, thetas: Sequence[Theta], num_classes: int) -> None:
        """Bring the parameters of each set from a process that has a class of it, in place."""

    def agree(self, wish: int) -> int:
        """Return the largest of all processes' wishes, as to write a checkpoint or to stop."""
        return wish

    def share(self, state: State | None) -> State | None:
        """Return the state that the first process has."""
        return state


class _Joined(Ranks):
    """One process of several that torchrun has started.

    What is agreed on and shared stays in the host's memory: nobody waits for a device.
    """

    def __init__(self) -> None:
        self.index, self.size = dist.get_rank(), dist.get_world_size()
        self._parent = os.getppid()

    def gather(self, values: Tensor, counts: Sequence[int]) -> None:
        flat = values.detach().flatten(0, 1)
        assert flat.data_ptr() == values.data_ptr()
        num_sets, num_rows = values.shape[:2]
        starts = [0, *accumulate(counts)]
        first_rows = [k * num_rows + start for k in range(num_sets) for start in starts[:-1]]
        parts = bounds(len(first_rows), self.size)
        edges = [*(first_rows[pair] for pair in parts[:-1]), len(flat)]
        with _noticing_loss():
            for rank, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                dist.broadcast(flat[begin:end], src=rank)

    def gather_thetas(self, thetas: Sequence[Theta], num_classes: int) -> None:
        parts = bounds(len(thetas) * num_classes, self.size)
        with _noticing_loss():
            for k, theta in enumerate(thetas):
                owner = bisect(parts, k * num_classes) - 1
                for value in theta.values():
                    dist.broadcast(value, src=owner)

    def agree(self, wish: int) -> int:
        # Who started this may be gone: then stop, as if it had said so.
        return self._largest(wish if os.getppid() == self._parent else int(signal.SIGTERM))

    def _largest(self, number: int) -> int:
        value = torch.tensor(number)
        with _noticing_loss():
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def share(self, state: State | None) -> State | None:
        content = encode_state(state) if self.first and state is not None else b""
        size = self._largest(len(content))
        if size == 0:
            return None
        buffer = torch.zeros(size, dtype=torch.uint8)
        if self.first:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with _noticing_loss():
            dist.broadcast(buffer, src=0)
        return decode_state(buffer.numpy().tobytes())


def _noticing_loss() -> contextlib.AbstractContextManager[None]:
    # An operation of all processes fails where one of them is gone. That one is what the message
    # of torchrun, or of `launch`, is about; but if none is, what failed is the operation itself,
    # or on CUDA what was asked for before it, and the message is about what is noted here.
    return _noting(RuntimeError)


@contextlib.contextmanager
def _noting(*kinds: type[Exception], seconds: float = 0) -> Generator[None, None, None]:
    # Note an error for the process that started this one, and end after some seconds.
    try:
        yield
    except kinds as error:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
        time.sleep(seconds)
        sys.exit(LOST)


def started_by_torchrun() -> bool:
    """Return whether this process is one of several."""
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def joined(device: torch.device) -> Generator[Ranks, None, None]:
    """Join the processes that torchrun has started; a process that it has not started is alone.

    What all of them would say alike, the first one says; an error of another one alone is in what
    `launch` says.

    Args:
        device: Where the images are; of several accelerators each process takes its own.

    Yields:
        The processes.

    Raises:
        ValueError: They do not find each other, or are not all on the same type of device.
    """
    if not started_by_torchrun():
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group(BACKENDS[device.type], timeout=TIMEOUT)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the processes cannot be joined ({reason})") from None
    ranks = _Joined()
    if ranks.agree(int(device.type == "cuda")) != (device.type == "cuda"):
        raise ValueError(f"device: got {device.type} here, and cuda in another of the processes")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as said:
            if not ranks.first:
                said.enter_context(_noting(ValueError, OSError, seconds=ALIKE_SECONDS))
                said.enter_context(contextlib.redirect_stdout(nowhere))
                said.enter_context(contextlib.redirect_stderr(nowhere))
            yield ranks
    except BaseException as error:
        # On CUDA, to leave in good order waits for the others. All of them leave an interruption;
        # of an error that one of them has, nobody would hear.
        if device.type != "cuda" or isinstance(error, Interrupted):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def launch(script: Path, processes: int, device: torch.device) -> None:
    """Run a script in several processes on this machine, and wait for them.

    On the CPU each has its share of the threads, unless OMP_NUM_THREADS says how many.

    Args:
        script: It calls `joined`.
        processes: How many.
        device: Where the script computes.

    Raises:
        ValueError: There are not as many accelerators, or a process was killed.
        SystemExit: A process ended with an error, which it has told.
    """
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"condense.processes: got {processes}, takes at most one for each CUDA device "
            f"({torch.cuda.device_count()})"
        )
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    logging.disable(logging.CRITICAL)  # it tells of every step of its own
    try:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={folder}"]
            stop = f"--shutdown-timeout={SHUTDOWN_SECONDS}"
            run(parse_args([*options, stop, str(script), *sys.argv[1:]]))
    except ChildFailedError as error:
        told = _told(error.failures.values())
        # Where one noted why it cannot go on, torchrun may have ended the others by SIGTERM.
        followed = {LOST, -signal.SIGTERM} if told else {LOST}
        causes = [each for each in error.failures.values() if each.exitcode not in followed]
        if causes and causes[0].exitcode > 0:
            sys.exit(causes[0].exitcode)
        how = signal.Signals(-causes[0].exitcode).name if causes else "an unknown cause"
        which = f"process {causes[0].local_rank + 1}" if causes else "a process"
        if not causes and told:
            how = f"an error ({told})"
        raise ValueError(
            f"{which} of {processes} was ended by {how}, and with it the run; the same command "
            "goes on from the last checkpoint, if there was one"
        ) from None
    except SignalException as error:
        sys.exit(128 + error.sigval)
    finally:
        logging.disable(logging.NOTSET)


def _told(failures: Iterable["ProcessFailure"]) -> str:
    # What each process noted that could not go on with the others. Of several, whose errors follow
    # from the first one's, it is not known which is the first.
    texts = {}
    for failure in failures:
        noted: Any = failure.message  # a text of torchrun's own, where nothing is noted
        if isinstance(noted, dict):
            text = " ".join(str(noted["message"]).split())[:300]
            texts[failure.local_rank] = f"process {failure.local_rank + 1}: {text}"
    return "; ".join(texts[rank] for rank in sorted(texts))
