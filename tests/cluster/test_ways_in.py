"""Every way to a cluster, by the real clients, with credentials that end on the way."""

import base64
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("way_in.py")
DNS_ENDPOINT = "gke-0a1b2c.us-central1.gke.goog"
IP_ENDPOINT = "203.0.113.7"
GATEWAY = "us-central1-connectgateway.googleapis.com"
GKE_NAME = "projects/acme/locations/us-central1/clusters/prod"
MEMBER_NAME = "projects/acme/locations/us-central1/memberships/prod"
WAYS = [
    (GKE_NAME, DNS_ENDPOINT, f"https://{DNS_ENDPOINT}"),
    (GKE_NAME, IP_ENDPOINT, f"https://{IP_ENDPOINT}"),
    (
        MEMBER_NAME,
        GATEWAY,
        f"https://{GATEWAY}/v1/projects/123456789/locations/us-central1/gkeMemberships/prod",
    ),
]
IDS = ["DNS endpoint", "IP endpoint", "Connect Gateway"]
# Not a cluster of GKE, and so in another collection of Connect Gateway's.
ATTACHED = (
    "projects/acme/locations/global/memberships/attached",
    "connectgateway.googleapis.com",
    "https://connectgateway.googleapis.com/v1/projects/123456789/locations/global/memberships/attached",
)


