"""Anywhere Cache for one machine: the Storage Control API's caches, spoken by gRPC over TLS as Google's is.

Clients need no change: the endpoint, the roots and the credentials in DIR/caches.json are all standard. Buckets and
their locations are those of the sandbox's Cloud Storage, asked at each call. Beside the gRPC port an HTTP port takes
faults (see `faults`): a request's path is its gRPC method, the kind `status` carries the name of a gRPC status in
`body`, POST /sandbox/state puts a cache into a state of the test's choosing, and POST /sandbox/clock lets time pass.

    python -m streamway.sandbox.caches --state DIR --port 0
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from aiohttp import web
from google.cloud import storage_control_v2 as api
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, empty_pb2, timestamp_pb2
from google.rpc import code_pb2, status_pb2

from streamway.sandbox.caches_registry import BucketPlace, Cache, Delays, Operation, RefusedError, Registry
from streamway.sandbox.caches_tls import make_identity
from streamway.sandbox.clock import Clock
from streamway.sandbox.credentials import read_token, write_credentials
from streamway.sandbox.faults import Counters, FaultTable, admin_routes
from streamway.sandbox.processes import announce, die_with_parent, read_json

CONTROL = "google.storage.control.v2.StorageControl"
OPERATIONS = "google.longrunning.Operations"
_POLL_SECONDS = 0.1
_MOST_WAIT_SECONDS = 60.0

log = logging.getLogger("streamway.sandbox.caches")

Answer = Callable[[Any], Awaitable[Any]]


class Service:
    """The methods of both gRPC services."""

    def __init__(self, registry: Registry, state_path: Path, session: aiohttp.ClientSession) -> None:
        self._registry = registry
        self._state_path = state_path
        self._session = session

    async def create(self, request: Any) -> Any:
        """Answer CreateAnywhereCache."""
        place = await self._place(_bucket_of(request.parent))
        wanted = request.anywhere_cache
        operation = self._registry.create(
            place,
            wanted.zone,
            ttl_seconds=_seconds(wanted.ttl),
            ingest_on_write=bool(wanted.ingest_on_write),
            admission_policy=wanted.admission_policy,
            request_id=request.request_id,
        )
        return self._describe_operation(operation)

    async def update(self, request: Any) -> Any:
        """Answer UpdateAnywhereCache."""
        bucket, zone = _cache_of(request.anywhere_cache.name)
        paths = list(request.update_mask.paths)
        wanted = request.anywhere_cache
        known: dict[str, tuple[str, str | int | bool]] = {
            "ttl": ("ttl_seconds", _seconds(wanted.ttl)),
            "ingest_on_write": ("ingest_on_write", bool(wanted.ingest_on_write)),
            "admission_policy": ("admission_policy", wanted.admission_policy),
        }
        if not paths or not set(paths) <= {*known, "*"}:
            raise RefusedError("INVALID_ARGUMENT", f"The update mask {paths} names no field to update.")
        chosen = known if "*" in paths else paths
        operation = self._registry.update(bucket, zone, dict(known[path] for path in chosen), request.request_id)
        return self._describe_operation(operation)

    async def get(self, request: Any) -> Any:
        """Answer GetAnywhereCache."""
        return describe_cache(self._registry.get(*_cache_of(request.name)))

    async def list_caches(self, request: Any) -> Any:
        """Answer ListAnywhereCaches."""
        place = await self._place(_bucket_of(request.parent))
        caches = self._registry.list_caches(place.name)
        size = min(request.page_size or 1000, 1000)
        start = int(request.page_token or 0)
        more = str(start + size) if start + size < len(caches) else ""
        return api.ListAnywhereCachesResponse(
            anywhere_caches=[describe_cache(cache) for cache in caches[start : start + size]],
            next_page_token=more,
        )

    async def pause(self, request: Any) -> Any:
        """Answer PauseAnywhereCache."""
        return describe_cache(self._registry.pause(*_cache_of(request.name)))

    async def resume(self, request: Any) -> Any:
        """Answer ResumeAnywhereCache."""
        return describe_cache(self._registry.resume(*_cache_of(request.name)))

    async def disable(self, request: Any) -> Any:
        """Answer DisableAnywhereCache."""
        return describe_cache(self._registry.disable(*_cache_of(request.name)))

    async def layout(self, request: Any) -> Any:
        """Answer GetStorageLayout."""
        place = await self._place(_bucket_of(request.name))
        layout = api.StorageLayout(
            name=f"projects/_/buckets/{place.name}/storageLayout",
            location=place.location,
            location_type=place.location_type,
        )
        if place.data_locations:
            layout.custom_placement_config = api.StorageLayout.CustomPlacementConfig(
                data_locations=place.data_locations
            )
        return layout

    async def get_operation(self, request: Any) -> Any:
        """Answer GetOperation."""
        return self._describe_operation(self._registry.operation(request.name))

    async def list_operations(self, request: Any) -> Any:
        """Answer ListOperations."""
        found = self._registry.operations(_bucket_of(request.name))
        described = [self._describe_operation(operation) for operation in found]
        return operations_pb2.ListOperationsResponse(operations=described)

    async def cancel_operation(self, request: Any) -> Any:
        """Answer CancelOperation."""
        self._registry.cancel(request.name)
        return empty_pb2.Empty()

    async def wait_operation(self, request: Any) -> Any:
        """Answer WaitOperation: when it is over, or when the client's patience is."""
        patience = request.timeout.seconds or _MOST_WAIT_SECONDS
        deadline = asyncio.get_running_loop().time() + min(patience, _MOST_WAIT_SECONDS)
        while True:
            described = self._describe_operation(self._registry.operation(request.name))
            if described.done or asyncio.get_running_loop().time() >= deadline:
                return described
            await asyncio.sleep(_POLL_SECONDS)

    async def _place(self, bucket: str) -> BucketPlace:
        """Ask the sandbox's Cloud Storage where a bucket is."""
        known = read_json(self._state_path / "bucket.json")
        if known is None:
            raise RefusedError("UNAVAILABLE", "The sandbox's Cloud Storage is not there.")
        try:
            async with self._session.get(f"{known['url']}/storage/v1/b/{bucket}") as answer:
                value = await answer.json(content_type=None)
        except aiohttp.ClientError as error:
            raise RefusedError("UNAVAILABLE", f"The sandbox's Cloud Storage does not answer: {error}") from error
        if answer.status == 404:
            raise RefusedError("NOT_FOUND", f"The bucket {bucket} was not found.")
        custom = (value.get("customPlacementConfig") or {}).get("dataLocations") or ()
        return BucketPlace(
            name=bucket,
            location=value["location"],
            location_type=value["locationType"],
            data_locations=tuple(custom),
        )

    def _describe_operation(self, operation: Operation) -> Any:
        now = self._registry.clock()
        over = operation.cancelled or now >= operation.done
        common = api.CommonLongRunningOperationMetadata(
            create_time=_timestamp(operation.created),
            update_time=_timestamp(min(now, operation.done)),
            end_time=_timestamp(operation.done) if over else None,
            type_=f"{operation.kind}-anywhere-cache",
            requested_cancellation=operation.cancelled,
            progress_percent=100 if over else 0,
        )
        made = {
            "create": api.CreateAnywhereCacheMetadata,
            "update": api.UpdateAnywhereCacheMetadata,
        }[operation.kind]
        metadata = made(common_metadata=common, anywhere_cache_id=operation.zone, zone=operation.zone)
        described = operations_pb2.Operation(name=operation.name, metadata=_packed(metadata), done=over)
        if operation.cancelled:
            described.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message="Cancelled."))
        elif over:
            described.response.CopyFrom(_packed(describe_cache(self._registry.outcome(operation))))
        return described


