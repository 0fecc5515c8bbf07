"""Warm starts: the cache of an engine that has passed is kept beside its release, and given to every later pod.

Serving (server) knows pods and storing (storage) knows releases; this is where a kit goes from the one to the other.
Nothing here may fail a run: without a kit an engine only takes longer, and the log says why there is none.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamway.cluster import ClusterConnection, connect
from streamway.errors import StreamwayError
from streamway.server.kit import MAX_KIT_BYTES, FindKit, Kit
from streamway.server.kit_capture import ProvedPod, capture_kit, find_proved_pod
from streamway.server.kit_offer import offer_kit, take_back_kit
from streamway.storage.files import delete_files
from streamway.storage.kits import (
    DroppedKits,
    KitIndex,
    StartFigures,
    StoredKit,
    change_kit_index,
    index_uri_of,
    is_as_stored,
    read_kit_index,
    read_kits,
    release_of_kit,
    store_kit,
)
from streamway.storage.manifest import now

logger = logging.getLogger("streamway.warm_start")

# Each kit that does harm costs a deployment one more attempt; an engine whose kits do harm one after another goes
# without.
MOST_BAD_KITS = 2


@dataclass(frozen=True, kw_only=True)
class KitStatus:
    """One kit, for people.

    Args:
        release_uri: The release that it belongs to.
        key: Its key.
        made_for: Accelerator, image and arguments that it is for.
        size_bytes: Its length.
        captured: When, RFC 3339 in UTC.
        first: The start that made it.
        later: Starts that restored it, newest last.
        saved_seconds: What the latest of them saved; None before there was one.
    """

    release_uri: str
    key: str
    made_for: str
    size_bytes: int
    captured: str
    first: StartFigures
    later: tuple[StartFigures, ...]
    saved_seconds: float | None

    def line(self) -> str:
        """Say it in one line."""
        release = self.release_uri.rstrip("/").rpartition("/")[2][:12]
        return f"kit {self.key[:8]} of {release} for {self.made_for}: {self.size_bytes / 2**20:.1f} MiB, {self._gain()}"

    def _gain(self) -> str:
        first = _shown(self.first)
        if not self.later:
            return f"made by a start of {first}; no start has used it yet"
        return f"{_shown(self.later[-1])} instead of {first}, saved {self.saved_seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class GivenUpKit:
    """A key for which no kit is made any more, for people.

    Args:
        release_uri: The release.
        key: The key.
        made_for: Accelerator, image and arguments that its kits were for.
        dropped: How many did harm, one after another.
        last: When the last of them was dropped, RFC 3339 in UTC.
    """

    release_uri: str
    key: str
    made_for: str
    dropped: int
    last: str

    def line(self) -> str:
        """Say it in one line."""
        release = self.release_uri.rstrip("/").rpartition("/")[2][:12]
        return (
            f"kit {self.key[:8]} of {release} for {self.made_for}: none, because the engine did not get on with "
            f"{self.dropped} of them, the last at {self.last}; to try again, delete {index_uri_of(self.release_uri)}"
        )


def finder(release_uri: str) -> FindKit:
    """Return what finds the kits of a release, for `server.deploy_server`."""

    def find(key: str) -> Kit | None:
        try:
            stored = read_kits(release_uri).get(key)
        except StreamwayError as error:
            logger.warning("no warm-start kit can be used: %s", error.problem)
            return None
        return _as_kit(stored) if stored is not None else None

    return find


def drop_kit(kit: Kit) -> None:
    """Take a kit away from its release, because an engine that restored it does not work."""

    def without(index: KitIndex) -> KitIndex:
        bad = {key: known for key, known in index.kits.items() if known.sha256 == kit.sha256}
        dropped = dict(index.dropped)
        for key, known in bad.items():
            count = dropped[key].count + 1 if key in dropped else 1
            dropped[key] = DroppedKits(count=count, last=now(), made_for=known.made_for)
        kept = {key: known for key, known in index.kits.items() if key not in bad}
        return replace(index, kits=kept, dropped=dropped)

    try:
        change_kit_index(release_of_kit(kit.uri), without)
        delete_files([kit.uri])
    except (StreamwayError, OSError) as error:
        problem = error.problem if isinstance(error, StreamwayError) else str(error)
        logger.warning("the warm-start kit %s could not be dropped, so delete it by hand: %s", kit.uri, problem)
    else:
        logger.warning("the warm-start kit %s was dropped, and is given to no pod again", kit.uri)


def suspect_kit(*, name: str, namespace: str, revision: str, cluster: str = "") -> str:
    """Drop the kit that the pods of a revision which answers wrongly have restored; say so, or nothing where none."""
    try:
        kit = take_back_kit(connect(cluster), namespace, name, revision)
    except StreamwayError as error:
        logger.warning("whether a warm-start kit is to blame cannot be told: %s", error.problem)
        return ""
    if kit is None:
        return ""
    drop_kit(kit)
    return "Its engine had a warm-start kit, which was dropped in case that is the reason."


def keep_kit(
    *, name: str, namespace: str, revision: str, cluster: str = "", max_bytes: int = MAX_KIT_BYTES
) -> StoredKit | None:
    """Have a kit of a revision that has passed: find it, or capture and store it, and offer it to its later pods.

    Args:
        name: Name of the endpoint.
        namespace: Its namespace.
        revision: The revision, which has passed and serves.
        cluster: As in `streamway.cluster.connect`.
        max_bytes: Most bytes that the kit may have.

    Returns:
        The kit; None where there is none, for a reason that was logged.
    """
    try:
        connection = connect(cluster)
        pod = find_proved_pod(connection, namespace=namespace, name=name, revision=revision)
        if pod is None:
            return None
        kit = _known_kit(pod) or _capture_unless_given_up(connection, pod, max_bytes)
        if kit is None:
            return None
        offer_kit(
            connection,
            _as_kit(kit),
            namespace=namespace,
            endpoint=name,
            revision=revision,
            deployment=pod.deployment,
        )
    except (StreamwayError, OSError) as error:
        problem = error.problem if isinstance(error, StreamwayError) else str(error)
        logger.warning("no warm-start kit was kept, so later starts take as long as this one: %s", problem)
        return None
    return kit


def read_kit_status(release_uris: Sequence[str]) -> tuple[KitStatus | GivenUpKit, ...]:
    """Say which kits some releases have, and what they saved.

    A bucket that this account may not read is told in the log: an endpoint's status is worth something without it.
    """
    try:
        return tuple(row for uri in dict.fromkeys(release_uris) for row in _statuses(uri, read_kit_index(uri)))
    except StreamwayError as error:
        logger.warning("which warm-start kits there are cannot be told: %s", error.problem)
        return ()


def _known_kit(pod: ProvedPod) -> StoredKit | None:
    """Find the kit that this pod's engine has already, and note how its start went if it used it."""
    kit = read_kits(pod.release_uri).get(pod.kit_key)
    if kit is None:
        return None
    if not is_as_stored(kit):
        logger.warning("%s is not the kit that was stored; it is captured anew", kit.uri)
        return None
    if pod.restored != kit.sha256 or kit.with_start(_figures(pod)) == kit:
        return kit
    return _note_start(pod, kit)


