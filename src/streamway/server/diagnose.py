"""Why a revision is not ready, in the cluster's own words, and whether it ever will be.

Pure functions over the objects as the API server gives them. A finding is either final (waiting longer cannot help:
say so at once) or a reason to go on waiting that is worth telling.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streamway.cluster import Manifest
from streamway.server.kit import RESTORE_CONTAINER
from streamway.server.manifests import CHECK_CONTAINER, CONTAINER

# Events and conditions of the first moments often heal by themselves: an account that was created a moment ago, a
# GPU that the old revision is just giving back.
SETTLE_SECONDS = 5.0
# What says only that it took long, and so nothing beside any other reason.
PROGRESS_DEADLINE = "progress_deadline"
_REGISTRY_SECONDS = 120.0
# A node that is busy, with unpacking ten gigabytes for example, is late with other things for a while.
_BUSY_NODE_SECONDS = 120.0
_BUSY_NODE = re.compile(r"timed out|deadline exceeded|is reserved for", re.IGNORECASE)
_FINAL_PULL = re.compile(
    r"not found|manifest unknown|name unknown|does not exist|unauthorized|denied|forbidden|invalid reference|"
    r"no match for platform|no such image|not available on this node|no image",
    re.IGNORECASE,
)
_PULL_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable"})
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_START_REASONS = frozenset({"StartError", "ContainerCannotRun"})
# What the kubelet writes of containers that it did not see end, because the node itself was restarted.
_LOST_REASONS = frozenset({"Unknown", "ContainerStatusUnknown"})
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
# A node comes to these only when every volume is in place.
_AFTER_MOUNTS = frozenset({"Pulling", "Pulled", "Created", "Started"})
_NO_SCALE_UP = "NotTriggerScaleUp"
_SCALING_UP = frozenset({"TriggeredScaleUp"})
_SCALE_UP_FAILED = frozenset({"FailedScaleUp", "ScaleUpFailed"})
_MISUSE_EXIT_CODE = 2


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One reason why a revision is not ready.

    Args:
        reason: One word for programs.
        problem: What the cluster says, as sentences.
        next_step: What the reader can do.
        final: Whether waiting longer cannot help.
        settle_seconds: How long a final finding must last before it is believed.
    """

    reason: str
    problem: str
    next_step: str = ""
    final: bool = True
    settle_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is known of one revision at one moment.

    Args:
        deployment: The Deployment.
        replica_sets: Its replica sets.
        pods: Its pods.
        events: Events of the namespace.
        log_tail: Last lines of the newest container's log.
        unschedulable_seconds: How long a pod may find no node where no autoscaler speaks up.
    """

    deployment: Manifest
    replica_sets: Sequence[Manifest]
    pods: Sequence[Manifest]
    events: Sequence[Manifest]
    log_tail: Sequence[str] = ()
    unschedulable_seconds: float = 60.0


def diagnose(snapshot: Snapshot) -> list[Finding]:
    """Everything that stands in the way, the final findings first."""
    findings = [*_of_deployment(snapshot)]
    for pod in snapshot.pods:
        if not pod["metadata"].get("deletionTimestamp"):
            findings += _of_pod(pod, snapshot)
    return sorted(findings, key=lambda finding: (not finding.final, finding.reason == PROGRESS_DEADLINE))


def is_ready(deployment: Manifest) -> bool:
    """Whether the Deployment's controller has seen our settings and every pod of them is available."""
    wanted = (deployment.get("spec") or {}).get("replicas", 1)
    status = deployment.get("status") or {}
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("availableReplicas", 0) >= wanted
        and status.get("unavailableReplicas", 0) == 0
    )


