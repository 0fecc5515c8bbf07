"""What a run needs to be allowed in its namespace, asked before anything is moved."""

from dataclasses import dataclass

from streamway.cluster import ClusterConnection, connect
from streamway.errors import ClusterPermissionError

_WRITE = ("get", "patch", "create", "delete")


@dataclass(frozen=True, kw_only=True)
class Permission:
    """Verbs on one resource of a namespace.

    Args:
        resource: Its plural, with its subresource.
        group: Its API group; empty for the core.
        verbs: What is done with it.
        purpose: What is missed without it, where nothing fails for want of it.
    """

    resource: str
    group: str = ""
    verbs: tuple[str, ...] = ("get",)
    purpose: str = ""


# All that a deployment, a smoke test, a rollback and a retirement do.
NEEDED = (
    Permission(resource="serviceaccounts", verbs=(*_WRITE, "list")),
    Permission(resource="services", verbs=(*_WRITE, "list")),
    Permission(resource="services/proxy", verbs=("get", "create")),
    Permission(resource="pods", verbs=("get", "list", "watch")),
    Permission(resource="pods/log"),
    Permission(resource="deployments", group="apps", verbs=(*_WRITE, "list", "watch")),
    Permission(resource="poddisruptionbudgets", group="policy", verbs=(*_WRITE, "list")),
    Permission(resource="leases", group="coordination.k8s.io", verbs=("get", "create", "update", "delete")),
)
HELPFUL = (
    Permission(
        resource="events", verbs=("list", "watch"), purpose="to quote what the scheduler and the autoscaler say"
    ),
    Permission(
        resource="replicasets",
        group="apps",
        verbs=("list", "watch"),
        purpose="to say why pods are not created, and to know the pod that a warm-start kit is taken from as ours",
    ),
)
# Exec over a WebSocket is a `get`, and from Kubernetes 1.35 on a `create` too.
WARM_STARTS = (
    Permission(resource="pods/exec", verbs=("get", "create"), purpose="to capture warm-start kits"),
    Permission(
        resource="configmaps",
        verbs=("get", "list", "create", "patch", "delete"),
        purpose="to tell later pods which warm-start kit to restore",
    ),
)


def role_rules(*, warm_start: bool = False) -> list[dict[str, list[str]]]:
    """Rules of a Role that allows all of it, as a manifest has them.

    Args:
        warm_start: Whether warm-start kits are to be kept and restored.
    """
    return [
        {"apiGroups": [entry.group], "resources": [entry.resource], "verbs": list(entry.verbs)}
        for entry in (*NEEDED, *HELPFUL, *(WARM_STARTS if warm_start else ()))
    ]


def check_permissions(*, namespace: str, cluster: str = "", warm_start: bool = False) -> tuple[str, ...]:
    """Ask the cluster whether we may do what a run does.

    Args:
        namespace: Where the endpoint is or will be; a namespace that does not exist yet is judged all the same.
        cluster: As in `streamway.cluster.connect`.
        warm_start: Whether warm-start kits are to be kept and restored.

    Returns:
        A sentence for each helpful right that is missing; nothing fails without these.

    Raises:
        ClusterPermissionError: names every verb and resource that is missing and needed.
    """
    connection = connect(cluster)
    missing = [words for entry in NEEDED for words in _missing(connection, namespace, entry)]
    if missing:
        raise ClusterPermissionError(
            f"In namespace {namespace} of {connection.name} we may not: {', '.join(missing)}.",
            next_step="Ask the cluster's administrator for a Role with these verbs, bound to this account.",
        )
    lacks = [
        (entry, _missing(connection, namespace, entry)) for entry in (*HELPFUL, *(WARM_STARTS if warm_start else ()))
    ]
    return tuple(f"{', '.join(words)} would help {entry.purpose}" for entry, words in lacks if words)


def _missing(connection: ClusterConnection, namespace: str, entry: Permission) -> list[str]:
    resource = f"{entry.resource}.{entry.group}" if entry.group else entry.resource
    return [f"{verb} {resource}" for verb in entry.verbs if not _may(connection, namespace, entry, verb)]


def _may(connection: ClusterConnection, namespace: str, entry: Permission, verb: str) -> bool:
    resource, _, subresource = entry.resource.partition("/")
    attributes = {
        "namespace": namespace,
        "verb": verb,
        "group": entry.group,
        "resource": resource,
        "subresource": subresource,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    found = connection.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
    return bool((found.get("status") or {}).get("allowed"))
