"""Caches and operations that move with time, by the rules of the Storage Control API.

Nothing runs in the background: each look brings what is due up to date, so a state file copied away and back, or a
process that was stopped for a while, is simply further along.

Source: https://cloud.google.com/storage/docs/anywhere-cache, and the descriptions in google-cloud-storage-control.
"""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamway.errors import SandboxError
from streamway.sandbox.processes import read_json, write_json

LEAST_TTL_SECONDS = 3600
MOST_TTL_SECONDS = 7 * 24 * 3600
DEFAULT_TTL_SECONDS = 24 * 3600
_NEVER = 0.0
# https://cloud.google.com/storage/docs/locations
_DUAL_REGIONS = {
    "ASIA1": ("asia-northeast1", "asia-northeast2"),
    "EUR4": ("europe-north1", "europe-west4"),
    "EUR5": ("europe-west1", "europe-west2"),
    "EUR7": ("europe-west2", "europe-west3"),
    "EUR8": ("europe-west3", "europe-west6"),
    "NAM4": ("us-central1", "us-east1"),
}
_CONTINENTS = {"US": "us-", "EU": "europe-", "ASIA": "asia-"}
# In Europe, but not in the European Union.
_NOT_IN_EU = ("europe-west2", "europe-west6")


class RefusedError(Exception):
    """A request that the API refuses; carries the name of the gRPC status."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Delays:
    """How long things take, in seconds.

    Args:
        create: From creating to running; an hour or more in Cloud Storage.
        update: Until an update is applied.
        disable: Until a disabled cache is gone; about an hour in Cloud Storage.
    """

    create: float = 3.0
    update: float = 1.0
    disable: float = 60.0


@dataclass(frozen=True, kw_only=True)
class BucketPlace:
    """Where a bucket is, as Cloud Storage says."""

    name: str
    location: str
    location_type: str
    data_locations: tuple[str, ...] = ()

    def holds(self, zone: str) -> bool:
        """Say whether a zone lies in the bucket's location."""
        region = zone.rpartition("-")[0]
        if self.data_locations:
            return region in [location.lower() for location in self.data_locations]
        if self.location in _DUAL_REGIONS:
            return region in _DUAL_REGIONS[self.location]
        if self.location == "EU" and region in _NOT_IN_EU:
            return False
        if self.location in _CONTINENTS:
            return region.startswith(_CONTINENTS[self.location])
        return region == self.location.lower()


@dataclass(kw_only=True)
class Cache:
    """One cache.

    Args:
        bucket: Its bucket.
        zone: Its zone, which is also its id.
        ttl_seconds: How long an entry lives.
        ingest_on_write: Whether uploads fill it.
        admission_policy: `admit-on-first-miss` or `admit-on-second-miss`.
        state: creating, running, paused or disabled.
        created: Seconds since the epoch.
        updated: Likewise.
        ready: When creation is over.
        gone: When a disabled cache is removed; 0 for one that is not disabled.
        pending: Changes that apply at `pending_until`.
        pending_until: When they do; 0 where there are none.
    """

    bucket: str
    zone: str
    ttl_seconds: int
    ingest_on_write: bool
    admission_policy: str
    state: str
    created: float
    updated: float
    ready: float
    gone: float = _NEVER
    pending: dict[str, str | int | bool]
    pending_until: float = _NEVER

    @property
    def name(self) -> str:
        return f"projects/_/buckets/{self.bucket}/anywhereCaches/{self.zone}"


@dataclass(kw_only=True)
class Operation:
    """One long-running operation.

    Args:
        name: Resource name.
        kind: create or update.
        bucket: Bucket of the cache that it makes or changes.
        zone: Zone of that cache.
        request_id: Given by the client; the same one names the same operation.
        created: Seconds since the epoch.
        done: When it is over.
        cancelled: Whether it was cancelled before that.
        made: The cache as it was when the operation began; what the operation says of it once it is gone.
    """

    name: str
    kind: str
    bucket: str
    zone: str
    request_id: str
    created: float
    done: float
    cancelled: bool = False
    made: dict[str, Any]


