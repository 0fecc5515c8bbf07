"""Many small requests at once, in threads that an interrupted process need not wait for."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

AT_ONCE = 16


def map_at_once(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, at_once: int = AT_ONCE
) -> list[_Result]:
    """Return what `function` makes of each item, in their order; raise the first failure, starting nothing after it.

    concurrent.futures would wait for every running request when the process is interrupted, for as long as the
    patience of the slowest one lasts.
    """
    waiting = list(enumerate(items))[::-1]
    count = len(waiting)
    finished: queue.SimpleQueue[tuple[int, _Result | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                number, item = waiting.pop()
            except IndexError:
                return
            try:
                finished.put((number, function(item), None))
            except BaseException as error:
                waiting.clear()
                finished.put((number, None, error))

    for _ in range(min(at_once, count)):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, _Result] = {}
    try:
        while len(results) < count:
            number, result, error = finished.get()
            if error is not None:
                raise error
            results[number] = result  # type: ignore[assignment]  # a result whenever there is no error
    finally:
        waiting.clear()
    return [results[number] for number in range(count)]
