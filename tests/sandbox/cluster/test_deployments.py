"""Deployments, scheduling and Services: rollouts that a person would recognise."""

import json

import pytest

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest, wait_until

_READY = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
_GPU = {"limits": {"nvidia.com/gpu": "8"}}
_MERGE = {"Content-Type": "application/merge-patch+json"}


class Web:
    """A Deployment that serves, and what there is of it."""

    def __init__(self, cluster: RunningCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.path = f"/apis/apps/v1/namespaces/{namespace}/deployments/web"

    def apply(self, image: str = "server:1", **more) -> None:
        more.setdefault("ports", [{"containerPort": 8000, "name": "http"}])
        more.setdefault("readinessProbe", _READY)
        self.cluster.apply(deployment_manifest("web", self.namespace, image=image, **more))

    def apply_service(self) -> None:
        body = {
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "api", "port": 80, "targetPort": "http"}]},
        }
        self.cluster.create(f"/api/v1/namespaces/{self.namespace}/services", body)

    def rolled_out(self) -> None:
        self.cluster.kubectl("rollout", "status", "deploy/web", "-n", self.namespace, "--timeout=30s")

    def status(self) -> dict:
        return self.cluster.get(self.path)["status"]

    def condition(self, kind: str) -> dict:
        return next((one for one in self.status().get("conditions", []) if one["type"] == kind), {})

    def pods(self) -> list[dict]:
        items = self.cluster.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def sets(self) -> list[dict]:
        items = self.cluster.get(f"/apis/apps/v1/namespaces/{self.namespace}/replicasets")["items"]
        return sorted(items, key=lambda one: int(one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]))

    def reasons(self, kind: str) -> list[str]:
        return [one["reason"] for one in self.cluster.events(self.namespace, involvedObject__kind=kind)]

    def messages(self, reason: str) -> list[str]:
        return [one["message"] for one in self.cluster.events(self.namespace, reason=reason)]


@pytest.fixture
def web(cluster: RunningCluster, namespace: str) -> Web:
    return Web(cluster, namespace)


def test_first_rollout(web: Web) -> None:
    web.apply(replicas=2)
    web.rolled_out()
    status = web.status()
    counts = ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas")
    assert [status[key] for key in counts] == [2, 2, 2, 2]
    assert web.condition("Available")["reason"] == "MinimumReplicasAvailable"
    assert web.condition("Progressing")["reason"] == "NewReplicaSetAvailable"
    (only,) = web.sets()
    hash_ = only["metadata"]["labels"]["pod-template-hash"]
    assert only["metadata"]["name"] == f"web-{hash_}"
    assert all(pod["metadata"]["name"].startswith(f"web-{hash_}-") for pod in web.pods())
    assert web.messages("ScalingReplicaSet") == [f"Scaled up replica set web-{hash_} from 0 to 2"]


