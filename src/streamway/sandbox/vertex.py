"""Vertex AI Pipelines on this machine, so that submitting, scheduling and publishing are tried end to end.

One process stands for three services that start pipelines, and really runs what it is given:

    /v1/projects/P/locations/L/pipelineJobs, schedules     Vertex AI, for google-cloud-aiplatform (REST)
    /apis/v2beta1/...                                      Kubeflow Pipelines, for kfp.Client
    /registry/PROJECT/REPOSITORY/...                       a template repository, for kfp.registry.RegistryClient

    python -m streamway.sandbox.vertex --state DIR --port 0

What it stores is in DIR/vertex. Runs get the environment that the other parts announce in DIR/*.json. Beside the
services' own paths:

    /sandbox/faults, /sandbox/counters   see streamway.sandbox.faults
    POST /sandbox/clock                  {"advance_seconds": 3600}: move the schedules' clock forward
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from datetime import datetime
from pathlib import Path

from aiohttp import web

from streamway.sandbox.clock import Clock
from streamway.sandbox.faults import Counters, FaultTable, admin_routes, fault_middleware
from streamway.sandbox.processes import announce, die_with_parent
from streamway.sandbox.vertex_jobs import SURFACE, VertexSurface
from streamway.sandbox.vertex_kfp import KubeflowSurface
from streamway.sandbox.vertex_registry import TemplateRegistry
from streamway.sandbox.vertex_runs import RunQueue
from streamway.sandbox.vertex_schedules import Scheduler
from streamway.sandbox.vertex_store import Resource, Shelf, sibling_environment

log = logging.getLogger("streamway.sandbox.vertex")

# A compiled pipeline holds the source of its components; it is far below this.
_LARGEST_BODY_BYTES = 16 << 20


class VertexPart:
    """All of the part, wired together.

    Args:
        state_path: Folder of the sandbox.
        concurrency: Runs at a time.
    """

    def __init__(self, state_path: Path, concurrency: int) -> None:
        root = state_path / "vertex"
        self.clock = Clock()
        self.queue = RunQueue(
            root / "runs",
            environment=lambda: sibling_environment(state_path),
            concurrency=concurrency,
            on_change=self.clock.moved.set,
        )
        self.scheduler = Scheduler(
            Shelf(root / "schedules"), self.clock, count_active=self._count_active, fire=self._fire
        )
        self.vertex = VertexSurface(self.queue, self.scheduler, self.clock)
        self.kubeflow = KubeflowSurface(self.queue, self.scheduler, self.clock, root / "kubeflow")
        self.registry = TemplateRegistry(root / "registry")

    def application(self) -> web.Application:
        """Return the application, with its faults and counters."""
        table, counters = FaultTable(), Counters()
        application = web.Application(
            middlewares=[fault_middleware(table, counters)], client_max_size=_LARGEST_BODY_BYTES
        )
        application.add_routes(
            [
                *admin_routes(table, counters),
                *self.clock.routes(),
                *self.vertex.routes(),
                *self.kubeflow.routes(),
                *self.registry.routes(),
            ]
        )
        return application

    def _count_active(self, schedule_id: str) -> int:
        return sum(run.schedule == schedule_id and not run.is_over for run in self.queue.runs.values())

    def _fire(self, schedule_id: str, entry: Resource, due: datetime) -> None:
        surface = self.vertex if entry["surface"] == SURFACE else self.kubeflow
        surface.fire(schedule_id, entry, due)


async def serve(state_path: Path, port: int, concurrency: int) -> None:
    """Serve until SIGTERM or SIGINT; the address is in DIR/vertex.json."""
    part = VertexPart(state_path, concurrency)
    runner = web.AppRunner(part.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    # The names by which gcloud and kfp.Client are pointed at another address of these services.
    environment = {"CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": url, "KF_PIPELINES_ENDPOINT": url}
    announce(state_path, "vertex", url=url, environment=environment, registry_url=f"{url}/registry")
    log.info("Vertex AI and Kubeflow Pipelines serve at %s", url)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    firing = asyncio.create_task(part.scheduler.serve())
    await asyncio.wait({firing, asyncio.create_task(stopped.wait())}, return_when=asyncio.FIRST_COMPLETED)
    firing.cancel()
    await part.queue.close()
    await runner.cleanup()
    with contextlib.suppress(asyncio.CancelledError):
        await firing


def main(arguments: list[str]) -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.vertex", description="Vertex AI Pipelines")
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--concurrency", type=int, default=1, help="runs at a time; 0 keeps all of them queued")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    die_with_parent()
    asyncio.run(serve(given.state, given.port, given.concurrency))


if __name__ == "__main__":
    main(sys.argv[1:])
