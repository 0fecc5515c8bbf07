"""What a configuration asks of the Hub and of the cluster, as those rooms take it."""

from collections.abc import Mapping
from typing import Any

from streamway import hub, server
from streamway.hub.pull import Pull
from streamway.hub.repository import read_repository
from streamway.settings import Settings


def plan_model(settings: Settings) -> hub.PullPlan:
    """What pulling the model of a configuration would take, as the Hub describes it now."""
    model = settings.model
    return hub.plan_pull(
        model_id=model.id,
        revision=model.revision,
        release_root=settings.storage.release_root,
        token=hub.read_token(model.token_secret),
        allowed_licences=model.allowed_licences,
        allow_remote_code=model.allow_remote_code,
    )


def planned_server(settings: Settings, plan: hub.PullPlan) -> server.ServerSpec:
    """The server that a run of a configuration would make of a planned model."""
    return server.ServerSpec(
        release_uri=plan.release_uri,
        model_id=plan.model_id,
        commit_sha=plan.commit_sha,
        size_bytes=plan.size_bytes,
        model_config=_planned_config(settings, plan),
        **server_choices(settings),
    )


def _planned_config(settings: Settings, plan: hub.PullPlan) -> Mapping[str, Any]:
    """The config.json of a planned release: as it was published, or as the Hub has it."""
    if plan.already_published:
        return server.read_model_config(plan.release_uri)
    token = hub.read_token(settings.model.token_secret)
    repository = read_repository(plan.model_id, plan.commit_sha, token=token)
    file = next((file for file in repository.files if file.path == "config.json"), None)
    if file is None:
        return {}
    return server.parse_model_config(Pull(repository, token).read_small(file), f"config.json of {plan.model_id}")


def server_choices(settings: Settings) -> dict[str, Any]:
    """What a configuration says of the server, as the server room takes it."""
    chosen = settings.server
    wanted = server.read_pod(chosen.pod.plain())
    return {
        "name": chosen.name,
        "namespace": chosen.namespace,
        "image": chosen.image,
        "accelerator": chosen.accelerator,
        "gpu_count": chosen.gpu_count,
        "zone": settings.pod_zone,
        "engine_arguments": chosen.engine_arguments,
        "environment": chosen.environment,
        "warm_start": chosen.warm_start,
        "served_model_name": chosen.served_model_name,
        "service_account": chosen.service_account,
        "replicas": chosen.replicas,
        "max_replicas": chosen.max_replicas,
        "spot": chosen.spot,
        "timeout_seconds": chosen.timeout_seconds,
        "resources": wanted.resources,
        "startup_seconds": wanted.startup_seconds,
        "node_selector": chosen.node_selector,
        "tolerations": chosen.tolerations,
    }
