"""The sandbox's Anywhere Cache, asked by google-cloud-storage-control as it comes."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.api_core import exceptions as refusals
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage_control_v2 as api
from google.cloud.storage_control_v2.services.storage_control.transports import StorageControlGrpcTransport
from google.longrunning import operations_pb2
from google.oauth2.credentials import Credentials
from google.protobuf import field_mask_pb2
from part_processes import announcement, start_part

from streamway.errors import SandboxError
from streamway.sandbox.caches_registry import BucketPlace, Delays, RefusedError, Registry
from streamway.sandbox.credentials import read_token, write_credentials

ZONE = "us-central1-a"
CREATE_SECONDS = 0.5


class Part:
    """Cloud Storage and caches, as processes."""

    def __init__(self, state_path: Path) -> None:
        self.state_path = state_path
        self.bucket_process = start_part("bucket", state_path, "--buckets", "models=US-CENTRAL1,pair=US-EAST1+US-WEST1")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        delays = ("--create-seconds", str(CREATE_SECONDS), "--update-seconds", "0.3", "--disable-seconds", "0.5")
        return start_part("caches", self.state_path, *delays)

    @property
    def announced(self) -> dict[str, Any]:
        return announcement("caches", self.state_path)

    def start_again(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = self._start()

    def stop(self) -> list[int]:
        processes = [self.process, self.bucket_process]
        for process in processes:
            process.terminate()
        return [process.wait(timeout=10) for process in processes]

    def client(self, credentials: Any = None) -> api.StorageControlClient:
        environment = self.announced["environment"]
        roots = Path(environment["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]).read_bytes()
        credentials = credentials or Credentials.from_authorized_user_file(
            environment["GOOGLE_APPLICATION_CREDENTIALS"]
        )
        transport = StorageControlGrpcTransport(
            host=environment["STORAGE_CONTROL_ENDPOINT"],
            credentials=credentials,
            ssl_channel_credentials=grpc.ssl_channel_credentials(roots),
        )
        return api.StorageControlClient(transport=transport)

    def new_bucket(self, name: str) -> str:
        url = announcement("bucket", self.state_path)["url"]
        body = {"name": name, "location": "US-CENTRAL1"}
        requests.post(f"{url}/storage/v1/b", json=body, timeout=10).raise_for_status()
        return f"projects/_/buckets/{name}"


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    part = Part(tmp_path_factory.mktemp("caches"))
    yield part
    assert part.stop() == [0, 0]


@pytest.fixture(scope="module")
def client(part: Part) -> api.StorageControlClient:
    return part.client()


@pytest.fixture
def parent(part: Part, request: pytest.FixtureRequest) -> str:
    return part.new_bucket(request.node.name.replace("_", "-").replace("[", "-").rstrip("]")[:60].lower().strip("-"))


def create(client: api.StorageControlClient, parent: str, zone: str = ZONE, **more: Any) -> Any:
    request_id = more.pop("request_id", "")
    cache = api.AnywhereCache(zone=zone, **more)
    request = api.CreateAnywhereCacheRequest(parent=parent, anywhere_cache=cache, request_id=request_id)
    return client.create_anywhere_cache(request=request, timeout=10)


def named(parent: str, zone: str = ZONE) -> str:
    return f"{parent}/anywhereCaches/{zone}"


def test_creation_is_an_operation_that_ends_with_a_running_cache(client: api.StorageControlClient, parent: str) -> None:
    operation = create(client, parent, ttl={"seconds": 7200}, ingest_on_write=True)
    assert not operation.done() and operation.metadata.zone == ZONE
    assert client.get_anywhere_cache(name=named(parent), timeout=10).state == "creating"
    made = operation.result(timeout=20)
    assert (made.state, made.zone, made.ttl.total_seconds()) == ("running", ZONE, 7200)
    assert made.ingest_on_write and made.admission_policy == "admit-on-first-miss"
    assert operation.metadata.common_metadata.progress_percent == 100
    assert client.get_anywhere_cache(name=named(parent), timeout=10).name == named(parent)


def test_same_request_is_the_same_operation(client: api.StorageControlClient, parent: str) -> None:
    first = create(client, parent, request_id="once")
    assert create(client, parent, request_id="once").operation.name == first.operation.name
    with pytest.raises(refusals.AlreadyExists):
        create(client, parent, request_id="twice")


@pytest.mark.parametrize(("zone", "ttl"), [("us-west1-a", 7200), ("nowhere", 7200), (ZONE, 60), (ZONE, 8 * 24 * 3600)])
def test_wrong_zones_and_ttls_are_refused(client: api.StorageControlClient, parent: str, zone: str, ttl: int) -> None:
    with pytest.raises(refusals.InvalidArgument):
        create(client, parent, zone, ttl={"seconds": ttl})
    assert list(client.list_anywhere_caches(parent=parent, timeout=10)) == []


def test_missing_buckets_and_caches_are_not_found(client: api.StorageControlClient, parent: str) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: create(client, "projects/_/buckets/no-such-bucket"),
        lambda: client.list_anywhere_caches(parent="projects/_/buckets/no-such-bucket", timeout=10),
        lambda: client.get_storage_layout(name="projects/_/buckets/no-such-bucket/storageLayout", timeout=10),
        lambda: client.get_anywhere_cache(name=named(parent), timeout=10),
        lambda: client.disable_anywhere_cache(name=named(parent), timeout=10),
    ]
    for ask in asks:
        with pytest.raises(refusals.NotFound):
            ask()


def test_layout_tells_where_a_bucket_is(client: api.StorageControlClient) -> None:
    layout = client.get_storage_layout(name="projects/_/buckets/pair/storageLayout", timeout=10)
    assert (layout.location, layout.location_type) == ("US", "dual-region")
    assert list(layout.custom_placement_config.data_locations) == ["US-EAST1", "US-WEST1"]


def test_update_is_pending_before_it_applies(client: api.StorageControlClient, parent: str) -> None:
    create(client, parent).result(timeout=20)

    def update(ttl: int) -> Any:
        cache = api.AnywhereCache(name=named(parent), ttl={"seconds": ttl})
        mask = field_mask_pb2.FieldMask(paths=["ttl"])
        return client.update_anywhere_cache(anywhere_cache=cache, update_mask=mask, timeout=10)

    operation = update(7200)
    pending = client.get_anywhere_cache(name=named(parent), timeout=10)
    assert pending.pending_update and pending.ttl.total_seconds() == 86400
    with pytest.raises(refusals.FailedPrecondition, match="pending update"):
        update(10800)
    changed = operation.result(timeout=20)
    assert changed.ttl.total_seconds() == 7200 and not changed.pending_update


def test_update_needs_a_mask(client: api.StorageControlClient, parent: str) -> None:
    create(client, parent).result(timeout=20)
    cache = api.AnywhereCache(name=named(parent), ttl={"seconds": 7200})
    for paths in ([], ["state"]):
        mask = field_mask_pb2.FieldMask(paths=paths)
        with pytest.raises(refusals.InvalidArgument):
            client.update_anywhere_cache(anywhere_cache=cache, update_mask=mask, timeout=10)


def test_disabling_takes_a_while_and_can_be_taken_back(client: api.StorageControlClient, parent: str) -> None:
    create(client, parent).result(timeout=20)
    assert client.disable_anywhere_cache(name=named(parent), timeout=10).state == "disabled"
    with pytest.raises(refusals.AlreadyExists):
        create(client, parent)
    assert client.resume_anywhere_cache(name=named(parent), timeout=10).state == "running"
    client.disable_anywhere_cache(name=named(parent), timeout=10)
    deadline = time.monotonic() + 10
    while list(client.list_anywhere_caches(parent=parent, timeout=10)) and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(refusals.NotFound):
        client.get_anywhere_cache(name=named(parent), timeout=10)


def test_an_hour_can_pass_in_a_moment(part: Part, client: api.StorageControlClient, parent: str) -> None:
    create(client, parent)
    clock = f"{part.announced['admin_url']}/sandbox/clock"
    requests.post(clock, json={"advance_seconds": 3600}, timeout=10).raise_for_status()
    (cache,) = client.list_anywhere_caches(parent=parent, timeout=10)
    assert cache.state == "running"
    assert (cache.update_time - cache.create_time).total_seconds() >= 3600


def test_pause_and_resume(client: api.StorageControlClient, parent: str) -> None:
    create(client, parent)
    with pytest.raises(refusals.FailedPrecondition):
        client.pause_anywhere_cache(name=named(parent), timeout=10)
    client.disable_anywhere_cache(name=named(parent), timeout=10)
    resumed = client.resume_anywhere_cache(name=named(parent), timeout=10)
    assert resumed.state in ("creating", "running")


def test_cancelled_creation_leaves_no_cache(client: api.StorageControlClient, parent: str) -> None:
    operation = create(client, parent)
    operation.cancel()
    with pytest.raises(refusals.Cancelled):
        operation.result(timeout=20)
    assert list(client.list_anywhere_caches(parent=parent, timeout=10)) == []


def test_operations_are_listed_and_awaited(client: api.StorageControlClient, parent: str) -> None:
    operations = client.transport.operations_client
    operation = create(client, parent).operation
    listed = operations.list_operations(f"{parent}/operations", "", timeout=10)
    assert [found.name for found in listed] == [operation.name]
    wait = client.transport.grpc_channel.unary_unary(
        "/google.longrunning.Operations/WaitOperation",
        request_serializer=operations_pb2.WaitOperationRequest.SerializeToString,
        response_deserializer=operations_pb2.Operation.FromString,
    )
    assert wait(operations_pb2.WaitOperationRequest(name=operation.name), timeout=20).done
    with pytest.raises(refusals.NotFound):
        operations.get_operation(f"{parent}/operations/other", timeout=10)


def test_caches_are_listed_in_pages(client: api.StorageControlClient, parent: str) -> None:
    zones = [f"us-central1-{letter}" for letter in "abc"]
    for zone in zones:
        create(client, parent, zone)
    pages = client.list_anywhere_caches(request={"parent": parent, "page_size": 2}, timeout=10).pages
    assert [[cache.zone for cache in page.anywhere_caches] for page in pages] == [zones[:2], zones[2:]]


def test_strangers_are_turned_away(part: Part, parent: str) -> None:
    for credentials in (AnonymousCredentials(), Credentials("another token")):
        with pytest.raises(refusals.Unauthenticated):
            part.client(credentials).list_anywhere_caches(parent=parent, timeout=10)


def test_caches_outlive_a_restart(tmp_path: Path) -> None:
    part = Part(tmp_path)
    try:
        before = part.announced["environment"]
        parent = part.new_bucket("restarted")
        operation = create(part.client(), parent).operation
        trusted = Path(before["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]).read_bytes()
        part.start_again()
        assert Path(before["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]).read_bytes() == trusted
        client = part.client()
        assert client.get_anywhere_cache(name=named(parent), timeout=10).zone == ZONE
        assert client.transport.operations_client.get_operation(operation.name, timeout=10).name == operation.name
    finally:
        part.stop()


def test_credentials_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    path = write_credentials(tmp_path)
    token = read_token(path)
    assert path.stat().st_mode & 0o077 == 0
    assert read_token(write_credentials(tmp_path)) == token
    credentials = Credentials.from_authorized_user_file(str(path))
    assert credentials.valid and credentials.token == token


def test_states_move_with_the_clock(tmp_path: Path) -> None:
    time_now = [1000.0]
    delays = Delays(create=10, update=5, disable=60)
    registry = Registry(tmp_path / "registry.json", delays, clock=lambda: time_now[0])
    place = BucketPlace(name="b", location="US-CENTRAL1", location_type="region")
    registry.create(place, ZONE, ttl_seconds=0, ingest_on_write=False, admission_policy="", request_id="")

    def state_at(moment: float) -> str:
        time_now[0] = moment
        return registry.get("b", ZONE).state

    assert [state_at(1009.9), state_at(1010.0)] == ["creating", "running"]
    registry.disable("b", ZONE)
    assert state_at(1020.0) == "disabled"
    registry.resume("b", ZONE)
    assert state_at(2000.0) == "running"
    registry.disable("b", ZONE)
    assert state_at(2059.9) == "disabled"
    with pytest.raises(RefusedError, match="not found"):
        state_at(2060.0)


def test_state_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text('{"caches": [{"bucket": "b", "zone": "z"}], "operations": []}')
    with pytest.raises(SandboxError, match=r"registry\.json was written by another version"):
        Registry(path, Delays())
