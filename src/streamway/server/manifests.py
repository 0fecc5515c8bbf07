"""From a spec to manifests that a reviewer would sign, as plain dictionaries.

Each revision of an endpoint is a Deployment of its own, named after the release's commit and a digest of its pod
template, and the endpoint's Service selects one revision. So a new revision never disturbs the one that serves, going
back is a change of one selector, and applying the same settings twice is no change at all: nothing in a manifest
depends on when it was rendered.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files

import yaml

from streamway.cluster import RELEASE, RELEASE_URI, REVISION, Manifest
from streamway.server.budgets import PROBE_PERIOD_SECONDS
from streamway.server.engine import ENGINE_USER_ID, PORT, serve_arguments, serve_command, serve_environment
from streamway.server.kit import kit_annotations, kit_environment, kit_mounts, kit_volumes, restore_containers
from streamway.server.placement import plain_toleration
from streamway.server.spec import Derived, ServerSpec, derive

FIELD_MANAGER = "streamway"
MANAGED_BY = "app.kubernetes.io/managed-by"
INSTANCE = "app.kubernetes.io/instance"
# Of what all revisions share it stays the same, whichever engine serves.
APPLICATION = "app.kubernetes.io/name"
MODEL = "streamway/model"
SERVED_MODEL = "streamway/served-model-name"
# How many pods a revision has when it serves; it has none while another one has its GPU.
REPLICAS = "streamway/replicas"
CONTAINER = "engine"
CHECK_CONTAINER = "check-release"
_QUEUE_METRICS = {"vllm": "vllm:num_requests_waiting", "sglang": "sglang:num_queue_reqs"}
MIB = 1024**2


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, so that a reviewer can read them."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def render(spec: ServerSpec) -> list[Manifest]:
    """Render everything an endpoint consists of, in the order in which it is applied.

    Args:
        spec: What the server is to be.

    Returns:
        Namespace, ServiceAccount, PodDisruptionBudget, Deployment, HorizontalPodAutoscaler if any, and Service.

    Raises:
        SettingsError: the spec cannot be served.
    """
    revision = revision_of(spec)
    return [
        namespace_manifest(spec),
        service_account_manifest(spec),
        disruption_budget_manifest(spec),
        deployment_manifest(spec),
        *autoscaler_manifests(spec),
        service_manifest(spec.namespace, spec.name, revision=revision),
    ]


def to_yaml(manifests: list[Manifest]) -> str:
    """Write manifests as one YAML stream that kubectl can apply."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)


def revision_of(spec: ServerSpec) -> str:
    """Name a revision: seven digits of the release's commit, and five of a digest of the pod template."""
    template = _pod_template(spec, derive(spec), revision="")
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
    return f"{spec.commit_sha[:7] or 'local'}-{digest[:5]}"


def revision_name(name: str, revision: str) -> str:
    """Name of the Deployment of a revision, and of the Service that reaches it before it is proved."""
    return f"{name}-{revision}"


def kit_name(name: str, revision: str) -> str:
    """Name of the ConfigMap that tells a revision's pods which kit to restore."""
    return f"{revision_name(name, revision)}-kit"


def namespace_manifest(spec: ServerSpec) -> Manifest:
    """The namespace, for clusters that do not have it yet."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": spec.namespace, "labels": {MANAGED_BY: FIELD_MANAGER}},
    }


def service_account_manifest(spec: ServerSpec) -> Manifest:
    """The account whose rights on the bucket the pods use; it gets no token for the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(spec.namespace, spec.name, derive(spec).service_account),
        "automountServiceAccountToken": False,
    }


def disruption_budget_manifest(spec: ServerSpec) -> Manifest:
    """At most one pod may be evicted at a time; with one replica this still lets a node be drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec.namespace, spec.name, spec.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {INSTANCE: spec.name}}},
    }


def service_manifest(
    namespace: str,
    endpoint: str,
    *,
    revision: str,
    name: str = "",
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """A Service in front of one revision: the endpoint's own, unless `name` says otherwise."""
    metadata = _metadata(namespace, endpoint, name or endpoint)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": {INSTANCE: endpoint, REVISION: revision},
            "ports": [{"name": "http", "port": PORT, "targetPort": "api", "protocol": "TCP"}],
        },
    }


