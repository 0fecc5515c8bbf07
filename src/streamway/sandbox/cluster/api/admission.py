"""What happens to an object between its request and its storage: defaults that need the cluster, and refusals."""

import ipaddress
import secrets

from streamway.sandbox.cluster.api.faults import Faults
from streamway.sandbox.cluster.api.kinds import (
    CLAIM,
    NAMESPACE,
    POD,
    PRIORITY_CLASS,
    SERVICE,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
    Kind,
)
from streamway.sandbox.cluster.api.quota import check_quota
from streamway.sandbox.cluster.api.statuses import ApiError, forbidden, not_found
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.objects import Object, annotations_of, dig, every_container, name_of, random_suffix

# The range GKE gives Services by default: https://cloud.google.com/kubernetes-engine/docs/concepts/alias-ips
SERVICE_NETWORK = ipaddress.ip_network("34.118.224.0/20")

_SYSTEM_PRIORITY = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


class Admission:
    """The admission chain.

    Args:
        store: The cluster's objects.
        faults: Webhooks that refuse on order.
    """

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def admit_creation(self, kind: Kind, namespace: str, item: Object) -> None:
        """Judge and complete a new object, in place.

        Raises:
            ApiError: the refusal.
        """
        if kind.namespaced:
            self._check_namespace(kind, namespace, name_of(item))
        if kind is POD:
            self._complete_pod(namespace, item)
        elif kind is SERVICE:
            self._allocate_address(item)
        elif kind is CLAIM:
            self._choose_storage_class(item)
        self._faults.check_admission(kind, namespace, "CREATE")

    def admit_update(self, kind: Kind, namespace: str, item: Object, old: Object) -> None:
        """Judge and complete a changed object, in place.

        Raises:
            ApiError: the refusal.
        """
        if kind is SERVICE:
            self._keep_address(item, old)
        self._faults.check_admission(kind, namespace, "UPDATE")

    def check_room(self, kind: Kind, namespace: str, item: Object) -> None:
        """Ask the quotas about a new object, last, when everything else is known to be right.

        Raises:
            ApiError: the refusal.
        """
        if kind.namespaced:
            check_quota(self._store, kind, namespace, item)

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        found = self._store.get(NAMESPACE, "", namespace)
        if found is None:
            raise not_found(NAMESPACE, namespace)
        if dig(found, "status", "phase") != "Terminating":
            return
        why = f"unable to create new content in namespace {namespace} because it is being terminated"
        error = forbidden(kind, name, why)
        cause = {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
        raise ApiError(error.code, error.reason, error.message, {**(error.details or {}), "causes": [cause]})

    def _complete_pod(self, namespace: str, pod: Object) -> None:
        spec = pod["spec"]
        account = spec.setdefault("serviceAccountName", "default")
        spec["serviceAccount"] = account
        if self._store.get(SERVICE_ACCOUNT, namespace, account) is None:
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise forbidden(POD, name_of(pod), why)
        self._set_priority(pod)
        self._mount_token(namespace, pod)
        _tolerate(pod)

    def _mount_token(self, namespace: str, pod: Object) -> None:
        """Give every container its account's token for this API server, unless the pod or the account does without."""
        spec = pod["spec"]
        account = self._store.get(SERVICE_ACCOUNT, namespace, spec["serviceAccountName"]) or {}
        wanted = spec.get("automountServiceAccountToken")
        if wanted is False or (wanted is None and account.get("automountServiceAccountToken") is False):
            return
        name = f"kube-api-access-{random_suffix()}"
        mount = {"name": name, "mountPath": _TOKEN_PATH, "readOnly": True}
        bare = [
            container
            for _, _, container in every_container(spec)
            if all(one.get("mountPath") != _TOKEN_PATH for one in container.get("volumeMounts") or ())
        ]
        if not bare:
            return
        for container in bare:
            container["volumeMounts"] = [*(container.get("volumeMounts") or ()), dict(mount)]
        spec["volumes"] = [*(spec.get("volumes") or ()), _token_volume(name)]

    def _set_priority(self, pod: Object) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        if not name:
            spec.setdefault("priority", 0)
            return
        found = self._store.get(PRIORITY_CLASS, "", name)
        if found is None and name not in _SYSTEM_PRIORITY:
            raise forbidden(POD, name_of(pod), f"no PriorityClass with name {name} was found")
        spec["priority"] = found["value"] if found else _SYSTEM_PRIORITY[name]

    def _allocate_address(self, service: Object) -> None:
        spec = service["spec"]
        if spec.get("type") == "ExternalName":
            return
        taken = {dig(other, "spec", "clusterIP") for other in self._store.items(SERVICE)}
        while not spec.get("clusterIP"):
            candidate = str(SERVICE_NETWORK[1 + secrets.randbelow(SERVICE_NETWORK.num_addresses - 2)])
            if candidate not in taken:
                spec["clusterIP"] = candidate
        spec.setdefault("clusterIPs", [spec["clusterIP"]])

    def _keep_address(self, service: Object, old: Object) -> None:
        for field in ("clusterIP", "clusterIPs"):
            known = dig(old, "spec", field)
            if known and not service["spec"].get(field):
                service["spec"][field] = known

    def _choose_storage_class(self, claim: Object) -> None:
        if dig(claim, "spec", "storageClassName") is not None:
            return
        for found in self._store.items(STORAGE_CLASS):
            if annotations_of(found).get(_DEFAULT_CLASS) == "true":
                claim["spec"]["storageClassName"] = name_of(found)


def _token_volume(name: str) -> Object:
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    certificate = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": certificate},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    return {"name": name, "projected": {"defaultMode": 0o644, "sources": sources}}


def _tolerate(pod: Object) -> None:
    """Add the tolerations that GKE's admission adds: for requested extended resources, and for short outages."""
    tolerations = pod["spec"].setdefault("tolerations", [])
    wanted = {
        name
        for _, _, container in every_container(pod["spec"])
        for name in dig(container, "resources", "requests", default={})
        if "/" in name and not name.startswith("kubernetes.io/")
    }
    for name in sorted(wanted):
        toleration = {"key": name, "operator": "Exists", "effect": "NoSchedule"}
        if not any(known.get("key") == name and known.get("operator") == "Exists" for known in tolerations):
            tolerations.append(toleration)
    for name in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(known.get("key") == name for known in tolerations):
            tolerations.append({"key": name, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
