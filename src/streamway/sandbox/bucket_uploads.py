"""Uploads in one request and resumable uploads, written to disk as they arrive.

fake-gcs-server takes these too, but it gathers each one in memory, ignores generation conditions on `media` and
`resumable` uploads, accepts bytes that do not match their promised hash, and forgets an unfinished resumable upload
when it stops.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from streamway.sandbox.bucket_answers import (
    check_hashes,
    hash_header,
    header_conditions,
    header_description,
    json_body,
    json_description,
    promised_hashes,
    query_conditions,
    resource,
)
from streamway.sandbox.bucket_bodies import store_body, write_chunks
from streamway.sandbox.bucket_checksums import new_md5
from streamway.sandbox.bucket_store import (
    Conditions,
    Content,
    Description,
    Draft,
    Store,
    StoredObject,
    StoreError,
)
from streamway.sandbox.faults import receive
from streamway.sandbox.processes import read_json, write_json

# A resumable upload is taken over in whole multiples of this, except at its end.
# https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload
_GRAIN_BYTES = 256 * 1024
_MOST_HEAD_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Uploads:
    """Handlers of everything that writes an object in one go or by a resumable session."""

    def __init__(self, store: Store, sessions_path: Path, base_url: Callable[[], str]) -> None:
        self._store = store
        self._base_url = base_url
        self._sessions_path = sessions_path
        self._sessions_path.mkdir(parents=True, exist_ok=True)
        # An md5 cannot be written down half done; after a restart it is made anew from the bytes on disk.
        self._md5s: dict[str, Any] = {}
        self._busy: set[str] = set()

    async def insert(self, request: web.Request, bucket: str) -> web.Response:
        """Answer POST /upload/storage/v1/b/BUCKET/o."""
        self._store.require_bucket(bucket)
        kind = request.query.get("uploadType", "")
        if kind == "media":
            return await self._media(request, bucket)
        if kind == "multipart":
            return await self._multipart(request, bucket)
        if kind == "resumable":
            return await self._start(request, bucket)
        raise StoreError(400, "invalidParameter", f"uploadType is {kind!r}; known: media, multipart, resumable")

    async def put(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer PUT of the XML API."""
        self._store.require_bucket(bucket)
        conditions = header_conditions(request)
        stored = await self._write(
            bucket,
            name,
            receive(request),
            header_description(request.headers),
            conditions,
            promised_hashes(request),
        )
        headers = {
            "ETag": f'"{stored.etag}"',
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": str(stored.metageneration),
            "x-goog-hash": hash_header(stored.crc32c, stored.attributes["Md5Hash"]),
            "x-goog-stored-content-length": str(stored.size_bytes),
        }
        return web.Response(headers=headers)

    async def _media(self, request: web.Request, bucket: str) -> web.Response:
        name = request.query.get("name", "")
        description = Description(content_type=request.headers.get("Content-Type", ""))
        conditions = query_conditions(request.query)
        promised = promised_hashes(request)
        stored = await self._write(bucket, name, receive(request), description, conditions, promised)
        return self._described(stored)

    async def _multipart(self, request: web.Request, bucket: str) -> web.Response:
        related = RelatedParts(receive(request), _boundary(request.headers.get("Content-Type", "")))
        value = json_body(await related.first())
        name = request.query.get("name") or str(value.get("name", ""))
        request["subject"] = f"{bucket}/{name}"
        content_type = await related.second_content_type()
        description = json_description({"contentType": content_type} | value)
        promised = promised_hashes(request) | _resource_hashes(value)
        conditions = query_conditions(request.query)
        stored = await self._write(bucket, name, related.second(), description, conditions, promised)
        return self._described(stored)

    async def _write(
        self,
        bucket: str,
        name: str,
        chunks: AsyncIterator[bytes],
        description: Description,
        conditions: Conditions,
        promised: Mapping[str, str],
    ) -> StoredObject:
        self._store.check_name(name)
        conditions.check(self._store.find(bucket, name))
        draft = Draft(path=self._store.new_draft_path(), md5=new_md5())
        try:
            await write_chunks(chunks, draft)
            content = _content_of(draft)
            check_hashes(promised, content)
            return self._store.commit(bucket, name, content, description, conditions)
        finally:
            draft.path.unlink(missing_ok=True)

    async def _start(self, request: web.Request, bucket: str) -> web.Response:
        value = json_body(await request.read())
        name = request.query.get("name") or str(value.get("name", ""))
        request["subject"] = f"{bucket}/{name}"
        self._store.check_name(name)
        conditions = query_conditions(request.query)
        conditions.check(self._store.find(bucket, name))
        upload_id = uuid.uuid4().hex
        content_type = request.headers.get("X-Upload-Content-Type", "")
        description = json_description({"contentType": content_type} | value)
        session = {
            "bucket": bucket,
            "name": name,
            "description": asdict(description),
            "conditions": asdict(conditions),
            "promised": promised_hashes(request) | _resource_hashes(value),
            "size_bytes": 0,
            "crc32c": 0,
            "generation": None,
        }
        self._draft_path(upload_id).touch()
        write_json(self._session_path(upload_id), session)
        self._md5s[upload_id] = new_md5()
        query = urlencode({"uploadType": "resumable", "name": name, "upload_id": upload_id})
        location = f"{self._base_url()}/upload/storage/v1/b/{bucket}/o?{query}"
        return web.Response(headers={"Location": location, "X-GUploader-UploadID": upload_id})

    async def resume(self, request: web.Request) -> web.Response:
        """Answer PUT on a session: bytes, or the question how many have arrived."""
        upload_id, session = self._session(request)
        if session["generation"] is not None:
            return self._finished(session)
        if upload_id in self._busy:
            raise StoreError(503, "backendError", "Another request writes to this upload.")
        self._busy.add(upload_id)
        try:
            return await self._take(request, upload_id, session)
        finally:
            self._busy.discard(upload_id)

    async def cancel(self, request: web.Request) -> web.Response:
        """Answer DELETE on a session."""
        upload_id, _ = self._session(request)
        self._forget(upload_id)
        return web.Response(status=499)

    async def _take(self, request: web.Request, upload_id: str, session: dict[str, Any]) -> web.Response:
        start, total = _content_range(request)
        held = int(session["size_bytes"])
        if start is None:
            return await self._progress(upload_id, session, total)
        if start > held:
            raise StoreError(400, "invalid", f"Bytes from {start} were sent, but only {held} have arrived.")
        draft = Draft(
            path=self._draft_path(upload_id),
            size_bytes=held,
            crc32c=session["crc32c"],
            md5=self._md5s.get(upload_id),
        )
        try:
            if start == held:
                await store_body(request, draft)
            else:
                await write_chunks(_without_first(receive(request), held - start), draft)
        except BaseException:
            self._keep_whole_grains(upload_id, session, draft)
            raise
        if "Content-Range" not in request.headers:
            total = draft.size_bytes
        if total is not None and draft.size_bytes > total:
            raise StoreError(400, "invalid", f"{draft.size_bytes} bytes were sent, {total} were announced.")
        if total is None or draft.size_bytes < total:
            self._keep_whole_grains(upload_id, session, draft)
        else:
            session |= {"size_bytes": draft.size_bytes, "crc32c": draft.crc32c}
        return await self._progress(upload_id, session, total)

    def _keep_whole_grains(self, upload_id: str, session: dict[str, Any], draft: Draft) -> None:
        """Remember what has arrived, in the multiples in which Cloud Storage takes it over."""
        kept = draft.size_bytes - draft.size_bytes % _GRAIN_BYTES
        if kept != draft.size_bytes:
            again = Draft(path=draft.path, md5=new_md5())
            _hash_file(again, kept)
            draft = again
        if draft.md5 is not None:
            self._md5s[upload_id] = draft.md5
        session |= {"size_bytes": kept, "crc32c": draft.crc32c}
        if self._session_path(upload_id).exists():
            write_json(self._session_path(upload_id), session)

    async def _progress(self, upload_id: str, session: dict[str, Any], total: int | None) -> web.Response:
        held = int(session["size_bytes"])
        if total is None or held < total:
            headers = {"Range": f"bytes=0-{held - 1}"} if held else {}
            return web.Response(status=308, headers=headers)
        draft = Draft(path=self._draft_path(upload_id), md5=self._md5s.get(upload_id))
        draft.size_bytes, draft.crc32c = held, int(session["crc32c"])
        if draft.md5 is None:
            draft = Draft(path=draft.path, md5=new_md5())
            await asyncio.to_thread(_hash_file, draft, held)
        content = _content_of(draft)
        check_hashes(session["promised"], content)
        stored = self._store.commit(
            session["bucket"],
            session["name"],
            content,
            Description(**session["description"]),
            Conditions(**session["conditions"]),
        )
        self._md5s.pop(upload_id, None)
        session["generation"] = stored.generation
        write_json(self._session_path(upload_id), session)
        return self._described(stored)

    def _finished(self, session: dict[str, Any]) -> web.Response:
        """Answer again for an upload whose first answer may have been lost."""
        stored = self._store.find(session["bucket"], session["name"])
        if stored is None or stored.generation != session["generation"]:
            raise StoreError(410, "gone", "The upload is complete, and its object is gone.")
        return self._described(stored)

    def _described(self, stored: StoredObject) -> web.Response:
        return web.json_response(resource(stored, self._base_url()), headers={"ETag": f'"{stored.etag}"'})

    def _session(self, request: web.Request) -> tuple[str, dict[str, Any]]:
        upload_id = request.query.get("upload_id", "")
        session = read_json(self._session_path(upload_id)) if re.fullmatch("[0-9a-f]{32}", upload_id) else None
        if session is None:
            raise StoreError(404, "notFound", "There is no such upload.")
        return upload_id, session

    def _forget(self, upload_id: str) -> None:
        self._md5s.pop(upload_id, None)
        for path in (self._session_path(upload_id), self._draft_path(upload_id)):
            path.unlink(missing_ok=True)

    def _session_path(self, upload_id: str) -> Path:
        return self._sessions_path / f"{upload_id}.json"

    def _draft_path(self, upload_id: str) -> Path:
        return self._sessions_path / f"{upload_id}.bytes"


