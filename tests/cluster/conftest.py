"""The sandbox's cluster behind doors like Google's: GKE's API, its two endpoints, Connect Gateway, and tokens that end.

Google's names stay what they are. A proxy of the test's own, which clients find in the environment as they find any
other, leads them here, and certificates of a test's own authority stand for Google's; so the real clients check names
and certificates as they always do.
"""

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import grpc
import pytest
import urllib3
import yaml
from authorities import Authority, private_pem
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from google.cloud import container_v1

DNS_ENDPOINT = "gke-0a1b2c.us-central1.gke.goog"
IP_ENDPOINT = "203.0.113.7"
GATEWAY = "us-central1-connectgateway.googleapis.com"
GKE_API = "container.googleapis.com"
GKE_NAME = "projects/acme/locations/us-central1/clusters/prod"
# Connect Gateway for members of a region and for all others, and what of each precedes Kubernetes' own paths.
MEMBER_PATHS = {
    GATEWAY: "/v1/projects/123456789/locations/us-central1/gkeMemberships/prod",
    "connectgateway.googleapis.com": "/v1/projects/123456789/locations/global/memberships/attached",
}


@dataclass
class Tokens:
    """Google's token endpoint: gives a service account that proves itself a new access token each time."""

    lifetime_seconds: int = 3600
    public_key: bytes = b""
    issued: list[str] = field(default_factory=list)
    valid: set[str] = field(default_factory=set)

    def issue(self, assertion: str) -> dict[str, Any]:
        claims = jwt.decode(assertion, certs=self.public_key, audience=None)
        assert "cloud-platform" in claims["scope"]
        self.issued.append(f"ya29.{len(self.issued) + 1}")
        self.valid.add(self.issued[-1])
        return {"access_token": self.issued[-1], "expires_in": self.lifetime_seconds, "token_type": "Bearer"}


@dataclass
class Door:
    """A way to the cluster's API server: TLS with a certificate of its own, and tokens of its own.

    Args:
        host: The name or address that it answers to.
        prefix: What precedes Kubernetes' own paths.
        accepts: Tells whether a token is known.
        passes_on: Whether the cluster is asked with the caller's own token, and not with the administrator's.
        says: Status and JSON that are answered here, by path.
    """

    host: str
    prefix: str
    accepts: Callable[[str], bool]
    passes_on: bool = False
    says: dict[str, tuple[int, Any]] = field(default_factory=dict)
    port: int = 0
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    open_watches: list[socket.socket] = field(default_factory=list)
    watched: threading.Event = field(default_factory=threading.Event)

    def cut_watches(self) -> None:
        """End every watch, as a proxy does whose time is over."""
        self.watched.clear()
        while self.open_watches:
            try:
                self.open_watches.pop().shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def serve_door(door: Door, context: ssl.SSLContext, cluster: "Behind") -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def handle_one(self) -> None:
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            path = self.path.removeprefix(door.prefix)
            if scheme.lower() != "bearer" or not door.accepts(token):
                status = {"kind": "Status", "status": "Failure", "reason": "Unauthorized", "message": "Unauthorized"}
                self.answer(401, [], json.dumps({**status, "code": 401}).encode(), path, token)
                return
            if path in door.says:
                code, said = door.says[path]
                self.answer(code, [("Content-Type", "application/json")], json.dumps(said).encode(), path, token)
                return
            length = int(self.headers.get("Content-Length") or 0)
            kept = {name: value for name, value in self.headers.items() if name.lower() in {"content-type", "accept"}}
            given = token if door.passes_on else cluster.token
            answer = cluster.pool.request(
                self.command,
                cluster.url + path,
                body=self.rfile.read(length) if length else None,
                headers={**kept, "Authorization": f"Bearer {given}"},
                preload_content=False,
                retries=False,
            )
            content_type = [("Content-Type", answer.headers.get("Content-Type", "application/json"))]
            if "watch=true" not in path:
                self.answer(answer.status, content_type, answer.data, path, token)
                return
            door.asked.append((token, path, answer.status))
            door.open_watches.append(self.connection)
            self.close_connection = True
            self.send_response(answer.status)
            self.send_header("Connection", "close")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            door.watched.set()
            try:
                for piece in answer.stream(65536):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                answer.close()

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, path: str, token: str) -> None:
            door.asked.append((token, path, status))
            self.send_response(status)
            for name, value in [*headers, ("Content-Length", str(len(data)))]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            plain, address = super().get_request()
            # The handshake is the handler's thread's: one client that never speaks must not hold up the others.
            return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    door.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@dataclass(frozen=True)
