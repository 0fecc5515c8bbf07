"""One run at a time may change an endpoint: a Lease says which, and a run that died does not hold it for long.

Whether a holder is alive is judged by watching it renew, not by comparing clocks: the machines that runs come from
agree on little. A holder on this very machine is looked for among its processes, so that a run that was killed can be
started again at once.

A run that leaves a revision to be judged by its next step, which may come from another machine, leaves a claim: the
Lease stays, under the run's name and for a bounded time, and nobody may bring another revision before then. Whoever
comes for that same revision goes on with it at once: it would do what the run before has left to be done.
"""

import logging
import math
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
# Longest claim between two steps of a run: a worker on Vertex AI comes within minutes, and a run that was killed in
# between keeps others waiting for so long and no longer.
CLAIM_SECONDS = 600.0
# What clocks may differ by, before a claim that is over by ours is taken for over.
_CLOCK_SECONDS = 300.0
# What the clocks of the servers behind one API may differ by, and what they round away.
_SERVER_CLOCK_SECONDS = 5.0
_TELL_SECONDS = 60.0
RUN = "streamway/run"
ABOUT = "streamway/about-revision"
_CLAIM = "claimed for the next step of "
_SUFFIX = "-deploy"


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
        self._claim_seconds = 0.0
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
                f"This run has lost endpoint {_endpoint_of(self._lease)} to another one: {self._lost}",
                next_step="Let the other run finish, then look at the endpoint and run again if that is needed.",
            )

    def leave_claim(self, seconds: float) -> None:
        """When this is given back, keep the endpoint for the next step of the same run.

        Args:
            seconds: For how long at most.
        """
        self._claim_seconds = seconds

    def release(self) -> None:
        """Give it back, or leave the claim that was asked for."""
        self._done.set()
        self._thread.join(timeout=5)
        if self._lost:
            return
        try:
            if self._claim_seconds:
                lease = _as_claim(self._lease, self._claim_seconds)
                self._connection.request("PUT", _path(lease), body=lease, timeout_seconds=5)
            else:
                uid = self._lease["metadata"].get("uid")
                body = {"preconditions": {"uid": uid}} if uid else None
                self._connection.request("DELETE", _path(self._lease), body=body, timeout_seconds=5)
        except ClusterError as error:
            logger.info("the lease was not given back and ends by itself: %s", error.problem)

    def _renew(self) -> None:
        while not self._done.wait(_RENEW_SECONDS):
            lease = {**self._lease, "spec": {**self._lease["spec"], "renewTime": _now()}}
            try:
                self._lease = self._connection.request("PUT", _path(lease), body=lease, timeout_seconds=_RENEW_SECONDS)
            except ApiServerError as error:
                if error.status in {404, 409} and not self._is_still_ours():
                    self._lost = error.problem
                    return
                logger.debug("the lease was not renewed: %s", error)
            except ClusterError as error:
                logger.debug("the lease was not renewed: %s", error)

    def _is_still_ours(self) -> bool:
        """Look at the lease again: a renewal whose answer was lost makes it newer than what is known here."""
        try:
            found = self._connection.find(_path(self._lease))
        except ClusterError as error:
            logger.debug("the lease could not be looked at; the next renewal tells: %s", error)
            return True
        if found is None or found["spec"].get("holderIdentity") != self._lease["spec"]["holderIdentity"]:
            return False
        self._lease = found
        return True


@contextmanager
def hold_endpoint(
    connection: ClusterConnection,
    namespace: str,
    name: str,
    *,
    run: str = "",
    revision: str = "",
    wait_seconds: float = 0,
) -> Iterator[Holding]:
    """Be the one run that changes an endpoint.

    Args:
        connection: The cluster.
        namespace: Of the endpoint.
        name: Its name.
        run: What all steps of this run call it; a claim that an earlier step left is taken up at once. Empty for a
            run of one step.
        revision: The revision that it is about; a claim on that one is taken up at once, whoever left it.
        wait_seconds: How long a run that is alive, and about the same revision, may finish first.

    Raises:
        ClusterError: another run is alive and holds it; names that run.
    """
    wanted = _lease(namespace, name, run, revision)
    holding = Holding(connection, _acquire(connection, wanted, time.monotonic() + wait_seconds))
    holding.start()
    try:
        yield holding
    finally:
        holding.release()


def _acquire(connection: ClusterConnection, lease: Manifest, patient_until: float) -> Manifest:
    collection = collection_path("coordination.k8s.io/v1", "Lease", lease["metadata"]["namespace"])
    while True:
        try:
            return connection.request("POST", collection, body=lease)
        except ApiServerError as error:
            if error.status != 409:
                raise
        found = connection.find(_path(lease))
        if found is None:
            continue
        ended = found if _may_go_on(lease, found) else _await_end(connection, found, lease, patient_until)
        if ended is None:
            continue
        try:
            # As it was seen to be: where it has changed since, somebody lives.
            return connection.request("PUT", _path(lease), body=_taken_over(lease, ended))
        except ApiServerError as error:
            if error.status not in {404, 409}:
                raise


def _may_go_on(lease: Manifest, found: Manifest) -> bool:
    """Whether what was found is a claim that this run may take up: its own, or another's on the same revision."""
    if not _is_claim(found):
        return False
    if _note(found, RUN) == _note(lease, RUN):
        return True
    if not _is_about_the_same(lease, found):
        return False
    name, run = _endpoint_of(found), _note(found, RUN)
    logger.info("endpoint %s waits for the next step of %s, which would do the same; going on in its place", name, run)
    return True


