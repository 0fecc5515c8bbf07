"""Finding a cluster: by kubeconfig, from inside, as a GKE cluster or as a fleet member, with credentials that renew.

The kubernetes package takes half a second to import, so whoever reaches no cluster does without it.
"""

import atexit
import base64
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from requests.utils import get_environ_proxies

from streamway.cluster.connection import ClusterConnection, sentence
from streamway.errors import ApiServerError, ClusterPermissionError, ClusterUnreachableError, SettingsError

GKE_NAME = re.compile(r"projects/([^/]+)/locations/([^/]+)/clusters/([^/]+)")
_MEMBERSHIP_NAME = re.compile(r"projects/([^/]+)/locations/([^/]+)/(?:gkeMemberships|memberships)/([^/]+)")
_CLOUD_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# Credentials are renewed this long before they expire, so that none expires between the check and its use.
_EXPIRY_MARGIN_SECONDS = 120
_CONNECTIONS = 16
# Authorities of public certificates other than certifi's, as OpenSSL and kubectl know them.
_AUTHORITIES = "SSL_CERT_FILE"
# An address where nobody listens is told soon; a slow one has the caller's time.
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class _Way:
    """A way to a cluster.

    Args:
        name: What the user calls it, for messages.
        configuration: Of the kubernetes client.
        renew: Has the credentials made anew, although they look valid.
    """

    name: str
    configuration: Any
    renew: Callable[[], None]


def connect(cluster: str = "", *, timeout_seconds: float = 10) -> ClusterConnection:
    """Reach a cluster and prove that it answers and knows us.

    Args:
        cluster: Empty for KUBECONFIG, ~/.kube/config or the cluster we run in, in that order, as kubectl does;
            `context:NAME` for a context of the kubeconfig; `projects/P/locations/L/clusters/C` for GKE;
            `projects/P/locations/L/memberships/M` for a fleet member through Connect Gateway.
        timeout_seconds: How long the first answer may take.

    Raises:
        SettingsError: `cluster` has none of these forms.
        ClusterUnreachableError: there is no such cluster, it does not answer, or it does not know us.
    """
    from kubernetes.client import ApiClient

    if not cluster or cluster.startswith("context:"):
        way = _from_kubeconfig(cluster.removeprefix("context:"))
    elif is_gke_name(cluster):
        found, credentials = find_gke_cluster(cluster, timeout_seconds)
        way = _cloud_way(cluster, gke_configuration(found, credentials=credentials), credentials)
    elif match := _MEMBERSHIP_NAME.fullmatch(cluster):
        credentials = cloud_credentials()
        address = find_gateway_address(*match.groups(), credentials=credentials, timeout_seconds=timeout_seconds)
        way = _cloud_way(cluster, _gateway_configuration(address, credentials=credentials), credentials)
    else:
        raise SettingsError(
            f"cluster is {cluster!r}, which names no cluster.",
            next_step="Leave it empty for KUBECONFIG, or write context:NAME, projects/P/locations/L/clusters/C or "
            "projects/P/locations/L/memberships/M.",
        )
    way.configuration.connection_pool_maxsize = _CONNECTIONS
    _go_through_proxy(way.configuration)
    connection = ClusterConnection(ApiClient(way.configuration), name=way.name, renew=way.renew)
    _prove(connection, timeout_seconds)
    return connection


def gke_configuration(cluster: Any, *, credentials: Any) -> Any:
    """Configure a client for a GKE cluster, by its DNS endpoint where outside traffic may use it.

    The DNS endpoint has a public certificate and needs no network path to the control plane; an IP endpoint is
    signed by the cluster's own authority (https://cloud.google.com/kubernetes-engine/docs/concepts/network-isolation).

    Args:
        cluster: The answer of `get_cluster`.
        credentials: google-auth credentials, renewed when a request finds them near their end.
    """
    from kubernetes.client import Configuration

    configuration = Configuration()
    endpoints = cluster.control_plane_endpoints_config
    dns = endpoints.dns_endpoint_config
    if dns.endpoint and dns.allow_external_traffic:
        configuration.host = f"https://{dns.endpoint}"
        configuration.ssl_ca_cert = os.environ.get(_AUTHORITIES)
    else:
        address = cluster.endpoint or endpoints.ip_endpoints_config.private_endpoint
        configuration.host = f"https://{address}"
        configuration.ssl_ca_cert = _certificate_file(cluster.master_auth.cluster_ca_certificate)
    _renew_with(configuration, credentials)
    return configuration


