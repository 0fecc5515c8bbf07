"""promote_model: a release that has passed one stage serves in the next one, without the Hub."""

from typing import Any

from kfp import dsl

from streamway.components import promote_release, report_run
from streamway.pipelines.serving import ENGINE_IMAGE, STOPPER_IMAGE, check_form, serve_and_prove
from streamway.pipelines.workers import asker, mover


@dsl.pipeline(
    name="promote-model",
    display_name="Promote a model",
    description="A release that has passed elsewhere, copied by its commit, served and proved again.",
)
def promote_model(
    model_id: str,
    commit_sha: str,
    source_root: str,
    release_root: str,
    name: str,
    requires: list = ["staging"],  # noqa: B006
    stage: str = "",
    cache_zones: list = [],  # noqa: B006
    cache_ttl_hours: float = 24.0,
    cache_ingest_on_write: bool = False,
    cache_wait_minutes: float = 0.0,
    cluster: str = "",
    namespace: str = "models",
    image: str = ENGINE_IMAGE,
    accelerator: str = "nvidia-l4",
    gpu_count: int = 0,
    zone: str = "",
    engine_arguments: list = [],  # noqa: B006
    environment: dict = {},  # noqa: B006
    strategy: str = "auto",
    keep_hours: float = 1.0,
    stopper_image: str = STOPPER_IMAGE,
    timeout_seconds: float = 0.0,
    pod: dict = {},  # noqa: B006
    served_model_name: str = "",
    service_account: str = "",
    replicas: int = 1,
    max_replicas: int = 0,
    spot: bool = False,
    node_selector: dict = {},  # noqa: B006
    tolerations: list = [],  # noqa: B006
    warm_start: bool = True,
    questions: list = [],  # noqa: B006
    allowed_regression: float = 0.0,
    chat_required: bool = False,
    min_context_length: int = 0,
):
    """Take a release that has passed other stages to the endpoint of this one.

    1. Promote: check the release, its manifest and the stages it has passed; copy it inside Cloud Storage.
    2. Enable the Anywhere Cache of each zone.
    3. Deploy vLLM, which streams the weights from the bucket.
    4. Smoke-test the new revision; traffic moves to it only if it answers correctly.

    While the release is copied, every parameter is judged that a later step would stumble over. Where a stage is
    named, the release's gate is written: it has passed this stage too. Whatever happens, the exit handler writes the
    run's report.

    Args:
        model_id: Hugging Face model id, as `org/name`.
        commit_sha: The commit to promote, as 40 hex digits.
        source_root: Where the release is, as gs://BUCKET/PREFIX.
        release_root: Where it shall serve from, as gs://BUCKET/PREFIX.
        name: Name of the endpoint.
        requires: Stages that the release must have passed at its source; empty asks for none.
        stage: Stage that this run proves the release for, such as production; empty records nothing.
        cache_zones: Zones to cache the bucket in, or `cluster` for all of the cluster; empty for none.
        cache_ttl_hours: How long a cache entry lives, 1 to 168 hours.
        cache_wait_minutes: Longest wait until the caches serve, in minutes; 0 goes on at once.
        cache_ingest_on_write: Whether uploads fill the caches that are there, instead of first reads.
        cluster: projects/P/locations/L/clusters/C; empty for the current kubeconfig or the cluster this runs in.
        namespace: Kubernetes namespace of the endpoint.
        image: The engine's image.
        accelerator: GKE accelerator, such as nvidia-l4.
        gpu_count: GPUs for the server; 0 derives them from the size of the model.
        zone: Zone to keep the server in; empty for any.
        engine_arguments: More arguments for the engine.
        environment: More environment variables for the engine.
        strategy: How a new revision takes over: "surge", "blue_green", "recreate", or "auto" to find out.
        keep_hours: How long blue_green keeps the old revision running, in hours; 0 keeps it no longer.
        stopper_image: Image with python3, in which the cluster stops what blue_green kept when its time is over.
        timeout_seconds: Longest wait for the rollout, in seconds; 0 derives it from the size of the model.
        pod: What a pod gets where that shall not follow from the model's size: `cpu`, `memory` and `ephemeral_storage`
            as Kubernetes writes quantities, and `startup_seconds`.
        served_model_name: The model's name in the API; empty for the Hugging Face id.
        service_account: Kubernetes service account that may read the bucket; empty for one named as the endpoint.
        replicas: Pods; with max_replicas, the fewest.
        max_replicas: Most pods that an autoscaler may ask for; 0 for no autoscaler.
        spot: Whether spot nodes may be used.
        node_selector: More labels that a node must have, such as {"cloud.google.com/compute-class": "gpus"}.
        tolerations: More taints that may be tolerated, as Kubernetes writes them.
        warm_start: Whether the engine's cache is kept beside the release and restored by later pods.
        questions: Questions with expected answers, each with `prompt` and `expect`; and `match` (regex, exact,
            json_schema), `kind` (chat, completion, embedding, tool) and `max_tokens` where these differ.
        allowed_regression: By what share latency and throughput may be worse than before; 0 does not compare.
        chat_required: Whether a model that cannot chat fails, instead of being asked for what it serves.
        min_context_length: Shortest context that the model must be served with, in tokens; 0 for any.
    """
    run_uri = f"{release_root}/.runs/{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}"
    finish = asker(report_run(run_uri=run_uri, name=name, namespace=namespace), "Report")

    chosen: dict[str, Any] = {
        "endpoint": {"name": name, "cluster": cluster, "namespace": namespace},
        "caching": {
            "zones": cache_zones,
            "ttl_hours": cache_ttl_hours,
            "ingest_on_write": cache_ingest_on_write,
            "wait_minutes": cache_wait_minutes,
        },
        "server": {
            "image": image,
            "accelerator": accelerator,
            "gpu_count": gpu_count,
            "zone": zone,
            "engine_arguments": engine_arguments,
            "environment": environment,
            "strategy": strategy,
            "keep_hours": keep_hours,
            "stopper_image": stopper_image,
            "timeout_seconds": timeout_seconds,
            "pod": pod,
            "served_model_name": served_model_name,
            "service_account": service_account,
            "replicas": replicas,
            "max_replicas": max_replicas,
            "spot": spot,
            "node_selector": node_selector,
            "tolerations": tolerations,
            "warm_start": warm_start,
        },
        "proof": {
            "questions": questions,
            "allowed_regression": allowed_regression,
            "chat_required": chat_required,
            "min_context_length": min_context_length,
        },
    }

    with dsl.ExitHandler(finish, name="promotion"):
        checked = check_form(
            model_id=model_id,
            release_root=release_root,
            run_uri=run_uri,
            stage=stage,
            commit_sha=commit_sha,
            source_root=source_root,
            requires=requires,
            **chosen,
        )

        promoted = promote_release(
            model_id=model_id,
            commit_sha=commit_sha,
            source_root=source_root,
            release_root=release_root,
            run_uri=run_uri,
            requires=requires,
        )
        mover(promoted, "1 Promote")

        serve_and_prove(
            promoted,
            checked=checked,
            number=2,
            model_id=model_id,
            commit_sha=commit_sha,
            release_root=release_root,
            run_uri=run_uri,
            stage=stage,
            **chosen,
        )
