"""Reasons in the cluster's own words, and whether waiting can help: objects as real clusters write them."""

from typing import Any

import pytest

from streamway.server.diagnose import Finding, Snapshot, diagnose, engine_status, is_ready

DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "tiny-1", "uid": "d1", "generation": 1},
    "spec": {"replicas": 1},
    "status": {"observedGeneration": 1},
}
REPLICA_SET: dict[str, Any] = {"metadata": {"name": "tiny-1-abc", "uid": "r1"}}


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "tiny-1-abc-xyz", "uid": "p1"},
        "spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "12Gi"}}}]},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}], **status},
    }


def pending(words: str) -> dict[str, Any]:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}])


def container(*, restarts: int = 0, last: dict[str, Any] | None = None, **state: Any) -> dict[str, Any]:
    status = {"name": "engine", "image": "example.com/e:1", "restartCount": restarts, "state": state}
    return pod(containerStatuses=[{**status, "lastState": {"terminated": last} if last else {}}])


def event(reason: str, message: str, about: str = "p1", at: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    names = {"p1": "tiny-1-abc-xyz", "r1": "tiny-1-abc", "d1": "tiny-1"}
    return {
        "metadata": {"name": "e", "creationTimestamp": at},
        "involvedObject": {"name": names[about], "uid": about},
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def find(
    *pods: dict[str, Any],
    events: list[dict[str, Any]] | None = None,
    conditions: list[dict[str, Any]] | None = None,
    log: list[str] | None = None,
) -> Finding:
    deployment = {**DEPLOYMENT, "status": {**DEPLOYMENT["status"], "conditions": conditions or []}}
    found = diagnose(
        Snapshot(
            deployment=deployment,
            replica_sets=[REPLICA_SET],
            pods=pods,
            events=events or [],
            log_tail=log or [],
            unschedulable_seconds=60,
        )
    )
    assert found, "nothing was found"
    return found[0]


NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def test_a_pod_without_a_node_waits_for_a_while_only() -> None:
    finding = find(pending(NO_NODE))

    assert (finding.reason, finding.final, finding.settle_seconds) == ("unschedulable", True, 60)
    assert NO_NODE in finding.problem


def test_a_node_that_is_being_added_is_not_yet() -> None:
    finding = find(
        pending(NO_NODE),
        events=[event("TriggeredScaleUp", "pod triggered scale-up: [{gpu-pool 0->1 (max: 3)}]")],
    )

    assert (finding.reason, finding.final) == ("scaling_up", False)
    assert "gpu-pool 0->1" in finding.problem


def test_what_the_autoscaler_declines_is_told_in_its_words() -> None:
    words = "pod didn't trigger scale-up: 1 max node group size reached"
    finding = find(pending(NO_NODE), events=[event("NotTriggerScaleUp", words)])

    assert finding.final
    assert words in finding.problem
    assert NO_NODE in finding.problem


def test_what_failed_in_one_zone_and_is_under_way_in_another_is_not_yet() -> None:
    failed = event("FailedScaleUp", "Node scale up in zones us-central1-a failed: GCE quota exceeded.")
    begun = event("TriggeredScaleUp", "pod triggered scale-up: [{pool-b 0->1 (max: 3)}]", at="2026-01-01T00:00:09Z")
    again = {**failed, "lastTimestamp": "2026-01-01T00:00:20Z"}

    assert find(pending(NO_NODE), events=[failed, begun]).reason == "scaling_up"
    assert find(pending(NO_NODE), events=[failed, begun, again]).reason == "quota"


def test_a_quota_of_the_project_is_final() -> None:
    words = "Node scale up in zones us-central1-a associated with this pod failed: GCE quota exceeded."
    finding = find(pending(NO_NODE), events=[event("FailedScaleUp", words)])

    assert (finding.reason, finding.final) == ("quota", True)
    assert "GPU quota" in finding.next_step


def test_a_zone_without_capacity_is_not_yet() -> None:
    words = "Node scale up in zones us-central1-a associated with this pod failed: GCE out of resources."

    assert not find(pending(NO_NODE), events=[event("FailedScaleUp", words)]).final


def test_a_quota_of_the_namespace_is_final() -> None:
    words = 'pods "tiny-1-abc-xyz" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
    by_condition = find(conditions=[{"type": "ReplicaFailure", "status": "True", "message": words}])
    by_event = find(events=[event("FailedCreate", words, about="r1")])

    assert by_condition == by_event
    assert by_condition.reason == "quota"
    assert words in by_condition.problem


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ('admission webhook "policy.example.com" denied the request: no images from there', "admission"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', "pod_security"),
        ("unable to create new content in namespace models because it is being terminated", "namespace_terminating"),
        ('pods "x" is forbidden: error looking up service account models/none', "pod_creation"),
    ],
)
def test_a_pod_that_may_not_be_created_says_why(words: str, reason: str) -> None:
    finding = find(events=[event("FailedCreate", f"Error creating: {words}", about="r1")])

    assert (finding.reason, finding.final) == (reason, True)
    assert words in finding.problem
    assert finding.next_step


def test_a_quota_of_what_the_pod_does_not_say_asks_for_a_default() -> None:
    words = 'pods "tiny-1-abc-xyz" is forbidden: failed quota: cpu: must specify limits.cpu for: engine'
    finding = find(events=[event("FailedCreate", words, about="r1")])

    assert finding.reason == "quota"
    assert words in finding.problem
    assert "LimitRange" in finding.next_step


def test_a_webhook_that_does_not_answer_is_not_yet() -> None:
    words = 'Internal error occurred: failed calling webhook "policy": connect: connection refused'

    assert not find(events=[event("FailedCreate", words, about="r1")]).final


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ErrImagePull", 'failed to resolve reference "example.com/e:1": example.com/e:1: not found'),
        ("ErrImagePull", "failed to authorize: 403 Forbidden"),
        ("ImagePullBackOff", 'Back-off pulling image "example.com/e:1": ErrImagePull: manifest unknown'),
        ("InvalidImageName", 'couldn\'t parse image name "Example//"'),
        ("ErrImageNeverPull", "Container image is not present with pull policy of Never"),
    ],
)
def test_an_image_that_does_not_exist_is_final(reason: str, words: str) -> None:
    finding = find(container(waiting={"reason": reason, "message": words}))

    assert (finding.reason, finding.final, finding.settle_seconds) == ("image_pull", True, 0.0)
    assert words in finding.problem
    assert "example.com/e:1" in finding.problem


