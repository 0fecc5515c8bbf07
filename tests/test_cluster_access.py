"""Finding a cluster, being known to it, and what is said when either fails."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.cloud import container_v1

from streamway.cluster import connect, gke_configuration
from streamway.errors import ApiServerError, ClusterPermissionError, ClusterUnreachableError, SettingsError

API = {"kind": "APIVersions", "versions": ["v1"]}


@dataclass
class Server:
    """An API server that answers what a test tells it to."""

    url: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=lambda: {"/api": [(200, API)]})
    tokens: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def next_answer(self, path: str) -> tuple[int, Any]:
        rows = self.answers.get(path, [(404, {"kind": "Status", "message": "no", "reason": "NotFound"})])
        return rows.pop(0) if len(rows) > 1 else rows[0]


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            state.paths.append(path)
            state.tokens.append(self.headers.get("Authorization", ""))
            status, value = state.next_answer(path)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, server.url)
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def write_kubeconfig(path: Path, url: str) -> None:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "first",
                "clusters": [
                    {"name": "first", "cluster": {"server": url}},
                    {"name": "gone", "cluster": {"server": "http://127.0.0.1:9"}},
                ],
                "users": [{"name": "me", "user": {"token": "sesame"}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in ("first", "gone")],
            }
        )
    )


def test_the_kubeconfig_of_the_moment_is_used(server: Server, kubeconfig: Path) -> None:
    connection = connect()

    assert connection.address == server.url
    assert server.tokens == ["Bearer sesame"]


def test_a_context_is_chosen_by_name(server: Server, kubeconfig: Path) -> None:
    assert connect("context:first").address == server.url


def test_a_context_that_is_not_there_is_named(kubeconfig: Path) -> None:
    with pytest.raises(ClusterUnreachableError) as caught:
        connect("context:nowhere")

    assert "'nowhere'" in caught.value.problem
    assert str(kubeconfig) in caught.value.problem


def test_a_missing_kubeconfig_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ClusterUnreachableError) as caught:
        connect()

    assert str(tmp_path / "none") in caught.value.problem
    assert "KUBECONFIG" in caught.value.next_step


def test_an_api_server_that_is_not_there_is_named_with_its_address(kubeconfig: Path) -> None:
    with pytest.raises(ClusterUnreachableError) as caught:
        connect("context:gone", timeout_seconds=0.5)

    assert "http://127.0.0.1:9" in caught.value.problem
    assert "does not answer" in caught.value.problem


def test_credentials_that_are_not_known_are_told_apart(server: Server, kubeconfig: Path) -> None:
    server.answers["/api"] = [(401, {"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"})]

    with pytest.raises(ClusterUnreachableError) as caught:
        connect()

    assert "does not accept our credentials" in caught.value.problem
    assert server.paths == ["/api"], "asking again would not help"


def test_something_else_that_answers_is_not_a_cluster(server: Server, kubeconfig: Path) -> None:
    server.answers["/api"] = [(200, b"<html>Sign in</html>")]

    with pytest.raises(ClusterUnreachableError) as caught:
        connect(timeout_seconds=0.5)

    assert "not a Kubernetes object" in caught.value.problem


@pytest.mark.parametrize("name", ["my-cluster", "projects/p/clusters/c", "gke_p_l_c"])
def test_a_name_that_names_no_cluster_is_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        connect(name)

    assert repr(name) in caught.value.problem


def test_a_busy_server_is_asked_again(server: Server, kubeconfig: Path) -> None:
    server.answers["/x"] = [(503, {"kind": "Status", "message": "busy"}), (429, {}), (200, {"kind": "X"})]

    assert connect().get("/x") == {"kind": "X"}


def test_a_post_is_not_sent_twice(server: Server, kubeconfig: Path) -> None:
    server.answers["/x"] = [(503, {"kind": "Status", "message": "busy"})]

    with pytest.raises(ApiServerError) as caught:
        connect().request("POST", "/x", body={})

    assert caught.value.status == 503
    assert server.paths.count("/x") == 1


def test_a_missing_right_is_named_with_the_command_that_grants_it(server: Server, kubeconfig: Path) -> None:
    words = (
        'deployments.apps is forbidden: User "me" cannot create resource "deployments" in API group "apps" in the '
        'namespace "models"'
    )
    server.answers["/x"] = [(403, {"kind": "Status", "message": words, "reason": "Forbidden"})]

    with pytest.raises(ClusterPermissionError) as caught:
        connect().get("/x")

    assert words in caught.value.problem
    assert "--verb=create --resource=deployments.apps --namespace=models" in caught.value.next_step


def test_a_webhooks_refusal_is_told_apart_from_a_missing_right(server: Server, kubeconfig: Path) -> None:
    words = 'admission webhook "policy.example.com" denied the request: GPUs are for the day'
    server.answers["/x"] = [(403, {"kind": "Status", "message": words, "reason": "Forbidden"})]

    with pytest.raises(ClusterPermissionError) as caught:
        connect().get("/x")

    assert "An admission rule" in caught.value.problem
    assert words in caught.value.problem


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (422, "Invalid")])
def test_a_policys_refusal_is_told_apart_from_a_missing_right(
    server: Server, kubeconfig: Path, status: int, reason: str
) -> None:
    words = (
        "deployments.apps \"tiny\" is forbidden: ValidatingAdmissionPolicy 'gpus.example.com' with binding 'gpus' "
        "denied request: GPUs are for the day"
    )
    server.answers["/x"] = [(status, {"kind": "Status", "message": words, "reason": reason})]

    with pytest.raises(ClusterPermissionError) as caught:
        connect().request("POST", "/x", body={})

    assert "An admission rule" in caught.value.problem
    assert words in caught.value.problem
    assert "ask the rule's owner" in caught.value.next_step


def test_a_missing_right_about_webhooks_is_a_missing_right(server: Server, kubeconfig: Path) -> None:
    words = (
        'validatingwebhookconfigurations.admissionregistration.k8s.io is forbidden: User "me" cannot list resource '
        '"validatingwebhookconfigurations" in API group "admissionregistration.k8s.io" at the cluster scope'
    )
    server.answers["/x"] = [(403, {"kind": "Status", "message": words, "reason": "Forbidden"})]

    with pytest.raises(ClusterPermissionError) as caught:
        connect().get("/x")

    assert "--verb=list --resource=validatingwebhookconfigurations.admissionregistration" in caught.value.next_step


def test_an_object_that_is_not_there_is_none(server: Server, kubeconfig: Path) -> None:
    assert connect().find("/nowhere") is None


class Renewing(Credentials):  # type: ignore[misc]
    """Credentials that count their renewals."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0

    def refresh(self, request: Any) -> None:
        self.renewals += 1
        self.token = f"token-{self.renewals}"
        self.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)


