"""Anywhere Cache: a copy of what is read, on SSD in the zone that reads it, so that models load from next door.

A cache moves no byte of ours and is never the reason why a model cannot be served, so this step reconciles: it looks
at what is there, asks for what is missing, and says what state each zone is in. A cache that is still being created
(usually within an hour, sometimes many) is reported, not waited for unless asked, and never a failure.

The API is Storage Control by gRPC; its REST transport has no caches.

States and limits: https://cloud.google.com/storage/docs/anywhere-cache (now also called Rapid Cache).
"""

import logging
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from google.api_core import exceptions as refusals
from google.cloud import storage_control_v2 as api

from streamway.cache_control import CacheControl, CacheIntent, ZoneCache, make_client, zone_in_location
from streamway.errors import BucketNotFoundError, CacheError, SettingsError
from streamway.storage.segments import Progress

LEAST_TTL_SECONDS = 3600
MOST_TTL_SECONDS = 7 * 24 * 3600
DEFAULT_TTL_SECONDS = 24 * 3600
_MOST_POLL_SECONDS = 15.0
_MOST_INTENTS = 20
_MOST_FAILURES = 3
_MOST_THREADS = 8
_GIB = 1024**3
_HOURS_A_MONTH = 730
# Such as us-central1-a; zones for accelerators end in more than a letter, such as us-south1-ai1b.
_MOST_WAIT_MINUTES = 1440.0
_ZONE = re.compile(r"[a-z]+-[a-z]+\d+-[a-z][a-z0-9]*")
log = logging.getLogger("streamway.cache")


@dataclass(frozen=True, kw_only=True)
class CachePrice:
    """What a cache costs, in US dollars.

    Args:
        storage_per_gib_hour: Holding one GiB for one hour.
        ingest_per_gib: Taking one GiB into the cache, each time.
        source: Where the figures are from, and when.
    """

    storage_per_gib_hour: float
    ingest_per_gib: float
    source: str


LIST_PRICE = CachePrice(
    storage_per_gib_hour=0.0001233,
    ingest_per_gib=0.0032,
    source="list price of a region such as us-central1, https://cloud.google.com/storage/pricing, September 2026",
)


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """An estimate, for entries that stay cached the whole month.

    Args:
        size_bytes: What is cached in each zone.
        zones: How many zones hold it.
        ingest_usd: Filling all caches once.
        usd_a_month: Holding it in all of them.
        price: What it was reckoned with.
    """

    size_bytes: int
    zones: int
    ingest_usd: float
    usd_a_month: float
    price: CachePrice

    def __str__(self) -> str:
        return (
            f"{self.size_bytes / _GIB:.1f} GiB in {_count(self.zones, 'cache')}: about {self.usd_a_month:.2f} USD "
            f"a month while it is cached, and {self.ingest_usd:.2f} USD to fill ({self.price.source})"
        )


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """The caches of a bucket after a step.

    Args:
        bucket: The bucket.
        location: Where it is, as Cloud Storage words it; empty where nothing was asked.
        zones: One entry for each zone that was asked for, in that order.
        cost: What they cost to hold; None where the size is not known.
        note: One sentence for a person.
    """

    bucket: str
    location: str
    zones: tuple[ZoneCache, ...]
    cost: CacheCost | None
    note: str

    @property
    def all_running(self) -> bool:
        return all(zone.state == "running" for zone in self.zones)


