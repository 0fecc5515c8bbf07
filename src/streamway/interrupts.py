"""The polite end of a process: SIGTERM, as Ctrl-C does, so that what is held is given back whoever asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_like_interrupt() -> Iterator[None]:
    """Within it, the first SIGTERM raises KeyboardInterrupt; those after it are ignored, so that unwinding can finish.

    Services that cancel a task often send the signal to a whole group of processes and to its leader once more. Whoever
    means it has SIGKILL. Outside the main thread, where no signal is handled, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def interrupt(*_: object) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
