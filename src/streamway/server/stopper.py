"""Stopping what blue_green kept when its time is over, although nobody runs anything: the cluster does it by itself.

A CronJob beside the kept Deployment, with a date for a schedule, so that nothing runs and no node is held until then;
a pod that sleeps for days would be paid for, and be moved whenever a node is. The schedule counts minutes, so a
revision is kept for up to a minute longer. The date comes again in a year: what the pod does then follows from the
Service's record, as it does the first time, and by then the CronJob is long gone with its Deployment.

Everything here belongs to the kept Deployment and goes with it.
"""

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from importlib.resources import files

from streamway.cluster import REVISION, ClusterConnection, Manifest
from streamway.errors import ClusterError, ClusterPermissionError, ClusterUnreachableError, SettingsError
from streamway.server.apply import apply, collection_path, delete
from streamway.server.endpoint import KEEP_UNTIL, PREVIOUS, Endpoint, Revision, time_text
from streamway.server.manifests import FIELD_MANAGER, INSTANCE, MANAGED_BY
from streamway.server.permissions import STOPPING, missing_rights

logger = logging.getLogger("streamway.server")

STOPPER_IMAGE = "python:3.11.14-slim-bookworm"
"""Has python3 and little else; the engine's image is ten gigabytes and perhaps on no node that has room."""

_RBAC = "rbac.authorization.k8s.io"
_ROLE_DOCUMENT = "docs/blue-green-role.yaml"
_PINNED = re.compile(r"[^\s@]+(@sha256:[0-9a-f]{64}|:(?!latest$)[A-Za-z0-9_][-A-Za-z0-9_.]*)")
# Rights first: what is taken down half is a pod that may not do anything.
_KINDS = ((f"{_RBAC}/v1", "RoleBinding"), (f"{_RBAC}/v1", "Role"), ("batch/v1", "CronJob"), ("v1", "ServiceAccount"))
# A user without a name in any image.
_NOBODY = 65534
_DAY_SECONDS = 24 * 3600
# A date that has passed when the CronJob is there, by the cluster's clock and not by ours, means next year.
_LEAD_SECONDS = 30


def check_stopper_image(image: str) -> None:
    """Refuse an image that is not pinned.

    Raises:
        SettingsError: it names no version.
    """
    if not _PINNED.fullmatch(image):
        raise SettingsError(
            f"stopper_image is {image!r}, expected an image with its version.",
            next_step=f"Give a small image that has python3, such as {STOPPER_IMAGE}, or your own copy of it.",
        )


def leave_stopper(
    connection: ClusterConnection, endpoint: Endpoint, kept: Revision, until: datetime, *, image: str
) -> bool:
    """Have the cluster stop a revision at a time, if it is still only kept then; True where it will.

    Called before the Service moves, so that a run that is killed in between leaves no revision that nobody stops. What
    the stopper finds otherwise (a rollout that failed, a rollback) it leaves alone.

    Args:
        connection: The cluster.
        endpoint: The endpoint.
        kept: The revision.
        until: When its time is over.
        image: An image with python3.

    Raises:
        ClusterUnreachableError: the API server does not answer; all else is only said.
    """
    try:
        earliest = datetime.now(UTC) + timedelta(seconds=_LEAD_SECONDS)
        for manifest in stopper_manifests(endpoint, kept, until, image=image, earliest=earliest):
            apply(connection, manifest)
    except ClusterUnreachableError:
        raise
    except ClusterError as error:
        logger.warning("%s", _why_it_stays(connection, endpoint, kept, until, error))
        # Without the rest it would do nothing.
        remove_stopper(connection, endpoint, kept.name)
        return False
    logger.info("revision %s is kept until %s; the cluster stops it then", kept.name, time_text(until))
    return True


def _why_it_stays(
    connection: ClusterConnection, endpoint: Endpoint, kept: Revision, until: datetime, error: ClusterError
) -> str:
    refused = isinstance(error, ClusterPermissionError)
    missing = missing_rights(connection, endpoint.namespace, STOPPING) if refused else []
    why = error.problem
    if missing:
        why = f"in namespace {endpoint.namespace} we may not {', '.join(missing)} ({_ROLE_DOCUMENT} grants it)"
    return (
        f"revision {kept.name} is kept until {time_text(until)}, and holds its GPU after that until the next rollout: "
        f"the cluster cannot be left to stop it, because {why.rstrip('.')}. To stop it by hand: "
        f"kubectl scale deployment {kept.deployment_name} --replicas=0 --namespace={endpoint.namespace}"
    )