def gke_cluster(*, dns: str = "", traffic: bool = False) -> Any:
    return container_v1.Cluster(
        endpoint="203.0.113.7",
        master_auth={"cluster_ca_certificate": base64.b64encode(b"certificate").decode()},
        control_plane_endpoints_config={"dns_endpoint_config": {"endpoint": dns, "allow_external_traffic": traffic}},
    )


def test_the_dns_endpoint_of_gke_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    configuration = gke_configuration(
        gke_cluster(dns="gke-abc.us-central1.gke.goog", traffic=True), credentials=Renewing()
    )

    assert configuration.host == "https://gke-abc.us-central1.gke.goog"
    assert not configuration.ssl_ca_cert


def test_an_ip_endpoint_is_checked_against_the_clusters_own_authority() -> None:
    configuration = gke_configuration(
        gke_cluster(dns="gke-abc.us-central1.gke.goog", traffic=False), credentials=Renewing()
    )

    assert configuration.host == "https://203.0.113.7"
    assert Path(configuration.ssl_ca_cert).read_bytes() == b"certificate"


def test_tokens_are_renewed_when_a_request_finds_them_old() -> None:
    credentials = Renewing()
    configuration = gke_configuration(gke_cluster(), credentials=credentials)

    first = configuration.get_api_key_with_prefix("authorization")
    again = configuration.get_api_key_with_prefix("authorization")
    credentials.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=30)
    later = configuration.get_api_key_with_prefix("authorization")

    assert (first, again, later) == ("Bearer token-1", "Bearer token-1", "Bearer token-2")


def test_the_proxy_of_the_environment_is_taken_for_everything_but_this_machine(
    server: Server, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, server.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "0.0.0.0")
    assert connect().address == server.url
    assert server.paths == ["/api"]

    for host, through in (("cluster.example.com", True), ("0.0.0.0", False)):
        write_kubeconfig(kubeconfig, f"http://{host}:9")
        server.paths.clear()
        server.answers[f"http://{host}:9/api"] = [(200, API)]
        if through:
            connect(timeout_seconds=0.5)
        else:
            with pytest.raises(ClusterUnreachableError):
                connect(timeout_seconds=0.2)
        assert server.paths == ([f"http://{host}:9/api"] if through else [])


@pytest.mark.parametrize("cluster", ["projects/p/locations/l/clusters/c", "projects/p/locations/l/memberships/m"])
def test_a_cloud_cluster_without_credentials_says_how_to_sign_in(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))

    with pytest.raises(ClusterUnreachableError) as caught:
        connect(cluster)

    assert "no Google Cloud credentials" in caught.value.problem
    assert "gcloud auth application-default login" in caught.value.next_step
