"""Waiting for a revision to be ready: telling what happens meanwhile, and ending at once when it never will be."""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from streamway.cluster import REVISION, ClusterConnection, Manifest
from streamway.errors import ClusterUnreachableError, RolloutError
from streamway.server.apply import collection_path
from streamway.server.diagnose import PROGRESS_DEADLINE, Finding, Snapshot, diagnose, engine_status, is_ready
from streamway.server.kit import RESTORE_CONTAINER
from streamway.server.manifests import CHECK_CONTAINER, CONTAINER, INSTANCE
from streamway.server.streamer_log import EngineLog, StreamerFigures
from streamway.server.watch import LiveView, LogFollower, Source
from streamway.storage.segments import Progress

logger = logging.getLogger("streamway.server")

# Without an answer from the API server for this long, waiting is blind.
_SILENCE_SECONDS = 300.0
# What the log says may arrive after the pod's readiness does.
_LOG_PATIENCE_SECONDS = 2.0
# Run the engine's image before it does; others may put containers of another image before these.
_BEFORE = frozenset({CHECK_CONTAINER, RESTORE_CONTAINER})
_POD_NAME = re.compile(r'(Error creating: )?pods? "[^"]+"')


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of a rollout.

    Args:
        name: What happened in it.
        seconds: How long it took.
    """

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How a revision became ready.

    Args:
        phases: What took how long, in order; empty where it was ready already.
        streamer: How the weights came, where the log says so.
        log: Everything else that the log said.
        pod: Name of a ready pod.
        node: Its node.
        restarts: How often its engine was restarted.
    """

    phases: tuple[Phase, ...]
    streamer: StreamerFigures | None
    log: EngineLog
    pod: str
    node: str
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what.

    Args:
        deadline_seconds: For the whole rollout.
        unschedulable_seconds: For a node, where no autoscaler says that it is adding one.
    """

    deadline_seconds: float
    unschedulable_seconds: float = 60.0


def await_rollout(
    connection: ClusterConnection,
    *,
    namespace: str,
    endpoint: str,
    revision: str,
    deployment: str,
    patience: Patience,
    past: Collection[str] = (),
    size_bytes: int = 0,
    on_progress: Progress | None = None,
) -> Rollout:
    """Wait until every pod of a revision is ready.

    Args:
        connection: The cluster.
        namespace: Of the endpoint.
        endpoint: Its name.
        revision: The revision that is waited for.
        deployment: Name of its Deployment.
        patience: How long to wait.
        past: Uids of pods that had ended before, which another has replaced or will.
        size_bytes: Bytes of the release, for progress.
        on_progress: Told how many bytes of the weights have come.

    Raises:
        RolloutError: the revision will not become ready, or has not within the deadline.
        ClusterUnreachableError: the API server has been silent for minutes.
    """
    labels = f"{INSTANCE}={endpoint},{REVISION}={revision}"
    sources = {
        "deployments": Source(
            path=collection_path("apps/v1", "Deployment", namespace),
            field_selector=f"metadata.name={deployment}",
        ),
        "replica_sets": Source(
            path=collection_path("apps/v1", "ReplicaSet", namespace), label_selector=labels, optional=True
        ),
        "pods": Source(path=collection_path("v1", "Pod", namespace), label_selector=labels),
        "events": Source(path=collection_path("v1", "Event", namespace), optional=True),
    }
    with LiveView(connection, sources) as view:
        waiting = _Waiting(connection, view, namespace, deployment, patience, past, size_bytes, on_progress)
        try:
            return waiting.until_ready()
        finally:
            waiting.close()


class _Waiting:
    """The state of one wait."""

    def __init__(
        self,
        connection: ClusterConnection,
        view: LiveView,
        namespace: str,
        deployment: str,
        patience: Patience,
        past: Collection[str],
        size_bytes: int,
        on_progress: Progress | None,
    ) -> None:
        self._view = view
        self._deployment = deployment
        self._patience = patience
        self._past = past
        self._clock = _Clock()
        self._narrator = _Narrator(size_bytes, on_progress)
        self._first_seen: dict[tuple[str, str], float] = {}
        self._logs = _Logs(connection, namespace, self._clock, self._narrator)

    def close(self) -> None:
        self._logs.stop()

    def until_ready(self) -> Rollout:
        seen, found, waited = 0, list[Finding](), False
        while True:
            seen = self._view.wait(seen, timeout_seconds=1.0)
            if self._view.complete:
                deployment = self._find_deployment()
                pods = [pod for pod in self._view.objects("pods") if pod["metadata"].get("uid") not in self._past]
                if deployment is not None and is_ready(deployment) and any(map(_is_pod_ready, pods)):
                    return self._finish(pods, waited=waited)
                waited = True
                self._follow(pods)
                found = self._judge(deployment, pods)
            if self._clock.total() > self._patience.deadline_seconds:
                raise self._out_of_time(found)
            if self._view.silent_seconds > _SILENCE_SECONDS:
                raise ClusterUnreachableError(
                    f"The API server has not answered for {self._view.silent_seconds:.0f} s; the rollout of "
                    f"{self._deployment} goes on without being watched.",
                    next_step="Run again once it answers: the run takes up where this one stopped.",
                )

    def _find_deployment(self) -> Manifest | None:
        found = self._view.objects("deployments")
        if not found and self._clock.total() > 10:
            raise RolloutError(
                f"Deployment {self._deployment} was deleted while it was rolled out.",
                next_step="Find out who deletes it, then run again.",
                reason="deleted",
            )
        return found[0] if found else None

    def _follow(self, pods: list[Manifest]) -> None:
        """Note how far the newest pod is, and read its log once its engine runs."""
        alive = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
        if not alive:
            return
        pod = alive[-1]
        conditions = {entry["type"]: entry for entry in (pod.get("status") or {}).get("conditions") or ()}
        if conditions.get("PodScheduled", {}).get("status") == "True":
            node = (pod.get("spec") or {}).get("nodeName", "?")
            self._reach("scheduled", f"pod {pod['metadata']['name']} was scheduled on node {node}")
        first = _first_status(pod)
        if _has_run(first) or "terminated" in (first.get("state") or {}):
            self._reach("pulled", "image pulled, the pod is prepared")
        if _has_run(engine_status(pod)):
            self._reach("started", f"{'' if first else 'image pulled, '}the engine's container runs")
            self._logs.follow(pod)

    def _reach(self, mark: str, sentence: str) -> None:
        if self._clock.mark(mark):
            self._narrator.say(f"{sentence} ({self._clock.total():.1f} s)")

    def _judge(self, deployment: Manifest | None, pods: list[Manifest]) -> list[Finding]:
        if deployment is None:
            return []
        snapshot = Snapshot(
            deployment=deployment,
            replica_sets=self._view.objects("replica_sets"),
            pods=pods,
            events=self._view.objects("events"),
            log_tail=self._logs.tail(),
            unschedulable_seconds=self._patience.unschedulable_seconds,
        )
        found = diagnose(snapshot)
        now = time.monotonic()
        current = {(finding.reason, "") for finding in found}
        self._first_seen = {key: when for key, when in self._first_seen.items() if key in current}
        for finding in found:
            first = self._first_seen.setdefault((finding.reason, ""), now)
            if finding.final and now - first >= finding.settle_seconds:
                raise self._failure(finding, snapshot)
            self._narrator.say(finding.problem.partition("\nIts last lines")[0])
        return found

    def _failure(self, finding: Finding, snapshot: Snapshot) -> RolloutError:
        if finding.reason in {"crash_loop", "out_of_memory", "failing_probe"}:
            # The exit may be known before its last words are.
            tail = self._logs.settled_tail()
            again = diagnose(replace(snapshot, log_tail=tail))
            finding = next((other for other in again if other.reason == finding.reason), finding)
        return RolloutError(
            f"{self._deployment} will not become ready. {finding.problem}",
            next_step=finding.next_step,
            reason=finding.reason,
        )

    def _out_of_time(self, found: list[Finding]) -> RolloutError:
        last = f" {found[0].problem}" if found else ""
        if not found or found[0].reason == PROGRESS_DEADLINE:
            last += f" It was still {self._clock.doing()}."
        step = found[0].next_step if found else ""
        return RolloutError(
            f"{self._deployment} was not ready within {self._patience.deadline_seconds:.0f} s.{last}",
            next_step=step or "Allow more time with server.timeout_seconds, or look at the pod: kubectl describe pod.",
            reason=found[0].reason if found else "deadline",
        )

    def _finish(self, pods: list[Manifest], *, waited: bool) -> Rollout:
        if waited:
            self._follow(pods)
            self._clock.mark("ready")
        else:
            self._narrator.hush()
        pod = next(pod for pod in reversed(pods) if _is_pod_ready(pod))
        self._logs.follow(pod)
        log = self._logs.when_streamed(_LOG_PATIENCE_SECONDS)
        if waited:
            self._narrator.say(f"ready after {self._clock.total():.1f} s")
        return Rollout(
            phases=self._clock.phases(log.streamer),
            streamer=log.streamer,
            log=log,
            pod=pod["metadata"]["name"],
            node=(pod.get("spec") or {}).get("nodeName", ""),
            restarts=int(engine_status(pod).get("restartCount") or 0),
        )


class _Clock:
    """When a rollout reached which mark, as seen from here."""

    _DOING = (
        ("started", "starting the engine or loading the weights"),
        ("pulled", "checking the release or restoring the warm-start kit"),
        ("scheduled", "pulling the image"),
        ("", "waiting for a node"),
    )

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._marks: dict[str, float] = {}

    def total(self) -> float:
        return time.monotonic() - self._start

    def mark(self, name: str) -> bool:
        """Note a mark; True the first time."""
        if name in self._marks:
            return False
        self._marks[name] = self.total()
        return True

    def put(self, name: str, seconds: float) -> None:
        """Set a mark, wherever it was."""
        self._marks[name] = seconds

    def forget(self, name: str) -> None:
        self._marks.pop(name, None)

    def doing(self) -> str:
        return next(words for mark, words in self._DOING if not mark or mark in self._marks)

    def phases(self, streamer: StreamerFigures | None) -> tuple[Phase, ...]:
        """The stretches between the marks; none for a revision that was ready when we came."""
        if "ready" not in self._marks:
            return ()
        ready = self._marks["ready"]
        started = min(self._marks.get("started", ready), ready)
        pulled = min(self._marks.get("pulled", started), started)
        scheduled = min(self._marks.get("scheduled", pulled), pulled)
        stretches = [("schedule", scheduled), ("pull image", pulled - scheduled)]
        if "pulled" in self._marks:
            stretches.append(("prepare pod", started - pulled))
        if streamer is None:
            stretches.append(("start engine", ready - started))
        else:
            streamed = min(max(self._marks.get("streamed", ready), started), ready)
            streaming = min(streamer.seconds, streamed - started)
            stretches += [
                ("start engine", streamed - started - streaming),
                ("stream weights", streaming),
                ("initialise engine", ready - streamed),
            ]
        return tuple(Phase(name=name, seconds=round(seconds, 3)) for name, seconds in stretches)


class _Narrator:
    """Says each thing once, and passes on how far the weights are."""

    def __init__(self, size_bytes: int, on_progress: Progress | None) -> None:
        self._size_bytes = size_bytes
        self._on_progress = on_progress
        self._said: set[str] = set()
        self._silent = False

    def hush(self) -> None:
        """Say nothing from now on: what is read from here is the past."""
        self._silent = True

    def say(self, sentence: str) -> None:
        # A pod that may not be created is tried under another name each time.
        meaning = _POD_NAME.sub("", sentence)
        if meaning not in self._said and not self._silent:
            self._said.add(meaning)
            logger.info("%s", sentence)

    def loaded(self, percent: int) -> None:
        if self._on_progress is not None and self._size_bytes:
            self._on_progress(self._size_bytes * percent // 100, self._size_bytes)


class _Logs:
    """The log of the pod that is waited for."""

    def __init__(self, connection: ClusterConnection, namespace: str, clock: _Clock, narrator: _Narrator) -> None:
        self._connection = connection
        self._namespace = namespace
        self._clock = clock
        self._narrator = narrator
        self._follower: LogFollower | None = None
        self._pod = ""
        self._read = EngineLog()
        self._before: list[str] = []
        self._streamed = threading.Event()
        # A log whose connection ended is read again from its beginning; what it says then was said before.
        self._streamed_at: dict[StreamerFigures, float] = {}

    def follow(self, pod: Manifest) -> None:
        name = pod["metadata"]["name"]
        if name == self._pod:
            return
        self.stop()
        self._pod = name
        path = f"{collection_path('v1', 'Pod', self._namespace)}/{name}"
        self._follower = LogFollower(self._connection, path, CONTAINER, self._take)
        self._follower.start()

    def stop(self) -> None:
        if self._follower is not None:
            self._follower.stop()

    def tail(self, count: int = 60) -> list[str]:
        """Last lines of the engine's present life, or of the one before where it has said little yet."""
        now = self._follower.tail(count) if self._follower else []
        return now if len(now) >= 3 or not self._before else self._before[-count:]

    def settled_tail(self) -> list[str]:
        """Last lines of the life that ended, asked of the node where the follower came too late."""
        path = f"{collection_path('v1', 'Pod', self._namespace)}/{self._pod}/log"
        for previous in (True, False):
            text = self._ask(path, previous)
            if text.strip():
                return text.splitlines()[-60:]
        return self.tail()

    def when_streamed(self, timeout_seconds: float) -> EngineLog:
        self._streamed.wait(timeout_seconds)
        return self._read

    def _ask(self, path: str, previous: bool) -> str:
        query = {"container": CONTAINER, "tailLines": 60, **({"previous": True} if previous else {})}
        return _or_empty(lambda: self._connection.text(path, query, timeout_seconds=5))

    def _take(self, line: str | None) -> None:
        if line is None:
            self._before = self._follower.tail(60) if self._follower else []
            self._read = EngineLog()
            self._clock.forget("streamed")
            return
        before, self._read = self._read, self._read.read(line)
        if self._read.loading_percent != before.loading_percent and self._read.loading_percent is not None:
            self._narrator.loaded(self._read.loading_percent)
        if self._read.streamer is not None and self._read.streamer != before.streamer:
            self._clock.put("streamed", self._streamed_at.setdefault(self._read.streamer, self._clock.total()))
            self._streamed.set()
            self._narrator.say(_streamed_sentence(self._read.streamer))


def _or_empty(read: Callable[[], str]) -> str:
    from streamway.errors import ClusterError

    try:
        return read()
    except ClusterError as error:
        logger.debug("no log: %s", error)
        return ""


def _streamed_sentence(figures: StreamerFigures) -> str:
    if not figures.bytes:
        return f"weights loaded in {figures.seconds:.1f} s"
    return (
        f"weights streamed: {figures.bytes / 2**30:.2f} GiB in {figures.seconds:.1f} s, "
        f"{figures.gib_per_second:.2f} GiB/s; the engine warms up"
    )


def _first_status(pod: Manifest) -> Manifest:
    """Status of the first container that prepares the pod; empty where there is none."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    return next((status for status in statuses if status.get("name") in _BEFORE), {})


def _has_run(container: Manifest) -> bool:
    return "running" in (container.get("state") or {}) or bool(container.get("restartCount"))


def _is_pod_ready(pod: Manifest) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