def deployment_manifest(spec: ServerSpec) -> Manifest:
    """One revision. Its template never changes, so its own strategy only matters when a pod is lost."""
    derived = derive(spec)
    revision = revision_of(spec)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": revision_name(spec.name, revision),
            "namespace": spec.namespace,
            "labels": _revision_labels(spec, derived, revision),
            "annotations": {
                **_release_annotations(spec, derived),
                **kit_annotations(spec, derived),
                REPLICAS: str(spec.replicas),
            },
        },
        "spec": {
            # Where an autoscaler decides, naming a number would take it back with every run.
            **({} if spec.max_replicas else {"replicas": spec.replicas}),
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": derived.budgets.progress_seconds,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {INSTANCE: spec.name, REVISION: revision}},
            "template": _pod_template(spec, derived, revision=revision),
        },
    }


def autoscaler_manifests(spec: ServerSpec) -> list[Manifest]:
    """An autoscaler on the engine's queue, where one is asked for.

    The metric is what GKE's managed Prometheus and its custom metrics adapter make of the engine's own
    (https://cloud.google.com/kubernetes-engine/docs/how-to/machine-learning/inference/autoscaling).
    """
    if not spec.max_replicas:
        return []
    revision = revision_of(spec)
    metric = _QUEUE_METRICS[derive(spec).image.engine]
    metadata = _metadata(spec.namespace, spec.name, revision_name(spec.name, revision))
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata,
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
                "minReplicas": spec.replicas,
                "maxReplicas": spec.max_replicas,
                "metrics": [
                    {
                        "type": "Pods",
                        "pods": {
                            "metric": {"name": f"prometheus.googleapis.com|{metric}|gauge"},
                            "target": {"type": "AverageValue", "averageValue": "5"},
                        },
                    }
                ],
                # A pod takes minutes to come and must not go at the first quiet moment.
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
            },
        }
    ]


def _metadata(namespace: str, endpoint: str, name: str) -> Manifest:
    return {"name": name, "namespace": namespace, "labels": _labels(endpoint)}


def _labels(endpoint: str) -> dict[str, str]:
    return {APPLICATION: "vllm", INSTANCE: endpoint, MANAGED_BY: FIELD_MANAGER}


def _revision_labels(spec: ServerSpec, derived: Derived, revision: str) -> dict[str, str]:
    # A label holds at most 63 characters; the annotation has the whole of it.
    ours = {APPLICATION: derived.image.engine, REVISION: revision, RELEASE: spec.commit_sha[:63] or "local"}
    return _labels(spec.name) | ours


def _release_annotations(spec: ServerSpec, derived: Derived) -> dict[str, str]:
    return {
        MODEL: spec.model_id,
        RELEASE: spec.commit_sha,
        RELEASE_URI: spec.release_uri,
        SERVED_MODEL: derived.served_model_name,
    }


def _pod_template(spec: ServerSpec, derived: Derived, *, revision: str) -> Manifest:
    return {
        "metadata": {
            "labels": _revision_labels(spec, derived, revision),
            "annotations": _release_annotations(spec, derived),
        },
        "spec": {
            "serviceAccountName": derived.service_account,
            "automountServiceAccountToken": False,
            # A Service called vllm in the namespace would otherwise set VLLM_PORT and crash the engine.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": spec.drain_seconds + 60,
            "nodeSelector": _node_selector(spec),
            "tolerations": _tolerations(spec),
            "securityContext": _pod_security(derived),
            **({"initContainers": first} if (first := _init_containers(spec, derived, revision)) else {}),
            "containers": [_container(spec, derived)],
            "volumes": [
                {
                    "name": "shm",
                    "emptyDir": {"medium": "Memory", "sizeLimit": _mebibytes(derived.resources.shm_bytes)},
                },
                *kit_volumes(spec, derived),
            ],
        },
    }


def _node_selector(spec: ServerSpec) -> dict[str, str]:
    selector = {"cloud.google.com/gke-accelerator": spec.accelerator}
    if spec.zone:
        selector["topology.kubernetes.io/zone"] = spec.zone
    if spec.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector | dict(spec.node_selector)


