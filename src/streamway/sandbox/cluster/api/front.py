"""The HTTP face of the API server: who is asking, what for, and the answer or the Status that refuses it."""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from streamway.sandbox.cluster.api import discovery, openapi
from streamway.sandbox.cluster.api.access import Access, Attributes, impersonated
from streamway.sandbox.cluster.api.bodies import read_caller
from streamway.sandbox.cluster.api.caller import Caller, User
from streamway.sandbox.cluster.api.executing import execute
from streamway.sandbox.cluster.api.kinds import POD, SERVICE
from streamway.sandbox.cluster.api.knobs import Knobs
from streamway.sandbox.cluster.api.logs import read_log
from streamway.sandbox.cluster.api.proxying import Proxy
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.resources import Resources
from streamway.sandbox.cluster.api.runtime import PodRuntime
from streamway.sandbox.cluster.api.statuses import ApiError, no_such_path
from streamway.sandbox.cluster.api.targets import Target, read_target
from streamway.sandbox.cluster.api.watching import Watches
from streamway.sandbox.cluster.objects import Object

_LOG = logging.getLogger("streamway.sandbox.cluster")

_MAX_BODY_BYTES = 8 << 20
_PUBLIC = ("/healthz", "/livez", "/readyz", "/version")


class Front:
    """The API server's HTTP application.

    Args:
        registry: The cluster's objects.
        watches: All open watches.
        access: Who may do what.
        runtime: The nodes.
        knobs: What tests may turn.
    """

    def __init__(self, registry: Registry, watches: Watches, access: Access, runtime: PodRuntime, knobs: Knobs) -> None:
        self._registry = registry
        self._access = access
        self._runtime = runtime
        self._knobs = knobs
        self._faults = registry.faults
        self._resources = Resources(registry, watches, access)
        self._proxy = Proxy(registry, runtime)

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_refusals])
        application.router.add_route("*", "/{tail:.*}", self._answer)
        application.on_cleanup.append(self._close)
        return application

    async def _close(self, _: web.Application) -> None:
        await self._proxy.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path.startswith(_PUBLIC):
            return _public(path)
        user = self._user(request)
        if path.startswith("/sandbox/"):
            self._access.check(user, Attributes(verb=request.method.lower(), path=path))
            return await self._knobs.answer(request)
        if self._faults.is_out and request.transport is not None:
            request.transport.abort()
        watch = request.query.get("watch") in ("1", "true", "True")
        target = read_target(request.method, path, watch=watch)
        if target is None:
            return _document(request, path)
        self._access.check(user, target.attributes())
        return await self._answer_target(request, target, read_caller(request, user))

    def _user(self, request: web.Request) -> User:
        user = self._access.authenticate(request.headers.get("Authorization", ""))
        name = request.headers.get("Impersonate-User", "")
        if not name:
            return user
        self._access.check(user, Attributes(verb="impersonate", resource="users", name=name))
        return impersonated(user, name, request.headers.getall("Impersonate-Group", []))

    async def _answer_target(self, request: web.Request, target: Target, caller: Caller) -> web.StreamResponse:
        if target.subresource == "proxy" and target.kind in (POD, SERVICE):
            return await self._proxy.forward(request, target)
        if target.kind is POD and target.subresource == "log":
            return await read_log(request, self._pod(target), self._runtime)
        if target.kind is POD and target.subresource == "exec":
            return await execute(request, self._pod(target), self._runtime)
        return await self._resources.answer(request, target, caller)

    def _pod(self, target: Target) -> Object:
        return self._registry.get(POD, target.namespace, target.name)


def _public(path: str) -> web.Response:
    if path.startswith("/version"):
        return _json(discovery.server_version())
    return web.Response(text="ok")


def _document(request: web.Request, path: str) -> web.Response:
    """Answer discovery and OpenAPI paths."""
    steps = path.strip("/").split("/")
    accept = request.headers.get("Accept", "")
    if path.startswith("/openapi/v3"):
        return _openapi("/".join(steps[2:]))
    if len(steps) == 1 and steps[0] in ("api", "apis") and "apidiscovery.k8s.io" in accept and "v=v2," in accept + ",":
        kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        body = json.dumps(discovery.aggregated(core=steps[0] == "api")).encode()
        return web.Response(body=body, headers={"Content-Type": kind})
    found = _old_document(steps)
    if found is None:
        raise no_such_path()
    return _json(found)


def _old_document(steps: list[str]) -> Object | None:
    if steps == ["api"]:
        return discovery.api_versions()
    if steps == ["apis"]:
        return discovery.group_list()
    if steps[0] == "api" and len(steps) == 2:
        return discovery.resource_list("", steps[1])
    if steps[0] == "apis" and len(steps) == 2:
        return discovery.api_group(steps[1]) if discovery.serves_group(steps[1]) else None
    if steps[0] == "apis" and len(steps) == 3:
        return discovery.resource_list(steps[1], steps[2])
    return {"paths": ["/api", "/apis", "/healthz", "/openapi/v3", "/version"]} if steps == [""] else None


def _openapi(path: str) -> web.Response:
    if not path:
        return _json(openapi.index())
    document = openapi.document(path)
    if document is None:
        raise no_such_path()
    return web.Response(body=document, content_type="application/json")


def _json(body: Any, code: int = 200) -> web.Response:
    return web.Response(
        status=code, body=json.dumps(body, separators=(",", ":")).encode(), content_type="application/json"
    )


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn refusals, and what should not happen, into Status objects."""
    try:
        return await handler(request)
    except ApiError as error:
        return _json(error.status(), error.code)
    except web.HTTPRequestEntityTooLarge:
        text = f"Request entity too large: limit is {_MAX_BODY_BYTES}"
        return _json(ApiError(413, "RequestEntityTooLarge", text).status(), 413)
    except (ConnectionError, web.HTTPException):
        raise
    except Exception as error:
        _LOG.exception("%s %s failed", request.method, request.path)
        return _json(ApiError(500, "InternalError", f"Internal error occurred: {error}").status(), 500)
