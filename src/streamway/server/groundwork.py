"""What must be there before the first run, as commands for whoever may make it: a project, a cluster, a bucket, rights.

A run makes what is its own (namespace, service account, servers, caches). Clusters, buckets and rights are someone's
decision and someone's bill, so they are not made but written down, as a script that may be run again: what is there
already is left as it is. The commands follow https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity
and https://cloud.google.com/sdk/gcloud/reference/container/node-pools/create.
"""

import re
import shlex
from dataclasses import dataclass

from streamway.errors import SettingsError
from streamway.server.spec import ServerSpec, derive

_CLUSTER = re.compile(r"projects/([^/]+)/locations/([^/]+)/clusters/([^/]+)")
_ZONE = re.compile(r"([a-z]+-[a-z]+\d+)-[a-z]")
_SERVICES = ("cloudresourcemanager", "compute", "container", "iam", "storage")
_DEFAULT_LOGIN = "gcloud auth application-default"
_OPERATOR_ROLES = ("roles/container.admin", "roles/storage.admin")
# Serving reads: listing needs the bucket, the streamer needs the objects, and nothing needs to write.
_READER_ROLES = ("roles/storage.bucketViewer", "roles/storage.objectViewer")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where an endpoint is to stand.

    Args:
        cluster: The cluster, as projects/P/locations/L/clusters/C; it need not be there yet.
        bucket: The bucket of its releases.
        standard: Whether the cluster has pools of its own, instead of Autopilot.
        vertex: Whether runs are Vertex AI's.
        secrets: Whether a Hub token is read from Secret Manager.
    """

    cluster: str
    bucket: str
    standard: bool = False
    vertex: bool = True
    secrets: bool = False


def render_groundwork(ground: Ground, spec: ServerSpec) -> str:
    """Write the script.

    Args:
        ground: Where the endpoint is to stand.
        spec: The endpoint's server: accelerator, machines, namespace and account follow from it.

    Raises:
        SettingsError: the cluster is not named as GKE names it.
    """
    match = _CLUSTER.fullmatch(ground.cluster)
    if match is None:
        raise SettingsError(
            f"server.cluster is {ground.cluster!r}, expected projects/P/locations/L/clusters/C: what is to be made "
            "needs a project, a place and a name.",
            next_step="Name the GKE cluster that you have, or the one that you want.",
        )
    project, location, cluster = match.groups()
    blocks = [
        _accounts(ground, project),
        _standard(spec, project, location, cluster) if ground.standard else _autopilot(project, location, cluster),
        _bucket(ground.bucket, project, location),
        _reader(ground.bucket, project, spec),
    ]
    head = (
        "#!/usr/bin/env bash\n"
        f"# What the endpoint {spec.name} needs that a run does not make. Read it, then run it; it may be run again.\n"
        "set -euo pipefail\n"
    )
    return "\n".join([head, *blocks])


def _accounts(ground: Ground, project: str) -> str:
    services = [*_SERVICES, *(["aiplatform"] if ground.vertex else []), *(["secretmanager"] if ground.secrets else [])]
    enable = _line("gcloud", "services", "enable", *(f"{name}.googleapis.com" for name in services), _in(project))
    billing = _line("gcloud", "billing", "projects", "describe", project, "--format=value(billingEnabled)")
    grants = [
        _line("gcloud", "projects", "add-iam-policy-binding", project, f"--role={role}", "--condition=None")
        + ' --member="user:$OPERATOR" >/dev/null'
        for role in _OPERATOR_ROLES
    ]
    return "\n".join(
        [
            "# Billing must be on, or nothing below works.",
            f'[ "$({billing})" = True ] || {{ echo "Billing is off in {project}." >&2; exit 1; }}',
            "",
            "# The services that are used.",
            enable,
            "",
            "# Whoever operates this: clusters and buckets. Runs do with less; `streamway check` says what they lack.",
            'OPERATOR="$(gcloud config get-value account)"',
            *grants,
            "",
            "# Credentials for programs on this machine.",
            _unless(f"{_DEFAULT_LOGIN} print-access-token", f"{_DEFAULT_LOGIN} login"),
            "",
        ]
    )


def _autopilot(project: str, location: str, cluster: str) -> str:
    region = match[1] if (match := _ZONE.fullmatch(location)) else location
    make = _line("gcloud", "container", "clusters", "create-auto", cluster, f"--location={region}", _in(project))
    return "\n".join(
        [
            "# An Autopilot cluster: it adds nodes with the accelerator when a pod asks, and takes them away again.",
            _unless(_described(project, location, cluster), make),
            "",
        ]
    )


def _standard(spec: ServerSpec, project: str, location: str, cluster: str) -> str:
    derived = derive(spec)
    count = derived.gpu_count
    # One more than serve at once, so that a new revision can come up beside the old one.
    most = max(spec.replicas, spec.max_replicas) + 1
    make = _line(
        "gcloud", "container", "clusters", "create", cluster, f"--location={location}", _in(project),
        f"--workload-pool={project}.svc.id.goog", "--num-nodes=1",
    )  # fmt: skip
    pool = f"{spec.accelerator.removeprefix('nvidia-')}-x{count}"
    place = [f"--cluster={cluster}", f"--location={location}", _in(project)]
    machine = derived.machine_types[0] if derived.machine_types else derived.accelerator.machines[-1].name
    zones = [f"--node-locations={spec.zone}"] if spec.zone and not _ZONE.fullmatch(location) else []
    add = _line(
        "gcloud", "container", "node-pools", "create", pool, *place, *zones, f"--machine-type={machine}",
        f"--accelerator=type={spec.accelerator},count={count},gpu-driver-version=default",
        "--enable-autoscaling", "--num-nodes=0", "--min-nodes=0", f"--max-nodes={most}",
        *(["--spot"] if spec.spot else []),
    )  # fmt: skip
    return "\n".join(
        [
            "# A Standard cluster, whose pods have identities of their own.",
            _unless(_described(project, location, cluster), make),
            "",
            "# Nodes with the accelerator: none while nothing asks for them.",
            _unless(_line("gcloud", "container", "node-pools", "describe", pool, *place), add),
            "",
        ]
    )


def _bucket(bucket: str, project: str, location: str) -> str:
    region = match[1] if (match := _ZONE.fullmatch(location)) else location
    make = _line(
        "gcloud", "storage", "buckets", "create", f"gs://{bucket}", f"--location={region}",
        "--uniform-bucket-level-access", _in(project),
    )  # fmt: skip
    return "\n".join(
        [
            "# The bucket, in the cluster's region: reads from another one are slow, charged for, and never cached.",
            _unless(_line("gcloud", "storage", "buckets", "describe", f"gs://{bucket}"), make),
            "",
        ]
    )


def _reader(bucket: str, project: str, spec: ServerSpec) -> str:
    account = derive(spec).service_account
    pool = f"/locations/global/workloadIdentityPools/{project}.svc.id.goog/subject/ns/{spec.namespace}/sa/{account}"
    member = f'--member=principal://iam.googleapis.com/projects/"$NUMBER"{shlex.quote(pool)}'
    grants = [
        _line("gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}", f"--role={role}")
        + f" {member} >/dev/null"
        for role in _READER_ROLES
    ]
    number = _line("gcloud", "projects", "describe", project, "--format=value(projectNumber)")
    return "\n".join(
        [
            f"# The pods' own account, {spec.namespace}/{account}, may read the bucket and nothing else.",
            f'NUMBER="$({number})"',
            *grants,
            "",
        ]
    )


def _described(project: str, location: str, cluster: str) -> str:
    return _line("gcloud", "container", "clusters", "describe", cluster, f"--location={location}", _in(project))


def _unless(there: str, make: str) -> str:
    return f"{there} >/dev/null 2>&1 || {make}"


def _in(project: str) -> str:
    return f"--project={project}"


def _line(*words: str) -> str:
    return shlex.join(words)