class Registry:
    """All caches and operations, kept in one file."""

    def __init__(self, path: Path, delays: Delays, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._delays = delays
        self.clock = clock
        kept = read_json(path) or {"caches": [], "operations": []}
        try:
            self._caches = {(value["bucket"], value["zone"]): Cache(**value) for value in kept["caches"]}
            self._operations = {value["name"]: Operation(**value) for value in kept["operations"]}
        except (TypeError, KeyError) as error:
            raise SandboxError(
                f"{path} was written by another version: {error}.",
                next_step="Delete the file; only the sandbox's caches are forgotten.",
            ) from error

    def create(
        self,
        place: BucketPlace,
        zone: str,
        *,
        ttl_seconds: int,
        ingest_on_write: bool,
        admission_policy: str,
        request_id: str,
    ) -> Operation:
        """Begin to create a cache; the same request again returns the same operation."""
        known = self._repeated("create", place.name, request_id)
        if known is not None:
            return known
        _check_zone(place, zone)
        _check_ttl(ttl_seconds)
        if self.find(place.name, zone) is not None:
            raise RefusedError("ALREADY_EXISTS", f"A cache in zone {zone} already exists for {place.name}.")
        now = self.clock()
        self._caches[place.name, zone] = Cache(
            bucket=place.name,
            zone=zone,
            ttl_seconds=ttl_seconds or DEFAULT_TTL_SECONDS,
            ingest_on_write=ingest_on_write,
            admission_policy=admission_policy or "admit-on-first-miss",
            state="creating",
            created=now,
            updated=now,
            ready=now + self._delays.create,
            pending={},
        )
        return self._begin("create", place.name, zone, request_id, now + self._delays.create)

    def update(self, bucket: str, zone: str, changes: dict[str, str | int | bool], request_id: str) -> Operation:
        """Begin to change a cache; refused while another change is pending."""
        known = self._repeated("update", bucket, request_id)
        if known is not None:
            return known
        cache = self.get(bucket, zone)
        if "ttl_seconds" in changes:
            _check_ttl(int(changes["ttl_seconds"]))
        if cache.pending_until:
            raise RefusedError("FAILED_PRECONDITION", f"The cache in {zone} has a pending update.")
        if cache.state != "running":
            raise RefusedError("FAILED_PRECONDITION", f"The cache in {zone} is {cache.state}, it cannot be updated.")
        cache.pending = changes
        cache.pending_until = self.clock() + self._delays.update
        return self._begin("update", bucket, zone, request_id, cache.pending_until)

    def pause(self, bucket: str, zone: str) -> Cache:
        """Stop ingestion."""
        cache = self.get(bucket, zone)
        if cache.state != "running":
            raise RefusedError(
                "FAILED_PRECONDITION", f"The cache in {zone} is {cache.state}, only a running one is paused."
            )
        return self._move(cache, "paused")

    def resume(self, bucket: str, zone: str) -> Cache:
        """Take a pause or a disabling back."""
        cache = self.get(bucket, zone)
        cache.gone = _NEVER
        return self._move(cache, "running" if self.clock() >= cache.ready else "creating")

    def disable(self, bucket: str, zone: str) -> Cache:
        """Begin to remove a cache."""
        cache = self.get(bucket, zone)
        if cache.state == "disabled":
            return cache
        cache.gone = self.clock() + self._delays.disable
        return self._move(cache, "disabled")

    def force_state(self, bucket: str, zone: str, state: str) -> Cache:
        """Put a cache into any state, also one that nobody knows, and keep it there."""
        cache = self.get(bucket, zone)
        cache.ready = self.clock()
        return self._move(cache, state)

    def find(self, bucket: str, zone: str) -> Cache | None:
        """Return a cache as it is now."""
        cache = self._caches.get((bucket, zone))
        if cache is None:
            return None
        now = self.clock()
        if cache.gone and now >= cache.gone:
            del self._caches[bucket, zone]
            self._write()
            return None
        self._settle(cache, now)
        return cache

    def get(self, bucket: str, zone: str) -> Cache:
        """Return a cache as it is now, which must exist."""
        cache = self.find(bucket, zone)
        if cache is None:
            raise RefusedError("NOT_FOUND", f"The cache {bucket}/{zone} was not found.")
        return cache

    def list_caches(self, bucket: str) -> list[Cache]:
        """Return a bucket's caches in order of zone."""
        zones = sorted(zone for owner, zone in self._caches if owner == bucket)
        return [cache for zone in zones if (cache := self.find(bucket, zone)) is not None]

    def operation(self, name: str) -> Operation:
        """Return an operation, which must exist."""
        if name not in self._operations:
            raise RefusedError("NOT_FOUND", f"The operation {name} was not found.")
        return self._operations[name]

    def outcome(self, operation: Operation) -> Cache:
        """Return the cache that an operation made or changed, as it is now or, once it is gone, as it was."""
        made = Cache(**operation.made)
        made.state = "running"
        return self.find(operation.bucket, operation.zone) or made

    def operations(self, bucket: str) -> list[Operation]:
        """Return a bucket's operations, oldest first."""
        return [operation for operation in self._operations.values() if operation.bucket == bucket]

    def cancel(self, name: str) -> None:
        """Cancel an operation that is not over; a cache that it was creating disappears."""
        operation = self.operation(name)
        if operation.cancelled or self.clock() >= operation.done:
            return
        operation.cancelled = True
        operation.done = self.clock()
        cache = self._caches.get((operation.bucket, operation.zone))
        if cache is not None and operation.kind == "create":
            del self._caches[operation.bucket, operation.zone]
        elif cache is not None:
            cache.pending, cache.pending_until = {}, _NEVER
        self._write()

    def _settle(self, cache: Cache, now: float) -> None:
        if cache.state == "creating" and now >= cache.ready:
            self._move(cache, "running")
        if cache.pending_until and now >= cache.pending_until:
            for field, value in cache.pending.items():
                setattr(cache, field, value)
            cache.pending, cache.pending_until = {}, _NEVER
            self._move(cache, cache.state)

    def _move(self, cache: Cache, state: str) -> Cache:
        cache.state = state
        cache.updated = self.clock()
        self._write()
        return cache

    def _repeated(self, kind: str, bucket: str, request_id: str) -> Operation | None:
        for operation in self._operations.values():
            if request_id and (operation.kind, operation.bucket, operation.request_id) == (
                kind,
                bucket,
                request_id,
            ):
                return operation
        return None

    def _begin(self, kind: str, bucket: str, zone: str, request_id: str, done: float) -> Operation:
        operation = Operation(
            name=f"projects/_/buckets/{bucket}/operations/{uuid.uuid4()}",
            kind=kind,
            bucket=bucket,
            zone=zone,
            request_id=request_id,
            created=self.clock(),
            done=done,
            made=asdict(self._caches[bucket, zone]),
        )
        self._operations[operation.name] = operation
        self._write()
        return operation

    def _write(self) -> None:
        caches = [asdict(cache) for cache in self._caches.values()]
        operations = [asdict(operation) for operation in self._operations.values()]
        write_json(self._path, {"caches": caches, "operations": operations})


def _check_zone(place: BucketPlace, zone: str) -> None:
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z][a-z0-9]*", zone):
        raise RefusedError("INVALID_ARGUMENT", f"Invalid zone: {zone!r}.")
    if not place.holds(zone):
        raise RefusedError(
            "INVALID_ARGUMENT", f"The zone {zone} is not in the location {place.location} of {place.name}."
        )


def _check_ttl(ttl_seconds: int) -> None:
    if ttl_seconds and not LEAST_TTL_SECONDS <= ttl_seconds <= MOST_TTL_SECONDS:
        raise RefusedError("INVALID_ARGUMENT", f"TTL of {ttl_seconds}s is not between {LEAST_TTL_SECONDS}s and 7 days.")
