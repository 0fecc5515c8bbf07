"""Cloud Storage for one machine: the real fake-gcs-server, behind a front that adds what it lacks.

What fake-gcs-server 1.54 lacks or does otherwise, tried with google-cloud-storage 3.17.1, and who answers now:

- XML multipart uploads and XML PUT are refused ("invalid uploadType"): `bucket_parts`, `bucket_uploads`.
- `ifGenerationMatch` is honoured on `uploadType=multipart` only; media and resumable uploads, reads, copies,
  compositions and deletions ignore it. Bytes that do not match their promised crc32c are accepted. A status query
  of a resumable upload is answered with 200, and uploads die with the process: `bucket_uploads`, `bucket_objects`.
- Whole objects are held in memory, twice for a copy: the bytes stay on disk, in `bucket_store`.
- A patch changes the generation; composing something absent answers 500: `bucket_objects`.
- Reads ignore conditions: `bucket_objects`, by sendfile.
- All buckets share one location; `storageLayout` and `testIamPermissions` answer 404: here and `bucket_backend`.
- `fields` is ignored in listings: here.
- Calls in a batch are answered with 400: `bucket_batch`.
- `matchGlob` is ignored in listings, access lists are not honoured: not added, and refused where they would write.
- An object cannot be called like a folder of another one, and `..` in a name leaves its folder: refused with 400.

Measured on two cores, clients included: 1 GiB by parts over 4 connections 1.0 s (its completion 5 ms), 3 GiB of 16 MiB
ranges over 8 connections 1.3 s, a copy of 1 GiB 5 ms, 4,200 look-ups a second; at most 65 MiB of memory.

Buckets, listings with prefixes, delimiters and page tokens, and anything not named here are fake-gcs-server's own,
streamed through. Of it and the front together, tests may ask for faults (see `faults`).

    python -m streamway.sandbox.bucket --state DIR --port 0 --buckets models=US-CENTRAL1,other=EU
"""

import argparse
import asyncio
import logging
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from streamway.sandbox.bucket_answers import json_body, json_error, project, resource, xml_error
from streamway.sandbox.bucket_backend import Backend, Placement
from streamway.sandbox.bucket_batch import Call, answer_batch
from streamway.sandbox.bucket_bodies import end_taken_connection
from streamway.sandbox.bucket_objects import Objects
from streamway.sandbox.bucket_parts import PartUploads
from streamway.sandbox.bucket_store import Store, StoreError
from streamway.sandbox.bucket_uploads import Uploads
from streamway.sandbox.faults import Counters, FaultTable, admin_routes, fault_middleware
from streamway.sandbox.processes import announce, die_with_parent

PROJECT = "streamway-sandbox"
_READ_BUFFER_BYTES = 1 << 20
_JSON_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_JSON_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
_JSON_COMPOSE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/compose")
_JSON_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_JSON_INSERT = re.compile(r"(?:/upload|/resumable/upload)?/storage/v1/b/([^/]+)/o")
_JSON_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_JSON_BUCKET_PART = re.compile(r"/storage/v1/b/([^/]+)/(storageLayout|iam/testPermissions)")
_JSON_BUCKETS = "/storage/v1/b"
_BATCH = "/batch/storage/v1"
_OTHER_APIS = ("/storage/", "/upload/", "/download/", "/batch/", "/_internal/", "/resumable/")