def _tolerations(spec: ServerSpec) -> list[Manifest]:
    tolerations: list[Manifest] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if spec.spot:
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    return tolerations + [plain_toleration(toleration) for toleration in spec.tolerations]


def _pod_security(derived: Derived) -> Manifest:
    context: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    if derived.image.runs_without_root:
        context |= {"runAsNonRoot": True, "runAsUser": ENGINE_USER_ID, "runAsGroup": 0}
    return context


def _init_containers(spec: ServerSpec, derived: Derived, revision: str) -> list[Manifest]:
    check = [_check_container(spec, derived)] if spec.check_release else []
    return [*check, *restore_containers(spec, derived, config_map=kit_name(spec.name, revision))]


def _check_container(spec: ServerSpec, derived: Derived) -> Manifest:
    """A first container that turns a missing right on the bucket into a sentence."""
    script = files("streamway.server").joinpath("release_check.py").read_text()
    resources = {"memory": "128Mi", "ephemeral-storage": "10Mi"}
    return {
        "name": CHECK_CONTAINER,
        # The engine's own image: another one would be one more to pull and to trust.
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script, spec.release_uri, derived.service_account],
        "env": [{"name": name, "value": value} for name, value in spec.environment.items()],
        "resources": {"requests": {"cpu": "100m", **resources}, "limits": resources},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _container(spec: ServerSpec, derived: Derived) -> Manifest:
    health = {"path": "/health", "port": "api"}
    return {
        "name": CONTAINER,
        "image": spec.image,
        "imagePullPolicy": "IfNotPresent",
        "command": serve_command(derived.image, spec.release_uri),
        "args": serve_arguments(
            derived.image,
            served_model_name=derived.served_model_name,
            gpu_count=derived.gpu_count,
            engine_arguments=derived.engine_arguments,
        ),
        "env": [{"name": name, "value": value} for name, value in _environment(spec, derived).items()],
        "ports": [{"name": "api", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(derived),
        "startupProbe": {
            "httpGet": dict(health),
            "periodSeconds": PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": derived.budgets.startup_failures,
        },
        "readinessProbe": {
            "httpGet": dict(health),
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        # /health fails when the engine process is dead; a long batch alone does not make it fail (serve_environment).
        "livenessProbe": {
            "httpGet": dict(health),
            "periodSeconds": 15,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
        # The pod leaves the Service's endpoints when it is told to stop, but not at once everywhere.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(spec.drain_seconds)]}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, *kit_mounts(spec, derived)],
    }


def _environment(spec: ServerSpec, derived: Derived) -> Mapping[str, str]:
    ours = {
        # Everything comes from the bucket; the Hub is never asked, so its outage stops no pod.
        "HF_HUB_OFFLINE": "1",
        "RUNAI_STREAMER_MEMORY_LIMIT": str(derived.streamer_memory_bytes),
        "RUNAI_STREAMER_CONCURRENCY": str(derived.streamer_concurrency),
        # Without it the line that says how fast the weights came is dropped.
        "RUNAI_STREAMER_LOG_TO_STDERR": "1",
        **serve_environment(derived.image),
        **kit_environment(spec, derived),
    }
    return ours | {name: str(value) for name, value in spec.environment.items()}


def _resources(derived: Derived) -> Manifest:
    resources = derived.resources
    fixed = {
        "memory": _mebibytes(resources.memory_bytes),
        "ephemeral-storage": _mebibytes(resources.ephemeral_bytes),
        "nvidia.com/gpu": str(derived.gpu_count),
    }
    # No CPU limit: compilation at start uses whatever the node has left. Autopilot sets one by itself.
    return {"requests": {"cpu": _cores(resources.cpus), **fixed}, "limits": dict(fixed)}


def _cores(cpus: float) -> str:
    return str(int(cpus)) if float(cpus).is_integer() else f"{round(cpus * 1000)}m"


def _mebibytes(size_bytes: int) -> str:
    whole, rest = divmod(size_bytes, 1024 * MIB)
    return f"{whole}Gi" if not rest else f"{-(-size_bytes // MIB)}Mi"