def _is_about_the_same(lease: Manifest, found: Manifest) -> bool:
    return bool(_note(lease, ABOUT)) and _note(lease, ABOUT) == _note(found, ABOUT)


def _await_end(
    connection: ClusterConnection, found: Manifest, lease: Manifest, patient_until: float
) -> Manifest | None:
    """Watch a holder for as long as its lease lasts; return it as it is once it may be replaced, None if it is gone.

    Raises:
        ClusterError: the holder is alive, and about something else or not finished in time.
    """
    spec, name = found["spec"], _endpoint_of(found)
    holder, since = spec.get("holderIdentity", "?"), spec.get("acquireTime", "?")
    if _is_known_to_be_dead(holder):
        logger.info("endpoint %s is held by %s, a process that is gone; taking over", name, holder)
        return found
    seconds = _duration(found)
    if _is_long_over(spec, seconds):
        logger.info("endpoint %s is held by %s, which ended long ago; taking over", name, holder)
        return found
    left = _left_seconds(connection, found) if _is_claim(found) else seconds
    logger.info("endpoint %s is held by %s; seeing for up to %d s whether that run is alive", name, holder, left)
    if _is_claim(found):
        logger.info("its next step may come from another machine, so its silence is no sign that it is dead")
        metadata = found["metadata"]
        command = f"kubectl delete lease --namespace={metadata['namespace']} {metadata['name']}"
        logger.info("if you know that it is, end its claim: %s", command)
    last, until = found, time.monotonic() + left
    told = time.monotonic()
    while time.monotonic() < until:
        time.sleep(min(1.0, _RENEW_SECONDS / 2))
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            logger.info("still waiting for %s, %d s at most", _who(last), until - told)
        now = connection.find(_path(found))
        if now is None or (_is_claim(now) and _is_about_the_same(lease, now)):
            return now
        if now["metadata"]["resourceVersion"] == last["metadata"]["resourceVersion"]:
            continue
        if not _is_about_the_same(lease, now) or time.monotonic() > patient_until:
            raise ClusterError(
                f"Another run is changing endpoint {name}: {_who(now)}, since {since}.",
                next_step="Wait until it has finished, then run again: what it did will not be done twice.",
            )
        if last is found:
            logger.info("%s is alive, and about the same revision; letting it finish first", _who(now))
        last, until = now, time.monotonic() + _duration(now)
    logger.info("that run is dead; taking over")
    return last


def _duration(lease: Manifest) -> int:
    return int(lease["spec"].get("leaseDurationSeconds") or _LEASE_SECONDS)


def _left_seconds(connection: ClusterConnection, claim: Manifest) -> float:
    """Seconds that a claim has left by the API server's own clock; all of them where it does not say when it was left.

    Who left the claim and who waits may disagree about the time. The server has noted when it was written, and says
    what time it is when it is asked to try making another.
    """
    seconds = float(_duration(claim))
    metadata = claim["metadata"]
    written = [str(entry["time"]) for entry in metadata.get("managedFields") or () if entry.get("time")]
    if not written:
        return seconds
    trial = {**claim, "metadata": {"name": f"{metadata['name']}-clock", "namespace": metadata["namespace"]}}
    path = collection_path("coordination.k8s.io/v1", "Lease", metadata["namespace"])
    try:
        made = connection.request("POST", path, query={"dryRun": "All"}, body=trial)
    except ClusterError as error:
        logger.debug("the API server does not say what time it is: %s", error)
        return seconds
    now = datetime.fromisoformat(str(made["metadata"]["creationTimestamp"]))
    age = (now - max(map(datetime.fromisoformat, written))).total_seconds() - _SERVER_CLOCK_SECONDS
    return min(seconds, max(0.0, seconds - age))


def _is_long_over(spec: Manifest, seconds: float) -> bool:
    renewed = spec.get("renewTime")
    if not renewed:
        return False
    age = (datetime.now(UTC) - datetime.fromisoformat(str(renewed))).total_seconds()
    return age > seconds + _CLOCK_SECONDS


def _as_claim(lease: Manifest, seconds: float) -> Manifest:
    spec = {
        **lease["spec"],
        "holderIdentity": f"{_CLAIM}{_note(lease, RUN)}",
        "leaseDurationSeconds": math.ceil(seconds),
        "renewTime": _now(),
    }
    return {**lease, "spec": spec}


def _is_claim(lease: Manifest) -> bool:
    return str((lease.get("spec") or {}).get("holderIdentity", "")).startswith(_CLAIM)


def _who(lease: Manifest) -> str:
    holder, run = str((lease.get("spec") or {}).get("holderIdentity", "?")), _note(lease, RUN)
    return holder if not run or run in holder else f"{holder} for {run}"


def _endpoint_of(lease: Manifest) -> str:
    return str(lease["metadata"]["name"]).removesuffix(_SUFFIX)


def _note(lease: Manifest, key: str) -> str:
    return str((lease["metadata"].get("annotations") or {}).get(key, ""))


def _lease(namespace: str, name: str, run: str, revision: str) -> Manifest:
    now, notes = _now(), {RUN: run, ABOUT: revision}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": f"{name}{_SUFFIX}",
            "namespace": namespace,
            "labels": {INSTANCE: name, MANAGED_BY: FIELD_MANAGER},
            "annotations": {key: value for key, value in notes.items() if value},
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