def test_a_back_off_shows_the_reason_that_its_event_has() -> None:
    finding = find(
        container(waiting={"reason": "ImagePullBackOff", "message": 'Back-off pulling image "example.com/e:1"'}),
        events=[event("Failed", 'Failed to pull image "example.com/e:1": pull access denied')],
    )

    assert finding.final
    assert "pull access denied" in finding.problem


def test_a_registry_that_does_not_answer_has_two_minutes() -> None:
    words = 'failed to pull "example.com/e:1": dial tcp: i/o timeout'

    finding = find(container(waiting={"reason": "ErrImagePull", "message": words}))

    assert (finding.final, finding.settle_seconds) == (True, 120.0)


def test_a_container_that_cannot_be_started_is_final() -> None:
    words = 'exec: "vllm": executable file not found in $PATH'
    for found in (
        container(waiting={"reason": "RunContainerError", "message": words}),
        container(terminated={"reason": "StartError", "exitCode": 128, "message": words}),
    ):
        finding = find(found)
        assert (finding.reason, finding.final) == ("container_start", True)
        assert words in finding.problem


def test_a_missing_secret_is_final() -> None:
    finding = find(container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "key" not found'}))

    assert 'secret "key" not found' in finding.problem


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"),
        ("CreateContainerError", "context deadline exceeded"),
        ("CreateContainerError", 'failed to reserve container name "engine": name "engine" is reserved for "1f"'),
    ],
)
def test_a_node_that_is_late_has_two_minutes_to_start_a_container(reason: str, words: str) -> None:
    assert find(container(waiting={"reason": reason, "message": words})).settle_seconds == 120
    assert find(container(waiting={"reason": reason, "message": 'secret "key" not found'})).settle_seconds == 0