def test_surge_never_has_fewer_than_wanted(web: Web) -> None:
    web.apply(strategy={"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
    web.rolled_out()
    start = web.cluster.get(web.path)["metadata"]["resourceVersion"]
    web.apply("server:2", strategy={"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
    web.rolled_out()
    path = f"/apis/apps/v1/namespaces/{web.namespace}/deployments?watch=1&resourceVersion={start}&timeoutSeconds=1"
    lines = web.cluster.request("GET", path).text.splitlines()
    seen = [json.loads(line)["object"]["status"] for line in lines]
    assert min(one.get("availableReplicas", 0) for one in seen) == 1
    assert max(one.get("replicas", 0) for one in seen) == 2
    assert [one["spec"]["replicas"] for one in web.sets()] == [0, 1]


def test_recreation_waits_for_the_old_pods_to_be_gone(web: Web) -> None:
    web.apply(strategy={"type": "Recreate"}, resources=_GPU)
    web.rolled_out()
    old = web.pods()[0]["metadata"]["name"]
    web.apply("server:2", strategy={"type": "Recreate"}, resources=_GPU)
    web.rolled_out()
    events = web.cluster.events(web.namespace, reason="SuccessfulCreate")
    killing = web.cluster.events(web.namespace, reason="Killing", involvedObject__name=old)
    assert int(events[-1]["metadata"]["resourceVersion"]) > int(killing[0]["metadata"]["resourceVersion"])
    assert "FailedScheduling" not in web.reasons("Pod")


def test_one_accelerator_and_surge_deadlock(web: Web) -> None:
    """The new pod waits for the accelerator that the old one holds, and the scheduler says so."""
    strategy = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    web.apply(strategy=strategy, resources=_GPU)
    web.rolled_out()
    web.apply("server:2", strategy=strategy, resources=_GPU, progressDeadlineSeconds=2)
    wait_until(lambda: web.messages("FailedScheduling"))
    assert web.messages("FailedScheduling") == [
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available:"
        " 1 No preemption victims found for incoming pod."
    ]
    assert web.messages("NotTriggerScaleUp") == ["pod didn't trigger scale-up: 1 max node group size reached"]
    wait_until(lambda: web.condition("Progressing").get("reason") == "ProgressDeadlineExceeded")
    assert web.condition("Progressing")["status"] == "False"
    assert web.condition("Progressing")["message"].endswith("has timed out progressing.")
    done = web.cluster.kubectl("rollout", "status", "deploy/web", "-n", web.namespace, check=False)
    assert "exceeded its progress deadline" in done.stderr
    assert web.status()["availableReplicas"] == 1
    web.apply(strategy=strategy, resources=_GPU)
    web.rolled_out()
    assert web.condition("Progressing")["reason"] == "NewReplicaSetAvailable"


def test_history_is_limited_and_revisions_grow(web: Web) -> None:
    for number in range(4):
        web.apply(f"server:{number}", replicas=0, revisionHistoryLimit=1)
        wait_until(lambda number=number: web.cluster.get(web.path)["status"].get("observedGeneration") == number + 1)
    wait_until(lambda: len(web.sets()) == 2)
    annotations = web.cluster.get(web.path)["metadata"]["annotations"]
    assert annotations["deployment.kubernetes.io/revision"] == "4"


def test_paused_rollout_does_nothing(web: Web) -> None:
    web.apply(replicas=1)
    web.rolled_out()
    web.cluster.kubectl("rollout", "pause", "deploy/web", "-n", web.namespace)
    web.cluster.kubectl("set", "image", "deploy/web", "main=server:9", "-n", web.namespace)
    wait_until(lambda: web.condition("Progressing")["reason"] == "DeploymentPaused")
    assert len(web.sets()) == 1
    web.cluster.kubectl("rollout", "resume", "deploy/web", "-n", web.namespace)
    web.rolled_out()
    assert len(web.sets()) == 2


def test_rerun_of_the_same_rollout_changes_nothing(web: Web) -> None:
    web.apply()
    web.rolled_out()
    pod = web.pods()[0]["metadata"]["resourceVersion"]
    before = web.cluster.get(web.path)["metadata"]["resourceVersion"]
    web.apply()
    web.rolled_out()
    assert web.cluster.get(web.path)["metadata"]["resourceVersion"] == before
    assert web.pods()[0]["metadata"]["resourceVersion"] == pod


def test_lost_pod_is_replaced(web: Web) -> None:
    web.apply()
    web.rolled_out()
    name = web.pods()[0]["metadata"]["name"]
    web.cluster.request("DELETE", f"/api/v1/namespaces/{web.namespace}/pods/{name}")
    wait_until(lambda: [pod["metadata"]["name"] for pod in web.pods()] not in ([], [name]))
    web.rolled_out()
    assert web.condition("Progressing")["reason"] == "NewReplicaSetAvailable"


def test_min_ready_seconds_delay_availability(web: Web) -> None:
    web.apply(minReadySeconds=2)
    wait_until(lambda: web.status().get("readyReplicas") == 1)
    assert web.status().get("availableReplicas", 0) == 0
    web.rolled_out()


def test_deleting_a_deployment_takes_its_pods(web: Web) -> None:
    web.apply()
    web.rolled_out()
    web.cluster.kubectl("delete", "deploy/web", "-n", web.namespace, "--cascade=foreground", "--timeout=20s")
    assert (web.pods(), web.sets()) == ([], [])


def test_endpoints_follow_readiness(web: Web) -> None:
    web.apply_service()
    path = f"/api/v1/namespaces/{web.namespace}/endpoints/web"
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{web.namespace}/endpointslices"
    web.apply(readinessProbe={"httpGet": {"path": "/gate", "port": 8000}, "periodSeconds": 1})
    wait_until(lambda: web.cluster.get(path).get("subsets"))
    (subset,) = web.cluster.get(path)["subsets"]
    (pod,) = web.pods()
    address = pod["status"]["podIP"]
    assert "addresses" not in subset
    assert [one["ip"] for one in subset["notReadyAddresses"]] == [address]
    web.cluster.kubectl("exec", "-n", web.namespace, "deploy/web", "--", "touch", "gate")
    web.rolled_out()
    (subset,) = web.cluster.get(path)["subsets"]
    assert [one["ip"] for one in subset["addresses"]] == [address]
    assert subset["ports"] == [{"name": "api", "port": 8000, "protocol": "TCP"}]
    (found,) = web.cluster.get(slices)["items"]
    assert found["endpoints"][0]["conditions"] == {"ready": True, "serving": True, "terminating": False}
    web.cluster.request("PATCH", web.path, {"spec": {"replicas": 0}}, headers=_MERGE)
    wait_until(lambda: not web.cluster.get(path).get("subsets"))


def test_moved_selector_moves_the_service(web: Web) -> None:
    """Blue and green: the Service answers from whatever its selector names, at once."""
    for colour in ("blue", "green"):
        command = ["sh", "-c", f"mkdir -p {colour}; exec python3 -m http.server 8000 --bind 0.0.0.0"]
        manifest = deployment_manifest(colour, web.namespace, command=command, readinessProbe=_READY)
        web.cluster.apply(manifest)
        web.cluster.kubectl("rollout", "status", f"deploy/{colour}", "-n", web.namespace, "--timeout=30s")
    services = f"/api/v1/namespaces/{web.namespace}/services"
    spec = {"selector": {"app": "blue"}, "ports": [{"port": 80, "targetPort": 8000}]}
    web.cluster.create(services, {"metadata": {"name": "web"}, "spec": spec})
    for colour in ("blue", "green"):
        patch = {"spec": {"selector": {"app": colour}}}
        web.cluster.request("PATCH", f"{services}/web", patch, headers=_MERGE)
        wait_until(lambda colour=colour: f'"{colour}/"' in web.cluster.request("GET", f"{services}/web/proxy/").text)
        answer = web.cluster.request("GET", f"{services}/web/proxy/").text
        assert [one for one in ("blue", "green") if f'"{one}/"' in answer] == [colour]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"tolerations": []}, "1 node(s) had untolerated taint {nvidia.com/gpu: present}"),
        ({"nodeSelector": {"zone": "mars"}}, "1 node(s) didn't match Pod's node affinity/selector"),
        ({"resources": {"requests": {"memory": "100Ti"}}}, "1 Insufficient memory"),
    ],
)
def test_scheduler_says_why_not(web: Web, spec: dict, words: str) -> None:
    web.cluster.run_pod(web.namespace, "p", command=["true"], **spec)
    pod = web.cluster.wait_pod(web.namespace, "p", lambda pod: pod["status"].get("conditions"))
    (condition,) = pod["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("PodScheduled", "Unschedulable")
    assert words in condition["message"]
    assert web.messages("FailedScheduling") == [condition["message"]]


def test_requesting_an_accelerator_tolerates_its_taint(web: Web) -> None:
    resources = {"limits": {"nvidia.com/gpu": "1"}}
    web.cluster.run_pod(web.namespace, "p", command=["sleep", "60"], tolerations=[], resources=resources)
    pod = web.cluster.wait_pod(web.namespace, "p", lambda pod: pod["spec"].get("nodeName"))
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]


def test_a_pod_goes_to_a_node_of_its_affinity(web: Web) -> None:
    expression = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-central1-a"]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    web.cluster.run_pod(web.namespace, "p", command=["true"], affinity=affinity, restartPolicy="Never")
    pod = web.cluster.wait_pod(web.namespace, "p", lambda pod: pod["status"]["phase"] == "Succeeded")
    node = web.cluster.get(f"/api/v1/nodes/{pod['spec']['nodeName']}")
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "us-central1-a"


def test_autoscaler_says_what_it_lacks_and_keeps_bounds(web: Web) -> None:
    web.apply(replicas=1, image="server:1")
    web.rolled_out()
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    body = {"metadata": {"name": "web"}, "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3}}
    path = f"/apis/autoscaling/v2/namespaces/{web.namespace}/horizontalpodautoscalers"
    web.cluster.create(path, body)
    wait_until(lambda: web.status().get("readyReplicas") == 2)
    conditions = {one["type"]: one for one in web.cluster.get(f"{path}/web")["status"]["conditions"]}
    assert conditions["ScalingActive"]["reason"] == "FailedGetResourceMetric"
