"""The API server's proxy to Services and pods, by which a cluster's inside is reached from outside.

Requests and answers are passed on as they come, unbuffered, so that server-sent events arrive when they are sent.
"""

import random
from dataclasses import dataclass

import aiohttp
import yarl
from aiohttp import web

from streamway.sandbox.cluster.api.kinds import ENDPOINTS, POD, SERVICE
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.runtime import PodRuntime
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request, unavailable
from streamway.sandbox.cluster.api.targets import Target
from streamway.sandbox.cluster.dialling import dial_failure
from streamway.sandbox.cluster.objects import Object, dig, name_of

_CONNECT_SECONDS = 10.0
# Headers that belong to one connection (RFC 9110, section 7.6.1), and those the API server keeps for itself.
_NOT_FORWARDED = frozenset(
    (
        "authorization",
        "connection",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


@dataclass(frozen=True, kw_only=True)
class _Address:
    """What a proxy path names: [SCHEME:]NAME[:PORT]."""

    scheme: str
    name: str
    port: str


class Proxy:
    """The proxy.

    Args:
        registry: The cluster's objects.
        runtime: The nodes, which know where a pod's port really listens.
    """

    def __init__(self, registry: Registry, runtime: PodRuntime) -> None:
        self._registry = registry
        self._runtime = runtime
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def forward(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Pass a request on and its answer back.

        Raises:
            ApiError: 503 where there is nobody to pass it to.
        """
        address = _read_address(target.name)
        if target.kind is SERVICE:
            host, port = self._endpoint(target.namespace, address)
        else:
            host, port = self._pod_port(target.namespace, address)
        url = yarl.URL(f"{address.scheme}://{host}:{port}/{target.rest}{_raw_query(request)}", encoded=True)
        try:
            upstream = await self._send(request, url)
        except aiohttp.ClientConnectorError as error:
            why = dial_failure(host, port, error.os_error)
            raise unavailable(f"error trying to reach service: {why}") from error
        except aiohttp.ClientError as error:
            raise unavailable(f"error trying to reach service: {error or type(error).__name__}") from error
        return await _relay(request, upstream)

    async def _send(self, request: web.Request, url: yarl.URL) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                connector=aiohttp.TCPConnector(limit=0, ssl=False),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        headers = [(key, value) for key, value in request.headers.items() if key.lower() not in _NOT_FORWARDED]
        headers.append(("X-Forwarded-For", request.remote or ""))
        body = request.content.iter_any() if request.body_exists else None
        return await self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False, skip_auto_headers=("User-Agent",)
        )

    def _endpoint(self, namespace: str, address: _Address) -> tuple[str, int]:
        """Choose a ready endpoint of a Service."""
        service = self._registry.get(SERVICE, namespace, address.name)
        faults = self._registry.faults
        if faults.proxy_refusals > 0:
            faults.proxy_refusals -= 1
            raise unavailable(f'no endpoints available for service "{address.name}"')
        name = _port_name(service, address.port)
        endpoints = self._registry.store.get(ENDPOINTS, namespace, address.name) or {}
        choices = [
            (one, port["port"])
            for subset in endpoints.get("subsets") or []
            for port in subset.get("ports") or []
            if (port.get("name") or "") == name
            for one in subset.get("addresses") or []
        ]
        if not choices:
            raise unavailable(f'no endpoints available for service "{address.name}"')
        chosen, port = random.choice(choices)
        pod = self._registry.store.get(POD, namespace, dig(chosen, "targetRef", "name", default=""))
        return self._runtime.address(pod, port) if pod else (chosen["ip"], port)

    def _pod_port(self, namespace: str, address: _Address) -> tuple[str, int]:
        pod = self._registry.get(POD, namespace, address.name)
        ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
        if not address.port:
            number = ports[0]["containerPort"] if ports else 80
        elif address.port.isdigit():
            number = int(address.port)
        else:
            number = next((port["containerPort"] for port in ports if port.get("name") == address.port), 0)
        if not number:
            raise bad_request(f'port "{address.port}" not found in pod "{name_of(pod)}"')
        if not dig(pod, "status", "podIP"):
            raise ApiError(500, "InternalError", "Internal error occurred: address not allowed")
        return self._runtime.address(pod, int(number))


def _read_address(text: str) -> _Address:
    parts = text.split(":")
    if len(parts) == 1:
        return _Address(scheme="http", name=parts[0], port="")
    if len(parts) == 2:
        return _Address(scheme="http", name=parts[0], port=parts[1])
    if len(parts) == 3 and parts[0] in ("", "http", "https"):
        return _Address(scheme=parts[0] or "http", name=parts[1], port=parts[2])
    raise bad_request(f'invalid service request "{text}"')


def _port_name(service: Object, wanted: str) -> str:
    """Find the name under which a Service's port stands in its Endpoints."""
    ports = service["spec"].get("ports") or []
    if not wanted and len(ports) == 1:
        return str(ports[0].get("name") or "")
    for port in ports:
        if wanted in (port.get("name") or "", str(port["port"])):
            return str(port.get("name") or "")
    raise unavailable(f'no service port "{wanted}" found for service "{name_of(service)}"')


def _raw_query(request: web.Request) -> str:
    query = request.rel_url.raw_query_string
    return f"?{query}" if query else ""


async def _relay(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for key, value in upstream.headers.items():
        if key.lower() not in _NOT_FORWARDED:
            response.headers.add(key, value)
    try:
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except aiohttp.ClientError:
        # The answer broke off upstream; breaking it off here too is the only honest way to say so.
        if request.transport is not None:
            request.transport.abort()
    finally:
        upstream.close()
    return response