def enable_cache(
    *,
    bucket: str,
    zones: Sequence[str],
    ttl_seconds: int = DEFAULT_TTL_SECONDS,
    wait: str = "none",
    timeout_seconds: float = 600.0,
    ingest_on_write: bool = False,
    size_bytes: int | None = None,
    price: CachePrice = LIST_PRICE,
    client: api.StorageControlClient | None = None,
    on_progress: Progress | None = None,
) -> CacheResult:
    """Have a cache in each zone: create, resume or update what is not as asked.

    Args:
        bucket: Name of the bucket.
        zones: Such as us-central1-a; none means that there is nothing to do.
        ttl_seconds: How long an entry lives after it was last written to the cache, 3600 to 604800.
        wait: "none" returns as soon as the API has agreed; "running" waits until every cache serves.
        timeout_seconds: For everything together. A cache that is not running by then is no failure; an API that
            does not answer is.
        ingest_on_write: Fill the cache when objects are uploaded, not when they are first read.
        size_bytes: What will be read through the cache, for the estimate of its cost.
        price: What the estimate is reckoned with.
        client: Another client; made from the environment by default.
        on_progress: Called with (caches running, caches asked for) while waiting.

    Raises:
        BucketNotFoundError: there is no such bucket.
        StorageAccessError: a permission is missing, which is named, or there are no credentials.
        CacheError: a parameter or a zone is wrong, the API refuses, or it does not answer in time.
    """
    wanted = tuple(dict.fromkeys(zones))
    check_request(zones=wanted, ttl_seconds=ttl_seconds)
    _check_wait(wait, timeout_seconds)
    if not wanted:
        log.info("No zone was asked for, so gs://%s gets no cache.", bucket)
        return CacheResult(bucket=bucket, location="", zones=(), cost=None, note="No zone was asked for.")
    cost = None if size_bytes is None else estimate_cost(size_bytes, wanted, price)
    log.info("%s", cost or describe_price(price))
    deadline = time.monotonic() + timeout_seconds
    control = CacheControl(bucket, client or make_client(), deadline)
    location = _check_zones(control, wanted)
    intent = CacheIntent(ttl_seconds=ttl_seconds, ingest_on_write=ingest_on_write)
    with ThreadPoolExecutor(min(len(wanted), _MOST_THREADS), thread_name_prefix="cache") as pool:
        found = tuple(pool.map(lambda zone: _Reconciler(control, zone, intent).run(), wanted))
        if wait == "running":
            found = _wait_until_running(control, pool, found, intent, on_progress)
    for zone in found:
        log.info("Cache in %s: %s (%s), entries live %d s.", zone.zone, zone.state, zone.action, zone.ttl_seconds)
    note = _summary(bucket, found, cost)
    log.info("%s", note)
    return CacheResult(bucket=bucket, location=location, zones=found, cost=cost, note=note)


def check_zones(
    *,
    bucket: str,
    zones: Sequence[str],
    timeout_seconds: float = 60.0,
    client: api.StorageControlClient | None = None,
) -> str:
    """Check that a bucket can be cached in each zone, and change nothing; returns the bucket's location.

    Raises:
        BucketNotFoundError: there is no such bucket.
        StorageAccessError: a permission is missing, which is named, or there are no credentials.
        CacheError: a zone is not in the bucket's location, or the API does not answer in time.
    """
    return _check_zones(CacheControl(bucket, client or make_client(), time.monotonic() + timeout_seconds), zones)


def list_caches(
    bucket: str, *, timeout_seconds: float = 60.0, client: api.StorageControlClient | None = None
) -> tuple[ZoneCache, ...]:
    """Describe every cache of a bucket, in order of zone.

    Raises:
        BucketNotFoundError, StorageAccessError, CacheError: as in `enable_cache`.
    """
    control = CacheControl(bucket, client or make_client(), time.monotonic() + timeout_seconds)
    return tuple(sorted(control.list(), key=lambda cache: cache.zone))


def disable_cache(
    *,
    bucket: str,
    zones: Sequence[str],
    timeout_seconds: float = 60.0,
    client: api.StorageControlClient | None = None,
) -> CacheResult:
    """Begin to remove the caches of some zones; a cache that is not there is well.

    It takes about an hour until they are gone, during which the bucket cannot be deleted; `enable_cache` takes it
    back.

    Raises:
        BucketNotFoundError, StorageAccessError, CacheError: as in `enable_cache`.
    """
    wanted = tuple(dict.fromkeys(zones))
    if not wanted:
        return CacheResult(bucket=bucket, location="", zones=(), cost=None, note="No zone was asked for.")
    control = CacheControl(bucket, client or make_client(), time.monotonic() + timeout_seconds)
    location = control.layout().location
    with ThreadPoolExecutor(min(len(wanted), _MOST_THREADS), thread_name_prefix="cache") as pool:
        found = tuple(pool.map(lambda zone: _disable(control, zone), wanted))
    note = _summary(bucket, found, None)
    log.info("%s", note)
    return CacheResult(bucket=bucket, location=location, zones=found, cost=None, note=note)


def estimate_cost(size_bytes: int, zones: Sequence[str], price: CachePrice = LIST_PRICE) -> CacheCost:
    """Estimate what it costs to hold so many bytes in a cache of each zone for a month of 730 hours."""
    gib = size_bytes / _GIB * len(zones)
    return CacheCost(
        size_bytes=size_bytes,
        zones=len(zones),
        ingest_usd=gib * price.ingest_per_gib,
        usd_a_month=gib * price.storage_per_gib_hour * _HOURS_A_MONTH,
        price=price,
    )


