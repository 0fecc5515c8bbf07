"""The cache step, against the sandbox's Storage Control API with Google's own client."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.cloud import storage_control_v2 as api
from google.cloud.storage_control_v2.services.storage_control.transports import StorageControlGrpcTransport
from google.oauth2.credentials import Credentials
from part_processes import announcement, start_part

from streamway.cache import CachePrice, CacheResult, disable_cache, enable_cache, estimate_cost, list_caches
from streamway.cache_control import make_client, zone_in_location
from streamway.errors import BucketNotFoundError, CacheError, StorageAccessError

CONTROL = "/google.storage.control.v2.StorageControl"
CREATE_SECONDS = 0.6
UPDATE_SECONDS = 0.4
DISABLE_SECONDS = 0.6


class Sandbox:
    """Cloud Storage and Anywhere Cache, running."""

    def __init__(self, state_path: Path) -> None:
        self.bucket = announcement("bucket", state_path)
        self.caches = announcement("caches", state_path)
        self.environment: dict[str, str] = self.caches["environment"]
        self.client = self._make_client()

    def _make_client(self) -> api.StorageControlClient:
        # The roots are given by hand, because gRPC reads the variable's file once in the life of a process.
        roots = Path(self.environment["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]).read_bytes()
        credentials = Credentials.from_authorized_user_file(self.environment["GOOGLE_APPLICATION_CREDENTIALS"])
        transport = StorageControlGrpcTransport(
            host=self.environment["STORAGE_CONTROL_ENDPOINT"],
            credentials=credentials,
            ssl_channel_credentials=grpc.ssl_channel_credentials(roots),
        )
        return api.StorageControlClient(transport=transport)

    def new_bucket(self, name: str, location: str = "US-CENTRAL1") -> str:
        body = {"name": name, "location": location}
        requests.post(f"{self.bucket['url']}/storage/v1/b", json=body, timeout=10).raise_for_status()
        return name

    def fail(self, method: str, **fault: Any) -> None:
        body = {"kind": "status", "path": f"{CONTROL}/{method}", **fault}
        requests.post(f"{self.caches['admin_url']}/sandbox/faults", json=body, timeout=10).raise_for_status()

    def put_in_state(self, bucket: str, zone: str, state: str) -> None:
        body = {"bucket": bucket, "zone": zone, "state": state}
        requests.post(f"{self.caches['admin_url']}/sandbox/state", json=body, timeout=10).raise_for_status()

    def counted(self, method: str) -> int:
        counters = requests.get(f"{self.caches['admin_url']}/sandbox/counters", timeout=10).json()
        paths = {entry["path"]: entry["count"] for entry in counters["requests"]}
        return int(paths.get(f"{CONTROL}/{method}", 0))

    def forget(self) -> None:
        requests.delete(f"{self.caches['admin_url']}/sandbox/faults", timeout=10)
        requests.delete(f"{self.caches['admin_url']}/sandbox/counters", timeout=10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    state_path = tmp_path_factory.mktemp("cache")
    delays = ("--create-seconds", str(CREATE_SECONDS), "--update-seconds", str(UPDATE_SECONDS))
    processes = [start_part("bucket", state_path)]
    try:
        processes.append(start_part("caches", state_path, *delays, "--disable-seconds", str(DISABLE_SECONDS)))
        yield Sandbox(state_path)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=10)


@pytest.fixture
def sandbox(running: Sandbox) -> Sandbox:
    running.forget()
    return running


@pytest.fixture
def bucket(sandbox: Sandbox, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[:60].lower().strip("-")
    return sandbox.new_bucket(name)


def enable(sandbox: Sandbox, bucket: str, *zones: str, **more: Any) -> CacheResult:
    given = {"timeout_seconds": 20.0, "client": sandbox.client, **more}
    return enable_cache(bucket=bucket, zones=zones or ("us-central1-a",), **given)


def actions(result: CacheResult) -> list[str]:
    return [zone.action for zone in result.zones]


def states(result: CacheResult) -> list[str]:
    return [zone.state for zone in result.zones]


def test_creates_one_cache_in_each_zone_and_does_not_wait(sandbox: Sandbox, bucket: str) -> None:
    result = enable(sandbox, bucket, "us-central1-a", "us-central1-b", "us-central1-a")
    assert [zone.zone for zone in result.zones] == ["us-central1-a", "us-central1-b"]
    assert actions(result) == ["created", "created"] and states(result) == ["creating", "creating"]
    assert result.location == "US-CENTRAL1" and not result.all_running
    assert result.zones[0].name == f"projects/_/buckets/{bucket}/anywhereCaches/us-central1-a"
    assert "less than an hour" in result.note


def test_second_run_finds_the_cache_and_asks_for_none(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket)
    result = enable(sandbox, bucket)
    assert actions(result) == ["found"]
    assert sandbox.counted("CreateAnywhereCache") == 1


def test_waits_until_running_and_tells_how_far_it_is(sandbox: Sandbox, bucket: str) -> None:
    told: list[tuple[int, int]] = []
    result = enable(sandbox, bucket, wait="running", ingest_on_write=True, on_progress=lambda *done: told.append(done))
    assert states(result) == ["running"] and actions(result) == ["created"] and result.all_running
    assert result.zones[0].ingest_on_write
    assert told[0] == (0, 1) and told[-1] == (1, 1)


def test_deadline_of_waiting_is_no_failure(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket)
    sandbox.put_in_state(bucket, "us-central1-a", "SOMETHING-NEW")
    result = enable(sandbox, bucket, wait="running", timeout_seconds=1.2)
    assert states(result) == ["something-new"]


def test_states_are_compared_without_case(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket)
    sandbox.put_in_state(bucket, "us-central1-a", "RUNNING")
    assert enable(sandbox, bucket, wait="running", timeout_seconds=5).all_running


def test_other_ttl_is_brought_over(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    result = enable(sandbox, bucket, ttl_seconds=7200)
    assert actions(result) == ["updated"] and result.zones[0].pending_update
    waited = enable(sandbox, bucket, ttl_seconds=7200, wait="running")
    assert waited.zones[0].ttl_seconds == 7200 and not waited.zones[0].pending_update


def test_pending_update_is_no_failure(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    enable(sandbox, bucket, ttl_seconds=7200)
    result = enable(sandbox, bucket, ttl_seconds=10800)
    assert actions(result) == ["waits"] and sandbox.counted("UpdateAnywhereCache") == 1
    assert enable(sandbox, bucket, ttl_seconds=10800, wait="running").zones[0].ttl_seconds == 10800


def test_update_refused_for_another_ones_sake_is_no_failure(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    sandbox.fail("UpdateAnywhereCache", body="FAILED_PRECONDITION")
    assert actions(enable(sandbox, bucket, ttl_seconds=7200)) == ["waits"]


@pytest.mark.parametrize("state", ["paused", "DISABLED"])
def test_stopped_cache_is_resumed(sandbox: Sandbox, bucket: str, state: str) -> None:
    enable(sandbox, bucket, wait="running")
    sandbox.put_in_state(bucket, "us-central1-a", state)
    result = enable(sandbox, bucket)
    assert actions(result) == ["resumed"] and states(result) == ["running"]


def test_cache_that_was_disabled_and_is_gone_is_created_anew(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    disable_cache(bucket=bucket, zones=["us-central1-a"], client=sandbox.client)
    deadline = time.monotonic() + 10
    while list_caches(bucket, client=sandbox.client) and time.monotonic() < deadline:
        time.sleep(0.05)
    result = enable(sandbox, bucket, wait="running")
    assert actions(result) == ["created"] and states(result) == ["running"]


def test_two_runs_at_once_make_one_cache(sandbox: Sandbox, bucket: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: enable(sandbox, bucket), range(4)))
    assert all(states(result) == ["creating"] for result in results)
    assert len(list_caches(bucket, client=sandbox.client)) == 1


def test_cache_that_appeared_meanwhile_is_brought_over(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    sandbox.fail("GetAnywhereCache", body="NOT_FOUND")
    result = enable(sandbox, bucket, ttl_seconds=7200)
    assert actions(result) == ["updated"] and sandbox.counted("CreateAnywhereCache") == 2


def test_lost_answer_of_a_creation_is_asked_for_again(sandbox: Sandbox, bucket: str) -> None:
    sandbox.fail("CreateAnywhereCache", kind="lose_answer")
    assert actions(enable(sandbox, bucket)) == ["created"]
    assert sandbox.counted("CreateAnywhereCache") == 2


ENABLE = """
import sys
from streamway.cache import enable_cache
result = enable_cache(bucket=sys.argv[1], zones=["us-central1-a"], ttl_seconds=int(sys.argv[2]), timeout_seconds=20)
print(result.zones[0].action)
"""


@pytest.mark.parametrize(("ttl_seconds", "same"), [(7200, True), (10800, False)])
def test_the_same_wish_of_another_process_is_one_request(
    sandbox: Sandbox, bucket: str, ttl_seconds: int, same: bool
) -> None:
    def enable_in_a_process(ttl_seconds: int) -> str:
        command = [sys.executable, "-c", ENABLE, bucket, str(ttl_seconds)]
        environment = os.environ | sandbox.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    first = enable_in_a_process(7200)
    # The second one does not see what the first one made, so it asks for it too.
    sandbox.fail("GetAnywhereCache", body="NOT_FOUND")
    second = enable_in_a_process(ttl_seconds)

    # A request with the same id is answered with its first operation; with another one it would be refused, because
    # the cache exists.
    assert first.strip() == "created"
    assert (second.strip() == "created") is same
    assert sandbox.counted("CreateAnywhereCache") == 2
    assert len(list_caches(bucket, client=sandbox.client)) == 1


def test_unavailable_api_is_asked_again(sandbox: Sandbox, bucket: str) -> None:
    sandbox.fail("GetStorageLayout", body="UNAVAILABLE", times=2)
    sandbox.fail("GetAnywhereCache", body="INTERNAL")
    assert actions(enable(sandbox, bucket)) == ["created"]


def test_silent_api_ends_at_the_deadline(sandbox: Sandbox, bucket: str) -> None:
    sandbox.fail("GetStorageLayout", kind="stall", stall_seconds=30.0, times=20)
    with pytest.raises(CacheError, match="does not answer") as caught:
        enable(sandbox, bucket, timeout_seconds=0.8)
    assert "without a cache" in caught.value.next_step


@pytest.mark.parametrize(
    ("method", "permission"),
    [
        ("GetStorageLayout", "storage.objects.list"),
        ("GetAnywhereCache", "storage.anywhereCaches.get"),
        ("CreateAnywhereCache", "storage.anywhereCaches.create"),
    ],
)
def test_missing_permission_is_named(sandbox: Sandbox, bucket: str, method: str, permission: str) -> None:
    sandbox.fail(method, body="PERMISSION_DENIED")
    with pytest.raises(StorageAccessError, match=permission):
        enable(sandbox, bucket)


def test_refusal_carries_the_apis_own_words(sandbox: Sandbox, bucket: str) -> None:
    sandbox.fail("CreateAnywhereCache", body="INVALID_ARGUMENT")
    with pytest.raises(CacheError, match="armed INVALID_ARGUMENT"):
        enable(sandbox, bucket)


def test_missing_bucket_is_told_apart(sandbox: Sandbox) -> None:
    with pytest.raises(BucketNotFoundError, match="gs://no-such-bucket"):
        enable(sandbox, "no-such-bucket")


def test_zone_outside_the_buckets_location_is_refused_before_anything_is_created(sandbox: Sandbox, bucket: str) -> None:
    with pytest.raises(CacheError, match=r"us-west1-a is not in the location .* US-CENTRAL1 \(region\)"):
        enable(sandbox, bucket, "us-central1-a", "us-west1-a")
    assert sandbox.counted("CreateAnywhereCache") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ttl_seconds": 60}, "ttl_seconds is 60; expected 3600"),
        ({"wait": "forever"}, "wait is 'forever'; expected 'none' or 'running'"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0.0"),
        ({"zones": ["us-central1"]}, "'us-central1' is not the name of a zone"),
    ],
)
def test_wrong_parameters_are_named(sandbox: Sandbox, given: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"bucket": "b", "zones": ["us-central1-a"], "timeout_seconds": 5.0, **given}
    with pytest.raises(CacheError, match=message):
        enable_cache(client=sandbox.client, **settings)


def test_no_zone_means_no_request(sandbox: Sandbox) -> None:
    result = enable_cache(bucket="anything", zones=[], timeout_seconds=5, client=sandbox.client)
    assert result.zones == () and result.note == "No zone was asked for."
    assert sandbox.counted("GetStorageLayout") == 0


def test_disabling_is_repeatable_and_listed(sandbox: Sandbox, bucket: str) -> None:
    enable(sandbox, bucket, wait="running")
    zones = ["us-central1-a", "us-central1-b"]
    first = disable_cache(bucket=bucket, zones=zones, client=sandbox.client)
    assert actions(first) == ["disabled", "none"] and states(first) == ["disabled", "absent"]
    assert [cache.state for cache in list_caches(bucket, client=sandbox.client)] == ["disabled"]
    assert actions(disable_cache(bucket=bucket, zones=zones, client=sandbox.client)) == ["none", "none"]


def test_cost_is_shown_with_its_source(sandbox: Sandbox, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="streamway.cache")
    price = CachePrice(storage_per_gib_hour=0.001, ingest_per_gib=0.5, source="a price of our own")
    result = enable(sandbox, bucket, "us-central1-a", "us-central1-b", size_bytes=10 * 1024**3, price=price)
    assert result.cost is not None
    assert result.cost.usd_a_month == pytest.approx(14.6) and result.cost.ingest_usd == pytest.approx(10)
    assert "about 14.60 USD a month" in caplog.messages[0] and "a price of our own" in caplog.messages[0]
    assert "14.60 USD" in result.note


def test_default_price_is_googles_list_price() -> None:
    cost = estimate_cost(1024**3, ["us-central1-a"])
    assert cost.usd_a_month == pytest.approx(0.09, abs=0.001)
    assert "cloud.google.com/storage/pricing" in str(cost)


@pytest.mark.parametrize(
    ("zone", "location", "data_locations", "inside"),
    [
        ("us-central1-a", "US-CENTRAL1", (), True),
        ("us-central1-a", "us-central1", (), True),
        ("us-south1-ai1b", "US-SOUTH1", (), True),
        ("us-central2-b", "US-CENTRAL1", (), False),
        ("us-east1-b", "NAM4", (), True),
        ("us-east4-b", "NAM4", (), False),
        ("europe-west4-a", "EUR4", (), True),
        ("europe-west1-b", "EU", (), True),
        ("europe-west2-a", "EU", (), False),
        ("europe-west12-a", "EU", (), True),
        ("us-west1-a", "US", (), True),
        ("northamerica-northeast1-a", "US", (), False),
        ("asia-east1-a", "ASIA", (), True),
        ("us-east1-b", "US", ("US-CENTRAL1", "US-EAST1"), True),
        ("us-west1-a", "US", ("US-CENTRAL1", "US-EAST1"), False),
        ("us-west1-a", "MOON2", (), None),
    ],
)
def test_zones_belong_to_locations(
    zone: str, location: str, data_locations: tuple[str, ...], inside: bool | None
) -> None:
    assert zone_in_location(zone, location, data_locations) is inside


def test_environment_is_all_that_the_step_needs(sandbox: Sandbox, bucket: str) -> None:
    code = (
        "from streamway.cache import enable_cache\n"
        f"result = enable_cache(bucket={bucket!r}, zones=['us-central1-a'], timeout_seconds=20)\n"
        "print(result.zones[0].state)"
    )
    environment = {**os.environ, **sandbox.environment}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stdout.strip() == "creating", found.stderr


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(StorageAccessError, match=r"absent\.json") as caught:
        make_client()
    assert "application-default login" in caught.value.next_step


STEP = """
import sys
from kfp import dsl
from streamway.components import enable_cache
release = dsl.Model(name="release", uri=f"gs://{sys.argv[1]}/models/org/tiny/sha/")
states = enable_cache.python_func(
    run_uri=sys.argv[2], size_bytes=1, release=release, zones=["us-central1-a"], ingest_on_write=sys.argv[3] == "True"
)
print(states)
"""


def test_ingest_on_write_goes_from_the_step_to_the_cache_and_back(
    sandbox: Sandbox, bucket: str, tmp_path: Path
) -> None:
    for wanted in (True, False):
        command = [sys.executable, "-c", STEP, bucket, str(tmp_path), str(wanted)]
        subprocess.run(command, env=os.environ | sandbox.environment, check=True, timeout=60)
        deadline = time.monotonic() + 20
        while (found := list_caches(bucket, client=sandbox.client)[0]).pending_update or found.state != "running":
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        assert found.ingest_on_write is wanted
