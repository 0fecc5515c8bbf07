"""Objects that exist: reading them by sendfile, describing, copying, composing and deleting them.

fake-gcs-server ignores every generation condition here, changes an object's generation when its metadata are
patched, answers 500 for a composition of something absent, and takes twice an object's size in memory for a copy.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from streamway.sandbox.bucket_answers import (
    check_etags,
    header_conditions,
    header_description,
    json_body,
    json_description,
    object_headers,
    project,
    query_conditions,
    resource,
    xml_document,
)
from streamway.sandbox.bucket_checksums import decode_crc32c
from streamway.sandbox.bucket_store import (
    Conditions,
    Content,
    Description,
    Store,
    StoredObject,
    StoreError,
    copy_ranges,
)
from streamway.sandbox.faults import send_file
from streamway.storage.digests import join_crc32c

_MOST_SOURCES = 32
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
# Keys of a resource that a client may change, and their names in the store's attributes.
_CHANGEABLE = {
    "contentType": "ContentType",
    "contentEncoding": "ContentEncoding",
    "contentDisposition": "ContentDisposition",
    "contentLanguage": "ContentLanguage",
    "cacheControl": "CacheControl",
}


class Objects:
    """Handlers of requests about one object."""

    def __init__(self, store: Store, base_url: Callable[[], str]) -> None:
        self._store = store
        self._base_url = base_url

    async def read_json_api(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        """Answer GET with alt=media."""
        stored = self._store.get(bucket, name, query_conditions(request.query), reading=True)
        return await self._send(request, stored)

    async def read_xml_api(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        """Answer GET and HEAD of the XML API."""
        stored = self._store.get(bucket, name, header_conditions(request), reading=True)
        return await self._send(request, stored)

    async def describe(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer GET of an object's resource."""
        stored = self._store.get(bucket, name, query_conditions(request.query), reading=True)
        return self._described(request, stored)

    async def patch(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer PATCH: what is named changes, null removes it."""
        value = json_body(await request.read())
        live = self._store.get(bucket, name, query_conditions(request.query))
        changes = {_CHANGEABLE[key]: given or "" for key, given in value.items() if key in _CHANGEABLE}
        if "metadata" in value:
            merged = dict(live.attributes["Metadata"] or {}) | (value["metadata"] or {})
            kept = {key: given for key, given in merged.items() if given is not None}
            changes["Metadata"] = kept if value["metadata"] is not None else {}
        return self._described(request, self._store.describe(live, changes))

    async def update(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer PUT of a resource: what is not named is cleared."""
        value = json_body(await request.read())
        live = self._store.get(bucket, name, query_conditions(request.query))
        changes = {key: value.get(named) or "" for named, key in _CHANGEABLE.items()}
        changes["Metadata"] = json_description(value).metadata
        return self._described(request, self._store.describe(live, changes))

    async def delete(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer DELETE of the JSON API."""
        self._store.delete(self._store.get(bucket, name, query_conditions(request.query)))
        return web.Response(status=204)

    async def delete_xml_api(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer DELETE of the XML API."""
        self._store.delete(self._store.get(bucket, name, header_conditions(request)))
        return web.Response(status=204)

    async def rewrite(self, request: web.Request, source: tuple[str, str], target: tuple[str, str]) -> web.Response:
        """Answer POST .../rewriteTo/..., always in one call, as Cloud Storage does within one location."""
        stored = await self._copy(request, source, target)
        size = str(stored.size_bytes)
        answer = {
            "kind": "storage#rewriteResponse",
            "totalBytesRewritten": size,
            "objectSize": size,
            "done": True,
            "resource": resource(stored, self._base_url()),
        }
        return web.json_response(project(answer, request.query.get("fields")))

    async def copy(self, request: web.Request, source: tuple[str, str], target: tuple[str, str]) -> web.Response:
        """Answer POST .../copyTo/...."""
        return self._described(request, await self._copy(request, source, target))

    async def copy_xml_api(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer PUT with x-goog-copy-source."""
        given = unquote(request.headers["x-goog-copy-source"]).lstrip("/")
        source_bucket, _, source_name = given.partition("/")
        source = self._store.get(source_bucket, source_name, header_conditions(request, "x-goog-copy-source-if-"))
        replaced = request.headers.get("x-goog-metadata-directive", "COPY").upper() == "REPLACE"
        description = header_description(request.headers) if replaced else None
        self._store.require_bucket(bucket)
        stored = self._store.copy(source, bucket, name, description, header_conditions(request))
        fields = [("LastModified", stored.attributes["Updated"]), ("ETag", f'"{stored.etag}"')]
        response = xml_document("CopyObjectResult", fields)
        response.headers["x-goog-generation"] = str(stored.generation)
        response.headers["ETag"] = f'"{stored.etag}"'
        return response

    async def compose(self, request: web.Request, bucket: str, name: str) -> web.Response:
        """Answer POST .../compose."""
        value = json_body(await request.read())
        named = value.get("sourceObjects") or []
        if not 1 <= len(named) <= _MOST_SOURCES:
            raise StoreError(400, "invalid", f"compose takes 1 to {_MOST_SOURCES} components, {len(named)} were named.")
        self._store.require_bucket(bucket)
        sources = [self._store.get(bucket, entry["name"], _source_conditions(entry)) for entry in named]
        conditions = query_conditions(request.query)
        conditions.check(self._store.find(bucket, name))
        path = self._store.new_draft_path()
        ranges = [(self._store.blob_path(source), 0, source.size_bytes) for source in sources]
        await asyncio.to_thread(copy_ranges, ranges, path)
        content = Content(
            path=path,
            size_bytes=sum(source.size_bytes for source in sources),
            crc32c=join_crc32c([(decode_crc32c(source.crc32c), source.size_bytes) for source in sources]),
            component_count=sum(int(source.attributes.get("ComponentCount") or 1) for source in sources),
        )
        description = json_description(
            {"contentType": sources[0].attributes["ContentType"]} | (value.get("destination") or {})
        )
        try:
            stored = self._store.commit(bucket, name, content, description, conditions)
        finally:
            path.unlink(missing_ok=True)
        return self._described(request, stored)

    async def _copy(self, request: web.Request, source: tuple[str, str], target: tuple[str, str]) -> StoredObject:
        value = json_body(await request.read())
        self._store.require_bucket(target[0])
        live = self._store.get(*source, query_conditions(request.query, "Source"))
        description = _copied_description(value, live)
        return self._store.copy(live, *target, description, query_conditions(request.query))

    async def _send(self, request: web.Request, stored: StoredObject) -> web.StreamResponse:
        check_etags(request, stored)
        headers = object_headers(stored)
        offset, length = 0, stored.size_bytes
        status = 200
        wanted = _wanted_range(request.headers.get("Range"), stored.size_bytes)
        if wanted is not None:
            offset, length = wanted
            headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{stored.size_bytes}"
            status = 206
        response = web.StreamResponse(status=status, headers=headers)
        if request.method == "HEAD":
            response.content_length = length
            await response.prepare(request)
            await response.write_eof()
            return response
        return await send_file(request, response, self._store.blob_path(stored), offset, length)

    def _described(self, request: web.Request, stored: StoredObject) -> web.Response:
        value = project(resource(stored, self._base_url()), request.query.get("fields"))
        return web.json_response(value, headers={"ETag": f'"{stored.etag}"'})


def _copied_description(value: Mapping[str, Any], source: StoredObject) -> Description | None:
    """Return what a copy says about itself: the source's description, or the body's where there is one.

    Source: https://cloud.google.com/storage/docs/json_api/v1/objects/rewrite#request-body
    """
    if not set(value) & {*_CHANGEABLE, "metadata", "storageClass"}:
        return None
    return json_description({"contentType": source.attributes["ContentType"], **value})


def _source_conditions(entry: Mapping[str, Any]) -> Conditions:
    matches = (entry.get("objectPreconditions") or {}).get("ifGenerationMatch")
    generation = entry.get("generation")
    return Conditions(
        generation=None if generation is None else int(generation),
        if_generation_match=None if matches is None else int(matches),
    )


def _wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (offset, length) of a Range header; None for the whole object.

    Raises:
        StoreError: 416, the range lies outside the object.
    """
    found = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        offset, end = max(0, size - int(last)), size
    else:
        offset, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < offset:
            return None
    if offset >= size or offset >= end:
        raise StoreError(416, "InvalidRange", "The requested range cannot be satisfied.")
    return offset, end - offset
