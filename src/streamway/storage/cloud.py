"""Cloud Storage by its JSON and XML APIs: the few requests that moving models needs, and nothing beside them.

The official client sends one stream in small blocks and hides multipart uploads behind files on disk; what is needed
here are parts from memory, preconditions and the server's own checksums. docs/transfer.md has the measurements.
STORAGE_EMULATOR_HOST is honoured as Google's clients do, with anonymous requests.
"""

import functools
import json
import os
import urllib.parse
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamway.errors import (
    BucketNotFoundError,
    ChecksumError,
    SourceChangedError,
    StorageAccessError,
    StorageError,
)
from streamway.storage.addresses import ObjectAddress
from streamway.storage.digests import decode_crc32c, encode_crc32c
from streamway.storage.http import (
    SEND_BYTES,
    Answer,
    Body,
    HttpClient,
    Patience,
    Persistence,
    RetryableError,
    raise_if_retried,
    read_range,
    read_refusal,
)
from streamway.storage.scatter import Scatter

if TYPE_CHECKING:
    from streamway.storage.bearer import Bearer

LEAST_PART_BYTES = 5 * 1024 * 1024
MOST_PARTS = 10_000
"""https://cloud.google.com/storage/quotas#requests: parts of a multipart upload."""
MOST_OBJECT_BYTES = 5 * 1024**4

Pieces = Iterable[bytes | memoryview]


class PreconditionFailedError(StorageError):
    """The object is not at the generation that the request was made for."""


class UploadGoneError(StorageError):
    """The multipart upload was completed or ended by somebody else."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as Cloud Storage describes it."""

    address: ObjectAddress
    size_bytes: int
    crc32c: int | None
    generation: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UploadedPart:
    """A part of a pending multipart upload."""

    number: int
    etag: str
    size_bytes: int


def _bearer() -> "Bearer":
    from streamway.storage.bearer import Bearer

    return Bearer()