def describe_price(price: CachePrice = LIST_PRICE) -> str:
    """Say in one sentence what a GiB costs in a zone."""
    monthly = price.storage_per_gib_hour * _HOURS_A_MONTH
    return (
        f"A cached GiB costs about {monthly:.3f} USD a month in each zone, and {price.ingest_per_gib:.4f} USD to "
        f"take in ({price.source})."
    )


class _Reconciler:
    """Brings the cache of one zone to what is wanted, from whatever it is now."""

    def __init__(self, control: CacheControl, zone: str, intent: CacheIntent) -> None:
        self._control = control
        self._zone = zone
        self._intent = intent

    def run(self) -> ZoneCache:
        found = self._control.find(self._zone)
        return self._create() if found is None else self._bring_over(found)

    def _create(self) -> ZoneCache:
        failures = 0
        reason = "it does not appear, although the API says that it was created"
        for generation in range(_MOST_INTENTS):
            try:
                operation = self._control.create(self._zone, self._intent, generation)
            except refusals.AlreadyExists:
                found = self._control.find(self._zone)
                if found is not None:
                    return self._bring_over(found)
                continue
            except refusals.FailedPrecondition as error:
                raise self._refused("created", error) from error
            if operation.HasField("error"):
                # It may be the error of an earlier run's operation, so a new one is worth a try.
                reason = operation.error.message
                failures += 1
                if failures < _MOST_FAILURES:
                    continue
                break
            found = self._control.find(self._zone)
            if found is not None:
                return replace(found, action="created")
            if not operation.done:
                return self._announced()
        raise CacheError(
            f"The cache of gs://{self._control.bucket} in {self._zone} could not be created: {reason}",
            next_step="Choose another zone, or ask for quota; models are served without a cache too.",
        )

    def _bring_over(self, found: ZoneCache) -> ZoneCache:
        if found.state in ("paused", "disabled"):
            found = self._resume(found)
        same = (found.ttl_seconds, found.ingest_on_write) == (
            self._intent.ttl_seconds,
            self._intent.ingest_on_write,
        )
        return found if same else self._update(found)

    def _resume(self, found: ZoneCache) -> ZoneCache:
        try:
            return self._control.resume(self._zone)
        except BucketNotFoundError:
            # Its removal was completed since it was looked at.
            return self._create()
        except refusals.FailedPrecondition as error:
            raise self._refused(f"resumed (it is {found.state})", error) from error

    def _update(self, found: ZoneCache) -> ZoneCache:
        if found.pending_update or found.state == "creating":
            return replace(found, action="waits" if found.action == "found" else found.action)
        try:
            self._control.update(self._zone, self._intent)
        except refusals.FailedPrecondition as error:
            log.info("Cache in %s: the change waits for another one (%s).", self._zone, error.message)
            return replace(found, action="waits")
        return replace(self._control.find(self._zone) or found, action="updated")

    def _announced(self) -> ZoneCache:
        return ZoneCache(
            zone=self._zone,
            state="creating",
            name=self._control.name(self._zone),
            ttl_seconds=self._intent.ttl_seconds,
            since="",
            ingest_on_write=self._intent.ingest_on_write,
            pending_update=False,
            action="created",
        )

    def _refused(self, verb: str, error: refusals.GoogleAPICallError) -> CacheError:
        return CacheError(
            f"The cache of gs://{self._control.bucket} in {self._zone} cannot be {verb}: {error.message}",
            next_step="Wait until the state that it names is over, then run again.",
        )


def _wait_until_running(
    control: CacheControl,
    pool: ThreadPoolExecutor,
    found: tuple[ZoneCache, ...],
    intent: CacheIntent,
    on_progress: Progress | None,
) -> tuple[ZoneCache, ...]:
    """Look until every cache runs as wanted; at the deadline return what is there."""
    pause = 0.5
    while True:
        running = sum(_settled(cache, intent) for cache in found)
        if on_progress is not None:
            on_progress(running, len(found))
        if running == len(found) or control.remaining() <= pause:
            return found
        log.info("%d of %s run; the others are %s.", running, _count(len(found), "cache"), _others(found))
        time.sleep(pause)
        pause = min(pause * 1.5, _MOST_POLL_SECONDS)
        found = tuple(pool.map(lambda cache: _look_again(control, cache, intent), found))


def _look_again(control: CacheControl, cache: ZoneCache, intent: CacheIntent) -> ZoneCache:
    if _settled(cache, intent):
        return cache
    try:
        now = _Reconciler(control, cache.zone, intent).run()
    except CacheError:
        if control.remaining() > 0:
            raise
        return cache
    return replace(now, action=cache.action if now.action in ("found", "waits") else now.action)


