"""Namespaces: what every one has, and how one that is deleted takes everything in it along."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import CONFIG_MAP, KINDS, NAMESPACE, SERVICE_ACCOUNT, Kind
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.resources import finalize_namespace
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER
from streamway.sandbox.cluster.objects import Object, clone, dig, is_deleting, name_of, namespace_of, set_condition

_ROOT_CERTIFICATE = "kube-root-ca.crt"


class NamespaceController:
    """Furnishes new namespaces and empties deleted ones.

    Args:
        registry: The cluster's objects.
        certificate: The PEM of the cluster's certificate authority.
    """

    def __init__(self, registry: Registry, certificate: str) -> None:
        self._registry = registry
        self._certificate = certificate

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to namespaces, and to what is in those that are being deleted."""
        if change.kind is NAMESPACE:
            yield "", name_of(change.item)
        elif change.kind.namespaced:
            namespace = self._registry.store.get(NAMESPACE, "", namespace_of(change.item))
            missing_furniture = change.type == "DELETED" and change.kind in (SERVICE_ACCOUNT, CONFIG_MAP)
            if namespace is not None and (is_deleting(namespace) or missing_furniture):
                yield "", name_of(namespace)

    def reconcile(self, key: Key) -> float | None:
        """Furnish or empty one namespace."""
        namespace = self._registry.store.get(NAMESPACE, *key)
        if namespace is None:
            return None
        if is_deleting(namespace):
            self._empty(namespace)
        else:
            self._furnish(name_of(namespace))
        return None

    def _furnish(self, name: str) -> None:
        self._ensure(SERVICE_ACCOUNT, name, {"metadata": {"name": "default"}})
        data = {"ca.crt": self._certificate}
        self._ensure(CONFIG_MAP, name, {"metadata": {"name": _ROOT_CERTIFICATE}, "data": data})

    def _ensure(self, kind: Kind, namespace: str, body: Object) -> None:
        if self._registry.store.get(kind, namespace, name_of(body)) is None:
            self._registry.create(kind, namespace, body, CONTROLLER)

    def _empty(self, namespace: Object) -> None:
        name = name_of(namespace)
        for kind, item in self._content(name):
            if not is_deleting(item):
                delete(self._registry, kind, name, name_of(item), {"propagationPolicy": "Background"}, CONTROLLER)
        left = self._content(name)
        if not left:
            finalize_namespace(self._registry, name, [], CONTROLLER)
            if self._registry.store.get(NAMESPACE, "", name) is None:
                return
        self._explain(namespace, left)

    def _content(self, name: str) -> list[tuple[Kind, Object]]:
        return [
            (kind, item)
            for kind in KINDS
            if kind.namespaced and kind.is_stored
            for item in self._registry.store.items(kind, name)
        ]

    def _explain(self, namespace: Object, left: list[tuple[Kind, Object]]) -> None:
        """Say in the namespace's conditions what its deletion waits for, as a real cluster does."""
        status = clone(namespace.get("status") or {})
        resources: dict[str, int] = {}
        finalizers: dict[str, int] = {}
        for kind, item in left:
            resources[f"{kind.group_resource}."] = resources.get(f"{kind.group_resource}.", 0) + 1
            for finalizer in dig(item, "metadata", "finalizers", default=[]):
                finalizers[finalizer] = finalizers.get(finalizer, 0) + 1
        _remaining(
            status,
            "NamespaceContentRemaining",
            "SomeResourcesRemain" if resources else "ContentRemoved",
            [f"{one} has {count} resource instances" for one, count in sorted(resources.items())],
            "Some resources are remaining: ",
            "All content successfully removed",
        )
        _remaining(
            status,
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain" if finalizers else "ContentHasNoFinalizers",
            [f"{one} in {count} resource instances" for one, count in sorted(finalizers.items())],
            "Some content in the namespace has finalizers remaining: ",
            "All content-preserving finalizers finished",
        )
        self._registry.write_status(NAMESPACE, "", name_of(namespace), status, CONTROLLER)


def _remaining(status: Object, kind: str, reason: str, found: list[str], intro: str, otherwise: str) -> None:
    condition = {
        "type": kind,
        "status": "True" if found else "False",
        "reason": reason,
        "message": intro + ", ".join(found) if found else otherwise,
    }
    set_condition(status, condition)
