"""One pod on a node: set up, run through its init containers, kept running, stopped, and reported all the while."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import aiohttp

from streamway.sandbox.cluster.api.caller import component
from streamway.sandbox.cluster.api.deletion import delete
from streamway.sandbox.cluster.api.kinds import POD
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.node.containers import Container
from streamway.sandbox.cluster.node.environment import ConfigError, IssueToken, PodFacts
from streamway.sandbox.cluster.node.pod_status import is_sidecar, pod_status
from streamway.sandbox.cluster.node.pulling import Puller
from streamway.sandbox.cluster.node.rewriting import assign_ports, choose_address
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.cluster.node.surroundings import PodSurroundings
from streamway.sandbox.cluster.node.volumes import Volumes
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    every_container,
    name_of,
    namespace_of,
    set_condition,
    timestamp,
    uid_of,
)

_LOG = logging.getLogger("streamway.sandbox.cluster")
_KUBELET = component("kubelet")
_RETRY_SECONDS = 1.0


class PodWorker:
    """Runs one pod.

    Args:
        pod: The pod.
        registry: The cluster's objects.
        recorder: Where the kubelet's events go.
        puller: Fetches images.
        session: The HTTP client of probes.
        settings: Gives how the node behaves now.
        folder: Where all pods have their folders.
        api_address: Host and port of the API server.
        issue_token: Makes a token for a service account.
    """

    def __init__(
        self,
        pod: Object,
        registry: Registry,
        recorder: Recorder,
        puller: Puller,
        session: aiohttp.ClientSession,
        settings: Callable[[], NodeSettings],
        folder: Path,
        api_address: tuple[str, int],
        issue_token: IssueToken,
    ) -> None:
        self.uid = uid_of(pod)
        self._pod = pod
        self._registry = registry
        self._recorder = recorder
        self._began = timestamp()
        self._initialized = False
        self._done = False
        self._silent = False
        self._sidecars: list[asyncio.Task[int]] = []
        self._stopping: asyncio.Task[None] | None = None
        facts = PodFacts(
            store=registry.store,
            pod=pod,
            pod_ip=choose_address(),
            api_host=api_address[0],
            api_port=api_address[1],
            issue_token=issue_token,
            allocatable=settings().allocatable(),
        )
        place = folder / "pods" / self.uid
        self._around = PodSurroundings(
            facts=facts,
            folder=place,
            volumes=Volumes(place, folder / "claims"),
            recorder=recorder,
            puller=puller,
            session=session,
            settings=settings,
            changed=self._publish,
        )
        self._inits = self._containers("initContainers", "initContainerStatuses")
        self._mains = self._containers("containers", "containerStatuses")
        self._task = asyncio.create_task(self._run())

    def _containers(self, field: str, status_field: str) -> list[Container]:
        known = {one["name"]: one for one in dig(self._pod, "status", status_field, default=[])}
        return [
            Container(self._around, spec, f"spec.{field}", self._restart_rule(field, spec), known.get(spec["name"]))
            for name, _, spec in every_container(self._pod["spec"])
            if name == field
        ]

    def _restart_rule(self, field: str, spec: Object) -> Callable[[int], bool]:
        policy = self._pod["spec"].get("restartPolicy", "Always")
        if field == "initContainers":
            if is_sidecar(spec):
                return lambda _: True
            return lambda code: code != 0 and policy != "Never"
        return lambda code: policy == "Always" or (policy == "OnFailure" and code != 0)

    @property
    def address(self) -> str:
        return self._around.facts.pod_ip

    def real_port(self, port: int) -> int:
        """Give the port of this machine on which a declared port listens."""
        return self._around.ports.get(port, port)

    def container(self, name: str) -> Container | None:
        """Find a container by name."""
        return next((one for one in (*self._inits, *self._mains) if one.name == name), None)

    @property
    def containers(self) -> list[Container]:
        return [*self._inits, *self._mains]

    def stop(self, grace_seconds: float) -> None:
        """Begin to stop, or stop faster than begun."""
        if self._stopping is not None:
            if grace_seconds <= 0:
                self.kill()
            return
        self._stopping = asyncio.create_task(self._stop_and_delete(grace_seconds))

    def kill(self) -> None:
        """End everything now."""
        for one in self.containers:
            one.kill()

    async def shut_down(self, grace_seconds: float) -> None:
        """Stop without a word, as when the node goes down: the pod is to come back with it."""
        self._silent = True
        await asyncio.gather(*(one.stop(grace_seconds) for one in self.containers))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def forget(self) -> None:
        """End a pod whose object is gone."""
        self._silent = True
        self.kill()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        shutil.rmtree(self._around.folder, ignore_errors=True)

    async def evict(self, reason: str, message: str) -> None:
        """End the pod for good and leave its object as Failed, as under node pressure."""
        self._recorder.warning(self._pod, reason, message)
        await asyncio.gather(*(one.stop(0.0) for one in self.containers))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._done = True
        status = self._status()
        status |= {"phase": "Failed", "reason": reason, "message": message}
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}
        set_condition(status, condition)
        self._silent = True
        self._write(status)

    async def _run(self) -> None:
        try:
            await self._set_up()
            if await self._initialize():
                self._initialized = True
                self._publish()
                await asyncio.gather(*(one.run() for one in self._mains))
            await self._stop_sidecars()
            if self._stopping is None:
                self._done = True
                self._publish()
        except asyncio.CancelledError:
            raise
        except Exception:
            _LOG.exception("Pod %s/%s failed on its node", namespace_of(self._pod), name_of(self._pod))

    async def _set_up(self) -> None:
        self._around.folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                self._around.volumes.set_up(self._around.facts)
                break
            except ConfigError as error:
                self._recorder.warning(self._pod, "FailedMount", str(error))
                self._mark_creating()
                await asyncio.sleep(_RETRY_SECONDS)
        declared = [
            port["containerPort"]
            for _, _, spec in every_container(self._pod["spec"])
            for port in spec.get("ports") or []
        ]
        self._around.ports |= assign_ports(self.address, declared)
        if not self._inits:
            self._mark_creating()

    def _mark_creating(self) -> None:
        for one in self.containers:
            if "waiting" in one.state:
                one.state = {"waiting": {"reason": "PodInitializing" if self._inits else "ContainerCreating"}}
        self._publish()

    async def _initialize(self) -> bool:
        """Run the init containers in order; tells whether the main ones may start."""
        for one in self._inits:
            if is_sidecar(one.spec):
                self._sidecars.append(asyncio.create_task(one.run()))
                await one.started.wait()
            elif await one.run() != 0 or self._stopping is not None:
                return False
        return self._stopping is None

    async def _stop_sidecars(self) -> None:
        sidecars = [one for one in self._inits if is_sidecar(one.spec)]
        grace = float(self._pod["spec"].get("terminationGracePeriodSeconds", 30))
        await asyncio.gather(*(one.stop(grace) for one in sidecars))

    async def _stop_and_delete(self, grace_seconds: float) -> None:
        await asyncio.gather(*(one.stop(grace_seconds) for one in self.containers))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._publish()
        self._silent = True
        try:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
            delete(self._registry, POD, namespace_of(self._pod), name_of(self._pod), options, _KUBELET)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    def _status(self) -> Object:
        current = self._registry.store.get(POD, namespace_of(self._pod), name_of(self._pod))
        before = (current or self._pod).get("status") or {}
        return pod_status(
            clone(before),
            self.address,
            self._began,
            self._inits,
            self._mains,
            initialized=self._initialized,
            done=self._done,
            generation=dig(current or self._pod, "metadata", "generation", default=1),
        )

    def _publish(self) -> None:
        if not self._silent:
            self._write(self._status())

    def _write(self, status: Object) -> None:
        current = self._registry.store.get(POD, namespace_of(self._pod), name_of(self._pod))
        if current is not None and uid_of(current) == self.uid:
            self._registry.write_status(POD, namespace_of(self._pod), name_of(self._pod), status, _KUBELET)