class RelatedParts:
    """The two parts of a multipart/related body: a JSON resource, then bytes of any length.

    Source: RFC 2387, as used by uploadType=multipart.
    """

    def __init__(self, chunks: AsyncIterator[bytes], boundary: bytes) -> None:
        self._chunks = chunks
        # The body opens with the delimiter, less the line break that belongs to it everywhere else.
        self._delimiter = b"\r\n--" + boundary
        self._pending = b"\r\n"

    async def first(self) -> bytes:
        """Return the content of the first part."""
        await self._read_to(self._delimiter)
        await self._read_to(b"\r\n\r\n")
        return await self._read_to(self._delimiter)

    async def second_content_type(self) -> str:
        """Return what the second part's own headers say it is."""
        head = await self._read_to(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-type":
                return value.strip().decode("latin-1")
        return ""

    async def second(self) -> AsyncIterator[bytes]:
        """Yield the content of the second part."""
        held = len(self._delimiter) + 4
        tail = self._pending
        async for chunk in self._chunks:
            tail += chunk
            if len(tail) > held:
                yield tail[:-held]
                tail = tail[-held:]
        end = tail.rfind(self._delimiter + b"--")
        if end < 0:
            raise StoreError(400, "badContent", "The multipart body has no closing delimiter.")
        yield tail[:end]

    async def _read_to(self, mark: bytes) -> bytes:
        while mark not in self._pending:
            if len(self._pending) > _MOST_HEAD_BYTES:
                raise StoreError(400, "badContent", "The multipart body has no second part.")
            with contextlib.suppress(StopAsyncIteration):
                self._pending += await anext(self._chunks)
                continue
            raise StoreError(400, "badContent", "The multipart body ends too early.")
        found, _, self._pending = self._pending.partition(mark)
        return found


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise StoreError(400, "badContent", f"Content-Type is {content_type!r}, which names no boundary.")
    return boundary.encode()


def _content_of(draft: Draft) -> Content:
    if not draft.path.exists():
        draft.path.touch()
    return Content(path=draft.path, size_bytes=draft.size_bytes, crc32c=draft.crc32c, md5=draft.encoded_md5())


def _hash_file(draft: Draft, size_bytes: int) -> None:
    """Cut the file to a length and bring the draft's hashes to it."""
    with draft.path.open("r+b") as file:
        file.truncate(size_bytes)
        while chunk := file.read(1 << 20):
            draft.note(chunk)


def _resource_hashes(value: Mapping[str, Any]) -> dict[str, str]:
    named = {"crc32c": value.get("crc32c"), "md5": value.get("md5Hash")}
    return {name: str(given) for name, given in named.items() if given}


def _content_range(request: web.Request) -> tuple[int | None, int | None]:
    """Return where the body starts (None where there is none to take) and the announced total, if known."""
    header = request.headers.get("Content-Range")
    if header is None:
        return 0, None
    found = _RANGE.fullmatch(header)
    if found is None:
        raise StoreError(400, "invalid", f"Content-Range is {header!r}.")
    start, _, total = found.groups()
    return (None if start is None else int(start)), (None if total == "*" else int(total))


async def _without_first(chunks: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    """Skip bytes that have already arrived."""
    async for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:] if count else chunk
        count = max(0, count - len(chunk))