log = logging.getLogger("streamway.sandbox.bucket")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """What clients speak to."""

    def __init__(self, root: Path) -> None:
        self.url = ""
        self.store = Store(root)
        self.backend = Backend(self.store.objects_path, root / "placements.json")
        self._uploads = Uploads(self.store, root / "sessions", lambda: self.url)
        self._parts = PartUploads(self.store, root / "parts")
        self._objects = Objects(self.store, lambda: self.url)

    def application(self, table: FaultTable, counters: Counters) -> web.Application:
        """Return the HTTP application."""
        middlewares = [fault_middleware(table, counters, subject=_subject)]
        application = web.Application(middlewares=middlewares, client_max_size=1 << 26)
        application.on_response_prepare.append(end_taken_connection)
        application.add_routes(admin_routes(table, counters))
        application.add_routes([web.route("*", "/{path:.*}", self._answer)])
        return application

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path
        is_json = path.startswith(_OTHER_APIS)
        try:
            return await (self._answer_json(request, path) if is_json else self._answer_xml(request, path))
        except StoreError as error:
            return json_error(error) if is_json else xml_error(error)

    async def _answer_json(self, request: web.Request, path: str) -> web.StreamResponse:
        method = request.method
        if found := _JSON_OBJECT.fullmatch(path):
            return await self._answer_object(request, path, *_names(found))
        if (found := _JSON_COPY.fullmatch(path)) and method == "POST":
            source_bucket, source, verb, bucket, name = _names(found)
            copy = self._objects.rewrite if verb == "rewriteTo" else self._objects.copy
            return await copy(request, (source_bucket, source), (bucket, name))
        if (found := _JSON_COMPOSE.fullmatch(path)) and method == "POST":
            return await self._objects.compose(request, *_names(found))
        if (found := _JSON_INSERT.fullmatch(path)) and method != "GET":
            return await self._answer_upload(request, *_names(found))
        if (found := _JSON_LIST.fullmatch(path)) and method == "GET":
            return await self._list(request, *_names(found))
        return await self._answer_bucket(request, path)

    async def _answer_object(self, request: web.Request, path: str, bucket: str, name: str) -> web.StreamResponse:
        objects = self._objects
        if request.method in ("GET", "HEAD"):
            media = request.query.get("alt") == "media" or path.startswith("/download/")
            return await (objects.read_json_api if media else objects.describe)(request, bucket, name)
        handlers: dict[str, Callable[[web.Request, str, str], Awaitable[web.StreamResponse]]] = {
            "PATCH": objects.patch,
            "PUT": objects.update,
            "DELETE": objects.delete,
        }
        if request.method not in handlers:
            raise StoreError(405, "methodNotAllowed", "Method Not Allowed")
        return await handlers[request.method](request, bucket, name)

    async def _answer_upload(self, request: web.Request, bucket: str) -> web.StreamResponse:
        if request.method == "PUT" or "upload_id" in request.query:
            return await (
                self._uploads.cancel(request) if request.method == "DELETE" else self._uploads.resume(request)
            )
        return await self._uploads.insert(request, bucket)

    async def _answer_bucket(self, request: web.Request, path: str) -> web.StreamResponse:
        if path == _JSON_BUCKETS and request.method == "POST":
            value = json_body(await request.read())
            placement = _placement_of(value)
            created = await self.backend.create_bucket(str(value.get("name", "")), placement, request.query)
            return web.json_response(project(created, request.query.get("fields")))
        if path == _JSON_BUCKETS and request.method == "GET":
            return await self._list_buckets(request)
        if (found := _JSON_BUCKET.fullmatch(path)) and request.method in ("GET", "DELETE"):
            return await self._answer_one_bucket(request, *_names(found))
        if (found := _JSON_BUCKET_PART.fullmatch(path)) and request.method == "GET":
            bucket, part = _names(found)
            self.store.require_bucket(bucket)
            return self._layout(bucket) if part == "storageLayout" else _permissions(request)
        if path == _BATCH and request.method == "POST":
            return await answer_batch(request, self._ask_myself)
        return await self._forward(request)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        """Let fake-gcs-server answer what only reads; it must not write what the front knows nothing of."""
        if request.method not in ("GET", "HEAD"):
            raise StoreError(501, "notImplemented", f"The sandbox has no {request.method} {request.path}.")
        return await self.backend.forward(request)

    async def _ask_myself(self, call: Call) -> Call:
        method, path, *_ = [*call.start.split(" "), "", ""]
        path = path.removeprefix(self.url)
        return await self.backend.call(method, self.url + path, call.headers, call.body)

    async def _answer_one_bucket(self, request: web.Request, bucket: str) -> web.StreamResponse:
        self.store.require_bucket(bucket)
        if request.method == "DELETE":
            await self.backend.delete_bucket(bucket)
            return web.Response(status=204)
        _, value = await self.backend.ask("GET", f"/storage/v1/b/{bucket}", {})
        return web.json_response(project(self.backend.with_placement(value), request.query.get("fields")))

    async def _list_buckets(self, request: web.Request) -> web.StreamResponse:
        _, value = await self.backend.ask("GET", _JSON_BUCKETS, _without_fields(request.query))
        value["items"] = [self.backend.with_placement(item) for item in value.get("items") or []]
        return web.json_response(project(value, request.query.get("fields")))

    async def _list(self, request: web.Request, bucket: str) -> web.StreamResponse:
        """List by the binary, and describe each object as every other answer does."""
        self.store.require_bucket(bucket)
        status, value = await self.backend.ask("GET", request.rel_url.raw_path, _without_fields(request.query))
        if status == 200:
            found = [self.store.find(bucket, item["name"]) for item in value.get("items") or []]
            value["items"] = [resource(stored, self.url) for stored in found if stored is not None]
        return web.json_response(project(value, request.query.get("fields")), status=status)

    def _layout(self, bucket: str) -> web.Response:
        value = {"kind": "storage#storageLayout", "bucket": bucket, "hierarchicalNamespace": {"enabled": False}}
        return web.json_response(value | self.backend.placement(bucket).to_resource())

    async def _answer_xml(self, request: web.Request, path: str) -> web.StreamResponse:
        bucket, _, name = path.removeprefix("/").partition("/")
        bucket, name = unquote(bucket), unquote(name)
        if not name:
            if request.method == "GET" and "uploads" in request.query:
                return await self._parts.list_uploads(request, bucket)
            self.store.require_bucket(bucket)
            return await self._forward(request)
        if "uploads" in request.query or "uploadId" in request.query:
            return await self._answer_parts(request, bucket, name)
        if request.method in ("GET", "HEAD"):
            return await self._objects.read_xml_api(request, bucket, name)
        if request.method == "PUT":
            copied = "x-goog-copy-source" in request.headers
            return await (self._objects.copy_xml_api if copied else self._uploads.put)(request, bucket, name)
        if request.method == "DELETE":
            return await self._objects.delete_xml_api(request, bucket, name)
        raise StoreError(405, "MethodNotAllowed", "The specified method is not allowed.")

    async def _answer_parts(self, request: web.Request, bucket: str, name: str) -> web.StreamResponse:
        parts = self._parts
        handlers: dict[str, Callable[[web.Request, str, str], Awaitable[web.StreamResponse]]] = {
            "GET": parts.list_parts,
            "PUT": parts.put_part,
            "POST": parts.start if "uploads" in request.query else parts.complete,
            "DELETE": parts.abort,
        }
        if request.method not in handlers:
            raise StoreError(405, "MethodNotAllowed", "The specified method is not allowed.")
        return await handlers[request.method](request, bucket, name)


