"""What a pod may do by its own account, and that nobody gives away more rights than they have."""

from typing import Any

import pytest

from tests.sandbox.cluster.conftest import RunningCluster

_RBAC = "rbac.authorization.k8s.io"
_ASK = """
import json, os, ssl, urllib.error, urllib.request
here = "/var/run/secrets/kubernetes.io/serviceaccount"
namespace = open(f"{here}/namespace").read()
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
url = f"https://{host}:{port}/api/v1/namespaces/{namespace}/pods"
asked = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(f"{here}/token").read()})
try:
    urllib.request.urlopen(asked, context=ssl.create_default_context(cafile=f"{here}/ca.crt"))
except urllib.error.HTTPError as error:
    print(json.loads(error.read())["message"])
"""


def test_a_pod_speaks_to_the_api_server_as_its_account(cluster: RunningCluster, namespace: str) -> None:
    cluster.run_pod(namespace, "p", command=["python3", "-c", _ASK], restartPolicy="Never")
    cluster.wait_pod(namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")

    user = f"system:serviceaccount:{namespace}:default"
    assert f'User "{user}" cannot list resource "pods"' in cluster.log(namespace, "p")


@pytest.mark.parametrize("where", ["pod", "account"])
def test_a_pod_gets_no_token_where_it_shall_not(cluster: RunningCluster, namespace: str, where: str) -> None:
    account = {"metadata": {"name": "silent"}, "automountServiceAccountToken": where == "pod"}
    cluster.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    spec: dict[str, Any] = {"serviceAccountName": "silent", "containers": [{"name": "main", "image": "python:3.11"}]}
    if where == "pod":
        spec["automountServiceAccountToken"] = False

    pod = cluster.create(f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": "p"}, "spec": spec})

    assert "volumes" not in pod["spec"]


def rule(group: str, resource: str, *verbs: str, **more: Any) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), **more}


@pytest.fixture
def limited(cluster: RunningCluster, namespace: str) -> dict[str, str]:
    """The headers of an account that may write roles and bindings, and read pods."""
    base = f"/apis/{_RBAC}/v1/namespaces/{namespace}"
    rules = [rule("", "pods", "get", "list"), rule(_RBAC, "roles", "create"), rule(_RBAC, "rolebindings", "create")]
    cluster.create(f"{base}/roles", {"metadata": {"name": "limited"}, "rules": rules})
    cluster.create(f"{base}/roles", {"metadata": {"name": "strong"}, "rules": [rule("", "pods", "delete")]})
    cluster.create(f"{base}/rolebindings", binding("limited", "limited", user="limited"))
    return {"Impersonate-User": "limited"}


def binding(name: str, role: str, *, user: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }


@pytest.mark.parametrize(
    ("granted", "code"),
    [
        (rule("", "pods", "get"), 201),
        (rule("", "pods", "get", resourceNames=["p"]), 201),
        (rule("", "pods", "delete"), 403),
        (rule("", "*", "get"), 403),
        (rule("apps", "deployments/scale", "patch"), 403),
    ],
)
def test_a_role_has_no_more_rights_than_its_author(
    cluster: RunningCluster, namespace: str, limited: dict[str, str], granted: dict[str, Any], code: int
) -> None:
    path, body = f"/apis/{_RBAC}/v1/namespaces/{namespace}/roles", {"metadata": {"name": "new"}, "rules": [granted]}

    answer = cluster.request("POST", path, body, headers=dict(limited))

    assert answer.status_code == code
    assert (code == 201) != ("is attempting to grant RBAC permissions not currently held" in answer.text)


@pytest.mark.parametrize(("role", "code"), [("limited", 201), ("strong", 403)])
def test_a_binding_gives_no_more_rights_than_its_author_has(
    cluster: RunningCluster, namespace: str, limited: dict[str, str], role: str, code: int
) -> None:
    path = f"/apis/{_RBAC}/v1/namespaces/{namespace}/rolebindings"

    answer = cluster.request("POST", path, binding("new", role, user="friend"), headers=dict(limited))

    assert answer.status_code == code
