"""Many requests at once come back in order, and the first failure ends them."""

import threading

import pytest

from streamway.storage.parallel import map_at_once


def test_results_are_in_the_order_of_their_items() -> None:
    second_is_done = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(20)
        elif item == 1:
            second_is_done.set()
        return item * 10

    assert map_at_once(slow_first, range(5)) == [0, 10, 20, 30, 40]
    assert map_at_once(slow_first, []) == []


def test_no_more_run_at_once_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()
    pair = threading.Barrier(2, timeout=20)

    def count(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        pair.wait()
        with lock:
            running -= 1
        pair.wait()

    map_at_once(count, range(8), at_once=2)
    assert most == 2


def test_the_first_failure_is_raised_and_nothing_is_started_after_it() -> None:
    started: list[int] = []

    def fail(item: int) -> None:
        started.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        map_at_once(fail, range(1000), at_once=1)
    assert started == [0]
