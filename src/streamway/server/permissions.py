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
    """

    resource: str
    group: str = ""
    verbs: tuple[str, ...] = ("get",)


# All that a deployment, a smoke test, a rollback and a retirement do. Reading events and replica sets makes messages
# better; nothing fails without them.
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
    Permission(resource="events", verbs=("list", "watch")),
    Permission(resource="replicasets", group="apps", verbs=("list", "watch")),
)


def role_rules() -> list[dict[str, list[str]]]:
    """Rules of a Role that allows all of it, as a manifest has them."""
    return [
        {"apiGroups": [entry.group], "resources": [entry.resource], "verbs": list(entry.verbs)}
        for entry in (*NEEDED, *HELPFUL)
    ]


def check_permissions(*, namespace: str, cluster: str = "") -> None:
    """Ask the cluster whether we may do what a run does.

    Args:
        namespace: Where the endpoint is or will be; a namespace that does not exist yet is judged all the same.
        cluster: As in `streamway.cluster.connect`.

    Raises:
        ClusterPermissionError: names every verb and resource that is missing.
    """
    connection = connect(cluster)
    missing = [
        f"{verb} {entry.resource}{f'.{entry.group}' if entry.group else ''}"
        for entry in NEEDED
        for verb in entry.verbs
        if not _may(connection, namespace, entry, verb)
    ]
    if missing:
        raise ClusterPermissionError(
            f"In namespace {namespace} of {connection.name} we may not: {', '.join(missing)}.",
            next_step="Ask the cluster's administrator for a Role with these verbs, bound to this account.",
        )


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