class Traveller:
    """A process on its way to a cluster."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        plain = {name: value for name, value in plain.items() if not name.startswith(("KUBE", "GOOGLE", "SSL_"))}
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**plain, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: Queue[str] = Queue()
        self._errors: list[str] = []
        for read in (self._read, self._read_errors):
            threading.Thread(target=read, daemon=True).start()

    def next_line(self) -> str:
        line = self._lines.get(timeout=60)
        assert line, "".join(self._errors)
        return line.rstrip("\n")

    def until(self, wanted: str) -> list[str]:
        """Read lines up to the one that is wanted."""
        said = [self.next_line()]
        while said[-1] != wanted:
            said.append(self.next_line())
        return said

    def end(self) -> int:
        return self._process.wait(30)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)


@pytest.fixture
def travel(tmp_path: Path) -> Iterator[Callable[..., Traveller]]:
    started: list[Traveller] = []

    def start(environment: dict[str, str], *arguments: str) -> Traveller:
        started.append(Traveller({**environment, "HOME": str(tmp_path)}, *arguments))
        return started[-1]

    yield start
    for traveller in started:
        traveller.stop()


@pytest.fixture
def add(behind: Any) -> Callable[[], str]:
    """Makes something new in the cluster, and names it."""

    def make() -> str:
        name = f"map-{uuid.uuid4().hex[:8]}"
        behind.add(name)
        return name

    return make


def close_other_doors(google: Any, host: str) -> None:
    if host == IP_ENDPOINT:
        google.described.control_plane_endpoints_config.dns_endpoint_config.allow_external_traffic = False


@pytest.mark.parametrize(("cluster", "host", "address"), [*WAYS, ATTACHED], ids=[*IDS, "attached cluster"])
def test_a_cluster_is_reached_and_watched(
    google: Any, travel: Callable[..., Traveller], add: Callable[[], str], cluster: str, host: str, address: str
) -> None:
    close_other_doors(google, host)
    traveller = travel(google.environment, cluster)

    assert traveller.next_line() == address
    traveller.until(add())

    assert google.gke_calls == ([GKE_NAME] if cluster == GKE_NAME else [])
    assert set(google.reached) & set(google.doors) == {host}
    assert {token for token, _path, status in google.doors[host].asked if status == 200} == {"ya29.1"}


@pytest.mark.parametrize(("cluster", "host", "address"), WAYS, ids=IDS)
def test_a_token_that_is_refused_during_a_watch_is_made_anew(
    google: Any, travel: Callable[..., Traveller], add: Callable[[], str], cluster: str, host: str, address: str
) -> None:
    close_other_doors(google, host)
    traveller = travel(google.environment, cluster)
    assert traveller.next_line() == address
    door = google.doors[host]
    assert door.watched.wait(60)

    google.tokens.valid.clear()
    door.cut_watches()
    traveller.until(add())

    rows = [(token, status) for token, _path, status in door.asked]
    assert ("ya29.1", 401) in rows
    assert rows.index(("ya29.1", 401)) < rows.index(("ya29.2", 200))
    assert {token for token, status in rows if status == 401} == {"ya29.1"}


def test_a_token_near_its_end_is_made_anew_before_it_is_refused(
    google: Any, travel: Callable[..., Traveller], add: Callable[[], str]
) -> None:
    google.tokens.lifetime_seconds = 60
    traveller = travel(google.environment, GKE_NAME)
    traveller.next_line()
    assert google.doors[DNS_ENDPOINT].watched.wait(60)
    google.doors[DNS_ENDPOINT].cut_watches()
    traveller.until(add())

    assert len(google.tokens.issued) > 2
    assert 401 not in {status for _token, _path, status in google.doors[DNS_ENDPOINT].asked}


def test_an_account_that_the_cluster_does_not_know_is_told_so(google: Any, travel: Callable[..., Traveller]) -> None:
    google.doors[DNS_ENDPOINT].accepts = lambda _token: False
    traveller = travel(google.environment, GKE_NAME)

    assert "does not accept our credentials (401: Unauthorized)" in traveller.next_line()
    assert traveller.end() != 0
    assert [token for token, _path, _status in google.doors[DNS_ENDPOINT].asked] == ["ya29.1", "ya29.2"]


def test_a_cluster_that_gke_does_not_know_is_told_so(google: Any, travel: Callable[..., Traveller]) -> None:
    wrong = GKE_NAME.replace("prod", "gone")
    traveller = travel(google.environment, wrong)

    said = traveller.next_line()
    assert f"GKE does not show us the cluster {wrong}: 404 Not found" in said
    assert "gcloud container clusters list" in said


def test_a_fleet_member_that_is_not_shown_is_told_so(google: Any, travel: Callable[..., Traveller]) -> None:
    wrong = MEMBER_NAME.replace("acme", "other")
    traveller = travel(google.environment, wrong)

    said = traveller.next_line()
    assert f"Connect Gateway does not show us the fleet member {wrong}: 403 Permission 'gkehub.gateway." in said
    assert "gcloud container fleet memberships list" in said


def test_a_certificate_of_another_authority_is_refused(google: Any, travel: Callable[..., Traveller]) -> None:
    google.described.control_plane_endpoints_config.dns_endpoint_config.allow_external_traffic = False
    public = Path(google.environment["SSL_CERT_FILE"]).read_bytes()
    google.described.master_auth.cluster_ca_certificate = base64.b64encode(public).decode()
    traveller = travel(google.environment, GKE_NAME)

    assert "certificate verify failed" in traveller.next_line().lower()
    assert google.doors[IP_ENDPOINT].asked == []


def test_a_pod_reaches_its_own_cluster(inside: Any, travel: Callable[..., Traveller], add: Callable[[], str]) -> None:
    token = inside.rotate()
    traveller = travel(inside.environment, "", str(inside.folder))

    assert traveller.next_line() == f"https://127.0.0.1:{inside.door.port}"
    traveller.until(add())
    assert {row[0] for row in inside.door.asked} == {token}


def test_a_pods_token_that_is_rotated_during_a_watch_is_read_again(
    inside: Any, travel: Callable[..., Traveller], add: Callable[[], str]
) -> None:
    first = inside.rotate()
    traveller = travel(inside.environment, "", str(inside.folder))
    traveller.next_line()
    assert inside.door.watched.wait(60)

    second = inside.rotate()
    inside.known.discard(first)
    inside.door.cut_watches()
    traveller.until(add())

    rows = [(token, status) for token, _path, status in inside.door.asked]
    assert rows.index((first, 401)) < rows.index((second, 200))


def test_a_pod_without_a_token_is_told_so(inside: Any, travel: Callable[..., Traveller]) -> None:
    traveller = travel(inside.environment, "", str(inside.folder))

    said = traveller.next_line()
    assert "This pod has no way to the API server of its cluster: Service token file does not exist." in said
    assert "automountServiceAccountToken" in said


def test_a_kubeconfig_whose_token_is_made_by_a_program_asks_it_again(
    inside: Any, travel: Callable[..., Traveller], add: Callable[[], str], tmp_path: Path
) -> None:
    inside.rotate()
    program = tmp_path / "sign-in"
    credential = (
        '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'
    )
    program.write_text(f"#!/bin/sh\nprintf '{credential}' \"$(cat {inside.folder}/token)\"\n")
    program.chmod(0o700)
    server = f"https://127.0.0.1:{inside.door.port}"
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(program),
            "interactiveMode": "Never",
            "provideClusterInfo": False,
        }
    }
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "clusters": [
                    {"name": "x", "cluster": {"server": server, "certificate-authority": f"{inside.folder}/ca.crt"}}
                ],
                "users": [{"name": "x", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            }
        )
    )
    traveller = travel({"KUBECONFIG": str(kubeconfig), "PATH": "/usr/bin:/bin"}, "")
    assert traveller.next_line() == server
    assert inside.door.watched.wait(60)

    inside.known.clear()
    inside.rotate()
    inside.door.cut_watches()
    traveller.until(add())

    assert 401 in {status for _token, _path, status in inside.door.asked}
