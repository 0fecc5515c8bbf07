"""The Storage Control API as far as caches need it: each call with a deadline, bounded retries and worded refusals.

STORAGE_CONTROL_ENDPOINT (host:port) names another endpoint, such as a private service connect address.
"""

import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import google.auth.exceptions
import stamina
from google.api_core import exceptions as refusals
from google.api_core.client_options import ClientOptions
from google.cloud import storage_control_v2 as api
from google.protobuf import field_mask_pb2

from streamway.errors import BucketNotFoundError, CacheError, StorageAccessError

_CALL_SECONDS = 20.0
_LEAST_CALL_SECONDS = 0.05
_ATTEMPTS = 6
# Requests with one of these ids are ours, whoever runs the step.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "streamway/anywhere-cache")
# https://cloud.google.com/storage/docs/locations#predefined
_DUAL_REGIONS: Mapping[str, tuple[str, ...]] = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "EUR5": ("europe-west1", "europe-west2"),
    "EUR7": ("europe-west2", "europe-west3"),
    "EUR8": ("europe-west3", "europe-west6"),
    "NAM4": ("us-central1", "us-east1"),
}
# https://cloud.google.com/storage/docs/locations#location-mr; London and Zurich are not in the European Union.
_MULTI_REGIONS: Mapping[str, str] = {
    "US": r"us-.+",
    "EU": r"europe-(?!west2$|west6$).+",
    "ASIA": r"asia-.+",
}
_TRANSIENT = (
    refusals.ServiceUnavailable,
    refusals.DeadlineExceeded,
    refusals.InternalServerError,
    refusals.ResourceExhausted,
    refusals.Unknown,
)


@dataclass(frozen=True, kw_only=True)
class ZoneCache:
    """The cache of one zone as it now stands.

    Args:
        zone: Its zone.
        state: creating, running, paused, disabled, absent, or a word that this version does not know; always in
            lower case.
        name: Resource name.
        ttl_seconds: How long an entry lives.
        since: When the cache last changed, to the second, in UTC; empty where the API does not say.
        ingest_on_write: Whether uploads fill it.
        pending_update: Whether a change of it is under way.
        action: What was done: created, resumed, updated, found, waits (a change is refused until one that is
            under way is over), disabled, or none.
    """

    zone: str
    state: str
    name: str
    ttl_seconds: int
    since: str
    ingest_on_write: bool
    pending_update: bool
    action: str


@dataclass(frozen=True, kw_only=True)
class CacheIntent:
    """What every zone is to have."""

    ttl_seconds: int
    ingest_on_write: bool

    def request_id(self, bucket: str, zone: str, generation: int) -> str:
        """Name a request so that asking twice is asking once.

        An id whose cache was created and is gone again would only bring the old operation back; the next
        generation is a new wish.
        """
        wish = f"{bucket}/{zone}/{self.ttl_seconds}/{self.ingest_on_write}/{generation}"
        return str(uuid.uuid5(_NAMESPACE, wish))


