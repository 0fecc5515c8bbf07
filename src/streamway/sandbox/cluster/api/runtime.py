"""What the API server asks of the nodes: a pod's logs, its real address, and processes inside it."""

import asyncio
from pathlib import Path
from typing import Protocol

from streamway.sandbox.cluster.objects import Object


class PodRuntime(Protocol):
    """The nodes, as the API server sees them."""

    def log_file(self, pod: Object, container: str, *, previous: bool) -> Path | None:
        """Give the log of a container's current or previous run; None where it has not run."""

    def is_running(self, pod: Object, container: str) -> bool:
        """Tell whether a container runs now, so that its log may still grow."""

    def address(self, pod: Object, port: int) -> tuple[str, int]:
        """Give the host and port on which a container's port really listens."""

    async def run_inside(
        self, pod: Object, container: str, command: list[str], *, with_stdin: bool, terminal: int | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process with the environment and directory of a running container.

        Args:
            pod: The pod.
            container: The container's name.
            command: What to run.
            with_stdin: Whether its input is a pipe; else it has none.
            terminal: A terminal's descriptor for its input and outputs, in place of pipes.

        Raises:
            FileNotFoundError: the command is not in the container.
        """