class Behind:
    """The sandbox's cluster, as its administrator reaches it."""

    url: str
    token: str
    pool: urllib3.PoolManager

    def request(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = self.pool.request(method, self.url + path, json=body, headers=headers, retries=False)
        assert answer.status < 300, answer.data
        return answer.json()

    def add(self, name: str) -> None:
        """Make something that a watch sees."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        self.request("POST", "/api/v1/namespaces/default/configmaps", body)


@pytest.fixture(scope="session")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("behind")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamway.sandbox.cluster", "--state", str(folder)], stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 30
            while not (folder / "cluster.json").exists():
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
            part = json.loads((folder / "cluster.json").read_text())
            config = yaml.safe_load(Path(part["environment"]["KUBECONFIG"]).read_text())
            authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
            pool = urllib3.PoolManager(ca_cert_data=authority, maxsize=16)
            yield Behind(part["url"], config["users"][0]["user"]["token"], pool)
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class Google:
    """What of Google is met on the way to a cluster.

    Args:
        tokens: The token endpoint.
        doors: Ways to the cluster, by host.
        described: What GKE says about the cluster.
        environment: What leads a client here.
        reached: Hosts that clients asked the proxy for.
        gke_calls: Names that GKE's API was asked for.
    """

    tokens: Tokens
    doors: dict[str, Door]
    described: container_v1.Cluster
    environment: dict[str, str]
    reached: list[str]
    gke_calls: list[str]
    routes: dict[str, int]
    authority: Authority


@pytest.fixture
def google(behind: Behind, tmp_path: Path) -> Iterator[Google]:
    public, own = Authority(tmp_path, "public-authority"), Authority(tmp_path, "cluster-authority")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    tokens = Tokens(public_key=_public_pem(key))
    doors = {
        DNS_ENDPOINT: Door(DNS_ENDPOINT, "", tokens.valid.__contains__),
        IP_ENDPOINT: Door(IP_ENDPOINT, "", tokens.valid.__contains__),
    }
    for host, path in MEMBER_PATHS.items():
        doors[host] = Door(host, path, tokens.valid.__contains__, says=gateway_answers(host, path))
    described = container_v1.Cluster(
        name="prod",
        endpoint=IP_ENDPOINT,
        locations=["us-central1-a", "us-central1-b"],
        master_auth={"cluster_ca_certificate": base64.b64encode(own.pem).decode()},
        control_plane_endpoints_config={
            "dns_endpoint_config": {"endpoint": DNS_ENDPOINT, "allow_external_traffic": True}
        },
    )
    reached, gke_calls = list[str](), list[str]()
    servers = [
        serve_door(door, (own if host == IP_ENDPOINT else public).server_context(host), behind)
        for host, door in doors.items()
    ]
    gke, gke_port = serve_gke(public, described, tokens, gke_calls)
    routes = {host: door.port for host, door in doors.items()} | {GKE_API: gke_port}
    proxy, token_server = serve_proxy(routes, reached), serve_tokens(tokens)
    account = tmp_path / "account.json"
    account.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "acme",
                "private_key_id": "1",
                "private_key": private_pem(key).decode(),
                "client_email": "runner@acme.iam.gserviceaccount.com",
                "token_uri": f"http://127.0.0.1:{token_server.server_address[1]}/token",
            }
        )
    )
    url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    environment = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(account),
        "GOOGLE_CLOUD_PROJECT": "acme",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(public.path),
        "SSL_CERT_FILE": str(public.path),
        "REQUESTS_CA_BUNDLE": str(public.path),
        "HTTPS_PROXY": url,
        "https_proxy": url,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    yield Google(tokens, doors, described, environment, reached, gke_calls, routes, public)
    for door in doors.values():
        door.cut_watches()
    for server in [*servers, token_server]:
        server.shutdown()
        server.server_close()
    proxy.close()
    gke.stop(None)


def gateway_answers(host: str, path: str) -> dict[str, tuple[int, Any]]:
    """What Connect Gateway says of its one member there, whose project it is asked for by id."""
    location, membership = path.split("/")[5], path.split("/")[7]
    config = {"clusters": [{"name": membership, "cluster": {"server": f"https://{host}{path}"}}]}
    encoded = base64.b64encode(yaml.safe_dump(config).encode()).decode()
    known = f"/v1/projects/acme/locations/{location}/memberships/{membership}:generateCredentials"
    unknown = known.replace("/acme/", "/other/")
    denied = {"code": 403, "message": "Permission 'gkehub.gateway.generateCredentials' denied", "status": "DENIED"}
    return {known: (200, {"kubeconfig": encoded}), unknown: (403, {"error": denied})}


def _public_pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def serve_gke(
    authority: Authority, described: container_v1.Cluster, tokens: Tokens, calls: list[str]
) -> tuple[grpc.Server, int]:
    """GKE's API, as far as it describes one cluster to whoever has proved who they are."""

    def get_cluster(request: container_v1.GetClusterRequest, context: grpc.ServicerContext) -> container_v1.Cluster:
        metadata = dict(context.invocation_metadata())
        # Google's clients sign a token themselves for this, with the account's own key.
        claims = jwt.decode(metadata["authorization"].removeprefix("Bearer "), certs=tokens.public_key)
        assert claims["sub"] == "runner@acme.iam.gserviceaccount.com"
        calls.append(request.name)
        if request.name != GKE_NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: {request.name}.")
        return described

    method = grpc.unary_unary_rpc_method_handler(
        get_cluster,
        request_deserializer=container_v1.GetClusterRequest.deserialize,
        response_serializer=container_v1.Cluster.serialize,
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    name = "google.container.v1.ClusterManager"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"GetCluster": method}),))
    key, certificate = authority.issue(GKE_API)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    return server, port


