"""What a run needs to be allowed in its namespace, asked before anything is moved."""

from collections.abc import Iterable
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
# What blue_green kept is stopped by a CronJob, whose own account may scale that Deployment and nothing else. Nobody may
# grant a right that they do not have, which is what the first of these is for.
_STOPS = "to have the cluster stop what blue_green kept, when its time is over"
STOPPING = (
    Permission(resource="deployments/scale", group="apps", verbs=("get", "patch"), purpose=_STOPS),
    Permission(resource="cronjobs", group="batch", verbs=_WRITE, purpose=_STOPS),
    Permission(resource="roles", group="rbac.authorization.k8s.io", verbs=_WRITE, purpose=_STOPS),
    Permission(resource="rolebindings", group="rbac.authorization.k8s.io", verbs=_WRITE, purpose=_STOPS),
)


def role_rules(*, warm_start: bool = False, blue_green: bool = False) -> list[dict[str, list[str]]]:
    """Rules of a Role that allows all of it, as a manifest has them.

    Args:
        warm_start: Whether warm-start kits are to be kept and restored.
        blue_green: Whether the cluster is to stop what `blue_green` kept.
    """
    return [
        {"apiGroups": [entry.group], "resources": [entry.resource], "verbs": list(entry.verbs)}
        for entry in (*NEEDED, *_helpful(warm_start=warm_start, blue_green=blue_green))
    ]


def _helpful(*, warm_start: bool, blue_green: bool) -> tuple[Permission, ...]:
    return (*HELPFUL, *(WARM_STARTS if warm_start else ()), *(STOPPING if blue_green else ()))


def check_permissions(
    *, namespace: str, cluster: str = "", warm_start: bool = False, blue_green: bool = False
) -> tuple[str, ...]:
    """Ask the cluster whether we may do what a run does.

    Args:
        namespace: Where the endpoint is or will be; a namespace that does not exist yet is judged all the same.
        cluster: As in `streamway.cluster.connect`.
        warm_start: Whether warm-start kits are to be kept and restored.
        blue_green: Whether the cluster is to stop what `blue_green` kept.

    Returns:
        A sentence for each helpful right that is missing; nothing fails without these.

    Raises:
        ClusterPermissionError: names every verb and resource that is missing and needed.
    """
    connection = connect(cluster)
    missing = missing_rights(connection, namespace, NEEDED)
    if missing:
        raise ClusterPermissionError(
            f"In namespace {namespace} of {connection.name} we may not: {', '.join(missing)}.",
            next_step="Ask the cluster's administrator for a Role with these verbs, bound to this account.",
        )
    lacks: dict[str, list[str]] = {}
    for entry in _helpful(warm_start=warm_start, blue_green=blue_green):
        lacks.setdefault(entry.purpose, []).extend(_missing(connection, namespace, entry))
    return tuple(f"{', '.join(words)} would help {purpose}" for purpose, words in lacks.items() if words)


def missing_rights(connection: ClusterConnection, namespace: str, wanted: Iterable[Permission]) -> list[str]:
    """Ask the cluster which of some rights we do not have, and give each as `verb resource`."""
    return [words for entry in wanted for words in _missing(connection, namespace, entry)]


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
