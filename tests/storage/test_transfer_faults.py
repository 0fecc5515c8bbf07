"""Whatever Cloud Storage does, a transfer ends in the right bytes or in a clear error, within its patience."""

import hashlib
import threading
from typing import Any

import pytest

from streamway import storage
from streamway.errors import ChecksumError, StalledError, StorageAccessError, StorageError, TransferError
from streamway.storage import Patience
from streamway.storage.segments import Extent, FilePlan

PART = 5 * 1024 * 1024
MANY_STARTS = [
    {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "reset", "after_bytes": 1_000_000},
    {"kind": "stall", "after_bytes": 1_000_000},
    {"kind": "truncate", "after_bytes": 1_000_000},
    {"kind": "corrupt", "after_bytes": 1_000_000},
    {"kind": "lose_answer"},
]
KINDS = [f"{fault['kind']}{fault.get('status', '')}" for fault in MANY_STARTS]


def write(uri: str, payload: bytes, patience: Patience) -> None:
    plan = FilePlan(uri=uri, segments=(payload,), sha256=hashlib.sha256(payload).hexdigest())
    storage.write_files([plan], memory_bytes=2 * PART, workers=2, patience=patience)


def check(uri: str, payload: bytes) -> None:
    reader = storage.open_reader(uri)
    assert reader.read(0, reader.size_bytes) == payload


@pytest.mark.parametrize("fault", MANY_STARTS, ids=KINDS)
def test_a_part_is_sent_again(cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, fault: Any) -> None:
    cloud.arm(**fault, method="PUT", path="*partNumber=2&*")
    write(f"{bucket_uri}/file", payload, hurried)
    assert not cloud.armed(), "the fault must have struck"
    check(f"{bucket_uri}/file", payload)


@pytest.mark.parametrize("fault", MANY_STARTS, ids=KINDS)
def test_a_small_object_is_sent_again(cloud: Any, bucket_uri: str, hurried: Patience, fault: Any) -> None:
    cloud.arm(**(fault | {"after_bytes": 1000} if "after_bytes" in fault else fault), method="POST", path="/upload/*")
    payload = b"0123456789" * 1000
    write(f"{bucket_uri}/file", payload, hurried)
    assert not cloud.armed()
    check(f"{bucket_uri}/file", payload)


@pytest.mark.parametrize("path", ["*?uploads", "*uploadId=*"], ids=["begin", "complete"])
@pytest.mark.parametrize("fault", [MANY_STARTS[1], MANY_STARTS[3], MANY_STARTS[7]], ids=["status", "reset", "lost"])
def test_an_upload_is_begun_and_completed_in_spite_of_faults(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, fault: Any, path: str
) -> None:
    cloud.arm(**fault, method="POST", path=path)
    write(f"{bucket_uri}/file", payload, hurried)
    assert not cloud.armed()
    check(f"{bucket_uri}/file", payload)


@pytest.mark.parametrize("fault", [f for f in MANY_STARTS if f["kind"] not in ("corrupt",)], ids=lambda f: f["kind"])
def test_a_read_goes_on_where_it_broke(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, fault: Any
) -> None:
    write(f"{bucket_uri}/file", payload, hurried)
    reader = storage.open_reader(f"{bucket_uri}/file", patience=hurried)
    cloud.begin_anew()
    cloud.arm(**fault, method="GET", path="/download/*")
    assert reader.read(0, reader.size_bytes) == payload
    assert not cloud.armed()
    wasted = cloud.bytes_out() - len(payload)
    assert wasted < 2_000_000, "what had arrived must not be fetched again"


def test_wrong_bytes_from_a_bucket_are_noticed_where_a_hash_was_promised(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, tmp_path: Any
) -> None:
    write(f"{bucket_uri}/file", payload, hurried)
    reader = storage.open_reader(f"{bucket_uri}/file", patience=hurried)
    cloud.arm("corrupt", after_bytes=77, method="GET", path="/download/*")
    extent = Extent(reader=reader, offset_bytes=0, length_bytes=reader.size_bytes)
    plan = FilePlan(uri=str(tmp_path / "copy"), segments=(extent,), sha256=hashlib.sha256(payload).hexdigest())
    with pytest.raises(ChecksumError):
        storage.write_files([plan], memory_bytes=2 * PART, workers=2)
    assert not (tmp_path / "copy").exists()
    storage.write_files([plan], memory_bytes=2 * PART, workers=2)
    check(str(tmp_path / "copy"), payload)