def serve_tokens(tokens: Tokens) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            data = json.dumps(tokens.issue(form["assertion"][0])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def serve_proxy(routes: dict[str, int], reached: list[str]) -> socket.socket:
    """A proxy that leads the names it knows to this machine, and nothing anywhere else."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _address = listener.accept()
            except OSError:
                return
            threading.Thread(target=tunnel, args=(client,), daemon=True).start()

    def tunnel(client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(4096)):
                    return
                head += piece
            host = head.split()[1].decode().rpartition(":")[0]
            reached.append(host)
            if host not in routes:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", routes[host])) as upstream:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(upstream, client), daemon=True)
                back.start()
                pump(client, upstream)
                back.join(5)

    threading.Thread(target=serve, daemon=True).start()
    return listener


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@dataclass
class Inside:
    """What a pod has of its cluster: mounted files, variables, and the API server's address in the cluster."""

    folder: Path
    environment: dict[str, str]
    door: Door
    known: set[str]
    new_token: Callable[[], str]

    def rotate(self) -> str:
        """Put a new token into the pod, as a node does."""
        token = self.new_token()
        self.known.add(token)
        fresh = self.folder / "token.new"
        fresh.write_text(token)
        fresh.replace(self.folder / "token")
        return token


@pytest.fixture
def inside(behind: Behind, tmp_path: Path) -> Iterator[Inside]:
    """A pod whose service account may read ConfigMaps, and nothing else."""
    name, base = f"pod-{time.time_ns()}", "/api/v1/namespaces/default/serviceaccounts"
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    behind.request("POST", base, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]
    behind.request("POST", f"{rbac}/roles", {**kind, "kind": "Role", "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]
    binding = {**kind, "kind": "RoleBinding", "roleRef": reference, "subjects": subjects}
    behind.request("POST", f"{rbac}/rolebindings", binding)

    def new_token() -> str:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        request |= {"spec": {"expirationSeconds": 3600 + len(known)}}
        return str(behind.request("POST", f"{base}/{name}/token", request)["status"]["token"])

    known = set[str]()
    authority = Authority(tmp_path, "cluster-authority")
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.pem)
    door = Door("127.0.0.1", "", known.__contains__, passes_on=True)
    server = serve_door(door, authority.server_context("127.0.0.1"), behind)
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(door.port)}
    yield Inside(folder, environment, door, known, new_token)
    door.cut_watches()
    server.shutdown()
    server.server_close()