class CacheControl:
    """The API for one bucket: each call with a deadline, bounded retries and worded refusals."""

    def __init__(self, bucket: str, client: api.StorageControlClient, deadline: float) -> None:
        self.bucket = bucket
        self.deadline = deadline
        self._client = client
        self._parent = f"projects/_/buckets/{bucket}"

    def layout(self) -> Any:
        name = f"{self._parent}/storageLayout"
        return self._ask("storage.objects.list", self._client.get_storage_layout, name=name)

    def list(self) -> list[ZoneCache]:
        permission = "storage.anywhereCaches.list"
        pages = self._ask(permission, self._client.list_anywhere_caches, parent=self._parent)
        return [_described(cache, "none") for cache in pages]

    def find(self, zone: str) -> ZoneCache | None:
        permission = "storage.anywhereCaches.get"
        try:
            cache = self._ask(permission, self._client.get_anywhere_cache, name=self.name(zone))
        except BucketNotFoundError:
            # NOT_FOUND is the same for a cache and for a bucket; the bucket was seen before.
            return None
        return _described(cache, "found")

    def create(self, zone: str, intent: CacheIntent, generation: int) -> Any:
        cache = api.AnywhereCache(
            zone=zone, ttl={"seconds": intent.ttl_seconds}, ingest_on_write=intent.ingest_on_write
        )
        request = api.CreateAnywhereCacheRequest(
            parent=self._parent,
            anywhere_cache=cache,
            request_id=intent.request_id(self.bucket, zone, generation),
        )
        permission = "storage.anywhereCaches.create"
        created = self._ask(permission, self._client.create_anywhere_cache, request=request)
        return created.operation

    def update(self, zone: str, intent: CacheIntent) -> None:
        cache = api.AnywhereCache(
            name=self.name(zone),
            ttl={"seconds": intent.ttl_seconds},
            ingest_on_write=intent.ingest_on_write,
        )
        request = api.UpdateAnywhereCacheRequest(
            anywhere_cache=cache,
            update_mask=field_mask_pb2.FieldMask(paths=["ttl", "ingest_on_write"]),
            request_id=str(uuid.uuid4()),
        )
        self._ask("storage.anywhereCaches.update", self._client.update_anywhere_cache, request=request)

    def resume(self, zone: str) -> ZoneCache:
        request = api.ResumeAnywhereCacheRequest(name=self.name(zone))
        permission = "storage.anywhereCaches.resume"
        return _described(self._ask(permission, self._client.resume_anywhere_cache, request=request), "resumed")

    def disable(self, zone: str) -> ZoneCache:
        request = api.DisableAnywhereCacheRequest(name=self.name(zone))
        permission = "storage.anywhereCaches.disable"
        return _described(self._ask(permission, self._client.disable_anywhere_cache, request=request), "disabled")

    def name(self, zone: str) -> str:
        return f"{self._parent}/anywhereCaches/{zone}"

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def _ask(self, permission: str, call: Callable[..., Any], **arguments: Any) -> Any:
        patience = stamina.RetryingCaller(
            attempts=_ATTEMPTS, timeout=max(0.0, self.remaining()), wait_initial=0.2, wait_max=5.0, wait_jitter=0.2
        )
        try:
            return patience(_TRANSIENT, self._ask_once, call, arguments)
        except (refusals.GoogleAPICallError, google.auth.exceptions.GoogleAuthError) as error:
            self._refuse(permission, error)

    def _ask_once(self, call: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        # The library's own retries know nothing of the step's deadline.
        seconds = max(_LEAST_CALL_SECONDS, min(_CALL_SECONDS, self.remaining()))
        return call(retry=None, timeout=seconds, **arguments)

    def _refuse(self, permission: str, error: Exception) -> NoReturn:
        said = getattr(error, "message", None) or str(error)
        if isinstance(error, (refusals.AlreadyExists, refusals.FailedPrecondition)):
            raise error
        if isinstance(error, refusals.NotFound):
            raise BucketNotFoundError(
                f"gs://{self.bucket}: there is no such bucket, or this account may not see it ({said}).",
                next_step="Create it, or correct its name in the configuration.",
            ) from error
        if isinstance(error, refusals.Forbidden):
            raise StorageAccessError(
                f"gs://{self.bucket}: this account lacks the permission {permission} ({said}).",
                next_step="Grant it roles/storage.admin on the bucket, or a custom role with that permission.",
            ) from error
        if isinstance(error, (refusals.Unauthorized, google.auth.exceptions.GoogleAuthError)):
            raise StorageAccessError(
                f"gs://{self.bucket}: Google does not accept this worker's credentials ({said}).",
                next_step="Run `gcloud auth application-default login`, or give the worker a service account.",
            ) from error
        if isinstance(error, (refusals.ServiceUnavailable, refusals.DeadlineExceeded)):
            raise CacheError(
                f"The caches of gs://{self.bucket}: {self._client.api_endpoint} does not answer, after up to "
                f"{_ATTEMPTS} attempts: {said}",
                next_step="Run again; models are served without a cache too, only more slowly.",
            ) from error
        raise CacheError(
            f"The caches of gs://{self.bucket}: the API refuses: {said}",
            next_step="Correct what it names; models are served without a cache too.",
        ) from error


def zone_in_location(zone: str, location: str, data_locations: Sequence[str] = ()) -> bool | None:
    """Say whether a zone lies in a bucket's location; None for a location that this version does not know.

    Args:
        zone: Such as us-central1-a.
        location: As Cloud Storage words it: a region, dual-region or multi-region.
        data_locations: The two regions of a configurable dual-region.
    """
    region = zone.rpartition("-")[0]
    if data_locations:
        return region in [name.lower() for name in data_locations]
    if location.upper() in _DUAL_REGIONS:
        return region in _DUAL_REGIONS[location.upper()]
    if location.upper() in _MULTI_REGIONS:
        return re.fullmatch(_MULTI_REGIONS[location.upper()], region) is not None
    if re.fullmatch(r"[a-z]+-[a-z]+\d+", location.lower()):
        return region == location.lower()
    return None


def make_client() -> api.StorageControlClient:
    """Make a client with the credentials and the endpoint that the environment names.

    Raises:
        StorageAccessError: there are no credentials.
    """
    endpoint = os.environ.get("STORAGE_CONTROL_ENDPOINT")
    options = ClientOptions(api_endpoint=endpoint) if endpoint else None
    try:
        return api.StorageControlClient(client_options=options)
    except google.auth.exceptions.GoogleAuthError as error:
        raise StorageAccessError(
            f"Anywhere Cache cannot be asked without Google credentials: {error}",
            next_step="Run `gcloud auth application-default login`, or give the worker a service account.",
        ) from error


def _described(cache: Any, action: str) -> ZoneCache:
    changed: datetime | None = cache.update_time or cache.create_time
    return ZoneCache(
        zone=cache.zone or cache.name.rpartition("/")[2],
        state=cache.state.lower(),
        name=cache.name,
        ttl_seconds=int(cache.ttl.total_seconds()) if cache.ttl else 0,
        since=f"{changed.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if changed else "",
        ingest_on_write=bool(cache.ingest_on_write),
        pending_update=bool(cache.pending_update),
        action=action,
    )