@pytest.mark.parametrize("kind", ["status", "reset", "stall"])
def test_faults_without_end_are_an_error_within_patience(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, kind: str
) -> None:
    cloud.arm(kind, method="PUT", path="*partNumber=2&*", times=100)
    with pytest.raises(TransferError, match=f"tried {hurried.attempts} times") as caught:
        write(f"{bucket_uri}/file", payload, hurried)
    assert isinstance(caught.value, StalledError) == (kind == "stall")
    assert f"{bucket_uri}/file" in caught.value.problem and caught.value.next_step
    assert not storage.exists(f"{bucket_uri}/file")
    cloud.begin_anew()
    write(f"{bucket_uri}/file", payload, hurried)
    check(f"{bucket_uri}/file", payload)
    assert cloud.bytes_in() < len(payload), "parts that had arrived must not be sent again"


def test_access_that_is_withdrawn_is_said_plainly(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience
) -> None:
    cloud.arm("status", status=403, method="PUT", path="*partNumber=*", times=100)
    with pytest.raises(StorageAccessError, match="answers 403") as caught:
        write(f"{bucket_uri}/file", payload, hurried)
    assert caught.value.next_step


def test_an_upload_that_vanished_is_begun_anew_by_the_next_run(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience
) -> None:
    cloud.arm("status", status=500, method="PUT", path="*partNumber=4&*", times=100)
    with pytest.raises(TransferError):
        write(f"{bucket_uri}/file", payload, hurried)
    cloud.begin_anew()
    _abort_everything(bucket_uri)
    write(f"{bucket_uri}/file", payload, hurried)
    check(f"{bucket_uri}/file", payload)


def test_saving_progress_without_permission_is_no_failure(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.arm("status", status=403, method="POST", path="/upload/*", times=1)
    write(f"{bucket_uri}/file", payload, hurried)
    check(f"{bucket_uri}/file", payload)
    assert "progress cannot be saved" in caplog.text


def _abort_everything(bucket_uri: str) -> None:
    from streamway.storage.addresses import parse_gs
    from streamway.storage.cloud import cloud_storage

    address = parse_gs(f"{bucket_uri}/file")
    uploads = cloud_storage().list_uploads(address)
    assert uploads
    for pending, upload_id in uploads:
        cloud_storage().abort_upload(pending, upload_id)


def test_an_upload_that_another_run_ends_is_said_plainly(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience
) -> None:
    ended = threading.Event()

    def end_it(done: int, total: int) -> None:
        if not ended.is_set():
            ended.set()
            _abort_everything(bucket_uri)

    plan = FilePlan(uri=f"{bucket_uri}/file", segments=(payload,), sha256=hashlib.sha256(payload).hexdigest())
    with pytest.raises(StorageError, match="another run of the same model") as caught:
        storage.write_files([plan], memory_bytes=PART, workers=1, patience=hurried, on_progress=end_it)
    assert caught.value.next_step
    write(f"{bucket_uri}/file", payload, hurried)
    check(f"{bucket_uri}/file", payload)


def test_two_runs_at_once_do_not_end_each_other(cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            write(f"{bucket_uri}/file", payload, hurried)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check(f"{bucket_uri}/file", payload)


@pytest.mark.parametrize("part", ["middle", "last"])
def test_a_run_that_is_overtaken_takes_what_the_other_made(
    cloud: Any, bucket_uri: str, payload: bytes, hurried: Patience, part: str
) -> None:
    """Another run goes on with our own upload and completes it while we still read."""
    uri, sha256 = f"{bucket_uri}/file", hashlib.sha256(payload).hexdigest()
    strikes_at = 2 * PART if part == "middle" else len(payload) - len(payload) % PART

    class OvertakenReader:
        uri = "memory"
        size_bytes = len(payload)

        def read(self, offset: int, length: int) -> bytes:
            if offset == strikes_at:
                write(uri, payload, hurried)
            return payload[offset : offset + length]

    segments = (Extent(reader=OvertakenReader(), offset_bytes=0, length_bytes=len(payload)),)
    plan = FilePlan(uri=uri, segments=segments, sha256=sha256)
    (written,) = storage.write_files([plan], memory_bytes=PART, workers=1, patience=hurried)
    assert written.sha256 == sha256
    check(uri, payload)


def test_a_lost_answer_to_a_conditional_write_is_no_lost_race(cloud: Any, bucket_uri: str) -> None:
    cloud.arm("lose_answer", method="POST", path="/upload/*")
    storage.write_file(f"{bucket_uri}/file", b"mine", if_generation=0)
    assert not cloud.armed()
    cloud.arm("lose_answer", method="POST", path="*/rewriteTo/*")
    storage.copy_file(f"{bucket_uri}/file", f"{bucket_uri}/copy", if_generation=0)
    assert not cloud.armed()
    assert storage.read_file(f"{bucket_uri}/copy") == b"mine"


def test_an_answer_that_is_no_answer_of_cloud_storage_is_said_to_be(cloud: Any, bucket_uri: str) -> None:
    cloud.arm("status", status=200, method="GET", path="/storage/*", body="<html>Please log in</html>")
    with pytest.raises(StorageError, match="no JSON: <html>Please log in"):
        storage.list_files(bucket_uri)
