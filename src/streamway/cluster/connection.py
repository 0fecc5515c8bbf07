"""Requests to one Kubernetes API server, and through it to the Services behind it.

Manifests are plain dictionaries all over this project, so a connection speaks JSON by path; the kubernetes client
underneath brings credentials and the pool of authenticated TLS connections. The same pool carries HTTP to a Service
inside the cluster, through the API server's service proxy: a pipeline's worker has no route to a ClusterIP, but
whoever may deploy there can ask through that door.
"""

import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import websocket

from streamway.errors import (
    ApiServerError,
    ClusterError,
    ClusterPermissionError,
    ClusterUnreachableError,
)

logger = logging.getLogger("streamway.cluster")

Manifest = dict[str, Any]

# What the deploy step writes on a server's objects and the smoke test reads there.
RELEASE = "streamway/release"
RELEASE_URI = "streamway/release-uri"
REVISION = "streamway/revision"

_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class ProxyResponse:
    """What a Service answered through the API server, or the API server in its place.

    Args:
        status: HTTP status.
        body: The whole body.
        from_api_server: The status is the API server's own (no endpoint behind the Service, say), not the
            Service's.
    """

    status: int
    body: bytes
    from_api_server: bool = False

    def json(self) -> Any:
        """Parse the body; ValueError where it is not JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


class ClusterConnection:
    """An authenticated way to one API server; safe to use from several threads.

    Args:
        api_client: A configured kubernetes client. Its credentials are asked for again with every request, so a
            token that is renewed during a long wait is used.
        name: What the user called the cluster, for messages.
        renew: Has the credentials made anew; called when the API server does not accept those that looked valid, as
            it happens where a token was revoked or rotated, or a clock is wrong.
    """

    def __init__(self, api_client: Any, *, name: str, renew: Callable[[], None] = lambda: None) -> None:
        self._client = api_client
        self._renew = renew
        self._renewing = threading.Lock()
        self._pool: urllib3.PoolManager = api_client.rest_client.pool_manager
        self.name = name
        self.address: str = api_client.configuration.host.rstrip("/")

    def get(self, path: str, query: Mapping[str, Any] | None = None, *, timeout_seconds: float = 30) -> Manifest:
        """Read one object or list."""
        return self.request("GET", path, query=query, timeout_seconds=timeout_seconds)

    def find(self, path: str) -> Manifest | None:
        """Read one object; None where there is none."""
        try:
            return self.get(path)
        except ApiServerError as error:
            if error.status == 404:
                return None
            raise

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_seconds: float = 30,
        retry_seconds: float | None = None,
    ) -> Manifest:
        """Send one request and return the object in its answer.

        A refused connection and a busy server are tried again for `retry_seconds` (as long as the timeout, where
        nothing is said), except for POST, which may have taken effect.

        Raises:
            ClusterUnreachableError: nothing answered, or it does not know us.
            ClusterPermissionError: RBAC or an admission webhook refused.
            ApiServerError: any other refusal, with the API server's words.
        """
        began, pause = time.monotonic(), 0.2
        deadline = began + timeout_seconds
        last_try = deadline if retry_seconds is None else began + retry_seconds
        while True:
            try:
                return self._request_once(method, path, query, body, content_type, deadline)
            except (ApiServerError, ClusterUnreachableError) as error:
                if method == "POST" or not _may_pass(error) or time.monotonic() + pause > last_try:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 3.0)

    def text(self, path: str, query: Mapping[str, Any] | None = None, *, timeout_seconds: float = 30) -> str:
        """Read something that is not JSON, such as a container's log."""
        with self.open("GET", path, query=query, read_timeout_seconds=timeout_seconds) as response:
            return response.read().decode("utf-8", "replace")

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        read_timeout_seconds: float = 60,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open a long answer (a watch, a followed log) that is read as it comes.

        Raises:
            ClusterUnreachableError, ClusterPermissionError, ApiServerError: as `request`.
        """
        timeout = urllib3.Timeout(connect=10, read=read_timeout_seconds)
        response = self.send(method, path, query=query, timeout=timeout)
        try:
            if response.status >= 400:
                raise self.refusal(response.status, response.data, method, path)
            yield response
        finally:
            response.close()
            response.release_conn()

    def open_channel(self, path: str, query: Sequence[tuple[str, str]], *, timeout_seconds: float) -> Any:
        """Open a WebSocket, as exec is spoken over; every read on it waits at most `timeout_seconds`.

        Raises:
            ClusterUnreachableError, ClusterPermissionError, ApiServerError: as `request`.
        """
        from kubernetes.stream.ws_client import get_websocket_url

        url = get_websocket_url(self.address + path, query)
        headers = self._credentials()
        try:
            try:
                return self._dial(url, headers, timeout_seconds)
            except websocket.WebSocketBadStatusException as error:
                fresh = self._fresh_credentials(headers) if error.status_code == 401 else None
                if fresh is None:
                    raise
            return self._dial(url, fresh, timeout_seconds)
        except websocket.WebSocketBadStatusException as error:
            raise self.refusal(error.status_code, error.resp_body or b"", "GET", path) from error
        except (websocket.WebSocketException, OSError) as error:
            raise self._unreachable(error) from error

    def _dial(self, url: str, headers: dict[str, str], timeout_seconds: float) -> Any:
        from kubernetes.stream.ws_client import websocket_proxycare

        configuration = self._client.configuration
        return websocket.create_connection(
            url,
            timeout=timeout_seconds,
            sslopt=_tls_options(configuration),
            header=[f"{name}: {value}" for name, value in headers.items()],
            subprotocols=["v4.channel.k8s.io"],
            **websocket_proxycare({}, configuration, url, headers),
        )

    def service_proxy(self, namespace: str, service: str, port: int | str) -> "ServiceProxy":
        """HTTP to a Service inside the cluster, through the API server."""
        return ServiceProxy(self, namespace=namespace, service=service, port=port)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: urllib3.Timeout,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request as it is, and return the unread answer whatever its status.

        Raises:
            ClusterUnreachableError: nothing answered.
        """
        plain = {"Accept": "application/json, */*", "Content-Type": content_type, "User-Agent": "streamway"}
        url = self.address + path + (f"?{urlencode(_plain(query))}" if query else "")
        data = None if body is None else json.dumps(body).encode()

        def ask(credentials: dict[str, str]) -> urllib3.BaseHTTPResponse:
            headers = plain | credentials
            return self._pool.request(
                method, url, body=data, headers=headers, timeout=timeout, retries=False, preload_content=False
            )

        credentials = self._credentials()
        try:
            response = ask(credentials)
            # What was refused for its credentials has not been done, so it may be asked again, whatever it is.
            if response.status == 401 and (fresh := self._fresh_credentials(credentials)) is not None:
                response.drain_conn()
                response.release_conn()
                response = ask(fresh)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        return response

    def _credentials(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        return headers

    def _fresh_credentials(self, refused: dict[str, str]) -> dict[str, str] | None:
        """Credentials other than those that were refused; None where there are none."""
        with self._renewing:
            # Another thread may have been refused, and have had them made anew, in the meantime.
            if self._credentials() == refused:
                self._renew()
            found = self._credentials()
        if found == refused:
            return None
        logger.info("the API server does not accept our credentials any more; going on with new ones")
        return found

    def _request_once(
        self, method: str, path: str, query: Any, body: Any, content_type: str, deadline: float
    ) -> Manifest:
        left = max(0.5, deadline - time.monotonic())
        timeout = urllib3.Timeout(connect=min(10.0, left), read=left)
        response = self.send(method, path, query=query, body=body, content_type=content_type, timeout=timeout)
        try:
            data = response.data
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            response.release_conn()
        if response.status >= 400:
            raise self.refusal(response.status, data, method, path)
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise ClusterUnreachableError(
                f"{self.address} answered {method} {path} with something that is not a Kubernetes object: "
                f"{_shorten(data)!r}.",
                next_step="Check that the address is a Kubernetes API server and not a proxy's sign-in page.",
            ) from error

    def _unreachable(self, error: Exception) -> ClusterUnreachableError:
        cause: BaseException = error
        while isinstance(getattr(cause, "reason", None), BaseException):
            cause = cause.reason  # type: ignore[attr-defined]
        return ClusterUnreachableError(
            f"The API server of {self.name} at {self.address} does not answer: {sentence(cause)}",
            next_step="Check that the cluster is up and that this machine may reach its address; for GKE, the DNS "
            "endpoint needs no network path of its own.",
        )

    def refusal(self, status: int, data: bytes, method: str, path: str) -> ClusterError:
        """Turn the API server's refusal into an error with its words and a next step."""
        found = _status_of(data)
        message = str(found.get("message") or _shorten(data) or "no reason given")
        if status == 401:
            return ClusterUnreachableError(
                f"The API server of {self.name} at {self.address} does not accept our credentials (401: {message}).",
                next_step="Sign in again (gcloud auth application-default login), or name another kubeconfig in "
                "KUBECONFIG.",
            )
        if "admission webhook" in message or "ValidatingAdmissionPolicy" in message:
            return ClusterPermissionError(
                f"An admission rule of {self.name} refuses {method} {path.partition('?')[0]}: {message}",
                next_step="Change the setting that the rule names, or ask the rule's owner for an exception.",
            )
        if status == 403 and found.get("reason", "Forbidden") == "Forbidden":
            return ClusterPermissionError(
                f"{self.name} refuses {method} {path.partition('?')[0]}: {message}", next_step=_grant(message)
            )
        return ApiServerError(
            f"{self.name} answered {method} {path.partition('?')[0]} with {status} "
            f"{found.get('reason', '')}: {message}",
            next_step="Read the API server's message; correct what it names and run again.",
            status=status,
            reason=str(found.get("reason", "")),
            causes=tuple((found.get("details") or {}).get("causes") or ()),
        )


class ServiceProxy:
    """HTTP requests to one Service, carried by the API server.

    Args:
        connection: The cluster.
        namespace: Of the Service.
        service: Its name.
        port: Number or name of the port.
    """

    def __init__(self, connection: ClusterConnection, *, namespace: str, service: str, port: int | str) -> None:
        self._connection = connection
        self._base = f"/api/v1/namespaces/{quote(namespace)}/services/http:{quote(service)}:{quote(str(port))}/proxy"

    def request(self, method: str, path: str, *, body: Any = None, timeout_seconds: float = 30) -> ProxyResponse:
        """Ask once and return the Service's answer whatever its status.

        Raises:
            ClusterUnreachableError: the API server does not answer, or not within `timeout_seconds`.
            ClusterError: the API server knows no such Service, or does not let us ask it.
        """
        response = self._send(method, path, body, timeout_seconds)
        try:
            data = response.data
        except urllib3.exceptions.HTTPError as error:
            raise ClusterUnreachableError(
                f"The answer to {method} {path} broke off: {sentence(error)}",
                next_step="Run again; look at the server's log if it breaks off again.",
            ) from error
        finally:
            response.release_conn()
        return self._judge(response.status, data, f"{method} {path}")

    @contextmanager
    def events(
        self, path: str, *, body: Any, timeout_seconds: float = 60
    ) -> Iterator[tuple[ProxyResponse, Iterator[str]]]:
        """Post and read server-sent events: the payload of each `data:` line as it arrives.

        Yields the status beside the events; on an error status the body is in the response and no event follows.
        """
        response = self._send("POST", path, body, timeout_seconds)
        try:
            if response.status >= 400:
                yield self._judge(response.status, response.data, f"POST {path}"), iter(())
            else:
                yield ProxyResponse(status=response.status, body=b""), _event_payloads(response)
        finally:
            response.close()
            response.release_conn()

    def _judge(self, status: int, data: bytes, request: str) -> ProxyResponse:
        """Tell what the Service says from what the API server says in its place."""
        from_api_server = bool(_status_of(data))
        if from_api_server and status in {401, 403, 404}:
            raise self._connection.refusal(status, data, *request.split(" ", 1))
        return ProxyResponse(status=status, body=data, from_api_server=from_api_server)

    def _send(self, method: str, path: str, body: Any, timeout_seconds: float) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=min(10.0, timeout_seconds), read=timeout_seconds)
        return self._connection.send(method, self._base + path, body=body, timeout=timeout)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ApiServerError):
        return error.status in _RETRIED_STATUSES
    return "credentials" not in str(error)


