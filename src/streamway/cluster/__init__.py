"""The way to a Kubernetes API server, shared by everything that talks to one and written once."""

from streamway.cluster.access import connect, gke_configuration
from streamway.cluster.connection import (
    RELEASE,
    RELEASE_URI,
    REVISION,
    ClusterConnection,
    Manifest,
    ProxyResponse,
    ServiceProxy,
)
from streamway.cluster.executing import run_in_container
from streamway.cluster.project import Project, check_project
from streamway.cluster.zones import EVERY_ZONE, check_zone, resolve_zones

__all__ = [
    "EVERY_ZONE",
    "RELEASE",
    "RELEASE_URI",
    "REVISION",
    "ClusterConnection",
    "Manifest",
    "Project",
    "ProxyResponse",
    "ServiceProxy",
    "check_project",
    "check_zone",
    "connect",
    "gke_configuration",
    "resolve_zones",
    "run_in_container",
]
