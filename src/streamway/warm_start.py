"""Warm starts: the cache of an engine that has passed is kept beside its release, and given to every later pod.

Serving (server) knows pods and storing (storage) knows releases; this is where a kit goes from the one to the other.
Nothing here may fail a run: without a kit an engine only takes longer, and the log says why there is none.
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamway.cluster import ClusterConnection, connect
from streamway.errors import StreamwayError
from streamway.server.kit import MAX_KIT_BYTES, FindKit, Kit
from streamway.server.kit_capture import ProvedPod, capture_kit, find_proved_pod
from streamway.server.kit_offer import offer_kit, take_back_kit
from streamway.storage.files import delete_files
from streamway.storage.kits import (
    StartFigures,
    StoredKit,
    change_kits,
    is_as_stored,
    read_kits,
    release_of_kit,
    store_kit,
)
from streamway.storage.manifest import now

logger = logging.getLogger("streamway.warm_start")


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
    """Take a kit away from its release, because an engine that restored it does not work; the next one is made anew."""

    def without(kits: Mapping[str, StoredKit]) -> Mapping[str, StoredKit]:
        return {key: known for key, known in kits.items() if known.sha256 != kit.sha256}

    try:
        change_kits(release_of_kit(kit.uri), without)
        delete_files([kit.uri])
    except (StreamwayError, OSError) as error:
        problem = error.problem if isinstance(error, StreamwayError) else str(error)
        logger.warning("the warm-start kit %s could not be dropped, so delete it by hand: %s", kit.uri, problem)
    else:
        logger.warning("the warm-start kit %s was dropped; the next one is made anew", kit.uri)


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
        kit = _known_kit(pod) or _capture(connection, pod, max_bytes)
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


def read_kit_status(release_uris: Sequence[str]) -> tuple[KitStatus, ...]:
    """Say which kits some releases have, and what they saved.

    A bucket that this account may not read is told in the log: an endpoint's status is worth something without it.
    """
    try:
        return tuple(
            _status(uri, key, kit) for uri in dict.fromkeys(release_uris) for key, kit in sorted(read_kits(uri).items())
        )
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
    def noted(kits: Mapping[str, StoredKit]) -> Mapping[str, StoredKit]:
        known = kits.get(pod.kit_key)
        if known is None or known.sha256 != kit.sha256:
            return kits
        return {**kits, pod.kit_key: known.with_start(_figures(pod))}

    changed = change_kits(pod.release_uri, noted).get(pod.kit_key, kit)
    if changed.saved_seconds is not None:
        first, later = _shown(changed.first_start), _shown(_figures(pod))
        logger.info("with its warm-start kit the engine took %s instead of %s", later, first)
    return changed


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


def _status(release_uri: str, key: str, kit: StoredKit) -> KitStatus:
    gpu_count, accelerator, image = (kit.made_for.get(name, "?") for name in ("gpu_count", "accelerator", "image"))
    return KitStatus(
        release_uri=release_uri,
        key=key,
        made_for=f"{gpu_count} x {accelerator} with {image}",
        size_bytes=kit.size_bytes,
        captured=kit.captured,
        first=kit.first_start,
        later=kit.later_starts,
        saved_seconds=kit.saved_seconds,
    )


def _shown(start: StartFigures) -> str:
    if start.engine_seconds is not None:
        return f"{start.engine_seconds:.1f} s of engine initialisation"
    return f"{start.ready_seconds:.0f} s until ready"
