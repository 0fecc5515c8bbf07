"""What all containers of a pod share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.node.environment import PodFacts
from streamway.sandbox.cluster.node.pulling import Puller
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.cluster.node.volumes import Volumes
from streamway.sandbox.cluster.objects import Object


@dataclass(kw_only=True)
class PodSurroundings:
    """One pod, seen by its containers.

    Args:
        facts: The pod and what its variables may ask about.
        folder: The pod's folder.
        volumes: Its volumes.
        recorder: Where events go.
        puller: Fetches images.
        session: The HTTP client of probes and hooks.
        settings: Gives how the node behaves now.
        changed: Called when a container's state has changed.
        ports: Its declared ports and where they really are.
    """

    facts: PodFacts
    folder: Path
    volumes: Volumes
    recorder: Recorder
    puller: Puller
    session: aiohttp.ClientSession
    settings: Callable[[], NodeSettings]
    changed: Callable[[], None]
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def pod(self) -> Object:
        return self.facts.pod

    def say(self, kind: str, reason: str, message: str, field_path: str) -> None:
        """Record an event about one of the containers."""
        record = self.recorder.normal if kind == "Normal" else self.recorder.warning
        record(self.pod, reason, message, field_path)