def _names(found: re.Match[str]) -> tuple[str, ...]:
    return tuple(unquote(group) for group in found.groups())


def _without_fields(query: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in query.items() if name not in ("fields", "projection", "prettyPrint")}


def _permissions(request: web.Request) -> web.Response:
    """Grant whatever is asked for; a fault with status 200 and a body of its own takes a permission away."""
    asked = request.query.getall("permissions", [])
    return web.json_response({"kind": "storage#testIamPermissionsResponse", "permissions": asked})


def _placement_of(value: Mapping[str, Any]) -> Placement:
    custom = (value.get("customPlacementConfig") or {}).get("dataLocations") or ()
    return Placement(
        location=str(value.get("location") or "US").upper(),
        data_locations=tuple(str(region).upper() for region in custom),
    )


def _subject(request: web.Request) -> str:
    """Name the object that a request is about, whichever API it came by."""
    path = request.rel_url.raw_path
    if "subject" in request:
        return str(request["subject"])
    if found := _JSON_COPY.fullmatch(path):
        *_, bucket, name = _names(found)
    elif found := (_JSON_OBJECT.fullmatch(path) or _JSON_COMPOSE.fullmatch(path)):
        bucket, name = _names(found)
    elif found := _JSON_INSERT.fullmatch(path):
        (bucket,), name = _names(found), request.query.get("name", "")
    elif path.startswith(_OTHER_APIS):
        return ""
    else:
        bucket, _, name = unquote(path.removeprefix("/")).partition("/")
    return f"{bucket}/{name}" if name else bucket


def parse_buckets(text: str) -> dict[str, Placement]:
    """Read `name=LOCATION,...`; two regions joined by `+` are a configurable dual-region.

    Raises:
        ValueError: an entry has no location.
    """
    placements = {}
    for entry in filter(None, text.split(",")):
        name, _, location = entry.partition("=")
        if not location:
            raise ValueError(f"{entry!r} names no location; write it as name=US-CENTRAL1")
        regions = tuple(location.upper().split("+"))
        placements[name.strip()] = (
            Placement(location=regions[0])
            if len(regions) == 1
            else Placement(location=_continent(regions[0]), data_locations=regions)
        )
    return placements


def _continent(region: str) -> str:
    return {"EUROPE": "EU", "ASIA": "ASIA"}.get(region.partition("-")[0], "US")


async def serve(state_path: Path, port: int, buckets: Mapping[str, Placement]) -> None:
    """Serve until SIGTERM or SIGINT; the address is in DIR/bucket.json."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    front = Front(state_path / "bucket")
    left = front.store.remove_leftovers()
    log.info("removed %d unfinished files", left)
    runner = web.AppRunner(
        front.application(FaultTable(), Counters()),
        access_log=None,
        shutdown_timeout=1.0,
        read_bufsize=_READ_BUFFER_BYTES,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    front.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        await front.backend.start(front.url)
        for name, placement in buckets.items():
            if not front.store.has_bucket(name):
                await front.backend.create_bucket(name, placement, {"project": PROJECT})
        announce(state_path, "bucket", url=front.url, environment=environment_for(front.url))
        log.info("Cloud Storage serves %d new or known buckets at %s", len(buckets), front.url)
        await stopped.wait()
    finally:
        await runner.cleanup()
        await front.backend.stop()


def environment_for(url: str) -> dict[str, str]:
    """Return what Google's client and the streamer need to find this front."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
    }


def main(arguments: list[str]) -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.bucket", description="A local Cloud Storage")
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--buckets", default="", help="buckets that must exist: name=LOCATION,...")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    die_with_parent()
    asyncio.run(serve(given.state, given.port, parse_buckets(given.buckets)))


if __name__ == "__main__":
    main(sys.argv[1:])
