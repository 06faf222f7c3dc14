"""Independent pieces of work side by side: on the CPU one thread each, elsewhere in turn."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

WAKE_SECONDS = 0.1
"""How often the waiting main thread looks up: a signal that reaches the process just before the
wait, or another thread of it, would else be handled only once the work is done."""


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    device: torch.device,
    one_thread_each: bool = False,
    at_once: int | None = None,
) -> list[Result]:
    """Return `[function(item) for item in items]`; on the CPU, one worker a thread.

    Networks and classes are independent, and small operators scale badly over threads: two pieces
    at once, each on one thread, finish sooner than one after the other on two threads. As every
    piece is computed by one thread, the result does not depend on how many workers there are
    (`torch.get_num_threads()`). One piece alone has all threads, unless its result may not depend
    on them. An accelerator is kept busy by one piece at a time.

    Args:
        function: The work; it must not depend on global state.
        items: What to work on, one piece each.
        device: Where the tensors are.
        one_thread_each: Whether one piece alone is computed by one thread, too.
        at_once: Pieces at once on the CPU, if not one a thread.
    """
    items = list(items)
    if device.type != "cpu" or (len(items) < 2 and not one_thread_each):
        return [function(item) for item in items]
    executor = ThreadPoolExecutor(
        at_once or torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
    )
    futures: list[Future[Result]] = []
    try:
        futures += [executor.submit(function, item) for item in items]
        return [_first_result(futures) for _ in items]
    finally:
        executor.shutdown(cancel_futures=True)
        # A future holds its error, whose traceback holds what the functions hold. If these held
        # the future, it would be a circle, and what failed would keep its memory.
        futures.clear()


def _first_result(futures: list[Future[Result]]) -> Result:
    # Take the first future out of the list, and return its result when it is there.
    future = futures.pop(0)
    try:
        while wait([future], WAKE_SECONDS).not_done:
            pass
        return future.result()
    finally:
        del future
