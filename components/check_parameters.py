"""Beside the first step: what was filled in, judged before it costs hours to find out."""

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_parameters(
    model_id: str,
    release_root: str,
    run_uri: str,
    name: str,
    commit_sha: str = "",
    source_root: str = "",
    requires: list = [],  # noqa: B006
    stage: str = "",
    cache_zones: list = [],  # noqa: B006
    cache_ttl_hours: float = 24.0,
    cache_wait_minutes: float = 0.0,
    cluster: str = "",
    namespace: str = "models",
    image: str = "",
    accelerator: str = "nvidia-l4",
    gpu_count: int = 0,
    zone: str = "",
    engine_arguments: list = [],  # noqa: B006
    environment: dict = {},  # noqa: B006
    strategy: str = "auto",
    keep_hours: float = 1.0,
    stopper_image: str = "python:3.11.14-slim-bookworm",
    timeout_seconds: float = 0.0,
    pod: dict = {},  # noqa: B006
    served_model_name: str = "",
    service_account: str = "",
    replicas: int = 1,
    max_replicas: int = 0,
    node_selector: dict = {},  # noqa: B006
    tolerations: list = [],  # noqa: B006
    questions: list = [],  # noqa: B006
    allowed_regression: float = 0.0,
    min_context_length: int = 0,
):
    """Judge every parameter of the later steps at once, and ask the cluster whether it answers; change nothing.

    Each parameter is that of the step which uses it.

    Args:
        model_id: As in pull_model.
        release_root: As in upload_model.
        run_uri: Where this run keeps its journal.
        name: As in deploy_server.
        commit_sha: As in promote_release; empty where the pull resolves it.
        source_root: As in promote_release.
        requires: As in promote_release.
        stage: As in record_passage.
        cache_zones: As in enable_cache.
        cache_ttl_hours: As in enable_cache.
        cache_wait_minutes: As in enable_cache.
        cluster: As in deploy_server.
        namespace: As in deploy_server.
        image: As in deploy_server.
        accelerator: As in deploy_server.
        gpu_count: As in deploy_server.
        zone: As in deploy_server.
        engine_arguments: As in deploy_server.
        environment: As in deploy_server.
        strategy: As in deploy_server.
        keep_hours: As in deploy_server.
        stopper_image: As in deploy_server.
        timeout_seconds: As in deploy_server.
        pod: As in deploy_server.
        served_model_name: As in deploy_server.
        service_account: As in deploy_server.
        replicas: As in deploy_server.
        max_replicas: As in deploy_server.
        node_selector: As in deploy_server.
        tolerations: As in deploy_server.
        questions: As in smoke_test.
        allowed_regression: As in smoke_test.
        min_context_length: As in smoke_test.
    """
    from streamway import preflight, report

    with report.step("check_parameters", run_uri) as step:
        form = preflight.Form(
            model_id=model_id,
            release_root=release_root,
            commit_sha=commit_sha,
            source_root=source_root,
            requires=requires,
            stage=stage,
            cluster=cluster,
            cache_zones=cache_zones,
            cache_ttl_hours=cache_ttl_hours,
            cache_wait_minutes=cache_wait_minutes,
            strategy=strategy,
            keep_hours=keep_hours,
            stopper_image=stopper_image,
            questions=questions,
            allowed_regression=allowed_regression,
            min_context_length=int(min_context_length),
            server={
                "name": name,
                "namespace": namespace,
                "image": image,
                "accelerator": accelerator,
                "gpu_count": int(gpu_count),
                "zone": zone,
                "engine_arguments": engine_arguments,
                "environment": environment,
                "served_model_name": served_model_name,
                "service_account": service_account,
                "replicas": int(replicas),
                "max_replicas": int(max_replicas),
                "node_selector": node_selector,
                "tolerations": tolerations,
                "timeout_seconds": timeout_seconds,
            },
            pod=pod,
        )
        step.keep({"looked_at": preflight.check_parameters(form)})
