"""Step 5: vLLM on the cluster, streaming the release from the bucket."""

from typing import NamedTuple

from kfp import dsl

from streamway.components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy_server(
    model_id: str,
    commit_sha: str,
    size_bytes: int,
    run_uri: str,
    release: dsl.Input[dsl.Model],
    name: str,
    image: str,
    timings: dsl.Output[dsl.Metrics],
    cluster: str = "",
    namespace: str = "models",
    accelerator: str = "nvidia-l4",
    gpu_count: int = 0,
    zone: str = "",
    engine_arguments: list = [],  # noqa: B006
    environment: dict = {},  # noqa: B006
    strategy: str = "auto",
    keep_hours: float = 1.0,
    stopper_image: str = "python:3.11.14-slim-bookworm",
    served_model_name: str = "",
    service_account: str = "",
    replicas: int = 1,
    max_replicas: int = 0,
    spot: bool = False,
    node_selector: dict = {},  # noqa: B006
    tolerations: list = [],  # noqa: B006
    warm_start: bool = True,
    timeout_seconds: float = 0.0,
    pod: dict = {},  # noqa: B006
) -> NamedTuple("Outputs", [("service", str), ("port", int), ("served_model_name", str), ("revision", str)]):
    """Apply the server and watch it until it answers its health check, or say why it never will.

    The new revision is held: traffic moves to it only after the smoke test has passed, and what served before serves
    on until then. With a single GPU there is nothing to serve on with; then the old revision is ready to return.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit that is served.
        size_bytes: Size of the release, in bytes; timeouts and memory follow from it.
        run_uri: Where this run keeps its journal.
        release: The published model.
        name: Name of the endpoint: of its Deployment and Service.
        image: The engine's image.
        cluster: Empty for the current kubeconfig or the cluster this runs in; or
            projects/P/locations/L/clusters/C for a GKE cluster.
        namespace: Kubernetes namespace.
        accelerator: GKE accelerator, such as nvidia-l4.
        gpu_count: GPUs for the server; 0 derives them from the size of the model.
        zone: Zone to keep the server in, such as the cached one; empty for any.
        engine_arguments: More arguments for the engine.
        environment: More environment variables for the engine.
        strategy: "surge" or "blue_green" where a spare GPU exists, "recreate" where none does, "auto" to find out.
        keep_hours: How long blue_green keeps the old revision running, in hours; 0 keeps it no longer.
        stopper_image: Image with python3, in which the cluster stops what blue_green kept when its time is over.
        served_model_name: The model's name in the API; empty for the Hugging Face id.
        service_account: Kubernetes service account that may read the bucket; empty for one named as the endpoint.
        replicas: Pods; with max_replicas, the fewest.
        max_replicas: Most pods that an autoscaler may ask for; 0 for no autoscaler.
        spot: Whether spot nodes may be used.
        node_selector: More labels that a node must have, such as {"cloud.google.com/compute-class": "gpus"}.
        tolerations: More taints that may be tolerated, as Kubernetes writes them.
        warm_start: Whether the engine's cache is kept beside the release and restored by later pods; vLLM only.
        timeout_seconds: Longest wait for the rollout, in seconds; 0 derives it from the size of the model.
        pod: What a pod gets where that shall not follow from the model: cpu, memory and ephemeral_storage as Kubernetes
            writes quantities, and startup_seconds.

    Returns:
        timings: What of the start took how long, in seconds, and how fast the weights came.
        service: Name of the Service to test: the new revision's own, while it is held.
        port: Its port.
        served_model_name: The model's name in the API.
        revision: Revision of the Deployment.
    """
    from streamway import report, server
    from streamway.warm_start import drop_kit, finder

    with report.step("deploy_server", run_uri) as step:
        wanted = server.read_pod(pod)
        deployed = server.deploy_server(
            release_uri=release.uri,
            model_id=model_id,
            commit_sha=commit_sha,
            size_bytes=int(size_bytes),
            model_config=server.read_model_config(release.uri),
            name=name,
            image=image,
            cluster=cluster,
            namespace=namespace,
            accelerator=accelerator,
            gpu_count=int(gpu_count),
            zone=zone,
            engine_arguments=engine_arguments,
            environment=environment,
            resources=wanted.resources,
            startup_seconds=wanted.startup_seconds,
            strategy=strategy,
            keep_seconds=keep_hours * 3600,
            stopper_image=stopper_image,
            served_model_name=served_model_name,
            service_account=service_account,
            replicas=int(replicas),
            max_replicas=int(max_replicas),
            spot=spot,
            node_selector=node_selector,
            tolerations=tolerations,
            warm_start=warm_start,
            find_kit=finder(release.uri),
            drop_kit=drop_kit,
            hold=True,
            run=run_uri,
            timeout_seconds=timeout_seconds,
            on_progress=step.progress,
        )
        step.keep(deployed)
    for figure, value in deployed.figures.items():
        timings.log_metric(figure, value)
    return (deployed.service, deployed.port, deployed.served_model_name, deployed.revision)