def _gateway_configuration(address: str, *, credentials: Any) -> Any:
    """Configure a client for a fleet member at the address that Connect Gateway gives it.

    Args:
        address: As `find_gateway_address` returns it.
        credentials: As in `gke_configuration`.
    """
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.host = address
    configuration.ssl_ca_cert = os.environ.get(_AUTHORITIES)
    _renew_with(configuration, credentials)
    return configuration


def find_gateway_address(
    project: str, location: str, membership: str, *, credentials: Any, timeout_seconds: float
) -> str:
    """Ask Connect Gateway for the address of a fleet member.

    The address has the project's number, and one collection for clusters of GKE and another for all others, so it is
    not composed here but taken from the kubeconfig that gcloud gets with the same call
    (https://github.com/googleapis/googleapis/blob/master/google/cloud/gkeconnect/gateway/v1/control.proto).

    Args:
        project: Project id or number.
        location: Region of the membership, or `global`.
        membership: Its name.
        credentials: google-auth credentials.
        timeout_seconds: How long the answer may take.

    Raises:
        ClusterUnreachableError: there is no such membership, or it is not shown to us.
    """
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession
    from requests import RequestException

    name = f"projects/{project}/locations/{location}/memberships/{membership}"
    region = "" if location == "global" else f"{location}-"
    url = f"https://{region}connectgateway.googleapis.com/v1/{name}:generateCredentials"
    session = AuthorizedSession(credentials)
    session.verify = os.environ.get(_AUTHORITIES) or True
    try:
        answer = session.get(url, timeout=timeout_seconds)
        found = answer.json()
        if not answer.ok:
            raise _no_member(name, f"{answer.status_code} {found['error']['message']}")
        kubeconfig = yaml.safe_load(base64.b64decode(found["kubeconfig"]))
        return str(kubeconfig["clusters"][0]["cluster"]["server"])
    except (RequestException, GoogleAuthError) as error:
        raise _no_member(name, str(error)) from error
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise _no_member(name, f"{answer.status_code}, without a kubeconfig: {answer.text[:300]!r}") from error