def _tls_options(configuration: Any) -> dict[str, Any]:
    """What the kubernetes client's settings mean to a WebSocket."""
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED}
    if not configuration.verify_ssl:
        options = {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
    wanted = {
        "ca_certs": configuration.ssl_ca_cert if configuration.verify_ssl else None,
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }
    return options | {name: value for name, value in wanted.items() if value}


def _plain(query: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in (query or {}).items()}


def _status_of(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}


def _event_payloads(response: urllib3.BaseHTTPResponse) -> Iterator[str]:
    pending = b""
    try:
        for piece in response.stream(8192):
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode("utf-8", "replace")
    except urllib3.exceptions.HTTPError as error:
        raise ClusterUnreachableError(
            f"A streamed answer broke off: {sentence(error)}",
            next_step="Run again; look at the server's log if it breaks off again.",
        ) from error


def _grant(message: str) -> str:
    """Name the permission that RBAC misses, from its own message."""
    match = re.search(
        r'cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?', message
    )
    if match is None:
        return "Ask whoever administers the cluster for this permission."
    verb, resource, group, namespace = match.groups()
    kind = "role" if namespace else "clusterrole"
    full = f"{resource}.{group}" if group else resource
    where = f" --namespace={namespace}" if namespace else ""
    return (
        f"Ask for the verb {verb!r} on {full}: "
        f"kubectl create {kind} streamway --verb={verb} --resource={full}{where}, bound to this account."
    )


def sentence(error: BaseException) -> str:
    """What an error says, without addresses in memory, ending as a sentence does."""
    text = re.sub(r"<[^>]*object at 0x[0-9a-f]+>:? ?", "", str(error)).strip() or type(error).__name__
    return text if text.endswith(".") else text + "."


def _shorten(data: bytes) -> str:
    return data[:300].decode("utf-8", "replace").strip()
