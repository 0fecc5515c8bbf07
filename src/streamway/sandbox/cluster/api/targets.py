"""What a request's path and method ask for."""

from dataclasses import dataclass
from urllib.parse import unquote

from streamway.sandbox.cluster.api.access import Attributes
from streamway.sandbox.cluster.api.kinds import Kind, find_resource
from streamway.sandbox.cluster.api.statuses import no_such_path

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get", "HEAD": "get"}
_NAMESPACE_PARTS = ("status", "finalize")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One place in the API.

    Args:
        kind: The kind of object.
        namespace: The namespace, empty for none or all.
        name: The object's name, empty for the collection.
        subresource: What is below the object.
        rest: What is below the subresource, as sent, for proxies.
        verb: What is to be done.
    """

    kind: Kind
    namespace: str
    name: str
    subresource: str
    rest: str
    verb: str

    def attributes(self) -> Attributes:
        """Say what has to be allowed."""
        return Attributes(
            verb=self.verb,
            group=self.kind.group,
            resource=self.kind.plural,
            subresource=self.subresource,
            namespace=self.namespace,
            name=self.name,
        )


def read_target(method: str, raw_path: str, *, watch: bool) -> Target | None:
    """Read a path below /api or /apis.

    Args:
        method: HTTP method.
        raw_path: The path as sent, still percent-encoded, without the query.
        watch: Whether the query asks for a watch.

    Returns:
        The target; None for paths that are no resource, such as discovery.

    Raises:
        ApiError: 404 for a resource that is not served.
    """
    steps = raw_path.strip("/").split("/")
    if steps[0] == "api" and len(steps) > 2:
        group, version, below = "", steps[1], steps[2:]
    elif steps[0] == "apis" and len(steps) > 3:
        group, version, below = steps[1], steps[2], steps[3:]
    else:
        return None
    namespace = ""
    if below[0] == "namespaces" and len(below) > 2 and below[2] not in _NAMESPACE_PARTS:
        namespace, below = unquote(below[1]), below[2:]
    kind = find_resource(group, version, unquote(below[0]))
    if kind is None or (namespace and not kind.namespaced):
        raise no_such_path()
    name = unquote(below[1]) if len(below) > 1 else ""
    subresource = below[2] if len(below) > 2 else ""
    if subresource and kind.subresource(subresource) is None:
        raise no_such_path()
    return Target(
        kind=kind,
        namespace=namespace,
        name=name,
        subresource=subresource,
        rest="/".join(below[3:]),
        verb=_verb(method, name, watch=watch),
    )


def _verb(method: str, name: str, *, watch: bool) -> str:
    verb = _VERBS.get(method, "get")
    if verb == "get" and watch:
        return "watch"
    if verb == "get" and not name:
        return "list"
    if verb == "delete" and not name:
        return "deletecollection"
    return verb
