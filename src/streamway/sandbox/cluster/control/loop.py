"""The engine under all controllers: changes become keys, keys are reconciled one by one, failures are tried again."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.api.store import Change, Store

_LOG = logging.getLogger("streamway.sandbox.cluster")

_FIRST_RETRY_SECONDS = 0.05
_LAST_RETRY_SECONDS = 15.0

Key = tuple[str, str]


class Controller(Protocol):
    """One control loop."""

    def keys_for(self, change: Change) -> Iterable[Key]:
        """Name what has to be looked at after a change, as namespace and name."""

    def reconcile(self, key: Key) -> float | None:
        """Look at one thing and act; gives the seconds after which to look again unasked.

        Raises:
            ApiError: something is in the way; it is tried again, later and later.
        """


class ControlLoop:
    """Runs controllers on one store.

    Args:
        store: Whose changes drive them.
        controllers: The controllers.
    """

    def __init__(self, store: Store, controllers: list[Controller]) -> None:
        self._store = store
        self._controllers = controllers
        self._pending: dict[tuple[Controller, Key], None] = {}
        self._failures: dict[tuple[Controller, Key], int] = {}
        self._timers: dict[tuple[Controller, Key], asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Look at everything once, then at what changes, until cancelled."""
        stop = self._store.listen(self._notice)
        for kind, item in list(self._store.every_object()):
            self._notice(Change(revision=0, type="ADDED", kind=kind, item=item, previous=None))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    controller, key = next(iter(self._pending))
                    del self._pending[(controller, key)]
                    self._reconcile(controller, key)
                    await asyncio.sleep(0)
        finally:
            stop()

    def _notice(self, change: Change) -> None:
        for controller in self._controllers:
            for key in controller.keys_for(change):
                self._enqueue(controller, key)

    def _enqueue(self, controller: Controller, key: Key) -> None:
        self._pending[(controller, key)] = None
        self._wake.set()

    def _reconcile(self, controller: Controller, key: Key) -> None:
        try:
            again = controller.reconcile(key)
        except ApiError as error:
            again = self._delay_after_failure(controller, key)
            _LOG.debug("%s %s: %s", type(controller).__name__, key, error.message)
        except Exception:
            again = self._delay_after_failure(controller, key)
            _LOG.exception("%s failed on %s", type(controller).__name__, key)
        else:
            self._failures.pop((controller, key), None)
        # One timer for each thing, or every change of something that is looked at again and again would add one.
        if (timer := self._timers.pop((controller, key), None)) is not None:
            timer.cancel()
        if again is not None:
            later = asyncio.get_running_loop().call_later(again, self._enqueue, controller, key)
            self._timers[(controller, key)] = later

    def _delay_after_failure(self, controller: Controller, key: Key) -> float:
        count = self._failures.get((controller, key), 0)
        self._failures[(controller, key)] = count + 1
        return float(min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2**count))
