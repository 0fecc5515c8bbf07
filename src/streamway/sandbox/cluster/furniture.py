"""What a fresh cluster has: system namespaces, roles, storage classes, the Service of the API server."""

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.kinds import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    NAMESPACE,
    PRIORITY_CLASS,
    SERVICE,
    STORAGE_CLASS,
    Kind,
)
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.objects import Object, name_of

_SERVER = component("kube-apiserver")
_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]
_USED = (
    ("", ["configmaps", "endpoints", "events", "persistentvolumeclaims", "pods", "pods/log", "pods/status", "services",
          "serviceaccounts", "namespaces", "resourcequotas", "limitranges"]),
    ("apps", ["deployments", "deployments/scale", "deployments/status", "replicasets", "replicasets/status"]),
    ("autoscaling", ["horizontalpodautoscalers"]),
    ("batch", ["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
    ("policy", ["poddisruptionbudgets"]),
    ("discovery.k8s.io", ["endpointslices"]),
)  # fmt: skip
_INTERNAL = (
    ("", ["pods/exec", "pods/proxy", "services/proxy", "secrets", "pods/eviction"]),
    ("coordination.k8s.io", ["leases"]),
)
_RBAC = (("rbac.authorization.k8s.io", ["roles", "rolebindings"]),)


def furnish(registry: Registry, port: int) -> None:
    """Create what is missing of the things every cluster has.

    Args:
        registry: The cluster's objects.
        port: The API server's port.
    """
    for name in _NAMESPACES:
        _ensure(registry, NAMESPACE, "", {"metadata": {"name": name}})
    for role in _cluster_roles():
        _ensure(registry, CLUSTER_ROLE, "", role)
    for name, group in (("cluster-admin", "system:masters"), ("system:discovery", "system:authenticated")):
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        body: Object = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
        _ensure(registry, CLUSTER_ROLE_BINDING, "", body)
    for name, value in (("system-cluster-critical", 2000000000), ("system-node-critical", 2000001000)):
        _ensure(registry, PRIORITY_CLASS, "", {"metadata": {"name": name}, "value": value})
    for name in ("standard-rwo", "premium-rwo"):
        is_default = "true" if name == "standard-rwo" else "false"
        annotations = {"storageclass.kubernetes.io/is-default-class": is_default}
        body = {"metadata": {"name": name, "annotations": annotations}, "provisioner": "pd.csi.storage.gke.io"}
        _ensure(registry, STORAGE_CLASS, "", body)
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]
    body = {"metadata": {"name": "kubernetes"}, "spec": {"ports": ports, "clusterIP": "34.118.224.1"}}
    _ensure(registry, SERVICE, "default", body)


def _ensure(registry: Registry, kind: Kind, namespace: str, body: Object) -> None:
    if registry.store.get(kind, namespace, name_of(body)) is None:
        registry.create(kind, namespace, body, _SERVER)


def _cluster_roles() -> list[Object]:
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    reviews = {
        "apiGroups": ["authorization.k8s.io", "authentication.k8s.io"],
        "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"],
        "verbs": ["create"],
    }
    paths = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version"]
    return [
        _role("cluster-admin", everything),
        _role("admin", _rules(_USED + _INTERNAL + _RBAC, _READ + _WRITE)),
        _role("edit", _rules(_USED + _INTERNAL, _READ + _WRITE)),
        _role("view", _rules(_USED, _READ)),
        _role("system:discovery", [{"nonResourceURLs": paths, "verbs": ["get"]}, reviews]),
    ]


def _rules(groups: tuple[tuple[str, list[str]], ...], verbs: list[str]) -> list[Object]:
    return [{"apiGroups": [group], "resources": resources, "verbs": verbs} for group, resources in groups]


def _role(name: str, rules: list[Object]) -> Object:
    return {"metadata": {"name": name}, "rules": rules}
