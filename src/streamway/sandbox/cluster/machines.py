"""What a test can do to the cluster's machines, behind the knobs of the API server."""

import asyncio
import dataclasses
import signal
from typing import Any

from streamway.sandbox.cluster.api.kinds import POD
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import no_such_path, not_found
from streamway.sandbox.cluster.control.scheduler import Scheduler
from streamway.sandbox.cluster.node.kubelet import Kubelet
from streamway.sandbox.cluster.objects import Object

_EVICTION = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51200Ki."


class Machines:
    """The machines, seen by a test.

    Args:
        registry: The cluster's objects.
        kubelet: The nodes' agent.
        scheduler: The scheduler, which preempts.
    """

    def __init__(self, registry: Registry, kubelet: Kubelet, scheduler: Scheduler) -> None:
        self._registry = registry
        self._kubelet = kubelet
        self._scheduler = scheduler
        self._tasks: set[asyncio.Task[None]] = set()

    def set_nodes(self, wanted: Object) -> Object:
        """Change the number of nodes, their accelerators or their zone; gives what there is now."""
        settings = self.change_settings(wanted)
        self._kubelet.register_nodes()
        return settings

    def change_settings(self, wanted: Object) -> Object:
        """Change how the nodes behave; gives all settings."""
        self._kubelet.settings = self._kubelet.settings.changed(wanted)
        changed: dict[str, Any] = dataclasses.asdict(self._kubelet.settings)
        return changed

    def disturb_pod(self, action: str, namespace: str, name: str, details: Object) -> None:
        """Evict, preempt or kill a pod.

        Raises:
            ApiError: 404 for an unknown pod or action.
        """
        pod = self._registry.get(POD, namespace, name)
        worker = self._kubelet.worker_of(pod)
        if action == "preempt":
            self._scheduler.preempt(pod, None)
        elif worker is None:
            raise not_found(POD, name)
        elif action == "evict":
            task = asyncio.create_task(worker.evict("Evicted", details.get("message", _EVICTION)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif action == "kill":
            container = worker.container(details.get("container") or pod["spec"]["containers"][0]["name"])
            if container is None or container.process is None:
                raise not_found(POD, name)
            if details.get("signal") == "OOM":
                container.process.kill_for_memory()
            else:
                container.process.signal_main(signal.Signals[details.get("signal", "SIGKILL")])
        else:
            raise no_such_path()