def describe_cache(cache: Cache) -> Any:
    """Return a cache as the API describes it."""
    return api.AnywhereCache(
        name=cache.name,
        zone=cache.zone,
        ttl={"seconds": cache.ttl_seconds},
        admission_policy=cache.admission_policy,
        state=cache.state,
        create_time=_timestamp(cache.created),
        update_time=_timestamp(cache.updated),
        pending_update=bool(cache.pending_until),
        ingest_on_write=cache.ingest_on_write,
    )


def handlers(service: Service, gate: "Gate") -> list[grpc.GenericRpcHandler]:
    """Return both gRPC services."""
    control: dict[str, tuple[Answer, Any, Any]] = {
        "CreateAnywhereCache": (service.create, api.CreateAnywhereCacheRequest, None),
        "UpdateAnywhereCache": (service.update, api.UpdateAnywhereCacheRequest, None),
        "GetAnywhereCache": (service.get, api.GetAnywhereCacheRequest, api.AnywhereCache),
        "ListAnywhereCaches": (service.list_caches, api.ListAnywhereCachesRequest, api.ListAnywhereCachesResponse),
        "PauseAnywhereCache": (service.pause, api.PauseAnywhereCacheRequest, api.AnywhereCache),
        "ResumeAnywhereCache": (service.resume, api.ResumeAnywhereCacheRequest, api.AnywhereCache),
        "DisableAnywhereCache": (service.disable, api.DisableAnywhereCacheRequest, api.AnywhereCache),
        "GetStorageLayout": (service.layout, api.GetStorageLayoutRequest, api.StorageLayout),
    }
    operations: dict[str, tuple[Answer, Any, Any]] = {
        "GetOperation": (service.get_operation, operations_pb2.GetOperationRequest, None),
        "ListOperations": (service.list_operations, operations_pb2.ListOperationsRequest, None),
        "CancelOperation": (service.cancel_operation, operations_pb2.CancelOperationRequest, None),
        "WaitOperation": (service.wait_operation, operations_pb2.WaitOperationRequest, None),
    }
    return [_generic(CONTROL, control, gate), _generic(OPERATIONS, operations, gate)]


