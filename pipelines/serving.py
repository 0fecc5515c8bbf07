"""What every pipeline that ends with a proved endpoint has in common: cache, deploy, prove, and record that it passed.

KFP traces a pipeline when it compiles it, so these are ordinary calls that add tasks to the pipeline around them.
"""

from typing import Any

from kfp import dsl

from streamway.components import check_parameters, deploy_server, enable_cache, record_passage, smoke_test
from streamway.pipelines.workers import asker, judge

ENGINE_IMAGE = "vllm/vllm-openai:v0.32.0"
STOPPER_IMAGE = "python:3.11.14-slim-bookworm"
_NEVER_WRONG = ("spot", "warm_start", "chat_required")


def check_form(
    *,
    model_id: Any,
    release_root: Any,
    run_uri: Any,
    stage: Any,
    endpoint: dict[str, Any],
    caching: dict[str, Any],
    server: dict[str, Any],
    proof: dict[str, Any],
    **promotion: Any,
) -> dsl.PipelineTask:
    """Add the judgement of what the later steps are given, which runs beside the first step.

    Beside it and not before it, because a worker takes a minute to start; what costs time or money waits for it.

    Args:
        model_id: Hugging Face model id.
        release_root: Where releases live.
        run_uri: Where this run keeps its journal.
        stage: Stage that this run proves the release for.
        endpoint: As in `serve_and_prove`, like the next three.
        caching: Parameters of enable_cache.
        server: Parameters of deploy_server.
        proof: Parameters of smoke_test.
        promotion: What is promoted: `commit_sha`, `source_root` and `requires`.
    """
    checked = check_parameters(
        model_id=model_id,
        release_root=release_root,
        run_uri=run_uri,
        stage=stage,
        cache_zones=caching["zones"],
        cache_ttl_hours=caching["ttl_hours"],
        cache_wait_minutes=caching["wait_minutes"],
        **endpoint,
        **{name: value for name, value in {**server, **proof}.items() if name not in _NEVER_WRONG},
        **promotion,
    )
    return asker(checked, "Parameters")


def serve_and_prove(
    published: dsl.PipelineTask,
    *,
    checked: dsl.PipelineTask,
    number: int,
    model_id: Any,
    commit_sha: Any,
    release_root: Any,
    run_uri: Any,
    stage: Any,
    endpoint: dict[str, Any],
    caching: dict[str, Any],
    server: dict[str, Any],
    proof: dict[str, Any],
) -> None:
    """Add the steps from a published release to an endpoint that has answered correctly.

    Args:
        published: The task that gives `release` and `size_bytes`.
        checked: The task that judges the parameters.
        number: Number of the first of these steps, for their titles.
        model_id: Hugging Face model id.
        commit_sha: The release's commit.
        release_root: Where releases live.
        run_uri: Where this run keeps its journal.
        stage: Stage that this run proves the release for; where it is empty, nothing is recorded.
        endpoint: Its `name`, and the `cluster` and `namespace` where it is.
        caching: Parameters of enable_cache: which zones, and how.
        server: Parameters of deploy_server: the engine, its pods, and how they take over.
        proof: Parameters of smoke_test: what is asked and demanded.
    """
    cluster = endpoint["cluster"]
    cached = enable_cache(
        run_uri=run_uri,
        size_bytes=published.outputs["size_bytes"],
        release=published.outputs["release"],
        cluster=cluster,
        **caching,
    )
    asker(cached.after(checked), f"{number} Cache")

    deployed = deploy_server(
        model_id=model_id,
        commit_sha=commit_sha,
        size_bytes=published.outputs["size_bytes"],
        run_uri=run_uri,
        release=published.outputs["release"],
        **endpoint,
        **server,
    )
    judge(deployed.after(cached), f"{number + 1} Deploy")

    proved = smoke_test(
        commit_sha=commit_sha,
        run_uri=run_uri,
        revision=deployed.outputs["revision"],
        service=deployed.outputs["service"],
        port=deployed.outputs["port"],
        served_model_name=deployed.outputs["served_model_name"],
        **endpoint,
        **proof,
    )
    judge(proved, f"{number + 2} Smoke test")

    with dsl.If(stage != "", name="a stage is named"):
        passed = record_passage(
            model_id=model_id,
            commit_sha=commit_sha,
            release_root=release_root,
            run_uri=run_uri,
            stage=stage,
        )
        asker(passed.after(proved), "Gate")