def _no_member(name: str, why: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(
        f"Connect Gateway does not show us the fleet member {name}: {why.rstrip('.')}.",
        next_step="Check the name with `gcloud container fleet memberships list`, that this account has "
        "roles/gkehub.gatewayEditor on its project, and write the project's number if its id is not understood.",
    )


def _from_kubeconfig(context: str) -> _Way:
    from kubernetes import config
    from kubernetes.client import Configuration

    # The environment is read here and not by the kubernetes package, which reads it once when it is imported.
    chosen = os.environ.get("KUBECONFIG", "")
    path = chosen or str(Path.home() / ".kube" / "config")
    configuration = Configuration()
    if not chosen and not Path(path).exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _from_inside(configuration)

    def load() -> None:
        try:
            config.load_kube_config(
                config_file=path,
                context=context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        except (config.ConfigException, OSError, ValueError) as error:
            raise ClusterUnreachableError(
                f"The kubeconfig {path} gives no cluster{f' for context {context!r}' if context else ''}: "
                f"{sentence(error)}",
                next_step="Set KUBECONFIG to a file that kubectl can use, or name a GKE cluster as "
                "projects/P/locations/L/clusters/C.",
            ) from error

    load()
    name = f"context {context!r}" if context else f"kubeconfig {path}"
    return _Way(name=name, configuration=configuration, renew=load)


def _from_inside(configuration: Any) -> _Way:
    from kubernetes import config

    def load() -> None:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ClusterUnreachableError(
                f"This pod has no way to the API server of its cluster: {sentence(error)}",
                next_step="Give the pod a service account and its token (automountServiceAccountToken), or name a "
                "cluster as projects/P/locations/L/clusters/C.",
            ) from error

    load()
    return _Way(name="this cluster", configuration=configuration, renew=load)


def _cloud_way(name: str, configuration: Any, credentials: Any) -> _Way:
    return _Way(name=name, configuration=configuration, renew=lambda: _refresh(credentials))


def _go_through_proxy(configuration: Any) -> None:
    """Take the proxy of the environment, as kubectl does, and as it does not for this machine itself.

    https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config.ProxyFunc
    """
    address = urlsplit(configuration.host)
    host = address.hostname or ""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        configuration.proxy = get_environ_proxies(configuration.host).get(address.scheme)


def is_gke_name(name: str) -> bool:
    """Tell whether a name is that of a GKE cluster."""
    return GKE_NAME.fullmatch(name) is not None


def find_gke_cluster(name: str, timeout_seconds: float) -> tuple[Any, Any]:
    """Ask GKE for a cluster; return its answer and the credentials that it was asked with.

    Raises:
        ClusterUnreachableError: GKE does not show it.
    """
    from google.api_core.exceptions import GoogleAPIError
    from google.cloud import container_v1

    credentials = cloud_credentials()
    try:
        cluster = container_v1.ClusterManagerClient(credentials=credentials).get_cluster(
            name=name, timeout=timeout_seconds
        )
    except GoogleAPIError as error:
        raise ClusterUnreachableError(
            f"GKE does not show us the cluster {name}: {sentence(error)}",
            next_step="Check the name with `gcloud container clusters list`, and that this account has "
            "container.clusters.get on its project.",
        ) from error
    return cluster, credentials


def cloud_credentials() -> Any:
    """The credentials of the environment, for all of Google Cloud.

    Raises:
        ClusterUnreachableError: there are none.
    """
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        credentials, _project = google.auth.default(scopes=[_CLOUD_SCOPE])
    except GoogleAuthError as error:
        raise ClusterUnreachableError(
            f"There are no Google Cloud credentials to reach the cluster with: {sentence(error)}",
            next_step="Run `gcloud auth application-default login`, or run under a service account.",
        ) from error
    return credentials


def _renew_with(configuration: Any, credentials: Any) -> None:
    """Give a client a token now, and a fresh one whenever a request finds it near its end."""
    lock = threading.Lock()

    def renew(target: Any) -> None:
        with lock:
            if not credentials.token or _seconds_left(credentials) < _EXPIRY_MARGIN_SECONDS:
                _refresh(credentials)
            target.api_key["authorization"] = credentials.token

    # The client asks the hook only for a key that is there.
    configuration.api_key["authorization"] = ""
    configuration.api_key_prefix["authorization"] = "Bearer"
    configuration.refresh_api_key_hook = renew


def _refresh(credentials: Any) -> None:
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise ClusterUnreachableError(
            f"The Google Cloud credentials cannot be renewed: {sentence(error)}",
            next_step="Run `gcloud auth application-default login` and go on.",
        ) from error


def _seconds_left(credentials: Any) -> float:
    from google.auth import _helpers

    return float("inf") if credentials.expiry is None else (credentials.expiry - _helpers.utcnow()).total_seconds()


def _certificate_file(encoded: str) -> str:
    """Write a cluster's authority where the TLS layer can read it: it takes files only."""
    with tempfile.NamedTemporaryFile("wb", prefix="streamway-ca-", suffix=".crt", delete=False) as file:
        file.write(base64.b64decode(encoded))
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name


def _prove(connection: ClusterConnection, timeout_seconds: float) -> None:
    """One small authenticated read: discovery is open to everyone the cluster knows."""
    try:
        found = connection.request("GET", "/api", timeout_seconds=timeout_seconds, retry_seconds=_RETRY_SECONDS)
    except ClusterPermissionError:
        return
    except ApiServerError as error:
        raise ClusterUnreachableError(str(error.problem), next_step=error.next_step) from error
    if found.get("kind") != "APIVersions":
        raise ClusterUnreachableError(
            f"{connection.address} answers, but not as a Kubernetes API server (kind {found.get('kind')!r}).",
            next_step="Check the server address in the kubeconfig.",
        )
