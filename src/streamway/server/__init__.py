"""vLLM on Kubernetes: render what a release needs, apply it, watch it, say why it fails, and go back."""

from streamway.server.context import Context, parse_model_config, read_model_config
from streamway.server.deploy import DeployedServer, deploy_server
from streamway.server.engine import PORT
from streamway.server.manifests import render, to_yaml
from streamway.server.operate import (
    EndpointStatus,
    RevisionStatus,
    abandon_revision,
    promote_revision,
    read_status,
    reject_revision,
    retire_server,
    rollback,
)
from streamway.server.permissions import check_permissions, role_rules
from streamway.server.pod import Pod, read_pod
from streamway.server.rollout import Phase
from streamway.server.serving import Serving, list_serving
from streamway.server.spec import Derived, Resources, ServerSpec, derive
from streamway.server.streamer_log import StreamerFigures, read_log
from streamway.server.switch import Candidate, Proof, Verify

__all__ = [
    "PORT",
    "Candidate",
    "Context",
    "DeployedServer",
    "Derived",
    "EndpointStatus",
    "Phase",
    "Pod",
    "Proof",
    "Resources",
    "RevisionStatus",
    "ServerSpec",
    "Serving",
    "StreamerFigures",
    "Verify",
    "abandon_revision",
    "check_permissions",
    "deploy_server",
    "derive",
    "list_serving",
    "parse_model_config",
    "promote_revision",
    "read_log",
    "read_model_config",
    "read_pod",
    "read_status",
    "reject_revision",
    "render",
    "retire_server",
    "role_rules",
    "rollback",
    "to_yaml",
]
