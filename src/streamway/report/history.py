"""Earlier starts of the same endpoint, so that a cold start can be seen beside those before it.

Each run whose server had to start leaves a small record beside the journals:

    ROOT/.runs/endpoints/<namespace>/<endpoint>/<time>-<run>.json

The time comes first, so that the newest records are the last of a listing. They are a convenience: one that is
missing, garbled or cannot be written never stands in the way of a report.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from streamway import storage
from streamway.errors import StreamwayError
from streamway.report.journal import RunJournal
from streamway.report.words import mapping, mappings, number

SHOWN = 5
KEPT = 50
MAX_BYTES = 64 << 10
FORMAT_VERSION = 1
MOST_PHASES = 12
_MOST_URI = 1000
logger = logging.getLogger("streamway.report")

_STAMP = re.compile(r"\d{8}T\d{6}Z-.+\.json")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A Kubernetes name; anything else is no endpoint."""


@dataclass(frozen=True, kw_only=True)
class EndpointStart:
    """One start of an endpoint's server.

    Args:
        run: Name of the run.
        started: When the run began, UTC in ISO 8601.
        commit_sha: What was started.
        release_uri: Where its weights came from; empty where the run does not say.
        phases: Name and seconds of each phase, in order.
        metrics: The figures of its smoke test.
        format_version: Of this record.
    """

    run: str
    started: str
    commit_sha: str
    phases: tuple[tuple[str, float], ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    release_uri: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.phases)


def describe_start(journal: RunJournal) -> EndpointStart | None:
    """Return the start that this run made; None where no server had to start."""
    deployed = journal.record("deploy_server")
    phases = read_phases(deployed.result.get("phases")) if deployed else ()
    if deployed is None or not phases:
        return None
    proved = journal.record("smoke_test")
    return EndpointStart(
        run=journal.name,
        started=min((record.started for record in journal.records), default=""),
        commit_sha=str(deployed.result.get("commit_sha", ""))[:64],
        phases=phases,
        metrics=_read_metrics(proved.result.get("metrics")) if proved else {},
        release_uri=release_uri_of(journal),
    )


def release_uri_of(journal: RunJournal) -> str:
    """Return the release of a run; "" where it does not say."""
    published = journal.record("upload_model") or journal.record("promote_release")
    return str(published.result.get("uri", ""))[:_MOST_URI] if published else ""


def read_phases(value: Any) -> tuple[tuple[str, float], ...]:
    """Read phases as the journal has them."""
    return tuple(
        (str(phase.get("name", ""))[:60], number(phase.get("seconds"))) for phase in mappings(value, most=MOST_PHASES)
    )


def _read_metrics(value: Any) -> dict[str, float]:
    return {str(name)[:60]: number(figure) for name, figure in list(mapping(value).items())[:20]}


def remember_start(journal: RunJournal) -> None:
    """Leave this run's start for the reports of later runs; forget the oldest ones."""
    start, folder = describe_start(journal), _folder(journal)
    if start is None or not folder:
        return
    try:
        storage.write_file(storage.join(folder, _file_name(start)), json.dumps(asdict(start), indent=1).encode())
        storage.delete_files([storage.join(folder, name) for name in _names(folder)[:-KEPT]])
    except (StreamwayError, OSError) as error:
        logger.warning("this start could not be kept for later reports: %s", str(error).splitlines()[0])


def earlier_starts(
    journal: RunJournal, *, name: str = "", namespace: str = "", most: int = SHOWN
) -> tuple[EndpointStart, ...]:
    """Return the last starts of the same endpoint before this run, the newest first.

    Args:
        journal: The run.
        name: Its endpoint, for a run whose deployment has failed and does not say.
        namespace: The endpoint's namespace.
        most: How many.
    """
    folder = _folder(journal) or endpoint_folder(journal.run_uri, name=name, namespace=namespace)
    if not folder:
        return ()
    try:
        start = describe_start(journal)
        before = [name for name in _names(folder) if start is None or name < _file_name(start)]
        newest = before[::-1][:most]
        found = [_read(storage.join(folder, name)) for name in newest]
    except (StreamwayError, OSError) as error:
        logger.warning("earlier starts cannot be read: %s", str(error).splitlines()[0])
        return ()
    return tuple(start for start in found if start is not None)


def served_releases(run_uri: str, *, name: str, namespace: str) -> tuple[str, ...]:
    """Return the releases that an endpoint is remembered to have served, the newest first.

    Args:
        run_uri: Any run beside those of the endpoint.
        name: The endpoint.
        namespace: Its namespace.

    Raises:
        StreamwayError: the place cannot be listed.
    """
    folder = endpoint_folder(run_uri, name=name, namespace=namespace)
    found = [_read(storage.join(folder, record)) for record in _names(folder)[::-1]] if folder else []
    return tuple(dict.fromkeys(start.release_uri for start in found if start is not None and start.release_uri))


def forget_starts(run_uri: str, *, name: str, namespace: str) -> int:
    """Delete what is remembered of an endpoint's starts; return how many records there were.

    Args:
        run_uri: Any run beside those of the endpoint.
        name: The endpoint.
        namespace: Its namespace.

    Raises:
        StreamwayError: the place cannot be listed, or a record cannot be deleted.
    """
    folder = endpoint_folder(run_uri, name=name, namespace=namespace)
    return storage.delete_files([file.uri for file in storage.list_files(folder)]) if folder else 0


def endpoint_folder(run_uri: str, *, name: str, namespace: str) -> str:
    """Return where the starts of an endpoint are; empty where that is no endpoint, or nobody keeps a journal."""
    if not run_uri or not _NAME.fullmatch(namespace) or not _NAME.fullmatch(name):
        return ""
    runs = run_uri.rstrip("/").rpartition("/")[0]
    return storage.join(runs, "endpoints", namespace, name)


def _folder(journal: RunJournal) -> str:
    deployed = journal.record("deploy_server")
    if deployed is None:
        return ""
    namespace, name = (str(deployed.result.get(key, "")) for key in ("namespace", "endpoint"))
    return endpoint_folder(journal.run_uri, name=name, namespace=namespace)


def _names(folder: str) -> Sequence[str]:
    return [file.path for file in storage.list_files(folder) if _STAMP.fullmatch(file.path)]


def _file_name(start: EndpointStart) -> str:
    try:
        began = datetime.fromisoformat(start.started).astimezone(UTC)
    except ValueError:
        began = datetime.now(UTC)
    return f"{began:%Y%m%dT%H%M%SZ}-{start.run}.json"


def _read(uri: str) -> EndpointStart | None:
    try:
        found = mapping(json.loads(storage.read_file(uri, max_bytes=MAX_BYTES)))
        phases = [pair for pair in found.get("phases", ()) if isinstance(pair, list) and len(pair) == 2]
    except (StreamwayError, ValueError, TypeError, RecursionError) as error:
        logger.warning("%s is left out: %s", uri, str(error).splitlines()[0])
        return None
    if found.get("format_version") != FORMAT_VERSION or not phases:
        return None
    return EndpointStart(
        run=str(found.get("run", ""))[:200],
        started=str(found.get("started", ""))[:40],
        commit_sha=str(found.get("commit_sha", ""))[:64],
        phases=tuple((str(name)[:60], number(seconds)) for name, seconds in phases[:MOST_PHASES]),
        metrics=_read_metrics(found.get("metrics")),
        release_uri=str(found.get("release_uri", ""))[:_MOST_URI],
    )
