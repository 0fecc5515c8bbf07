"""The cluster as a process: everything put together, served, and taken down again."""

import asyncio
import contextlib
import logging
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from streamway.sandbox.clock import Clock
from streamway.sandbox.cluster.api.access import Access
from streamway.sandbox.cluster.api.faults import Faults
from streamway.sandbox.cluster.api.front import Front
from streamway.sandbox.cluster.api.knobs import Knobs
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.api.watching import Watches
from streamway.sandbox.cluster.control.bookkeeping import (
    AutoscalerController,
    ClaimController,
    DisruptionBudgetController,
    EventExpiry,
    QuotaController,
)
from streamway.sandbox.cluster.control.cronjobs import CronJobController
from streamway.sandbox.cluster.control.deployments import DeploymentController
from streamway.sandbox.cluster.control.endpoints import EndpointsController
from streamway.sandbox.cluster.control.garbage import GarbageCollector
from streamway.sandbox.cluster.control.jobs import JobController
from streamway.sandbox.cluster.control.loop import Controller, ControlLoop
from streamway.sandbox.cluster.control.namespaces import NamespaceController
from streamway.sandbox.cluster.control.replicasets import ReplicaSetController
from streamway.sandbox.cluster.control.scheduler import Scheduler
from streamway.sandbox.cluster.credentials import Credentials, load_credentials, write_kubeconfig
from streamway.sandbox.cluster.furniture import furnish
from streamway.sandbox.cluster.machines import Machines
from streamway.sandbox.cluster.node.images import ImageTable
from streamway.sandbox.cluster.node.kubelet import Kubelet
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.processes import announce

_LOG = logging.getLogger("streamway.sandbox.cluster")

# Open requests, such as watches, are given this long when the server stops.
_CLOSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How to run the cluster.

    Args:
        state: The sandbox's folder; the cluster keeps its own below.
        port: The API server's port, 0 for a free one.
        images: The table of images; None for none.
        node: What the nodes are like.
    """

    state: Path
    port: int
    images: Path | None
    node: NodeSettings

    @property
    def folder(self) -> Path:
        return self.state / "cluster"


class Cluster:
    """A running cluster.

    Args:
        options: How to run it.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self._options = options
        self._store = Store(options.folder / "objects.db")
        self._faults = Faults()
        self._registry = Registry(self._store, self._faults)
        self._watches = Watches(self._store)
        self._clock = Clock()
        self._runner: web.AppRunner | None = None
        self._kubelet: Kubelet | None = None
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve, and then say so in the state file."""
        options = self._options
        credentials = load_credentials(options.folder / "keys")
        listener = _listen(options)
        port: int = listener.getsockname()[1]
        access = Access(self._store, self._faults, credentials.token)
        kubelet = Kubelet(
            self._registry,
            options.node,
            ImageTable(options.images),
            options.folder,
            ("127.0.0.1", port),
            access.issue_token,
        )
        self._kubelet = kubelet
        furnish(self._registry, port)
        scheduler = Scheduler(self._registry)
        controllers = self._controllers(credentials.authority.read_text(), kubelet)
        self._loop = asyncio.create_task(ControlLoop(self._store, [*controllers, scheduler]).run())
        await kubelet.start()
        knobs = Knobs(self._faults, self._watches, Machines(self._registry, kubelet, scheduler), self._clock)
        front = Front(self._registry, self._watches, access, kubelet, knobs)
        self._runner = web.AppRunner(front.application(), access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=credentials.server_context()).start()
        self._announce(f"https://127.0.0.1:{port}", credentials)

    def _controllers(self, authority: str, kubelet: Kubelet) -> list[Controller]:
        registry = self._registry
        return [
            NamespaceController(registry, authority),
            GarbageCollector(registry),
            DeploymentController(registry),
            ReplicaSetController(registry),
            JobController(registry, lambda: kubelet.settings.backoff_seconds),
            CronJobController(registry, self._clock),
            EndpointsController(registry),
            QuotaController(registry),
            DisruptionBudgetController(registry),
            AutoscalerController(registry),
            ClaimController(registry),
            EventExpiry(registry),
        ]

    def _announce(self, url: str, credentials: Credentials) -> None:
        kubeconfig = self._options.folder / "kubeconfig"
        write_kubeconfig(kubeconfig, url, credentials)
        environment = {"KUBECONFIG": str(kubeconfig)}
        announce(self._options.state, "cluster", url=url, environment=environment, kubeconfig=str(kubeconfig))
        _LOG.info("The cluster serves at %s", url)

    async def stop(self) -> None:
        """Stop every container, then the server."""
        (self._options.state / "cluster.json").unlink(missing_ok=True)
        if self._loop is not None:
            self._loop.cancel()
        if self._kubelet is not None:
            await self._kubelet.shut_down()
        self._watches.end_all()
        if self._runner is not None:
            await self._runner.cleanup()
        self._store.close()


def _listen(options: ClusterOptions) -> socket.socket:
    """Take the wanted port, or the one of the last time, so that a kubeconfig outlives a restart."""
    last = options.folder / "port"
    if not options.port and last.exists():
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", int(last.read_text())))
    listener = socket.create_server(("127.0.0.1", options.port))
    last.write_text(str(listener.getsockname()[1]))
    return listener


async def run_cluster(options: ClusterOptions) -> None:
    """Run the cluster until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    cluster = Cluster(options)
    try:
        await cluster.start()
        await stopped.wait()
    finally:
        await cluster.stop()
