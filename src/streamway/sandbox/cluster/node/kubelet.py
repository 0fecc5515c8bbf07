"""The nodes' agent: takes on the pods that are assigned, keeps the nodes' own objects, and answers the API server."""

import asyncio
import logging
import shutil
from datetime import timedelta
from pathlib import Path

import aiohttp

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import LEASE, NODE, POD
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import not_found
from streamway.sandbox.cluster.api.store import Change
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.node.environment import IssueToken
from streamway.sandbox.cluster.node.images import ImageTable
from streamway.sandbox.cluster.node.node_status import node_status
from streamway.sandbox.cluster.node.pods import PodWorker
from streamway.sandbox.cluster.node.processes import read_parents
from streamway.sandbox.cluster.node.pulling import Puller
from streamway.sandbox.cluster.node.settings import NodeSettings, node_name, node_object
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    is_deleting,
    micro_timestamp,
    name_of,
    namespace_of,
    now,
    parse_time,
    uid_of,
)

_LOG = logging.getLogger("streamway.sandbox.cluster")
_KUBELET = component("kubelet")
_FINISHED = ("Succeeded", "Failed")
_LEASE_NAMESPACE = "kube-node-lease"
_LEASE_SECONDS = 10.0


class Kubelet:
    """The agent of all nodes.

    Args:
        registry: The cluster's objects.
        settings: What the nodes are like.
        images: Which images there are.
        folder: Where pods have their folders.
        api_address: Host and port of the API server.
        issue_token: Makes a token for a service account.
    """

    def __init__(
        self,
        registry: Registry,
        settings: NodeSettings,
        images: ImageTable,
        folder: Path,
        api_address: tuple[str, int],
        issue_token: IssueToken,
    ) -> None:
        self.settings = settings
        self._registry = registry
        self._puller = Puller(images)
        self._folder = folder
        self._api_address = api_address
        self._issue_token = issue_token
        self._workers: dict[str, PodWorker] = {}
        self._recorders: dict[str, Recorder] = {}
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Register the nodes, take on the pods that are there, and go on with those to come."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.register_nodes()
        self._registry.store.listen(self._notice)
        self._remove_old_folders()
        for pod in self._registry.store.items(POD):
            self._take_on(pod)
        self._keep(self._renew_leases())
        self._keep(self._limit_memory())

    def _remove_old_folders(self) -> None:
        """Remove what is left of pods that are gone."""
        known = {uid_of(pod) for pod in self._registry.store.items(POD)}
        for folder in (self._folder / "pods").glob("*"):
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    async def shut_down(self) -> None:
        """Stop every container and leave the objects as they are, for the next start."""
        for task in self._tasks:
            task.cancel()
        grace = self.settings.shutdown_seconds
        await asyncio.gather(*(worker.shut_down(grace) for worker in self._workers.values()))
        if self._session is not None:
            await self._session.close()

    def _keep(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def register_nodes(self) -> None:
        """Make the node objects what the settings say."""
        wanted = {node_name(self.settings, index): index for index in range(self.settings.count)}
        for node in self._registry.store.items(NODE):
            if name_of(node) not in wanted:
                self._remove_node(name_of(node))
        for name, index in wanted.items():
            if self._registry.store.get(NODE, "", name) is None:
                self._registry.create(NODE, "", node_object(self.settings, index), _KUBELET)
            status = node_status(self.settings, name)
            self._registry.write_status(NODE, "", name, status, _KUBELET)

    def _remove_node(self, name: str) -> None:
        for pod in self._registry.store.items(POD):
            if dig(pod, "spec", "nodeName") == name:
                options = {"gracePeriodSeconds": 0}
                delete(self._registry, POD, namespace_of(pod), name_of(pod), options, _KUBELET)
        delete(self._registry, NODE, "", name, {}, _KUBELET)

    def _recorder(self, node: str) -> Recorder:
        if node not in self._recorders:
            self._recorders[node] = Recorder(self._registry, "kubelet", node)
        return self._recorders[node]

    def _notice(self, change: Change) -> None:
        if change.kind is not POD:
            return
        pod = change.item
        if change.type == "DELETED":
            worker = self._workers.pop(uid_of(pod), None)
            if worker is not None:
                self._keep(worker.forget())
            return
        if uid_of(pod) not in self._workers:
            self._take_on(pod)
        elif is_deleting(pod):
            self._stop(pod)

    def _take_on(self, pod: Object) -> None:
        if not dig(pod, "spec", "nodeName") or dig(pod, "status", "phase") in _FINISHED:
            return
        assert self._session is not None, "the kubelet is started"
        worker = PodWorker(
            pod,
            self._registry,
            self._recorder(pod["spec"]["nodeName"]),
            self._puller,
            self._session,
            lambda: self.settings,
            self._folder,
            self._api_address,
            self._issue_token,
        )
        self._workers[uid_of(pod)] = worker
        if is_deleting(pod):
            self._stop(pod)

    def _stop(self, pod: Object) -> None:
        end = parse_time(pod["metadata"]["deletionTimestamp"])
        grace = dig(pod, "metadata", "deletionGracePeriodSeconds", default=0)
        # The timestamp counts whole seconds; a container gets its whole grace period all the same.
        left = min(float(grace), (end - now() + timedelta(seconds=1)).total_seconds())
        self._workers[uid_of(pod)].stop(max(0.0, left))

    def worker_of(self, pod: Object) -> PodWorker | None:
        """Find who runs a pod."""
        return self._workers.get(uid_of(pod))

    def log_file(self, pod: Object, container: str, *, previous: bool) -> Path | None:
        """Give the log of a container's current or previous run; None where it has not run."""
        worker = self.worker_of(pod)
        found = worker.container(container) if worker else None
        if found is None:
            return self._old_log(pod, container, previous=previous)
        return found.find_log(previous=previous)

    def _old_log(self, pod: Object, container: str, *, previous: bool) -> Path | None:
        """Find the log of a pod that has ended."""
        logs = sorted(
            (self._folder / "pods" / uid_of(pod) / "logs" / container).glob("*.log"), key=lambda path: int(path.stem)
        )
        place = -2 if previous else -1
        return logs[place] if len(logs) >= -place else None

    def is_running(self, pod: Object, container: str) -> bool:
        """Tell whether a container runs now."""
        worker = self.worker_of(pod)
        found = worker.container(container) if worker else None
        return found is not None and found.is_running

    def address(self, pod: Object, port: int) -> tuple[str, int]:
        """Give the host and port on which a container's port really listens."""
        worker = self.worker_of(pod)
        if worker is None:
            return dig(pod, "status", "podIP", default="127.0.0.1"), port
        return worker.address, worker.real_port(port)

    async def run_inside(
        self, pod: Object, container: str, command: list[str], *, with_stdin: bool, terminal: int | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process with the environment and directory of a running container.

        Raises:
            FileNotFoundError: the command is not in the container.
        """
        worker = self.worker_of(pod)
        found = worker.container(container) if worker else None
        if found is None:
            raise not_found(POD, name_of(pod))
        return await found.run_inside(command, with_stdin=with_stdin, terminal=terminal)

    async def _renew_leases(self) -> None:
        while True:
            for node in self._registry.store.items(NODE):
                self._renew_lease(name_of(node))
            await asyncio.sleep(_LEASE_SECONDS)

    def _renew_lease(self, name: str) -> None:
        stamp = micro_timestamp()
        known = self._registry.store.get(LEASE, _LEASE_NAMESPACE, name)
        if known is None:
            spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": stamp}
            body = {"metadata": {"name": name}, "spec": spec}
            self._registry.create(LEASE, _LEASE_NAMESPACE, body, _KUBELET)
            return
        renewed = clone(known)
        renewed["spec"]["renewTime"] = stamp
        self._registry.store.put(LEASE, renewed)

    async def _limit_memory(self) -> None:
        while True:
            await asyncio.sleep(self.settings.memory_sample_seconds)
            limited = [
                (container, limit)
                for worker in self._workers.values()
                for container in worker.containers
                if container.is_running and (limit := dig(container.spec, "resources", "limits", "memory"))
            ]
            if not limited:
                continue
            parents = await asyncio.get_running_loop().run_in_executor(None, read_parents)
            for container, limit in limited:
                process = container.process
                if process is not None and process.memory_bytes(parents) > parse_quantity(limit):
                    _LOG.info("Container %s exceeds its memory limit of %s", container.name, limit)
                    process.kill_for_memory()
