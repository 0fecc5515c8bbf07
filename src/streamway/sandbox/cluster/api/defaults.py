"""What an API server fills in where a client says nothing, so that `kubectl get -o yaml` reads as on a real cluster."""

import base64
from collections.abc import Callable
from typing import Any

from streamway.sandbox.cluster.api.kinds import (
    AUTOSCALER,
    CRON_JOB,
    DEPLOYMENT,
    JOB,
    NAMESPACE,
    POD,
    REPLICA_SET,
    SECRET,
    SERVICE,
    Kind,
)
from streamway.sandbox.cluster.objects import Object, every_container, name_of, uid_of

_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_VOLUME_SOURCES_WITH_MODE = ("configMap", "secret", "downwardAPI", "projected")
_MODE_0644 = 0o644


def apply_defaults(kind: Kind, item: Object) -> None:
    """Fill in the defaults of an object's kind, in place."""
    fill = _FILLERS.get(kind)
    if fill is not None:
        fill(item)


def _fill(place: Object, **defaults: Any) -> None:
    for key, value in defaults.items():
        if place.get(key) is None:
            place[key] = value


def _pod(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _pod_spec(spec)
    _fill(spec, enableServiceLinks=True)
    for _, _, container in every_container(spec):
        resources = container["resources"]
        if resources.get("limits"):
            resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}


def _pod_spec(spec: Object) -> None:
    _fill(
        spec,
        dnsPolicy="ClusterFirst",
        restartPolicy="Always",
        schedulerName="default-scheduler",
        securityContext={},
        terminationGracePeriodSeconds=30,
    )
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    for _, _, container in every_container(spec):
        _container(container)
    for volume in spec.get("volumes") or []:
        _volume(volume)


def _container(container: Object) -> None:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    moving = "@" not in image and tag in ("", "latest")
    _fill(
        container,
        imagePullPolicy="Always" if moving else "IfNotPresent",
        resources={},
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
    )
    for port in container.get("ports") or []:
        _fill(port, protocol="TCP")
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            _fill(reference, apiVersion="v1")
    for name in _PROBES:
        if container.get(name):
            _probe(container[name])
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict) and hook.get("httpGet"):
            _fill(hook["httpGet"], path="/", scheme="HTTP")


def _probe(probe: Object) -> None:
    _fill(probe, failureThreshold=3, periodSeconds=10, successThreshold=1, timeoutSeconds=1)
    if probe.get("httpGet") is not None:
        _fill(probe["httpGet"], path="/", scheme="HTTP")


def _volume(volume: Object) -> None:
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}
    for source in _VOLUME_SOURCES_WITH_MODE:
        if volume.get(source) is not None:
            _fill(volume[source], defaultMode=_MODE_0644)
    if volume.get("hostPath") is not None:
        _fill(volume["hostPath"], type="")


def _deployment(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, progressDeadlineSeconds=600, replicas=1, revisionHistoryLimit=10, strategy={})
    strategy = spec["strategy"]
    _fill(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _fill(strategy, rollingUpdate={})
        _fill(strategy["rollingUpdate"], maxSurge="25%", maxUnavailable="25%")
    _template(spec)


def _replica_set(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, replicas=1)
    _template(spec)


def _job(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, backoffLimit=6, completionMode="NonIndexed", completions=1, parallelism=1, suspend=False)
    _template(spec)
    # By these a Job's pods are its own and no other's.
    own = {"batch.kubernetes.io/controller-uid": uid_of(item)}
    _fill(spec, selector={"matchLabels": own})
    if isinstance(spec.get("template"), dict):
        labels = spec["template"]["metadata"].setdefault("labels", {})
        labels |= own | {"batch.kubernetes.io/job-name": name_of(item)}


def _cron_job(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, concurrencyPolicy="Allow", failedJobsHistoryLimit=1, successfulJobsHistoryLimit=3, suspend=False)
    if isinstance(spec.get("jobTemplate"), dict):
        spec["jobTemplate"].setdefault("metadata", {})
        _template(spec["jobTemplate"].setdefault("spec", {}))


def _template(spec: Object) -> None:
    if isinstance(spec.get("template"), dict):
        spec["template"].setdefault("metadata", {})
        _pod_spec(spec["template"].setdefault("spec", {}))


def _service(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, sessionAffinity="None", type="ClusterIP")
    if spec["type"] != "ExternalName":
        _fill(spec, internalTrafficPolicy="Cluster", ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
    if spec["type"] == "LoadBalancer":
        _fill(spec, allocateLoadBalancerNodePorts=True, externalTrafficPolicy="Cluster")
    for port in spec.get("ports") or []:
        _fill(port, protocol="TCP")
        _fill(port, targetPort=port.get("port"))


def _secret(item: Object) -> None:
    _fill(item, type="Opaque")
    plain = item.pop("stringData", None) or {}
    if plain:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        item["data"] = {**(item.get("data") or {}), **encoded}


def _namespace(item: Object) -> None:
    item.setdefault("spec", {})
    labels = item["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = name_of(item)


def _autoscaler(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _fill(spec, minReplicas=1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]


_FILLERS: dict[Kind, Callable[[Object], None]] = {
    AUTOSCALER: _autoscaler,
    CRON_JOB: _cron_job,
    DEPLOYMENT: _deployment,
    JOB: _job,
    NAMESPACE: _namespace,
    POD: _pod,
    REPLICA_SET: _replica_set,
    SECRET: _secret,
    SERVICE: _service,
}
