"""serve_model: from a model id to an endpoint that has answered correctly."""

from typing import Any

from kfp import dsl

from streamway.components import convert_weights, pull_model, report_run, upload_model
from streamway.pipelines.serving import ENGINE_IMAGE, STOPPER_IMAGE, check_form, serve_and_prove
from streamway.pipelines.workers import asker, mover


@dsl.pipeline(
    name="serve-model",
    display_name="Serve a model",
    description="From a Hugging Face model id to a verified OpenAI endpoint on GKE.",
)
def serve_model(
    model_id: str,
    release_root: str,
    name: str,
    revision: str = "main",
    token_secret: str = "",
    allowed_licences: list = [],  # noqa: B006
    allow_remote_code: bool = False,
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
    stage: str = "",
):
    """Take a Hugging Face model id to a verified OpenAI endpoint on GKE.

    1. Pull the commit's files to staging, checked against the Hub.
    2. Convert them to one verified set of safetensors.
    3. Upload: publish the release, its manifest last.
    4. Enable the Anywhere Cache of each zone.
    5. Deploy vLLM, which streams the weights from the bucket.
    6. Smoke-test the new revision; traffic moves to it only if it answers correctly.

    While the model is pulled, every parameter is judged that a later step would stumble over. Where a stage is named,
    the release's gate is written: it has passed this stage. Whatever happens, the exit handler writes the run's report.

    Args:
        model_id: Hugging Face model id, as `org/name`.
        release_root: Where releases live, as gs://BUCKET/PREFIX.
        name: Name of the endpoint.
        revision: Branch, tag or commit of the model.
        token_secret: Secret Manager resource name of a Hub token; empty for public models.
        allowed_licences: Licence ids that may be served; empty allows any.
        allow_remote_code: Whether a model that brings its own Python code may be served.
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
        stage: Stage that this run proves the release for, such as staging; empty records nothing.
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

    with dsl.ExitHandler(finish, name="six steps"):
        checked = check_form(
            model_id=model_id,
            release_root=release_root,
            run_uri=run_uri,
            stage=stage,
            **chosen,
        )

        pulled = pull_model(
            model_id=model_id,
            revision=revision,
            release_root=release_root,
            run_uri=run_uri,
            token_secret=token_secret,
            allowed_licences=allowed_licences,
            allow_remote_code=allow_remote_code,
        )
        mover(pulled, "1 Pull")

        converted = convert_weights(
            model_id=model_id,
            commit_sha=pulled.outputs["commit_sha"],
            release_root=release_root,
            run_uri=run_uri,
            snapshot=pulled.outputs["snapshot"],
            token_secret=token_secret,
        )
        mover(converted.after(checked), "2 Convert")

        published = upload_model(
            release_root=release_root,
            run_uri=run_uri,
            weights=converted.outputs["weights"],
        )
        mover(published, "3 Upload")

        serve_and_prove(
            published,
            checked=checked,
            number=4,
            model_id=model_id,
            commit_sha=pulled.outputs["commit_sha"],
            release_root=release_root,
            run_uri=run_uri,
            stage=stage,
            **chosen,
        )