class Gate:
    """What every call passes: credentials, armed faults, counters, and the wording of refusals."""

    def __init__(self, token: str, table: FaultTable, counters: Counters) -> None:
        self._authorization = f"Bearer {token}"
        self._table = table
        self._counters = counters

    def guarded(self, path: str, answer: Answer) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return the handler of one method."""

        async def handle(request: Any, context: Any) -> Any:
            status = "INTERNAL"
            try:
                result = await self._answer(path, answer, request, context)
                status = "OK"
                return result
            except RefusedError as refusal:
                status = refusal.code
                await context.abort(grpc.StatusCode[refusal.code], str(refusal))
            finally:
                self._counters.add("POST", path, "", bytes_in=0, bytes_out=0, status=status)

        return handle

    async def _answer(self, path: str, answer: Answer, request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != self._authorization:
            raise RefusedError("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        fault = self._table.take("POST", path)
        if fault is not None and fault.kind == "status":
            raise RefusedError(fault.body or "UNAVAILABLE", f"armed {fault.body or 'UNAVAILABLE'}")
        if fault is not None and fault.kind == "stall":
            await asyncio.sleep(fault.stall_seconds)
        result = await answer(request)
        if fault is not None and fault.kind == "lose_answer":
            raise RefusedError("UNAVAILABLE", "The answer was lost.")
        return result


def _generic(service: str, methods: Mapping[str, tuple[Answer, Any, Any]], gate: Gate) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(
                gate.guarded(f"/{service}/{name}", answer),
                request_deserializer=_reader(taken),
                # Operations are plain protobuf messages; what a library wraps is unwrapped by its own class.
                response_serializer=given.serialize if given else (lambda message: message.SerializeToString()),
            )
            for name, (answer, taken, given) in methods.items()
        },
    )


def _reader(message: Any) -> Callable[[bytes], Any]:
    return getattr(message, "deserialize", None) or message.FromString


def _bucket_of(resource: str) -> str:
    """Read the bucket out of projects/_/buckets/BUCKET/...."""
    pieces = resource.split("/")
    if len(pieces) < 4 or (pieces[0], pieces[2]) != ("projects", "buckets") or not pieces[3]:
        raise RefusedError("INVALID_ARGUMENT", f"Invalid resource name: {resource!r}.")
    return pieces[3]


def _cache_of(resource: str) -> tuple[str, str]:
    pieces = resource.split("/")
    if len(pieces) != 6 or pieces[4] != "anywhereCaches":
        raise RefusedError("INVALID_ARGUMENT", f"Invalid cache name: {resource!r}.")
    return _bucket_of(resource), pieces[5]


def _seconds(duration: Any) -> int:
    return int(duration.total_seconds()) if duration else 0


def _timestamp(seconds: float) -> Any:
    return timestamp_pb2.Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1_000_000) * 1000)


def _packed(message: Any) -> Any:
    packed = any_pb2.Any()
    packed.Pack(type(message).pb(message))
    return packed


def state_route(registry: Registry) -> web.RouteDef:
    """Return POST /sandbox/state: {"bucket": ..., "zone": ..., "state": ...}."""

    async def put(request: web.Request) -> web.Response:
        value = await request.json()
        try:
            cache = registry.force_state(value["bucket"], value["zone"], value["state"])
        except RefusedError as refusal:
            return web.json_response({"error": str(refusal)}, status=404)
        return web.json_response({"zone": cache.zone, "state": cache.state})

    return web.post("/sandbox/state", put)


async def serve(state_path: Path, port: int, delays: Delays) -> None:
    """Serve until SIGTERM or SIGINT; the address is in DIR/caches.json."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    folder = state_path / "caches"
    identity = make_identity(folder)
    credentials_path = write_credentials(folder)
    clock = Clock()
    registry = Registry(folder / "registry.json", delays, clock=lambda: clock.now().timestamp())
    table, counters = FaultTable(), Counters()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        server = grpc.aio.server()
        gate = Gate(read_token(credentials_path), table, counters)
        server.add_generic_rpc_handlers(handlers(Service(registry, state_path, session), gate))
        tls = grpc.ssl_server_credentials([(identity.key_pem, identity.certificate_pem)])
        bound = server.add_secure_port(f"127.0.0.1:{port}", tls)
        await server.start()
        runner = await _serve_admin([*admin_routes(table, counters), *clock.routes(), state_route(registry)])
        environment = {
            "STORAGE_CONTROL_ENDPOINT": f"127.0.0.1:{bound}",
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(identity.bundle_path.resolve()),
            "GOOGLE_APPLICATION_CREDENTIALS": str(credentials_path.resolve()),
        }
        admin_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        url = f"https://127.0.0.1:{bound}"
        announce(state_path, "caches", url=url, environment=environment, admin_url=admin_url)
        log.info("Anywhere Cache serves at %s, faults at %s", url, admin_url)
        await stopped.wait()
        await runner.cleanup()
        await server.stop(grace=1.0)


async def _serve_admin(routes: list[web.RouteDef]) -> web.AppRunner:
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


def main(arguments: list[str]) -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.caches", description="A local Anywhere Cache")
    usual = Delays()
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--create-seconds", type=float, default=usual.create, help="until a cache runs")
    parser.add_argument("--update-seconds", type=float, default=usual.update, help="until an update applies")
    parser.add_argument("--disable-seconds", type=float, default=usual.disable, help="until a cache is gone")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    die_with_parent()
    delays = Delays(create=given.create_seconds, update=given.update_seconds, disable=given.disable_seconds)
    asyncio.run(serve(given.state, given.port, delays))


if __name__ == "__main__":
    main(sys.argv[1:])
