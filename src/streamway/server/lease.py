"""One run at a time may change an endpoint: a Lease says which, and a run that died does not hold it for long.

Whether a holder is alive is judged by watching it renew, not by comparing clocks: the machines that runs come from
agree on little. A holder on this very machine is looked for among its processes, so that a run that was killed can be
started again at once.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from streamway.cluster import ClusterConnection, Manifest
from streamway.errors import ApiServerError, ClusterError
from streamway.server.apply import collection_path
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY

logger = logging.getLogger("streamway.server")

_RENEW_SECONDS = 2.0
# A holder that has not renewed for so long is taken for dead; several renewals may fail before that.
_LEASE_SECONDS = 10


class Holding:
    """A lease that is held, and renewed in the background.

    Args:
        connection: The cluster.
        lease: The Lease as it was written.
    """

    def __init__(self, connection: ClusterConnection, lease: Manifest) -> None:
        self._connection = connection
        self._lease = lease
        self._lost = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="streamway-lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that nobody has taken over.

        Raises:
            ClusterError: another run has; this one must not go on.
        """
        if self._lost:
            raise ClusterError(
                f"This run has lost endpoint {self._lease['metadata']['name']} to another one: {self._lost}",
                next_step="Let the other run finish, then look at the endpoint and run again if that is needed.",
            )

    def release(self) -> None:
        """Give it back."""
        self._done.set()
        self._thread.join(timeout=5)
        if self._lost:
            return
        uid = self._lease["metadata"].get("uid")
        try:
            self._connection.request(
                "DELETE",
                _path(self._lease),
                body={"preconditions": {"uid": uid}} if uid else None,
                timeout_seconds=5,
            )
        except ClusterError as error:
            logger.info("the lease was not given back and ends by itself: %s", error.problem)

    def _renew(self) -> None:
        while not self._done.wait(_RENEW_SECONDS):
            lease = {**self._lease, "spec": {**self._lease["spec"], "renewTime": _now()}}
            try:
                self._lease = self._connection.request("PUT", _path(lease), body=lease, timeout_seconds=_RENEW_SECONDS)
            except ApiServerError as error:
                if error.status in {404, 409}:
                    self._lost = error.problem
                    return
                logger.debug("the lease was not renewed: %s", error)
            except ClusterError as error:
                logger.debug("the lease was not renewed: %s", error)


@contextmanager
def hold_endpoint(connection: ClusterConnection, namespace: str, name: str) -> Iterator[Holding]:
    """Be the one run that changes an endpoint.

    Raises:
        ClusterError: another run is alive and holds it; names that run.
    """
    holding = Holding(connection, _acquire(connection, namespace, name))
    holding.start()
    try:
        yield holding
    finally:
        holding.release()


def _acquire(connection: ClusterConnection, namespace: str, name: str) -> Manifest:
    collection = collection_path("coordination.k8s.io/v1", "Lease", namespace)
    lease = _lease(namespace, name)
    while True:
        try:
            return connection.request("POST", collection, body=lease)
        except ApiServerError as error:
            if error.status != 409:
                raise
        found = connection.find(_path(lease))
        if found is None:
            continue
        _await_death(connection, found)
        try:
            return connection.request("PUT", _path(lease), body=_taken_over(lease, found))
        except ApiServerError as error:
            if error.status not in {404, 409}:
                raise


def _await_death(connection: ClusterConnection, found: Manifest) -> None:
    """Watch a holder for as long as its lease lasts; return if it never renews."""
    spec, name = found["spec"], found["metadata"]["name"]
    holder, since = spec.get("holderIdentity", "?"), spec.get("acquireTime", "?")
    if _is_known_to_be_dead(holder):
        logger.info("endpoint %s is held by %s, a process that is gone; taking over", name, holder)
        return
    logger.info("endpoint %s is held by %s; seeing whether that run is alive", name, holder)
    deadline = time.monotonic() + int(spec.get("leaseDurationSeconds") or _LEASE_SECONDS)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, _RENEW_SECONDS / 2))
        now = connection.find(_path(found))
        if now is None:
            return
        if now["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise ClusterError(
                f"Another run is changing endpoint {name}: {holder}, since {since}.",
                next_step="Wait until it has finished, then run again: what it did will not be done twice.",
            )
    logger.info("that run is dead; taking over")


def _lease(namespace: str, name: str) -> Manifest:
    now = _now()
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": f"{name}-deploy",
            "namespace": namespace,
            "labels": {INSTANCE: name, MANAGED_BY: FIELD_MANAGER},
        },
        "spec": {
            "holderIdentity": f"{_place()}/{os.getpid()}/{uuid.uuid4().hex[:8]}",
            "leaseDurationSeconds": _LEASE_SECONDS,
            "acquireTime": now,
            "renewTime": now,
        },
    }


def _place() -> str:
    """Where process numbers mean the same: a host, and the namespace that a container gives them."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = uuid.uuid4().hex
    return f"{socket.gethostname()}/{space.removeprefix('pid:').strip('[]')}"


def _is_known_to_be_dead(holder: str) -> bool:
    place, _, rest = holder.rpartition("/")[0].rpartition("/")
    if place != _place() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _taken_over(lease: Manifest, found: Manifest) -> Manifest:
    version = found["metadata"]["resourceVersion"]
    return {**lease, "metadata": {**lease["metadata"], "resourceVersion": version}}


def _path(lease: Manifest) -> str:
    metadata = lease["metadata"]
    return f"{collection_path('coordination.k8s.io/v1', 'Lease', metadata['namespace'])}/{metadata['name']}"


def _now() -> str:
    """The time as a Lease has it, with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