@pytest.mark.parametrize("state", [{"running": {}}, {"waiting": {"reason": "ContainerCreating"}}])
@pytest.mark.parametrize("reason", ["Unknown", "ContainerStatusUnknown"])
def test_an_engine_that_was_lost_with_its_node_has_not_crashed(state: dict[str, Any], reason: str) -> None:
    finding = find(container(restarts=1, last={"exitCode": 255, "reason": reason}, **state), log=["leaked function"])
    assert (finding.reason, finding.final) == ("node_restart", False)


def test_a_crash_loop_shows_the_last_lines_of_the_log() -> None:
    finding = find(
        container(
            restarts=1,
            waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"},
            last={"exitCode": 1, "reason": "Error"},
        ),
        log=["INFO starting", "ValueError: the model is upside down"],
    )

    assert (finding.reason, finding.final) == ("crash_loop", True)
    assert "exits with code 1" in finding.problem
    assert "ValueError: the model is upside down" in finding.problem


def test_one_exit_may_be_an_accident() -> None:
    assert not find(container(terminated={"exitCode": 1, "reason": "Error"})).final
    assert not find(container(restarts=1, running={}, last={"exitCode": 1, "reason": "Error"})).final
    assert find(container(restarts=2, running={}, last={"exitCode": 1, "reason": "Error"})).final


def test_an_unknown_argument_is_no_accident() -> None:
    finding = find(
        container(terminated={"exitCode": 2, "reason": "Error"}),
        log=["vllm serve: error: unrecognized arguments: --disable-log-requests"],
    )

    assert finding.final
    assert "engine_arguments" in finding.next_step


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (
            "RuntimeError: Could not receive runai_response from libstreamer due to: b'File access error'",
            "objectViewer",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "--max-model-len"),
        ("ValueError: No available memory for the cache blocks.", "--max-model-len"),
        ("RuntimeError: Cannot find any safetensors model weights with `gs://x`", "release's address"),
        ("Model architectures ['NewForCausalLM'] are not supported for now.", "newer engine image"),
        ("ValueError: 14 must be divisible by tensor parallel size 4", "attention heads"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "gpu_count, or --mem-fr"),
        ("ImportError: GCS files module not found. Please install the required package.", "runai-model-streamer[gcs]"),
        ("pass trust_remote_code=True to allow custom code", "code of its own"),
    ],
)
def test_known_last_words_end_the_wait_with_advice(line: str, advice: str) -> None:
    finding = find(container(terminated={"exitCode": 1, "reason": "Error"}), log=["...", line])

    assert finding.final
    assert advice in finding.next_step


def test_arguments_that_an_engine_prints_are_no_cause() -> None:
    printed = "server_args={'trust_remote_code': False, 'random_seed': 740355, 'file_storage_path': 'x'}"
    finding = find(container(terminated={"exitCode": 1, "reason": "Error"}), log=[printed, "ZMQError: too long"])

    assert (finding.reason, finding.final) == ("crash_loop", False)


def test_a_container_that_someone_else_adds_is_not_told_as_the_engine() -> None:
    ended = {"exitCode": 1, "reason": "Error"}
    mesh = {"name": "mesh", "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": ended}}
    finding = find(pod(initContainerStatuses=[mesh]), log=["ValueError: of the engine"])

    assert (finding.reason, finding.final) == ("other_container", True)
    assert "The container mesh, which someone else adds to pod tiny-1-abc-xyz, exits with code 1" in finding.problem
    assert "of the engine" not in finding.problem
    assert "kubectl logs tiny-1-abc-xyz --container=mesh" in finding.next_step


def test_containers_that_others_add_to_a_pod_are_not_the_engine() -> None:
    ready = {"name": "agent", "restartCount": 4, "state": {"running": {}}}
    engine = {"name": "engine", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}

    assert engine_status(pod(containerStatuses=[ready, engine])) == engine
    assert engine_status(pod(containerStatuses=[ready])) == {}