def remove_stopper(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> None:
    """Take a revision's stopper away, its rights first; one that is not there is fine."""
    for version, kind in _KINDS:
        try:
            delete(connection, version, kind, endpoint.namespace, stopper_name(revision))
        except ClusterPermissionError as error:
            # Whoever may not delete it could not make it; one that another account made still reads the record.
            logger.debug("%s %s is left: %s", kind, stopper_name(revision), error.problem)


def has_stopper(connection: ClusterConnection, endpoint: Endpoint, revision: str) -> bool | None:
    """Tell whether a revision is stopped by the cluster; None where this account may not know."""
    path = f"{collection_path('batch/v1', 'CronJob', endpoint.namespace)}/{stopper_name(revision)}"
    try:
        return connection.find(path) is not None
    except ClusterPermissionError:
        return None


def stopper_name(revision: str) -> str:
    """Name of all that stops a revision; a CronJob's has at most 52 characters, too few for the endpoint's too."""
    return f"stop-{revision}"


def stopper_manifests(
    endpoint: Endpoint, kept: Revision, until: datetime, *, image: str, earliest: datetime
) -> list[Manifest]:
    """What stops a revision, in the order in which it is applied: where a right is missing, nothing is made before.

    Args:
        endpoint: The endpoint.
        kept: The revision.
        until: When its time is over.
        image: An image with python3.
        earliest: Before this no date can be met any more.
    """
    name = stopper_name(kept.name)
    role = {"apiGroup": _RBAC, "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": endpoint.namespace}
    return [
        _object(endpoint, kept, f"{_RBAC}/v1", "Role", rules=_rules(endpoint, kept)),
        _object(endpoint, kept, f"{_RBAC}/v1", "RoleBinding", roleRef=role, subjects=[subject]),
        _object(endpoint, kept, "v1", "ServiceAccount", automountServiceAccountToken=False),
        _object(endpoint, kept, "batch/v1", "CronJob", spec=_schedule(endpoint, kept, until, image, earliest)),
    ]


def _object(endpoint: Endpoint, kept: Revision, api_version: str, kind: str, **content: object) -> Manifest:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": kept.deployment_name, "uid": kept.uid}
    metadata = {
        "name": stopper_name(kept.name),
        "namespace": endpoint.namespace,
        "labels": {INSTANCE: endpoint.name, MANAGED_BY: FIELD_MANAGER, REVISION: kept.name},
        "ownerReferences": [owner],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def _rules(endpoint: Endpoint, kept: Revision) -> list[Manifest]:
    """One Deployment's number of pods, and the Service that says whether it is to be changed."""
    return [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": [kept.deployment_name],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["services"], "resourceNames": [endpoint.name], "verbs": ["get"]},
    ]


def _schedule(endpoint: Endpoint, kept: Revision, until: datetime, image: str, earliest: datetime) -> Manifest:
    # The first whole minute that is not before.
    last_moment = max(until, earliest).astimezone(UTC) + timedelta(seconds=59, microseconds=999_999)
    at = last_moment.replace(second=0, microsecond=0)
    return {
        "schedule": f"{at.minute} {at.hour} {at.day} {at.month} *",
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 1,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 6,
                # A node or a registry may be long in coming; until then the GPU is held.
                "activeDeadlineSeconds": _DAY_SECONDS,
                "ttlSecondsAfterFinished": _DAY_SECONDS,
                "template": _pod_template(endpoint, kept, until, image),
            }
        },
    }


def _pod_template(endpoint: Endpoint, kept: Revision, until: datetime, image: str) -> Manifest:
    tolerations = kept.deployment["spec"]["template"]["spec"].get("tolerations") or []
    return {
        # Not the endpoint's labels: its Service and its disruption budget would take this pod for one of theirs.
        "metadata": {"labels": {"app.kubernetes.io/name": "streamway-stopper", MANAGED_BY: FIELD_MANAGER}},
        "spec": {
            "serviceAccountName": stopper_name(kept.name),
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _NOBODY,
                "runAsGroup": _NOBODY,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            # Wherever there is room, and at the worst where the revision itself runs.
            "tolerations": [dict(toleration) for toleration in tolerations],
            "containers": [_container(endpoint, kept, until, image)],
        },
    }


def _container(endpoint: Endpoint, kept: Revision, until: datetime, image: str) -> Manifest:
    script = files("streamway.server").joinpath("stop_kept.py").read_text()
    service = f"{collection_path('v1', 'Service', endpoint.namespace)}/{endpoint.name}"
    deployment = f"{collection_path('apps/v1', 'Deployment', endpoint.namespace)}/{kept.deployment_name}"
    record = json.dumps({PREVIOUS: kept.name, KEEP_UNTIL: time_text(until)})
    resources = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "10Mi"}
    return {
        "name": "stop",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", script],
        "args": [service, deployment, time_text(until), record, json.dumps({REVISION: kept.name})],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
