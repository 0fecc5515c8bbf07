"""The stand-ins that let the whole pipeline run on one machine: real parts where there are any.

`up` starts a Hub, Cloud Storage, Anywhere Cache and a cluster, each a process of its own, and returns the
environment that points clients at them. The sandbox is an environment: nothing outside this package knows it.
"""

from streamway.sandbox.lifecycle import PartStatus, Sandbox, SandboxStatus, down, environment, status, up
from streamway.sandbox.parts import Bucket, HubToken, Image, PartSpec, SandboxConfig

__all__ = [
    "Bucket",
    "HubToken",
    "Image",
    "PartSpec",
    "PartStatus",
    "Sandbox",
    "SandboxConfig",
    "SandboxStatus",
    "down",
    "environment",
    "status",
    "up",
]