def test_out_of_memory_names_the_limit() -> None:
    finding = find(container(restarts=1, running={}, last={"exitCode": 137, "reason": "OOMKilled"}))

    assert finding.reason == "out_of_memory"
    assert "its limit is 12Gi" in finding.problem


def test_a_probe_that_fails_until_the_container_is_killed_is_told() -> None:
    finding = find(
        container(restarts=1, running={}, last={"exitCode": 143, "reason": "Error"}),
        events=[
            event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503"),
            event("Killing", "Container engine failed startup probe, will be restarted", at="2026-01-01T00:00:09Z"),
        ],
    )

    assert finding.reason == "failing_probe"
    assert "HTTP probe failed with statuscode: 503" in finding.problem


def test_an_eviction_is_final() -> None:
    words = "The node was low on resource: ephemeral-storage."
    finding = find(pod(phase="Failed", reason="Evicted", message=words))

    assert (finding.reason, finding.final) == ("evicted", True)
    assert words in finding.problem


def test_a_preempted_pod_is_replaced() -> None:
    conditions = [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": "Pod was terminated in response to imminent node shutdown.",
        }
    ]
    finding = find(pod(phase="Failed", reason="Terminated", conditions=conditions))

    assert (finding.reason, finding.final) == ("preempted", False)
    assert "imminent node shutdown" in finding.problem


def test_a_volume_that_cannot_be_mounted_is_told() -> None:
    words = 'MountVolume.SetUp failed for volume "kit" : persistentvolumeclaim "kit" not found'
    finding = find(container(waiting={"reason": "ContainerCreating"}), events=[event("FailedMount", words)])

    assert finding.reason == "mount"
    assert words in finding.problem


def test_a_volume_that_was_mounted_since_is_told_no_more_however_long_the_image_takes() -> None:
    words = 'MountVolume.SetUp failed for volume "kit" : failed to sync configmap cache: timed out'
    late = event("FailedMount", words, at="2026-01-01T00:00:01Z")
    pulling = event("Pulling", 'Pulling image "example.com/e:1"', at="2026-01-01T00:00:01Z")
    waiting = container(waiting={"reason": "ContainerCreating"})
    snapshot = Snapshot(deployment=DEPLOYMENT, replica_sets=[], pods=[waiting], events=[late, pulling])

    assert not diagnose(snapshot)
    assert find(waiting, events=[pulling, event("FailedMount", words, at="2026-01-01T00:00:02Z")]).reason == "mount"


def test_the_progress_deadline_is_told_behind_what_the_pod_says() -> None:
    deadline = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": 'ReplicaSet "tiny-1-abc" has timed out progressing.',
    }

    assert find(conditions=[deadline]).reason == "progress_deadline"
    assert find(pending(NO_NODE), conditions=[deadline]).reason == "unschedulable"
    begun = event("TriggeredScaleUp", "pod triggered scale-up: [{gpu-pool 0->1 (max: 3)}]")
    assert find(pending(NO_NODE), conditions=[deadline], events=[begun]).reason == "scaling_up"
    assert not find(container(running={}), conditions=[deadline]).final


def test_pods_that_are_going_say_nothing() -> None:
    going = container(waiting={"reason": "CrashLoopBackOff"}, restarts=3, last={"exitCode": 1})
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    assert not diagnose(Snapshot(deployment=DEPLOYMENT, replica_sets=[], pods=[going], events=[]))


def test_events_of_others_are_not_ours() -> None:
    stranger = event("FailedScaleUp", "GCE quota exceeded")
    stranger["involvedObject"]["uid"] = "an earlier pod of that name"

    assert find(pending(NO_NODE), events=[stranger]).reason == "unschedulable"


def test_ready_means_that_the_controller_has_seen_what_we_wrote() -> None:
    status = {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1}

    assert is_ready({**DEPLOYMENT, "status": status})
    assert not is_ready({**DEPLOYMENT, "status": {**status, "observedGeneration": 0}})
    assert not is_ready({**DEPLOYMENT, "status": {**status, "availableReplicas": 0}})
    assert not is_ready({**DEPLOYMENT, "spec": {"replicas": 2}, "status": status})
