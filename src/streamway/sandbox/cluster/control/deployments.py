"""Deployments: revisions of a template as ReplicaSets, rolled out by surge or by recreation."""

from collections.abc import Iterable

from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import DEPLOYMENT, POD, REPLICA_SET
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control import rollouts
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.control.loop import Key
from streamway.sandbox.cluster.control.owned import CONTROLLER, claim, keys_of, owner_reference
from streamway.sandbox.cluster.control.progress import deployment_status
from streamway.sandbox.cluster.objects import (
    Object,
    annotations_of,
    clone,
    controller_of,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    uid_of,
)

_FINISHED = ("Succeeded", "Failed")


class DeploymentController:
    """Rolls out every Deployment.

    Args:
        registry: The cluster's objects.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._recorder = Recorder(registry, "deployment-controller")

    def keys_for(self, change: Change) -> Iterable[Key]:
        """React to Deployments, their ReplicaSets, and pods that are gone, which recreation waits for."""
        item = change.item
        yield from keys_of(change, DEPLOYMENT, REPLICA_SET)
        if change.kind is POD and (change.type == "DELETED" or dig(item, "status", "phase") in _FINISHED):
            yield from self._deployment_of_pod(item)

    def _deployment_of_pod(self, pod: Object) -> Iterable[Key]:
        owner = controller_of(pod)
        if owner is None or owner["kind"] != "ReplicaSet":
            return
        replica_set = self._registry.store.get(REPLICA_SET, namespace_of(pod), owner["name"])
        above = controller_of(replica_set) if replica_set else None
        if above is not None:
            yield namespace_of(pod), above["name"]

    def reconcile(self, key: Key) -> float | None:
        """Take the next step of a rollout and say where it stands."""
        deployment = self._registry.store.get(DEPLOYMENT, *key)
        if deployment is None:
            return None
        if is_deleting(deployment):
            self._write_status(deployment)
            return None
        if dig(deployment, "spec", "paused"):
            self._resize_paused(deployment)
        elif dig(deployment, "spec", "strategy", "type") == "Recreate":
            self._recreate(deployment)
        else:
            self._roll(deployment)
        deployment = self._registry.store.get(DEPLOYMENT, *key) or deployment
        return self._write_status(deployment)

    def _sets(self, deployment: Object) -> tuple[Object | None, list[Object]]:
        return rollouts.split_sets(deployment, claim(self._registry, deployment, REPLICA_SET))

    def _resize_paused(self, deployment: Object) -> None:
        new, old = self._sets(deployment)
        active = [one for one in [*old, *([new] if new else [])] if rollouts.wanted_replicas(one)]
        if len(active) == 1:
            self._scale(deployment, active[0], rollouts.wanted_replicas(deployment))

    def _recreate(self, deployment: Object) -> None:
        new, old = self._sets(deployment)
        scaled = [self._scale(deployment, one, 0) for one in old]
        if any(scaled) or any(self._has_pods(one) for one in old):
            if new is not None:
                self._stamp_revision(deployment, new, old)
            return
        new = self._ensure_new(deployment, new, old)
        self._scale(deployment, new, rollouts.wanted_replicas(deployment))
        self._clean_up(deployment, old)

    def _has_pods(self, replica_set: Object) -> bool:
        """Tell whether any pod of a ReplicaSet may still run, so that a new one must wait."""
        return any(
            dig(pod, "status", "phase") not in _FINISHED
            for pod in self._registry.store.items(POD, namespace_of(replica_set))
            if (controller_of(pod) or {}).get("uid") == uid_of(replica_set)
        )

    def _roll(self, deployment: Object) -> None:
        new, old = self._sets(deployment)
        new = self._ensure_new(deployment, new, old)
        wanted = rollouts.wanted_replicas(deployment)
        if rollouts.wanted_replicas(new) > wanted:
            size = wanted
        else:
            size = rollouts.growth_of_new(deployment, new, [*old, new])
        if self._scale(deployment, new, size):
            return
        sizes = rollouts.shrink_of_old(deployment, new, old)
        for one in old:
            self._scale(deployment, one, sizes[name_of(one)])
        if all(rollouts.wanted_replicas(one) == 0 for one in old):
            self._clean_up(deployment, old)

    def _ensure_new(self, deployment: Object, new: Object | None, old: list[Object]) -> Object:
        if new is not None:
            return self._stamp_revision(deployment, new, old)
        revision = max((rollouts.revision_of(one) for one in old), default=0) + 1
        body = self._new_set(deployment, revision)
        empty = {"spec": {"replicas": 0}}
        body["spec"]["replicas"] = rollouts.growth_of_new(deployment, empty, [*old, empty])
        created = self._registry.create(REPLICA_SET, namespace_of(deployment), body, CONTROLLER)
        self._stamp_deployment(deployment, revision)
        size = rollouts.wanted_replicas(created)
        if size:
            text = f"Scaled up replica set {name_of(created)} from 0 to {size}"
            self._recorder.normal(deployment, "ScalingReplicaSet", text)
        return created

    def _new_set(self, deployment: Object, revision: int) -> Object:
        hash_ = rollouts.template_hash(deployment)
        template = rollouts.bare_template(deployment)
        template.setdefault("metadata", {}).setdefault("labels", {})[rollouts.TEMPLATE_HASH] = hash_
        selector = clone(dig(deployment, "spec", "selector", default={}))
        selector.setdefault("matchLabels", {})[rollouts.TEMPLATE_HASH] = hash_
        surge, _ = rollouts.bounds(deployment)
        replicas = rollouts.wanted_replicas(deployment)
        annotations = rollouts.set_annotations(deployment, {}, revision)
        annotations |= {rollouts.DESIRED: str(replicas), rollouts.MAXIMUM: str(replicas + surge)}
        spec: Object = {"selector": selector, "template": template}
        ready = dig(deployment, "spec", "minReadySeconds")
        if ready:
            spec["minReadySeconds"] = ready
        return {
            "apiVersion": REPLICA_SET.api_version,
            "kind": REPLICA_SET.name,
            "metadata": {
                "name": f"{name_of(deployment)}-{hash_}",
                "labels": clone(template["metadata"]["labels"]),
                "annotations": annotations,
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": spec,
        }

    def _stamp_revision(self, deployment: Object, new: Object, old: list[Object]) -> Object:
        """Make the ReplicaSet of the current template the highest revision, as a rollback needs it."""
        highest = max((rollouts.revision_of(one) for one in old), default=0)
        revision = rollouts.revision_of(new) if rollouts.revision_of(new) > highest else highest + 1
        annotations = rollouts.set_annotations(deployment, annotations_of(new), revision)
        ready = dig(deployment, "spec", "minReadySeconds", default=0)
        if annotations != annotations_of(new) or dig(new, "spec", "minReadySeconds", default=0) != ready:

            def stamped(live: Object) -> Object:
                changed: Object = clone(live)
                changed["metadata"]["annotations"] = annotations
                changed["spec"]["minReadySeconds"] = ready
                return changed

            new = self._registry.change(REPLICA_SET, namespace_of(new), name_of(new), stamped, CONTROLLER)
        self._stamp_deployment(deployment, revision)
        return new

    def _stamp_deployment(self, deployment: Object, revision: int) -> None:
        if annotations_of(deployment).get(rollouts.REVISION) == str(revision):
            return

        def stamped(live: Object) -> Object:
            changed: Object = clone(live)
            changed["metadata"].setdefault("annotations", {})[rollouts.REVISION] = str(revision)
            return changed

        self._registry.change(DEPLOYMENT, namespace_of(deployment), name_of(deployment), stamped, CONTROLLER)

    def _scale(self, deployment: Object, replica_set: Object, size: int) -> bool:
        """Give a ReplicaSet a size; tells whether that changed it."""
        before = rollouts.wanted_replicas(replica_set)
        replicas = rollouts.wanted_replicas(deployment)
        surge, _ = rollouts.bounds(deployment)
        marks = {rollouts.DESIRED: str(replicas), rollouts.MAXIMUM: str(replicas + surge)}
        if before == size and (size == 0 or marks.items() <= annotations_of(replica_set).items()):
            return False

        def scaled(live: Object) -> Object:
            changed: Object = clone(live)
            changed["spec"]["replicas"] = size
            changed["metadata"].setdefault("annotations", {}).update(marks)
            return changed

        self._registry.change(REPLICA_SET, namespace_of(replica_set), name_of(replica_set), scaled, CONTROLLER)
        if before != size:
            direction = "up" if size > before else "down"
            text = f"Scaled {direction} replica set {name_of(replica_set)} from {before} to {size}"
            self._recorder.normal(deployment, "ScalingReplicaSet", text)
        return before != size

    def _clean_up(self, deployment: Object, old: list[Object]) -> None:
        """Delete the oldest revisions beyond the history that shall be kept."""
        limit = dig(deployment, "spec", "revisionHistoryLimit", default=10)
        empty = [one for one in old if not rollouts.wanted_replicas(one) and not dig(one, "status", "replicas")]
        empty = sorted((one for one in empty if not is_deleting(one)), key=rollouts.revision_of)
        for one in empty[: max(0, len(old) - limit)]:
            delete(self._registry, REPLICA_SET, namespace_of(one), name_of(one), {}, CONTROLLER)

    def _write_status(self, deployment: Object) -> float | None:
        new, old = self._sets(deployment)
        pods_left = self._terminating(deployment, [*old, *([new] if new else [])])
        status, again = deployment_status(deployment, new, old, terminating=pods_left)
        self._registry.write_status(DEPLOYMENT, namespace_of(deployment), name_of(deployment), status, CONTROLLER)
        return again

    def _terminating(self, deployment: Object, sets: list[Object]) -> int:
        owners = {uid_of(one) for one in sets}
        return sum(
            1
            for pod in self._registry.store.items(POD, namespace_of(deployment))
            if is_deleting(pod) and (controller_of(pod) or {}).get("uid") in owners
        )