class CloudStorage:
    """One endpoint of Cloud Storage; safe to use from many threads."""

    def __init__(self, endpoint: str, *, anonymous: bool, patience: Patience | None = None) -> None:
        self.endpoint = endpoint
        self.client = HttpClient(patience)
        self._bearer = None if anonymous else _bearer()

    # Buckets

    def ask_bucket(self, bucket: str, question: str = "") -> dict[str, Any]:
        """Return what the JSON API says of a bucket, or of a part of it such as `/iam/testPermissions?...`."""
        url = f"{self.endpoint}/storage/v1/b/{bucket}{question}"
        found: dict[str, Any] = json.loads(self._send("GET", url, ObjectAddress(bucket, "")).body)
        return found

    # Objects

    def stat(self, address: ObjectAddress) -> StoredObject | None:
        """Describe an object; None where there is none."""
        answer = self._send("GET", self._object_url(address), address, allowed=(404,))
        if answer.status == 404:
            return None
        return self._stored(address.bucket, _parse_json(answer, address))

    def list_objects(self, address: ObjectAddress, *, delimiter: str = "") -> Iterator[StoredObject]:
        """Describe every object whose key starts with the address's key, up to the next `delimiter` if given."""
        token = ""
        while True:
            query = {"prefix": address.key, "maxResults": "1000"}
            query |= {"pageToken": token} if token else {}
            query |= {"delimiter": delimiter} if delimiter else {}
            url = f"{self.endpoint}/storage/v1/b/{address.bucket}/o?{urllib.parse.urlencode(query)}"
            page = _parse_json(self._send("GET", url, address), address)
            for item in page.get("items", ()):
                yield self._stored(address.bucket, item)
            token = page.get("nextPageToken", "")
            if not token:
                return

    def read_into(self, stored: StoredObject, offset: int, memory: Scatter) -> None:
        """Fill memory from one generation of an object."""
        query = urllib.parse.urlencode({"alt": "media", "generation": stored.generation})
        url = f"{self._object_url(stored.address, '/download')}?{query}"
        persistence = Persistence(str(stored.address), self.client.patience)
        while memory.left_bytes:
            try:
                self._read_once(stored, url, offset + memory.filled_bytes, memory)
                persistence.gained()
            except RetryableError as retry:
                persistence.failed(retry)

    def read(self, stored: StoredObject) -> bytes:
        """Return a small object whole."""
        data = bytearray(stored.size_bytes)
        self.read_into(stored, 0, Scatter([memoryview(data)]))
        return bytes(data)

    def _read_once(self, stored: StoredObject, url: str, offset: int, memory: Scatter) -> None:
        headers = {"Range": f"bytes={offset}-{offset + memory.left_bytes - 1}", **self._authorization()}
        response = self.client.open("GET", url, headers)
        if response.status not in (200, 206):
            answer = read_refusal(response)
            raise_if_retried(answer.status, answer.headers)
            raise self._gone(stored) if answer.status == 404 else self._refusal(answer, stored.address)
        read_range(self.client, response, memory, offset, stored.size_bytes)

    def _gone(self, stored: StoredObject) -> SourceChangedError:
        return SourceChangedError(
            f"{stored.address}: generation {stored.generation} is gone; the object was deleted or replaced.",
            next_step="Run again; what is there now is read anew.",
        )

    def put(
        self,
        address: ObjectAddress,
        pieces: Iterable[bytes | memoryview],
        *,
        checksum: int,
        metadata: Mapping[str, str] | None = None,
        if_generation: int | None = None,
    ) -> StoredObject:
        """Write a whole object in one request; the server refuses it if its bytes do not match `checksum`."""
        pieces = list(pieces)
        size = sum(len(piece) for piece in pieces)
        resource = {"name": address.key, "crc32c": encode_crc32c(checksum), "metadata": dict(metadata or {})}
        boundary = uuid.uuid4().hex
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(resource)}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        query = {"uploadType": "multipart"}
        if if_generation is not None:
            query["ifGenerationMatch"] = str(if_generation)
        url = f"{self.endpoint}/upload/storage/v1/b/{address.bucket}/o?{urllib.parse.urlencode(query)}"
        headers = {
            "Content-Type": f"multipart/related; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        answer = self._send(
            "POST", url, address, headers=headers, body=lambda: _sliced([head, *pieces, tail]), allowed=(412,)
        )
        if answer.status == 412:
            return self._own_write(address, size, checksum, metadata or {}, if_generation)
        stored = self._stored(address.bucket, _parse_json(answer, address))
        self._check(stored, size, checksum)
        return stored

    def _own_write(
        self, address: ObjectAddress, size: int, checksum: int, metadata: Mapping[str, str], if_generation: int | None
    ) -> StoredObject:
        """Accept what is there if it is what a repeated request wrote the first time, when its answer was lost."""
        stored = self.stat(address)
        same = stored and (stored.size_bytes, stored.crc32c) == (size, checksum)
        if stored is None or not same or any(stored.metadata.get(k) != v for k, v in metadata.items()):
            raise PreconditionFailedError(
                f"{address} is not at generation {if_generation}: "
                f"{'it is absent' if stored is None else f'it is at {stored.generation}, with other bytes'}.",
                next_step="Look who else writes there, then run again.",
            )
        return stored

    def delete(self, address: ObjectAddress) -> bool:
        """Delete an object; tell whether there was one."""
        return self._send("DELETE", self._object_url(address), address, allowed=(404,)).status != 404

    def rewrite(
        self, source: StoredObject, target: ObjectAddress, *, metadata: Mapping[str, str], if_generation: int | None
    ) -> StoredObject:
        """Copy an object inside Cloud Storage; no byte comes here.

        Raises:
            PreconditionFailedError: the target is not at `if_generation`.
        """
        query = {"sourceGeneration": str(source.generation)}
        if if_generation is not None:
            query["ifGenerationMatch"] = str(if_generation)
        key = urllib.parse.quote(target.key, safe="")
        base = f"{self._object_url(source.address)}/rewriteTo/b/{target.bucket}/o/{key}"
        content = json.dumps({"metadata": dict(metadata)}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        while True:
            url = f"{base}?{urllib.parse.urlencode(query)}"
            answer = self._send("POST", url, source.address, headers=headers, body=lambda: [content], allowed=(412,))
            if answer.status == 412:
                size, checksum = source.size_bytes, source.crc32c or 0
                return self._own_write(target, size, checksum, metadata, if_generation)
            progress = _parse_json(answer, source.address)
            if progress.get("done", True):
                stored = self._stored(target.bucket, progress["resource"])
                self._check(stored, source.size_bytes, source.crc32c)
                return stored
            query["rewriteToken"] = progress["rewriteToken"]

    # Multipart uploads: https://cloud.google.com/storage/docs/multipart-uploads

    def start_upload(self, address: ObjectAddress, metadata: Mapping[str, str]) -> str:
        """Begin a multipart upload and return its id."""
        headers = {f"x-goog-meta-{name}": value for name, value in metadata.items()}
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        answer = self._send("POST", self._xml_url(address, "uploads"), address, headers=headers)
        return _text(_parse_xml(answer, address), "UploadId")

    def upload_part(
        self, address: ObjectAddress, upload_id: str, number: int, view: memoryview, checksum: int
    ) -> UploadedPart:
        """Send one part; the server refuses it if its bytes do not match `checksum`."""
        query = f"partNumber={number}&uploadId={urllib.parse.quote(upload_id, safe='')}"
        headers = {"Content-Length": str(len(view)), "x-goog-hash": f"crc32c={encode_crc32c(checksum)}"}
        url = self._xml_url(address, query)
        answer = self._send("PUT", url, address, headers=headers, body=lambda: _sliced([view]))
        told = _header_crc32c(answer.headers)
        if told is not None and told != checksum:
            raise ChecksumError(
                f"{address}, part {number}: Cloud Storage received crc32c {encode_crc32c(told)}, "
                f"{encode_crc32c(checksum)} was sent.",
                next_step="Run again; if it happens again, suspect the network or this machine's memory.",
            )
        return UploadedPart(number=number, etag=answer.headers.get("ETag", ""), size_bytes=len(view))

    def list_parts(self, address: ObjectAddress, upload_id: str) -> dict[int, UploadedPart] | None:
        """Describe the parts of a pending upload by number; None where the upload is gone."""
        parts: dict[int, UploadedPart] = {}
        marker = 0
        while True:
            query = f"uploadId={urllib.parse.quote(upload_id, safe='')}&max-parts=1000&part-number-marker={marker}"
            answer = self._send("GET", self._xml_url(address, query), address, allowed=(404,))
            if answer.status == 404:
                return None
            root = _parse_xml(answer, address)
            for part in root.findall("{*}Part"):
                found = UploadedPart(
                    number=int(_text(part, "PartNumber")),
                    etag=_text(part, "ETag"),
                    size_bytes=int(_text(part, "Size")),
                )
                parts[found.number] = found
            following = root.findtext("{*}NextPartNumberMarker")
            if root.findtext("{*}IsTruncated") != "true" or not following or int(following) <= marker:
                return parts
            marker = int(following)

    def list_uploads(self, prefix: ObjectAddress) -> list[tuple[ObjectAddress, str]]:
        """Return key and id of the pending uploads whose key starts with the prefix's, at most 1000."""
        query = f"uploads&prefix={urllib.parse.quote(prefix.key, safe='')}"
        answer = self._send("GET", f"{self.endpoint}/{prefix.bucket}?{query}", prefix)
        uploads = _parse_xml(answer, prefix).findall("{*}Upload")
        return [(ObjectAddress(prefix.bucket, _text(one, "Key")), _text(one, "UploadId")) for one in uploads]

    def complete_upload(
        self, address: ObjectAddress, upload_id: str, parts: Iterable[UploadedPart], *, size_bytes: int, checksum: int
    ) -> StoredObject:
        """Make the object of its parts and check what Cloud Storage made of them."""
        root = ElementTree.Element("CompleteMultipartUpload")
        for part in parts:
            element = ElementTree.SubElement(root, "Part")
            ElementTree.SubElement(element, "PartNumber").text = str(part.number)
            ElementTree.SubElement(element, "ETag").text = part.etag
        content = ElementTree.tostring(root)
        headers = {"Content-Type": "application/xml", "Content-Length": str(len(content))}
        url = self._xml_url(address, f"uploadId={urllib.parse.quote(upload_id, safe='')}")
        # A repeated request finds the upload gone if the first one succeeded and its answer was lost.
        self._send("POST", url, address, headers=headers, body=lambda: [content], allowed=(404,))
        stored = self.stat(address)
        if stored is None:
            raise StorageError(
                f"{address}: the multipart upload was lost before it was complete.",
                next_step="Run again; check that no lifecycle rule aborts uploads within a day.",
            )
        self._check(stored, size_bytes, checksum)
        return stored

    def abort_upload(self, address: ObjectAddress, upload_id: str) -> None:
        """Throw a pending upload away."""
        url = self._xml_url(address, f"uploadId={urllib.parse.quote(upload_id, safe='')}")
        self._send("DELETE", url, address, allowed=(403, 404))

    # Requests

    def _check(self, stored: StoredObject, size_bytes: int, checksum: int | None) -> None:
        same_bytes = checksum is None or stored.crc32c is None or stored.crc32c == checksum
        if stored.size_bytes == size_bytes and same_bytes:
            return
        self.delete(stored.address)
        raise ChecksumError(
            f"{stored.address}: Cloud Storage holds {stored.size_bytes} bytes with crc32c "
            f"{encode_crc32c(stored.crc32c or 0)}, expected {size_bytes} with {encode_crc32c(checksum or 0)}. "
            "The object was deleted.",
            next_step="Run again; if it happens again, suspect the network or this machine's memory.",
        )

    def _send(
        self,
        method: str,
        url: str,
        address: ObjectAddress,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        renew = False

        def attempt() -> Answer:
            nonlocal renew
            answer = self.client.ask(method, url, {**(headers or {}), **self._authorization(renew=renew)}, body)
            if answer.status == 401 and self._bearer and not renew:
                renew = True
                raise RetryableError("the access token is not valid any more", wait_seconds=0)
            if answer.status == 400 and _is_damaged(answer):
                raise RetryableError("the bytes were damaged on their way")
            return answer

        answer = self.client.ask_patiently(str(address), attempt)
        if answer.status in allowed or 200 <= answer.status < 300:
            return answer
        raise self._refusal(answer, address)

    def _refusal(self, answer: Answer, address: ObjectAddress) -> StorageError:
        """Turn a refusal into words."""
        said = _reason(answer)
        if answer.status == 401:
            return StorageAccessError(
                f"{address}: Cloud Storage does not accept the credentials: {said}",
                next_step="Run `gcloud auth application-default login`, or look at the worker's service account.",
            )
        if answer.status == 403:
            return StorageAccessError(
                f"{address}: Cloud Storage answers {answer.status}: {said}",
                next_step="Grant this account roles/storage.objectUser on the bucket, then run again.",
            )
        if b"NoSuchUpload" in answer.body:
            return UploadGoneError(
                f"{address}: the multipart upload is gone; another run of the same model has finished or restarted it.",
                next_step="Run again; what is complete by then is not moved.",
            )
        if answer.status == 404:
            return BucketNotFoundError(
                f"gs://{address.bucket}: there is no such bucket, or this account may not see it ({said}).",
                next_step="Create it, or correct its name in the configuration.",
            )
        if answer.status == 412:
            return PreconditionFailedError(f"{address}: the object changed meanwhile: {said}")
        return StorageError(
            f"{address}: Cloud Storage answers {answer.status}, which was not expected: {said}",
            next_step="Read the answer; if it says nothing wrong, run again.",
        )

    def _authorization(self, *, renew: bool = False) -> dict[str, str]:
        return self._bearer.headers(renew=renew) if self._bearer else {}

    def _object_url(self, address: ObjectAddress, service: str = "") -> str:
        key = urllib.parse.quote(address.key, safe="")
        return f"{self.endpoint}{service}/storage/v1/b/{address.bucket}/o/{key}"

    def _xml_url(self, address: ObjectAddress, query: str) -> str:
        return f"{self.endpoint}/{address.bucket}/{urllib.parse.quote(address.key, safe='/~')}?{query}"

    def _stored(self, bucket: str, item: Mapping[str, Any]) -> StoredObject:
        return StoredObject(
            address=ObjectAddress(bucket, item["name"]),
            size_bytes=int(item.get("size", 0)),
            crc32c=decode_crc32c(item["crc32c"]) if item.get("crc32c") else None,
            generation=int(item.get("generation", 0)),
            metadata=item.get("metadata") or {},
        )


def cloud_storage(patience: Patience | None = None) -> CloudStorage:
    """Return the endpoint that the environment names, with its connections kept between calls."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return _endpoint(emulator, patience or Patience())


@functools.lru_cache(maxsize=8)
def _endpoint(emulator: str, patience: Patience) -> CloudStorage:
    if not emulator:
        return CloudStorage("https://storage.googleapis.com", anonymous=False, patience=patience)
    url = emulator if "://" in emulator else f"http://{emulator}"
    return CloudStorage(url.rstrip("/"), anonymous=True, patience=patience)


def _sliced(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Cut a body so that the watchdog looks at each piece of it."""
    for piece in pieces:
        view = memoryview(piece)
        for offset in range(0, len(view), SEND_BYTES):
            yield view[offset : offset + SEND_BYTES]


def _parse_json(answer: Answer, address: ObjectAddress) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise StorageError(
            f"{address}: Cloud Storage sent what is no JSON: {answer.text}",
            next_step="Check STORAGE_EMULATOR_HOST and any proxy between here and Cloud Storage.",
        ) from error


def _parse_xml(answer: Answer, address: ObjectAddress) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(answer.body)
    except ElementTree.ParseError as error:
        raise StorageError(f"{address}: Cloud Storage sent XML that cannot be read: {answer.text}") from error


def _text(element: ElementTree.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""


def _header_crc32c(headers: Mapping[str, str]) -> int | None:
    for entry in headers.get("x-goog-hash", "").split(","):
        name, _, value = entry.strip().partition("=")
        if name == "crc32c":
            return decode_crc32c(value)
    return None


def _is_damaged(answer: Answer) -> bool:
    """Tell whether the server compared what came with its promised checksum, and found something else."""
    return b"BadDigest" in answer.body or b"crc32c" in answer.body.lower()


def _reason(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text or "no reason given"
