"""The deploy step: from a published release to a server that is ready, or the reason why it never will be."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamway.cluster import ClusterConnection, check_zone, connect
from streamway.errors import SettingsError
from streamway.server.apply import apply
from streamway.server.endpoint import read_endpoint
from streamway.server.engine import PORT
from streamway.server.kit import DropKit, FindKit
from streamway.server.kit_offer import offer_found_kit
from streamway.server.lease import CLAIM_SECONDS, hold_endpoint
from streamway.server.manifests import (
    autoscaler_manifests,
    deployment_manifest,
    disruption_budget_manifest,
    namespace_manifest,
    revision_of,
    service_account_manifest,
    service_manifest,
)
from streamway.server.rollout import Patience, Phase
from streamway.server.spec import STRATEGIES, Resources, ServerSpec, derive
from streamway.server.stopper import STOPPER_IMAGE, check_stopper_image
from streamway.server.streamer_log import StreamerFigures
from streamway.server.switch import Plan, Switched, Verify, roll_out
from streamway.storage.segments import Progress

logger = logging.getLogger("streamway.server")

_MOST_KEEP_SECONDS = 7 * 24 * 3600.0
"""A revision that is kept longer for going back to costs more than starting it again."""


@dataclass(frozen=True, kw_only=True)
class DeployedServer:
    """A server that is ready.

    Args:
        endpoint: Name of the endpoint.
        namespace: Its namespace.
        service: The Service to ask: the endpoint's, or the revision's own while traffic is held.
        port: Its port.
        revision: The revision that is ready.
        commit_sha: The commit it serves.
        served_model_name: The model's name in the API.
        changed: Whether anything in the cluster had to change.
        gap: Whether the endpoint was without a server for a while.
        phases: What took how long; empty where it was ready already.
        streamer: How the weights came, where the engine's log says so.
        pod: Name of a pod.
        node: Its node.
        restarts: How often its engine was restarted.
        gpu_count: GPUs of each pod.
    """

    endpoint: str
    namespace: str
    service: str
    port: int
    revision: str
    commit_sha: str
    served_model_name: str
    changed: bool
    gap: bool
    phases: tuple[Phase, ...]
    streamer: StreamerFigures | None
    pod: str
    node: str
    restarts: int
    gpu_count: int

    @property
    def figures(self) -> dict[str, float]:
        """Seconds of each phase, and the streamer's GiB/s where it says so; nothing for a server that was ready."""
        found = {f"{phase.name.replace(' ', '_')}_seconds": phase.seconds for phase in self.phases}
        if self.phases and self.streamer is not None and self.streamer.bytes:
            found["streamer_gib_per_second"] = round(self.streamer.gib_per_second, 3)
        return found


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What a run keeps of an endpoint until its next step.

    Args:
        run: What all of its steps call it.
        seconds: For how long at most; 0 for not at all.
    """

    run: str
    seconds: float


def deploy_server(
    *,
    release_uri: str,
    model_id: str,
    commit_sha: str,
    size_bytes: int,
    name: str,
    namespace: str,
    image: str,
    model_config: Mapping[str, Any] | None = None,
    cluster: str = "",
    service_account: str = "",
    accelerator: str = "nvidia-l4",
    gpu_count: int = 0,
    zone: str = "",
    replicas: int = 1,
    max_replicas: int = 0,
    engine_arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    resources: Resources | None = None,
    served_model_name: str = "",
    spot: bool = False,
    node_selector: Mapping[str, str] | None = None,
    tolerations: Sequence[Mapping[str, str | int]] = (),
    check_release: bool = True,
    drain_seconds: int = 10,
    startup_seconds: float = 0,
    timeout_seconds: float = 0,
    unschedulable_seconds: float = 60,
    strategy: str = "auto",
    keep_seconds: float = 3600,
    stopper_image: str = STOPPER_IMAGE,
    verify: Verify | None = None,
    find_kit: FindKit | None = None,
    drop_kit: DropKit | None = None,
    warm_start: bool = True,
    hold: bool = False,
    run: str = "",
    claim_seconds: float = CLAIM_SECONDS,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> DeployedServer:
    """Apply a server and wait until it is ready; a run with the same settings changes nothing.

    Args:
        release_uri: The published release, as gs://BUCKET/PREFIX/org/name/sha/.
        model_id: Hugging Face id of the model.
        commit_sha: The commit that is served.
        size_bytes: Bytes of the release; GPUs, memory and time limits follow from it.
        name: Name of the endpoint, and of its Service.
        namespace: Kubernetes namespace; made where there is none.
        image: The engine's image, pinned.
        model_config: The model's config.json, as `read_model_config` gives it; whether its context fits follows from
            it.
        cluster: As in `streamway.cluster.connect`.
        service_account: Kubernetes service account that may read the bucket; empty for one named as the endpoint.
        accelerator: GKE's name of the accelerator.
        gpu_count: GPUs of each pod; 0 derives it.
        zone: Zone to keep the pods in, such as the cached one; empty for any.
        replicas: Pods; with `max_replicas`, the fewest.
        max_replicas: Most pods that an autoscaler may ask for; 0 for no autoscaler.
        engine_arguments: More arguments for the engine.
        environment: More environment variables of the engine.
        resources: What each pod asks for, where it should not be derived.
        served_model_name: The model's name in the API; empty for the Hugging Face id.
        spot: Whether to use spot nodes.
        node_selector: More labels that a node must have, such as {"cloud.google.com/compute-class": "gpus"}.
        tolerations: More taints that may be tolerated, as Kubernetes writes them.
        check_release: Whether each pod first proves that its account can read the release.
        drain_seconds: How long a pod goes on answering after it was told to stop.
        startup_seconds: Longest time from container start to the first healthy answer; 0 derives it from the size.
        timeout_seconds: Longest wait; 0 derives it from the size.
        unschedulable_seconds: Longest wait for a node where no autoscaler says that it adds one.
        strategy: `recreate`, `surge`, `blue_green`, or `auto`: surge where a node is found, else recreate.
        keep_seconds: How long `blue_green` keeps the old revision running; 0 keeps it no longer.
        stopper_image: Image with python3, in which the cluster stops it when its time is over.
        verify: Proves a new revision before the Service selects it; it raises where the answer is wrong.
        find_kit: Finds the warm-start kit of a key; None for no kits.
        drop_kit: Told of a kit that the engine fails with and starts without.
        warm_start: Whether the engine's cache is kept and restored; vLLM only.
        hold: Leave the Service where it is until `promote_revision` or `reject_revision` settles it.
        run: What all steps of this run call it; with `hold`, the endpoint stays this run's until its next step.
        claim_seconds: For how long at most; a run that was killed in between keeps others waiting no longer.
        force: Take fields over from other managers.
        dry_run: Let the API server judge every manifest, and change nothing.
        on_progress: Told how many bytes of the weights have come.

    Raises:
        SettingsError: a setting is wrong, or the model does not fit.
        ClusterUnreachableError: the cluster does not answer.
        ClusterPermissionError: RBAC or an admission rule refuses.
        ApplyConflictError: an object belongs to someone else.
        RolloutError: the server will not become ready; says why, and what was returned to.
    """
    spec = ServerSpec(
        release_uri=release_uri,
        model_id=model_id,
        commit_sha=commit_sha,
        size_bytes=int(size_bytes),
        model_config=model_config or {},
        name=name,
        namespace=namespace,
        image=image,
        service_account=service_account,
        accelerator=accelerator,
        gpu_count=int(gpu_count),
        zone=zone,
        replicas=int(replicas),
        max_replicas=int(max_replicas),
        engine_arguments=tuple(engine_arguments),
        environment=dict(environment or {}),
        resources=resources or Resources(),
        served_model_name=served_model_name,
        spot=spot,
        node_selector=dict(node_selector or {}),
        tolerations=tuple(tolerations),
        check_release=check_release,
        warm_start=warm_start,
        drain_seconds=int(drain_seconds),
        startup_seconds=int(startup_seconds),
        timeout_seconds=timeout_seconds,
    )
    check_takeover(strategy, keep_seconds, stopper_image)
    budgets = derive(spec).budgets
    connection = connect(cluster)
    check_zone(spec.zone, cluster)
    changed = _apply_surroundings(connection, spec, force=force, dry_run=dry_run)
    if dry_run:
        return _dry_run(connection, spec, force=force, changed=changed)
    plan = Plan(
        revision=revision_of(spec),
        deployment=deployment_manifest(spec),
        more=autoscaler_manifests(spec),
        strategy=strategy,
        port=PORT,
        patience=Patience(deadline_seconds=budgets.step_seconds, unschedulable_seconds=unschedulable_seconds),
        size_bytes=spec.size_bytes,
        keep_seconds=keep_seconds,
        stopper_image=stopper_image,
        verify=verify,
        hold=hold,
        force=force,
        drop_kit=drop_kit,
        on_progress=on_progress,
    )
    claim = _Claim(run=run, seconds=claim_seconds if hold and run else 0.0)
    return _roll_out(connection, spec, plan, claim, find_kit, changed=changed)


def _roll_out(
    connection: ClusterConnection,
    spec: ServerSpec,
    plan: Plan,
    claim: _Claim,
    find_kit: FindKit | None,
    *,
    changed: bool,
) -> DeployedServer:
    derived = derive(spec)
    logger.info(
        "deploying %s at %s as revision %s: %d x %s, waiting up to %d s",
        spec.model_id,
        spec.commit_sha[:12] or "no commit",
        plan.revision,
        derived.gpu_count,
        spec.accelerator,
        derived.budgets.step_seconds,
    )
    logger.info("%s", derived.context.said)
    with hold_endpoint(connection, spec.namespace, spec.name, run=claim.run, revision=plan.revision) as holding:
        endpoint = read_endpoint(connection, spec.namespace, spec.name)
        if find_kit is not None and plan.revision not in endpoint.revisions:
            known = endpoint.revisions
            offer_found_kit(connection, spec, find_kit, revision=plan.revision, known=known)
        done = roll_out(connection, endpoint, replace(plan, still_ours=holding.check))
        holding.leave_claim(claim.seconds)
    if not (changed or done.changed):
        logger.info("endpoint %s already serves this release; nothing changed", spec.name)
    return _deployed(spec, done, changed=changed or done.changed)


def _deployed(spec: ServerSpec, done: Switched | None, *, changed: bool) -> DeployedServer:
    """Describe a server; without a rollout, as a dry run sees it."""
    derived, rollout = derive(spec), done.rollout if done else None
    return DeployedServer(
        endpoint=spec.name,
        namespace=spec.namespace,
        service=done.service if done else spec.name,
        port=PORT,
        revision=revision_of(spec),
        commit_sha=spec.commit_sha,
        served_model_name=derived.served_model_name,
        changed=changed,
        gap=done.gap if done else False,
        phases=rollout.phases if rollout else (),
        streamer=rollout.streamer if rollout else None,
        pod=rollout.pod if rollout else "",
        node=rollout.node if rollout else "",
        restarts=rollout.restarts if rollout else 0,
        gpu_count=derived.gpu_count,
    )


def check_takeover(strategy: str, keep_seconds: float, stopper_image: str = STOPPER_IMAGE) -> None:
    """Refuse a way for a new revision to take over that there is not.

    Raises:
        SettingsError: no such strategy, no time to keep the old revision for, or an image without a version.
    """
    check_stopper_image(stopper_image)
    if not 0 <= keep_seconds <= _MOST_KEEP_SECONDS:
        raise SettingsError(
            f"keep_hours is {keep_seconds / 3600:g}, expected 0 to {_MOST_KEEP_SECONDS / 3600:g}.",
            next_step="Choose how long both revisions may hold GPUs; 1 is usual, and 0 keeps the old one no longer.",
        )
    if strategy not in STRATEGIES:
        raise SettingsError(
            f"strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}.",
            next_step="Leave it at auto, or choose recreate where only one GPU exists.",
        )


def _apply_surroundings(connection: ClusterConnection, spec: ServerSpec, *, force: bool, dry_run: bool) -> bool:
    manifests = [
        namespace_manifest(spec),
        service_account_manifest(spec),
        disruption_budget_manifest(spec),
    ]
    changed = False
    for manifest in manifests:
        applied = apply(connection, manifest, force=force, dry_run=dry_run)
        changed = changed or applied.action in {"created", "changed"}
        if dry_run and applied.kind == "Namespace" and applied.action == "created":
            logger.info("the namespace does not exist yet, so nothing in it can be tried")
            break
    return changed


def _dry_run(connection: ClusterConnection, spec: ServerSpec, *, force: bool, changed: bool) -> DeployedServer:
    endpoint = read_endpoint(connection, spec.namespace, spec.name)
    if connection.find(f"/api/v1/namespaces/{spec.namespace}") is not None:
        annotations = endpoint.annotations
        service = service_manifest(spec.namespace, spec.name, revision=revision_of(spec), annotations=annotations)
        for manifest in (deployment_manifest(spec), *autoscaler_manifests(spec), service):
            applied = apply(connection, manifest, force=force, dry_run=True)
            changed = changed or applied.action != "unchanged"
    return _deployed(spec, None, changed=changed)
