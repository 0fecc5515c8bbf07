"""Multipart uploads of the XML API, which fake-gcs-server does not have and which fast clients live on.

The first copy of each part goes to its place in one common file, as far as its place can be known (all parts but the
last are as long as the first that arrived); a part that comes again, or that does not fit, goes to a file of its
own. An upload whose parts are all in place becomes an object by a rename; any other is put together inside the
kernel. Each part is written down when it is whole, so uploads outlive a restart.

Limits: https://cloud.google.com/storage/quotas#requests.
"""

import asyncio
import re
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from streamway.sandbox.bucket_answers import (
    check_hashes,
    hash_header,
    header_conditions,
    header_description,
    promised_hashes,
    xml_document,
)
from streamway.sandbox.bucket_bodies import store_body
from streamway.sandbox.bucket_checksums import encode_crc32c, new_md5
from streamway.sandbox.bucket_store import (
    Conditions,
    Content,
    Description,
    Draft,
    Store,
    StoreError,
    copy_ranges,
    timestamp,
)
from streamway.sandbox.processes import read_json, write_json
from streamway.storage.digests import join_crc32c

LEAST_PART_BYTES = 5 * 1024**2
MOST_PART_BYTES = 5 * 1024**3
MOST_PARTS = 10_000
_COMMON = "common"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part that has arrived whole.

    Args:
        number: 1 to 10,000.
        file: Name of the file that holds it, in the upload's folder.
        offset_bytes: Where it begins there.
        size_bytes: Its length.
        crc32c: Its checksum.
        md5: Its md5 in base64; empty unless the client promised one, because it costs more than all the rest.
        etag: What the client must name it by.
        modified: When it arrived.
    """

    number: int
    file: str
    offset_bytes: int
    size_bytes: int
    crc32c: int
    md5: str
    etag: str
    modified: str


class PartUploads:
    """Handlers of multipart uploads."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)
        # Places in common files that a request is writing to just now.
        self._taken: set[tuple[str, int]] = set()

    async def start(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer POST ?uploads."""
        self._store.require_bucket(bucket)
        self._store.check_name(name)
        upload_id = uuid.uuid4().hex
        session = {
            "bucket": bucket,
            "name": name,
            "description": asdict(header_description(request.headers)),
            "initiated": timestamp(),
            "part_bytes": None,
        }
        write_json(self._root / upload_id / "upload.json", session)
        return xml_document(
            "InitiateMultipartUploadResult", [("Bucket", bucket), ("Key", name), ("UploadId", upload_id)]
        )

    async def put_part(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer PUT ?partNumber=&uploadId=."""
        folder, session = self._session(request, bucket, name)
        number = _part_number(request.query.get("partNumber", ""))
        length = request.content_length
        if length is not None and length > MOST_PART_BYTES:
            raise StoreError(400, "EntityTooLarge", f"A part has at most {MOST_PART_BYTES} bytes.")
        promised = promised_hashes(request)
        file, offset = self._place(folder, session, number, length)
        draft = Draft(path=folder / file, offset_bytes=offset, md5=new_md5() if "md5" in promised else None)
        try:
            part = await self._receive(request, draft, number, promised)
        except FileNotFoundError as error:
            # The upload was completed or aborted while this part was on its way.
            raise _no_such_upload() from error
        except BaseException:
            if file != _COMMON:
                draft.path.unlink(missing_ok=True)
            raise
        finally:
            self._taken.discard((folder.name, number))
        self._keep(folder, part)
        headers = {"ETag": part.etag, "x-goog-hash": hash_header(encode_crc32c(part.crc32c), part.md5)}
        return web.Response(headers=headers)

    async def _receive(self, request: web.Request, draft: Draft, number: int, promised: Mapping[str, str]) -> Part:
        await store_body(request, draft)
        content = Content(path=draft.path, size_bytes=draft.size_bytes, crc32c=draft.crc32c, md5=draft.encoded_md5())
        check_hashes(promised, content)
        return Part(
            number=number,
            file=draft.path.name,
            offset_bytes=draft.offset_bytes,
            size_bytes=draft.size_bytes,
            crc32c=draft.crc32c,
            md5=content.md5,
            etag=f'"{draft.crc32c:08x}{draft.size_bytes:012x}"',
            modified=timestamp(),
        )

    def _place(self, folder: Path, session: dict[str, Any], number: int, length: int | None) -> tuple[str, int]:
        """Choose where a part goes: its place in the common file, if that is free and large enough."""
        step = session["part_bytes"]
        if step is None and length:
            step = session["part_bytes"] = length
            write_json(folder / "upload.json", session)
        free = (folder.name, number) not in self._taken and not _record_path(folder, number).exists()
        if step is None or length is None or length > step or not free:
            return f"part-{number}-{uuid.uuid4().hex}", 0
        self._taken.add((folder.name, number))
        return _COMMON, (number - 1) * step

    def _keep(self, folder: Path, part: Part) -> None:
        replaced = _read_part(folder, part.number)
        if not (folder / "upload.json").exists():
            raise _no_such_upload()
        write_json(_record_path(folder, part.number), asdict(part))
        if replaced is not None and replaced.file not in (_COMMON, part.file):
            (folder / replaced.file).unlink(missing_ok=True)

    async def list_parts(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer GET ?uploadId=."""
        folder, _ = self._session(request, bucket, name)
        most = min(int(request.query.get("max-parts") or 1000), 1000)
        marker = int(request.query.get("part-number-marker") or 0)
        parts = [part for part in _read_parts(folder) if part.number > marker]
        shown, more = parts[:most], len(parts) > most
        fields = [
            ("Bucket", bucket),
            ("Key", name),
            ("UploadId", folder.name),
            ("PartNumberMarker", str(marker)),
            ("MaxParts", str(most)),
            ("IsTruncated", str(more).lower()),
            *([("NextPartNumberMarker", str(shown[-1].number))] if more else []),
        ]
        return xml_document("ListPartsResult", fields, "".join(map(_part_element, shown)))

    async def list_uploads(self, request: web.Request, bucket: str) -> web.Response:
        """Answer GET ?uploads on a bucket."""
        self._store.require_bucket(bucket)
        prefix = request.query.get("prefix", "")
        most = min(int(request.query.get("max-uploads") or 1000), 1000)
        after = (request.query.get("key-marker", ""), request.query.get("upload-id-marker", ""))
        found = sorted(
            (session["name"], folder.name, session["initiated"])
            for folder, session in self._sessions()
            if session["bucket"] == bucket and session["name"].startswith(prefix)
        )
        found = [entry for entry in found if entry[:2] > after]
        shown, more = found[:most], len(found) > most
        fields = [("Bucket", bucket), ("MaxUploads", str(most)), ("IsTruncated", str(more).lower())]
        if more:
            fields += [("NextKeyMarker", shown[-1][0]), ("NextUploadIdMarker", shown[-1][1])]
        inner = "".join(
            f"<Upload><Key>{escape(name)}</Key><UploadId>{upload_id}</UploadId>"
            f"<StorageClass>STANDARD</StorageClass><Initiated>{initiated}</Initiated></Upload>"
            for name, upload_id, initiated in shown
        )
        return xml_document("ListMultipartUploadsResult", fields, inner)

    async def complete(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer POST ?uploadId=."""
        folder, session = self._session(request, bucket, name)
        parts = _chosen_parts(folder, await request.read())
        conditions = header_conditions(request)
        conditions.check(self._store.find(bucket, name))
        stored = await self._assemble(folder, session, parts, conditions)
        await asyncio.to_thread(_remove_folder, folder)
        response = xml_document(
            "CompleteMultipartUploadResult",
            [
                ("Location", f"http://{request.host}/{bucket}/{name}"),
                ("Bucket", bucket),
                ("Key", name),
                ("ETag", f'"{stored.etag}"'),
            ],
        )
        response.headers["x-goog-hash"] = hash_header(stored.crc32c, "")
        response.headers["x-goog-generation"] = str(stored.generation)
        response.headers["ETag"] = f'"{stored.etag}"'
        return response

    async def abort(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer DELETE ?uploadId=."""
        folder, _ = self._session(request, bucket, name)
        await asyncio.to_thread(_remove_folder, folder)
        return web.Response(status=204)

    async def _assemble(self, folder: Path, session: dict[str, Any], parts: list[Part], conditions: Conditions) -> Any:
        size = sum(part.size_bytes for part in parts)
        path = self._store.new_draft_path()
        if _in_place(parts):
            (folder / "upload.json").unlink()
            (folder / _COMMON).rename(path)
            with path.open("r+b") as file:
                file.truncate(size)
        else:
            ranges = [(folder / part.file, part.offset_bytes, part.size_bytes) for part in parts]
            await asyncio.to_thread(copy_ranges, ranges, path)
        content = Content(
            path=path,
            size_bytes=size,
            crc32c=join_crc32c([(part.crc32c, part.size_bytes) for part in parts]),
            component_count=len(parts),
        )
        description = Description(**session["description"])
        try:
            return self._store.commit(session["bucket"], session["name"], content, description, conditions)
        finally:
            path.unlink(missing_ok=True)

    def _session(self, request: web.Request, bucket: str, name: str) -> tuple[Path, dict[str, Any]]:
        self._store.require_bucket(bucket)
        upload_id = request.query.get("uploadId", "")
        folder = self._root / upload_id
        session = read_json(folder / "upload.json") if re.fullmatch("[0-9a-f]{32}", upload_id) else None
        if session is None or (session["bucket"], session["name"]) != (bucket, name):
            raise _no_such_upload()
        return folder, session

    def _sessions(self) -> Iterable[tuple[Path, dict[str, Any]]]:
        for folder in self._root.iterdir():
            session = read_json(folder / "upload.json")
            if session is not None:
                yield folder, session


def _no_such_upload() -> StoreError:
    return StoreError(404, "NoSuchUpload", "The requested upload was not found.")


def _part_number(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_PARTS:
        raise StoreError(400, "InvalidArgument", f"partNumber is {text!r}; it goes from 1 to {MOST_PARTS}.")
    return int(text)


def _chosen_parts(folder: Path, body: bytes) -> list[Part]:
    """Return the parts that a client names, in its order, which must be theirs."""
    try:
        root = ElementTree.fromstring(body)
        named = [
            (int(element.findtext("{*}PartNumber", "")), element.findtext("{*}ETag", ""))
            for element in root.findall("{*}Part")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise StoreError(400, "MalformedXML", "The XML you provided was not well-formed.") from error
    numbers = [number for number, _ in named]
    if not named:
        raise StoreError(400, "MalformedXML", "You must specify at least one part.")
    if numbers != sorted(set(numbers)):
        raise StoreError(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    parts = [_match(folder, number, etag) for number, etag in named]
    small = [part for part in parts[:-1] if part.size_bytes < LEAST_PART_BYTES]
    if small:
        raise StoreError(
            400,
            "EntityTooSmall",
            f"Part {small[0].number} has {small[0].size_bytes} bytes; all but the last need {LEAST_PART_BYTES}.",
        )
    return parts


def _match(folder: Path, number: int, etag: str) -> Part:
    part = _read_part(folder, number)
    if part is None or part.etag.strip('"') != etag.strip('"'):
        raise StoreError(400, "InvalidPart", f"Part {number} was not found, or its ETag is not {etag}.")
    return part


def _in_place(parts: list[Part]) -> bool:
    """Say whether the common file, cut to length, already is the object."""
    end = 0
    for part in parts:
        if part.file != _COMMON or part.offset_bytes != end:
            return False
        end += part.size_bytes
    return True


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _read_part(folder: Path, number: int) -> Part | None:
    value = read_json(_record_path(folder, number))
    return None if value is None else Part(**value)


def _read_parts(folder: Path) -> list[Part]:
    numbers = sorted(int(path.stem) for path in folder.glob("[0-9]*.json"))
    return [part for number in numbers if (part := _read_part(folder, number)) is not None]


def _part_element(part: Part) -> str:
    return (
        f"<Part><PartNumber>{part.number}</PartNumber><LastModified>{part.modified}</LastModified>"
        f"<ETag>{escape(part.etag)}</ETag><Size>{part.size_bytes}</Size></Part>"
    )


def _remove_folder(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name != "upload.json"):
        path.unlink(missing_ok=True)
    folder.rmdir()