def _note_start(pod: ProvedPod, kit: StoredKit) -> StoredKit:
    def noted(index: KitIndex) -> KitIndex:
        known = index.kits.get(pod.kit_key)
        if known is None or known.sha256 != kit.sha256:
            return index
        # An engine that has passed with a kit shows that those before were bad by accident.
        dropped = {key: entry for key, entry in index.dropped.items() if key != pod.kit_key}
        return replace(index, kits={**index.kits, pod.kit_key: known.with_start(_figures(pod))}, dropped=dropped)

    changed = change_kit_index(pod.release_uri, noted).kits.get(pod.kit_key, kit)
    if changed.saved_seconds is not None:
        first, later = _shown(changed.first_start), _shown(_figures(pod))
        logger.info("with its warm-start kit the engine took %s instead of %s", later, first)
    return changed


def _capture_unless_given_up(connection: ClusterConnection, pod: ProvedPod, max_bytes: int) -> StoredKit | None:
    dropped = read_kit_index(pod.release_uri).dropped.get(pod.kit_key)
    if dropped is None or dropped.count < MOST_BAD_KITS:
        return _capture(connection, pod, max_bytes)
    logger.warning(
        "no warm-start kit is made for this engine: it did not get on with %d of them; to try again, delete %s",
        dropped.count,
        index_uri_of(pod.release_uri),
    )
    return None


def _capture(connection: ClusterConnection, pod: ProvedPod, max_bytes: int) -> StoredKit:
    with tempfile.TemporaryDirectory(prefix="streamway-kit-") as folder:
        packed = capture_kit(connection, pod, Path(folder) / "kit.tar", max_bytes=max_bytes)

        def entry(uri: str, generation: int) -> StoredKit:
            return StoredKit(
                uri=uri,
                sha256=packed.sha256,
                size_bytes=packed.size_bytes,
                generation=generation,
                captured=now(),
                made_for=json.loads(pod.made_for),
                first_start=_figures(pod),
            )

        kit = store_kit(pod.release_uri, pod.kit_key, packed.path, entry, sha256=packed.sha256)
    logger.info(
        "kept the engine's cache as warm-start kit %s: %d files, %.1f MiB",
        kit.uri,
        packed.file_count,
        packed.size_bytes / 2**20,
    )
    return kit


def _as_kit(stored: StoredKit) -> Kit:
    return Kit(uri=stored.uri, sha256=stored.sha256, size_bytes=stored.size_bytes)


def _figures(pod: ProvedPod) -> StartFigures:
    return StartFigures(
        pod=pod.name,
        ready_seconds=pod.ready_seconds,
        weights_seconds=pod.log.streamer.seconds if pod.log.streamer is not None else None,
        engine_seconds=pod.log.initialisation_seconds,
    )


def _statuses(release_uri: str, index: KitIndex) -> Iterator[KitStatus | GivenUpKit]:
    for key, kit in sorted(index.kits.items()):
        yield KitStatus(
            release_uri=release_uri,
            key=key,
            made_for=_made_for(kit.made_for),
            size_bytes=kit.size_bytes,
            captured=kit.captured,
            first=kit.first_start,
            later=kit.later_starts,
            saved_seconds=kit.saved_seconds,
        )
    for key, entry in sorted(index.dropped.items()):
        if key not in index.kits and entry.count >= MOST_BAD_KITS:
            yield GivenUpKit(
                release_uri=release_uri,
                key=key,
                made_for=_made_for(entry.made_for),
                dropped=entry.count,
                last=entry.last,
            )


def _made_for(described: Mapping[str, Any]) -> str:
    gpu_count, accelerator, image = (described.get(name, "?") for name in ("gpu_count", "accelerator", "image"))
    return f"{gpu_count} x {accelerator} with {image}"


def _shown(start: StartFigures) -> str:
    if start.engine_seconds is not None:
        return f"{start.engine_seconds:.1f} s of engine initialisation"
    return f"{start.ready_seconds:.0f} s until ready"