def engine_status(pod: Manifest) -> Manifest:
    """Status of the engine's container; empty before there is one."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    # Meshes and agents add containers of theirs, and the kubelet lists all of them by name.
    return next((status for status in statuses if status.get("name") == CONTAINER), {})


def events_of(events: Iterable[Manifest], item: Manifest) -> list[Manifest]:
    """Events about one object, oldest first."""
    metadata = item["metadata"]
    found = [
        event
        for event in events
        if (about := event.get("involvedObject") or event.get("regarding") or {}).get("name") == metadata["name"]
        and (not about.get("uid") or about["uid"] == metadata.get("uid"))
    ]
    return sorted(found, key=_event_time)


def _of_deployment(snapshot: Snapshot) -> Iterable[Finding]:
    conditions = _conditions(snapshot.deployment)
    failure = conditions.get("ReplicaFailure", {})
    words = str(failure.get("message", "")) if failure.get("status") == "True" else ""
    if not words and not snapshot.pods:
        created = [
            event
            for owner in (*snapshot.replica_sets, snapshot.deployment)
            for event in events_of(snapshot.events, owner)
            if event.get("reason") == "FailedCreate"
        ]
        words = str(created[-1].get("message", "")) if created else ""
    if words:
        yield _creation_failure(words)
    progress = conditions.get("Progressing", {})
    if progress.get("status") == "False" and progress.get("reason") == "ProgressDeadlineExceeded":
        yield Finding(
            reason=PROGRESS_DEADLINE,
            problem=f"The progress deadline is over: {progress.get('message', '')}",
            next_step="Look at the pod's events and log, or allow it more time with server.timeout_seconds.",
            # A pod may still make it: it stays said of a Deployment whose pod was replaced since, and our own wait
            # ends soon after it in any case.
            final=not snapshot.pods,
        )


def _creation_failure(words: str) -> Finding:
    if "exceeded quota" in words:
        return Finding(
            reason="quota",
            problem=f"The namespace's quota does not allow the pod: {words}",
            next_step="Raise the ResourceQuota, free what uses it, or ask for less.",
            settle_seconds=SETTLE_SECONDS,
        )
    if "failed quota" in words and "must specify" in words:
        return Finding(
            reason="quota",
            problem=f"The namespace's quota counts what the pod does not say: {words}",
            next_step="Give the namespace a LimitRange with a default for what the message names, or a quota without.",
            settle_seconds=SETTLE_SECONDS,
        )
    if "is being terminated" in words:
        return Finding(
            reason="namespace_terminating",
            problem=f"The namespace is being deleted: {words}",
            next_step="Wait until it is gone and run again, or choose another.",
        )
    if "violates PodSecurity" in words:
        return Finding(
            reason="pod_security",
            problem=f"The namespace's Pod Security level does not admit the pod: {words}",
            next_step="Use an image that runs without root (vllm/vllm-openai:v0.23.0 or newer), or another namespace.",
        )
    if "denied the request" in words or "ValidatingAdmissionPolicy" in words:
        return Finding(
            reason="admission",
            problem=f"An admission rule refuses the pod: {words}",
            next_step="Change the setting that the rule names, or ask the rule's owner for an exception.",
        )
    if "failed calling webhook" in words:
        return Finding(reason="admission", problem=f"An admission webhook does not answer: {words}", final=False)
    return Finding(
        reason="pod_creation",
        problem=f"The pod cannot be created: {words}",
        next_step="Correct what the message names and run again.",
        settle_seconds=SETTLE_SECONDS,
    )


def _of_pod(pod: Manifest, snapshot: Snapshot) -> Iterable[Finding]:
    status = pod.get("status") or {}
    events = events_of(snapshot.events, pod)
    if status.get("phase") == "Failed":
        yield _failed_pod(pod)
        return
    scheduled = _conditions(pod).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        yield _unscheduled(str(scheduled.get("message", "")), events, snapshot.unschedulable_seconds)
        return
    yield from _of_mounts(pod, events)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _of_container(pod, container, events, snapshot.log_tail)


def _failed_pod(pod: Manifest) -> Finding:
    status = pod["status"]
    words = f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")
    name = pod["metadata"]["name"]
    if status.get("reason") == "Evicted":
        return Finding(
            reason="evicted",
            problem=f"Pod {name} was evicted: {words}",
            next_step="Ask for more of the resource that the message names.",
        )
    disrupted = _conditions(pod).get("DisruptionTarget", {})
    if disrupted.get("status") == "True" or status.get("reason") in {"Preempting", "Terminated", "NodeShutdown"}:
        detail = disrupted.get("message") or words
        return Finding(
            reason="preempted",
            problem=f"Pod {name} lost its node and is being replaced: {detail}",
            final=False,
        )
    return Finding(reason="pod_failed", problem=f"Pod {name} failed and is being replaced: {words}", final=False)


def _unscheduled(words: str, events: Sequence[Manifest], patience_seconds: float) -> Finding:
    said = {str(event.get("reason", "")): str(event.get("message", "")) for event in events}
    words = words or said.get("FailedScheduling", "no node has been found for it")
    latest = next((event for event in reversed(events) if event.get("reason") in _SCALE_UP_FAILED | _SCALING_UP), {})
    # What failed in one zone or pool may have been begun in another since.
    if failed := str(latest.get("message", "")) if latest.get("reason") in _SCALE_UP_FAILED else "":
        quota = "quota" in failed.lower()
        return Finding(
            reason="quota" if quota else "unschedulable",
            problem=f"No node fits the pod ({words}) and the autoscaler cannot add one: {failed}",
            next_step="Ask for more GPU quota in this region (IAM & Admin, Quotas)."
            if quota
            else "Try another zone or accelerator, or wait for capacity and run again.",
            final=quota,
        )
    if scaling := next((said[reason] for reason in _SCALING_UP if reason in said), ""):
        return Finding(reason="scaling_up", problem=f"A node is being added for the pod: {scaling}", final=False)
    declined = said.get(_NO_SCALE_UP, "")
    extra = f" The autoscaler will not add one: {declined}" if declined else ""
    return Finding(
        reason="unschedulable",
        problem=f"No node fits the pod: {words}{extra}",
        next_step="Compare the pod's accelerator, zone and GPU count with the nodes: "
        "kubectl get nodes -L cloud.google.com/gke-accelerator,topology.kubernetes.io/zone.",
        settle_seconds=patience_seconds,
    )


def _of_mounts(pod: Manifest, events: Sequence[Manifest]) -> Iterable[Finding]:
    waiting = not (pod.get("status") or {}).get("containerStatuses") or "waiting" in (
        engine_status(pod).get("state") or {}
    )
    told = [event for event in events if event.get("reason") in _MOUNT_REASONS | _AFTER_MOUNTS]
    # What failed at first and was mounted since stays among the events, while the image is pulled for minutes.
    if waiting and told and told[-1]["reason"] in _MOUNT_REASONS:
        yield Finding(
            reason="mount",
            problem=f"A volume of pod {pod['metadata']['name']} cannot be mounted: {told[-1].get('message', '')}",
            next_step="Correct the volume that the message names.",
            settle_seconds=3 * SETTLE_SECONDS,
        )


def _of_container(
    pod: Manifest, container: Manifest, events: Sequence[Manifest], log_tail: Sequence[str]
) -> Iterable[Finding]:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, words = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason == "InvalidImageName" or reason in _PULL_REASONS:
        yield _pull_failure(container, reason, words, events)
        return
    if reason in _CONFIG_REASONS:
        yield _cannot_run(container, f"{reason}: {words}")
        return
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if not ended or (ended.get("exitCode") == 0 and not container.get("restartCount")):
        return
    if ended.get("reason") in _LOST_REASONS:
        yield _lost_with_its_node(container)
        return
    if container.get("name") == CHECK_CONTAINER:
        if ended.get("exitCode") != 0:
            yield _release_check(container, ended)
    elif ended.get("reason") in _START_REASONS:
        yield _cannot_run(container, f"{ended['reason']}: {ended.get('message', '')}")
    else:
        yield _exit(pod, container, ended, events, log_tail)


def _lost_with_its_node(container: Manifest) -> Finding:
    return Finding(
        reason="node_restart",
        problem=f"The container {container.get('name')} ended with its node, which was restarted; it starts again.",
        final=False,
    )


def _pull_failure(container: Manifest, reason: str, words: str, events: Sequence[Manifest]) -> Finding:
    said = [str(event.get("message", "")) for event in events if event.get("reason") in {"Failed", "ErrImagePull"}]
    # "Back-off pulling image" hides the reason, which the event before it has.
    detail = next((text for text in reversed(said) if "pull" in text.lower()), "")
    full = f"{reason}: {words}" + (f" ({detail})" if detail and detail not in words else "")
    hopeless = reason in {"InvalidImageName", "ErrImageNeverPull"} or bool(_FINAL_PULL.search(full))
    return Finding(
        reason="image_pull",
        problem=f"The image {container.get('image')} cannot be pulled: {full}",
        next_step="Check its name and tag, and that the node's service account may read the registry.",
        # A registry that does not answer may come back.
        settle_seconds=0.0 if hopeless else _REGISTRY_SECONDS,
    )


def _cannot_run(container: Manifest, words: str) -> Finding:
    return Finding(
        reason="container_start",
        problem=f"The container {container.get('name')} of image {container.get('image')} cannot be started: {words}",
        next_step="Check that the image is an engine's image, and what its settings refer to.",
        settle_seconds=_BUSY_NODE_SECONDS if _BUSY_NODE.search(words) else 0.0,
    )


def _release_check(container: Manifest, ended: Manifest) -> Finding:
    said = str(ended.get("message", "")).strip()
    return Finding(
        reason="release_access",
        problem=f"The pod cannot read its release. {said or 'See the log of the container ' + CHECK_CONTAINER + '.'}",
        next_step="Grant what is missing to the pod's service account, or correct the release's address.",
        # Rights that were granted a moment ago may take a minute; the container tries again by itself.
        settle_seconds=0.0 if "does not exist" in said or "no safetensors" in said else 3 * SETTLE_SECONDS,
    )


def _exit(
    pod: Manifest, container: Manifest, ended: Manifest, events: Sequence[Manifest], log_tail: Sequence[str]
) -> Finding:
    code, restarts = ended.get("exitCode"), int(container.get("restartCount") or 0)
    how = f"exits with code {code} ({ended.get('reason') or 'Error'}), "
    how += f"{restarts} restart{'' if restarts == 1 else 's'} so far."
    name, pod_name = container.get("name"), pod["metadata"]["name"]
    if name not in {CONTAINER, RESTORE_CONTAINER}:
        return Finding(
            reason="other_container",
            problem=f"The container {name}, which someone else adds to pod {pod_name}, {how}",
            next_step=f"Read its log (kubectl logs {pod_name} --container={name}), and ask whoever adds it.",
            final=_has_failed_again(container),
        )
    log = quote_log(log_tail)
    if ended.get("reason") == "OOMKilled":
        limit = _memory_limit(pod, str(name))
        return Finding(
            reason="out_of_memory",
            problem=f"The container {name} was killed for memory (OOMKilled; its limit is {limit}).{log}",
            next_step="Give the pod more with memory in server.pod, or let the streamer hold less at once: "
            "RUNAI_STREAMER_MEMORY_LIMIT in environment, in bytes.",
        )
    if probe := _failed_probe(events):
        return Finding(
            reason="failing_probe",
            problem=f"The server started but did not become healthy in time and was restarted: {probe}{log}",
            next_step="Read the engine's log; if it was still loading, the startup budget is too small for this "
            "bucket: check that the zone's cache is running, or allow more with startup_seconds in server.pod.",
        )
    hint = advise(log_tail)
    return Finding(
        reason="crash_loop",
        problem=f"{'The engine' if name == CONTAINER else f'The container {name}'} {how}{log}",
        next_step=hint or "Read the last lines of the log above; correct the setting they name.",
        # One exit may be an accident; an argument that the engine does not know is none, nor a known cause.
        final=_has_failed_again(container) or code == _MISUSE_EXIT_CODE or bool(hint),
    )


def _has_failed_again(container: Manifest) -> bool:
    """Whether a container has ended at least twice: once, and again after its restart."""
    restarts = int(container.get("restartCount") or 0)
    return restarts >= 2 or (restarts == 1 and "running" not in (container.get("state") or {}))


def _failed_probe(events: Sequence[Manifest]) -> str:
    killed = [str(event.get("message", "")) for event in events if event.get("reason") == "Killing"]
    if not any("probe" in text for text in killed):
        return ""
    unhealthy = [str(event.get("message", "")) for event in events if event.get("reason") == "Unhealthy"]
    return unhealthy[-1] if unhealthy else killed[-1]


_ADVICE = (
    (
        r"File access error|\b403\b.*storage|does not have storage\.",
        "Check the release's address, and that the pod's service account has roles/storage.objectViewer and "
        "roles/storage.bucketViewer on the bucket: a wrong path and a missing right look the same to the streamer.",
    ),
    (
        r"Cannot find any safetensors",
        "Check the release's address: there is no safetensors file under it.",
    ),
    (
        r"unrecognized arguments|invalid choice|error: argument",
        "Correct engine_arguments: this version of the engine does not take one of them.",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|No available memory for the cache blocks|"
        r"larger than the maximum number of tokens|needed.*KV cache.*larger than",
        "The GPU is too small for the model with this context: set --max-model-len in engine_arguments (of SGLang "
        "--context-length), or raise gpu_count.",
    ),
    (
        r"Please try to increase --mem-fraction-static|Memory pool size is too small",
        "The GPU has no room beside the model: raise gpu_count, or --mem-fraction-static in engine_arguments.",
    ),
    (
        r"GCS files module not found",
        "Use the engine's own image for GPUs: this one has the streamer without its part for Cloud Storage "
        "(runai-model-streamer[gcs]).",
    ),
    (
        # SGLang prints every argument at its start, this one among them.
        r"trust_remote_code=True|--trust-remote-code",
        "The model brings code of its own; convert it to an architecture that the engine has, or choose another.",
    ),
    (
        r"architectures? .* (?:is|are) not supported|has no vLLM implementation",
        "Use a newer engine image: this version does not know the model's architecture.",
    ),
    (
        r"must be divisible by tensor parallel size|not divisible by .*tensor",
        "Choose a gpu_count that divides the model's attention heads.",
    ),
    (r"Address already in use", "Another process on the node holds the port."),
)


def advise(log_tail: Sequence[str]) -> str:
    """A next step for causes that the engine's last lines give away; empty where they do not."""
    text = "\n".join(log_tail)
    return next((step for pattern, step in _ADVICE if re.search(pattern, text)), "")


def quote_log(log_tail: Sequence[str], *, count: int = 12) -> str:
    """Last lines of a log as a paragraph of a message."""
    lines = [line.rstrip()[:400] for line in log_tail if line.strip()][-count:]
    return "\nIts last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""


def _memory_limit(pod: Manifest, container_name: str) -> str:
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") == container_name:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory", "not set"))
    return "not known"


def _conditions(item: Manifest) -> dict[str, Manifest]:
    return {entry["type"]: entry for entry in (item.get("status") or {}).get("conditions") or ()}


def _event_time(event: Manifest) -> str:
    return str(
        event.get("lastTimestamp")
        or (event.get("series") or {}).get("lastObservedTime")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )
