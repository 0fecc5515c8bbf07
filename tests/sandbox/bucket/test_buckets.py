"""Buckets of the sandbox's Cloud Storage, and the process that holds them."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from bucket_part import BUCKET, BYTES, Part
from google.api_core import exceptions as refusals
from google.cloud import storage

from streamway.sandbox.bucket import parse_buckets


def test_tells_clients_how_to_find_it(part: Part) -> None:
    assert part.announced["pid"] == part.process.pid
    assert part.announced["environment"] == {
        "STORAGE_EMULATOR_HOST": part.url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": part.url,
        "GOOGLE_CLOUD_PROJECT": "streamway-sandbox",
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
    }


def test_binary_dies_with_the_part(own_part: Part) -> None:
    children = Path(f"/proc/{own_part.process.pid}/task/{own_part.process.pid}/children").read_text().split()
    assert len(children) == 1
    own_part.process.send_signal(signal.SIGKILL)
    own_part.process.wait(timeout=10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{children[0]}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{children[0]}/exe").exists()


def test_buckets_have_locations_of_their_own(part: Part) -> None:
    found = {bucket.name: bucket for bucket in part.client.list_buckets()}
    assert (found["europe"].location, found["europe"].location_type) == ("EU", "multi-region")
    assert (found[BUCKET].location, found[BUCKET].location_type) == ("US-CENTRAL1", "region")
    pair = part.client.get_bucket("pair")
    assert (pair.location, pair.location_type) == ("US", "dual-region")
    assert pair.data_locations == ["US-CENTRAL1", "US-EAST1"]
    assert requests.get(f"{part.url}/storage/v1/b/pair/storageLayout", timeout=10).json()["location"] == "US"


def test_buckets_are_created_once_and_deleted_when_empty(part: Part) -> None:
    created = part.client.create_bucket("of-our-own", location="nam4")
    assert (created.location, created.location_type) == ("NAM4", "dual-region")
    with pytest.raises(refusals.Conflict):
        part.client.create_bucket("of-our-own")
    created.blob("a/b").upload_from_string(b"x")
    with pytest.raises(refusals.Conflict):
        created.delete()
    created.blob("a/b").delete()
    created.delete()
    with pytest.raises(refusals.NotFound):
        part.client.get_bucket("of-our-own")


@pytest.mark.parametrize(
    "act",
    [
        lambda bucket: bucket.reload(),
        lambda bucket: bucket.blob("x").upload_from_string(b"x"),
        lambda bucket: list(bucket.list_blobs()),
        lambda bucket: bucket.blob("x").download_as_bytes(),
        lambda bucket: bucket.blob("x").reload(),
        lambda bucket: bucket.blob("x").delete(),
    ],
)
def test_missing_bucket_is_not_found(part: Part, act: Callable[[storage.Bucket], Any]) -> None:
    with pytest.raises(refusals.NotFound, match="bucket does not exist"):
        act(part.client.bucket("no-such-bucket"))


def test_permissions_are_granted_until_a_fault_takes_them_away(part: Part) -> None:
    asked = ["storage.objects.get", "storage.objects.create"]
    assert part.bucket.test_iam_permissions(asked) == asked
    part.arm(kind="status", status=200, path="*/testPermissions", body='{"permissions": []}')
    assert part.bucket.test_iam_permissions(asked) == []


def test_list_of_buckets_needs_locations() -> None:
    assert parse_buckets("a-b=eu")["a-b"].location == "EU"
    with pytest.raises(ValueError, match="names no location"):
        parse_buckets("a-b")


def test_state_is_found_again(own_part: Part) -> None:
    own_part.bucket.blob("kept").upload_from_string(b"replaced")
    own_part.bucket.blob("kept").upload_from_string(BYTES)
    assert len(list((own_part.state_path / "bucket" / "blobs").iterdir())) == 1
    generation = own_part.bucket.get_blob("kept").generation
    (own_part.state_path / "bucket" / "blobs" / "left-behind").write_bytes(b"x")
    (own_part.state_path / "bucket" / "drafts" / "half").write_bytes(b"x")
    own_part.kill_and_start_again()
    found = own_part.bucket.get_blob("kept")
    assert found.generation == generation and found.download_as_bytes() == BYTES
    assert own_part.client.get_bucket("europe").location == "EU"
    assert len(list((own_part.state_path / "bucket" / "blobs").iterdir())) == 1
    assert list((own_part.state_path / "bucket" / "drafts").iterdir()) == []


def test_what_the_sandbox_does_not_have_is_refused_where_it_would_write(part: Part) -> None:
    part.bucket.blob("acl").upload_from_string(b"x")
    acl = f"{part.url}/storage/v1/b/{BUCKET}/o/acl/acl"
    assert requests.post(acl, json={"entity": "allUsers", "role": "READER"}, timeout=10).status_code == 501
    assert requests.post(f"{part.url}/{BUCKET}", files={"file": b"x"}, timeout=10).status_code == 501
    assert part.bucket.blob("acl").download_as_bytes() == b"x"