def _settled(cache: ZoneCache, intent: CacheIntent) -> bool:
    as_wanted = (cache.ttl_seconds, cache.ingest_on_write) == (intent.ttl_seconds, intent.ingest_on_write)
    return cache.state == "running" and as_wanted and not cache.pending_update


def _disable(control: CacheControl, zone: str) -> ZoneCache:
    found = control.find(zone)
    if found is None:
        return ZoneCache(
            zone=zone,
            state="absent",
            name=control.name(zone),
            ttl_seconds=0,
            since="",
            ingest_on_write=False,
            pending_update=False,
            action="none",
        )
    if found.state == "disabled":
        return replace(found, action="none")
    try:
        return control.disable(zone)
    except BucketNotFoundError:
        return replace(found, state="absent", action="none")
    except refusals.FailedPrecondition as error:
        raise CacheError(
            f"The cache of gs://{control.bucket} in {zone} cannot be disabled while it is {found.state}: "
            f"{error.message}",
            next_step="Wait until that is over, then run again.",
        ) from error


def check_request(*, zones: Sequence[str], ttl_seconds: int) -> None:
    """Check what can be judged without asking Cloud Storage: names of zones, and how long entries live.

    Raises:
        CacheError: one of them cannot be.
    """
    if not LEAST_TTL_SECONDS <= ttl_seconds <= MOST_TTL_SECONDS:
        raise CacheError(
            f"ttl_seconds is {ttl_seconds}; expected {LEAST_TTL_SECONDS} (1 hour) to {MOST_TTL_SECONDS} (7 days); "
            f"a ttl of {ttl_seconds / 3600:g} hours was asked for.",
            next_step="Ask for 1 to 168 hours; 24, a day, is Google's default.",
        )
    malformed = [zone for zone in zones if not _ZONE.fullmatch(zone)]
    if malformed:
        raise CacheError(
            f"{malformed[0]!r} is not the name of a zone; expected one such as us-central1-a.",
            next_step="Correct it in the configuration; `gcloud compute zones list` names all of them.",
        )


def check_wait_minutes(minutes: float) -> None:
    """Check how long it is to be waited for caches, until they serve or until they are gone.

    Raises:
        SettingsError: that is no time to wait.
    """
    if not 0 <= minutes <= _MOST_WAIT_MINUTES:
        raise SettingsError(
            f"cache_wait_minutes is {minutes:g}; expected 0 to {_MOST_WAIT_MINUTES:g}, a day.",
            next_step="Give it 90, because making or removing a cache takes Cloud Storage up to an hour, or 0 to go on "
            "at once.",
        )


def _check_wait(wait: str, timeout_seconds: float) -> None:
    if wait not in ("none", "running"):
        raise CacheError(f"wait is {wait!r}; expected 'none' or 'running'.", next_step="Use one of the two.")
    if timeout_seconds <= 0:
        raise CacheError(
            f"timeout_seconds is {timeout_seconds}; expected more than 0.", next_step="Give it a minute or more."
        )


def _check_zones(control: CacheControl, zones: Sequence[str]) -> str:
    """Return the bucket's location, in which every zone must be."""
    check_request(zones=zones, ttl_seconds=DEFAULT_TTL_SECONDS)
    layout = control.layout()
    regions = tuple(layout.custom_placement_config.data_locations)
    where = " and ".join(regions) or layout.location
    for zone in zones:
        inside = zone_in_location(zone, layout.location, regions)
        if inside is None:
            log.info("Location %s is not known here; the API will judge the zone %s.", where, zone)
        elif not inside:
            raise CacheError(
                f"Zone {zone} is not in the location of gs://{control.bucket}, which is {where} "
                f"({layout.location_type}); reads from it can never be cached.",
                next_step=f"Name zones of {where}, or keep the model in a bucket near {zone}.",
            )
    return str(layout.location)


def _summary(bucket: str, zones: Sequence[ZoneCache], cost: CacheCost | None) -> str:
    states = ", ".join(f"{zone.zone} {zone.state}" for zone in zones)
    creating = any(zone.state == "creating" for zone in zones)
    later = " Creation usually takes less than an hour; models are served meanwhile." if creating else ""
    return f"Caches of gs://{bucket}: {states}.{later}" + (f" Cost: {cost}." if cost else "")


def _others(zones: Sequence[ZoneCache]) -> str:
    return ", ".join(sorted({zone.state for zone in zones if zone.state != "running"})) or "changing"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
