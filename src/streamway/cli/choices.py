"""What a configuration asks of the Hub and of the cluster, as those rooms take it."""

from collections.abc import Mapping
from typing import Any

from streamway import hub, server, storage, weights
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
    size_bytes, model_config = _planned_release(settings, plan)
    return server.ServerSpec(
        release_uri=plan.release_uri,
        model_id=plan.model_id,
        commit_sha=plan.commit_sha,
        size_bytes=size_bytes,
        model_config=model_config,
        **server_choices(settings),
    )


def _planned_release(settings: Settings, plan: hub.PullPlan) -> tuple[int, Mapping[str, Any]]:
    """The bytes and the config.json of a planned release: as it was published, or as its conversion will have it.

    Both decide what a pod is, so what is shown before a run has the name that the run will give it.
    """
    if (release := storage.find_release(plan.release_uri)) is not None:
        return release.size_bytes, server.read_model_config(release.uri)
    token = hub.read_token(settings.model.token_secret)
    model = hub.find_at_hub(model_id=plan.model_id, commit_sha=plan.commit_sha, token=token)
    size_bytes = weights.planned_bytes(model.snapshot, open_left=model.open)
    described = model.read_small("config.json")
    if described is None:
        return size_bytes, {}
    return size_bytes, server.parse_model_config(described, f"config.json of {plan.model_id}")


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
