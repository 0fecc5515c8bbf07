"""What somebody has filled in, judged while the model is being pulled and before anything is made of it.

A wrong word in a question would otherwise be found by the smoke test, after hours of work and with a GPU at hand.
Here all rooms look at their part of the form at once, and everything that is wrong is said in one message. Nothing is
changed: the bucket is asked where it is, and the cluster whether it answers and what this account may do there.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamway import cache, server, smoke, storage
from streamway.cluster import EVERY_ZONE, check_zone, connect, resolve_zones
from streamway.errors import SettingsError, StreamwayError
from streamway.server.deploy import check_takeover
from streamway.server.stopper import STOPPER_IMAGE
from streamway.storage import gates
from streamway.storage.layout import ModelLayout

log = logging.getLogger("streamway.preflight")

_ANY_COMMIT = "0" * 40
_ANY_SIZE_BYTES = 1024**3
_MOST_REGRESSION = 10


@dataclass(frozen=True, kw_only=True)
class Form:
    """The parameters of a pipeline that ends with an endpoint, as they were filled in.

    Args:
        model_id: Hugging Face model id.
        release_root: Where the release shall be.
        commit_sha: The commit, where it is a parameter.
        source_root: Where the release is, where it is promoted.
        requires: Stages that it must have passed.
        stage: Stage that the run proves it for.
        cluster: As in `streamway.cluster.connect`.
        cache_zones: Zones to cache in, or `cluster`.
        cache_ttl_hours: How long a cache entry lives.
        cache_wait_minutes: How long caches are waited for.
        strategy: How a new revision takes over.
        keep_hours: How long the old one is kept.
        stopper_image: In which image it is stopped then.
        questions: What the model is asked.
        allowed_regression: By what share figures may be worse.
        min_context_length: In tokens.
        server: The settings of the server, by the names of `ServerSpec`.
        pod: What each of its pods is to have, as `read_pod` takes it.
    """

    model_id: str
    release_root: str
    commit_sha: str = ""
    source_root: str = ""
    requires: Sequence[str] = ()
    stage: str = ""
    cluster: str = ""
    cache_zones: Sequence[str] = ()
    cache_ttl_hours: float = 24.0
    cache_wait_minutes: float = 0.0
    strategy: str = "auto"
    keep_hours: float = 1.0
    stopper_image: str = STOPPER_IMAGE
    questions: Sequence[Mapping[str, Any]] = ()
    allowed_regression: float = 0.0
    min_context_length: int = 0
    server: Mapping[str, Any] = field(default_factory=dict)
    pod: Mapping[str, Any] = field(default_factory=dict)


def check_parameters(form: Form) -> tuple[str, ...]:
    """Judge every parameter; return what was looked at.

    Raises:
        SettingsError: several are wrong; the first fault of each part is named.
        StreamwayError: one is wrong, or the cluster does not answer.
    """
    found = [error for check in _CHECKS.values() if (error := _fault(check, form))]
    if len(found) == 1:
        raise found[0]
    if found:
        raise SettingsError(
            f"{len(found)} parameters are wrong:\n" + _numbered(error.problem for error in found),
            next_step="Correct all of them:\n" + _numbered(error.next_step for error in found),
        )
    log.info("Looked at %s: all of it can be used.", ", ".join(_CHECKS))
    return tuple(_CHECKS)


def _fault(check: Callable[[Form], None], form: Form) -> StreamwayError | None:
    try:
        check(form)
    except StreamwayError as error:
        return error
    return None


def _numbered(lines: Iterable[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _check_places(form: Form) -> None:
    roots = {"release_root": form.release_root, **({"source_root": form.source_root} if form.commit_sha else {})}
    for name, root in roots.items():
        if not storage.is_gs(root):
            raise SettingsError(
                f"{name} is {root!r}, expected gs://BUCKET/PREFIX: a server streams from a bucket.",
                next_step="Give the address of a bucket, and a prefix in it.",
            )
        storage.bucket_of(root)
    ModelLayout(form.release_root, form.model_id, form.commit_sha or _ANY_COMMIT)


def _check_stages(form: Form) -> None:
    layout = ModelLayout(form.release_root, "any/model", _ANY_COMMIT)
    for stage in (*_texts("requires", form.requires), *filter(None, [form.stage])):
        gates.passage_uri(layout, stage)


def _check_caches(form: Form) -> None:
    zones = [zone for zone in _texts("cache_zones", form.cache_zones) if zone != EVERY_ZONE]
    ttl_seconds = int(form.cache_ttl_hours * 3600)
    cache.check_request(zones=zones, ttl_seconds=ttl_seconds)
    cache.check_wait_minutes(form.cache_wait_minutes)
    if form.cache_zones and storage.is_gs(form.release_root):
        bucket = storage.bucket_of(form.release_root)
        cache.check_zones(bucket=bucket, zones=resolve_zones(form.cache_zones, form.cluster))


def _check_server(form: Form) -> None:
    wanted = server.read_pod(form.pod)
    server.ServerSpec(
        release_uri="gs://any/release/",
        model_id=form.model_id,
        commit_sha=form.commit_sha or _ANY_COMMIT,
        size_bytes=_ANY_SIZE_BYTES,
        resources=wanted.resources,
        startup_seconds=wanted.startup_seconds,
        **form.server,
    )
    check_takeover(form.strategy, form.keep_hours * 3600, form.stopper_image)


def _check_proof(form: Form) -> None:
    smoke.parse_questions(form.questions)
    if not 0 <= form.allowed_regression <= _MOST_REGRESSION:
        raise SettingsError(
            f"allowed_regression is {form.allowed_regression:g}, expected a share of 0 to {_MOST_REGRESSION}.",
            next_step="Give 0.5 to allow half as slow again, or 0 to compare nothing.",
        )
    if form.min_context_length < 0:
        raise SettingsError(
            f"min_context_length is {form.min_context_length}, expected a number of tokens, or 0 for any.",
            next_step="Give what your clients need, or leave it at 0.",
        )


def _check_cluster(form: Form) -> None:
    connect(form.cluster)
    server.check_permissions(namespace=str(form.server.get("namespace", "")), cluster=form.cluster)
    check_zone(str(form.server.get("zone") or ""), form.cluster)


def _texts(name: str, values: Sequence[Any]) -> Sequence[str]:
    for value in values:
        if not isinstance(value, str):
            raise SettingsError(f"{name} has {value!r}, expected texts.", next_step="Put it in quotes.")
    return values


_CHECKS: dict[str, Callable[[Form], None]] = {
    "places": _check_places,
    "stages": _check_stages,
    "caches": _check_caches,
    "server": _check_server,
    "questions": _check_proof,
    "cluster": _check_cluster,
}
