"""The warm-start kit in a pod: where the engine keeps its cache, and how a kept one gets there before it starts.

The pod's template names a ConfigMap of its revision, and never a kit. So a kit that is captured after a revision has
passed reaches every later pod of that same revision (a scale-out, a lost node, a rollback) without a new template: the
revision keeps its name, and applying it again is no change. The ConfigMap is also why the kit can be trusted: the
digest comes from the cluster, where whoever can write to the bucket cannot change it.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from streamway.cluster import Manifest
from streamway.server.engine import serve_arguments
from streamway.server.spec import Derived, ServerSpec

KIT_KEY = "streamway/kit-key"
KIT_MADE_FOR = "streamway/kit-made-for"
RESTORE_CONTAINER = "restore-kit"
VOLUME = "engine-cache"
MOUNT_PATH = "/var/cache/streamway"
CACHE_ROOT = "VLLM_CACHE_ROOT"
OTHER_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
"""Caches of what the engine is made of, which by default lie in the home folder and /tmp; as folders under its own."""
MAX_KIT_BYTES = 512 * 1024 * 1024
# What a kit is made for; a change of how kits are packed or restored makes another key.
_KEY_VERSION = 1
# Read in vLLM 0.26.0 and 0.32.0: the memory profile of a start is kept under the cache's root and used again only where
# the same device has as much memory free; older versions are not known to have it.
_STARTUP_PLAN_SINCE = (0, 26, 0)
_TERMINATION_PATH = "/dev/termination-log"
_RESTORED = re.compile(r"Restored warm-start kit ([0-9a-f]{64}):")
_VARIABLES = {"KIT_URI": "uri", "KIT_SHA256": "sha256", "KIT_BYTES": "size_bytes"}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A kit that pods may restore.

    Args:
        uri: Where it is.
        sha256: What it must hash to.
        size_bytes: Its length.
    """

    uri: str
    sha256: str
    size_bytes: int


FindKit = Callable[[str], Kit | None]
"""Given a kit's key, returns the kit, or None where there is none; never fails."""
DropKit = Callable[[Kit], None]
"""Told of a kit that an engine did not start with although it starts without; never fails."""


def is_warm(spec: ServerSpec, derived: Derived) -> bool:
    """Tell whether a server's pods keep their cache where we know: vLLM's, unless the caller has a place of its own."""
    return spec.warm_start and derived.image.engine == "vllm" and CACHE_ROOT not in spec.environment


def made_for(spec: ServerSpec, derived: Derived) -> dict[str, Any]:
    """What an engine's cache depends on beside the release: accelerator, engine version and arguments."""
    arguments = serve_arguments(
        derived.image,
        served_model_name="",
        gpu_count=derived.gpu_count,
        engine_arguments=derived.engine_arguments,
    )
    return {
        "accelerator": spec.accelerator,
        "gpu_count": derived.gpu_count,
        "image": spec.image,
        # Its name in the API, its address and its port are nothing to the cache.
        "arguments": [one for one in arguments if not one.startswith(("--served-model-name=", "--host=", "--port="))],
        "environment": dict(sorted(spec.environment.items())),
    }


def kit_key(spec: ServerSpec, derived: Derived) -> str:
    """Name what a kit is made for."""
    text = json.dumps([_KEY_VERSION, made_for(spec, derived)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def kit_annotations(spec: ServerSpec, derived: Derived) -> dict[str, str]:
    """What a Deployment remembers, for whoever captures its kit later."""
    if not is_warm(spec, derived):
        return {}
    described = json.dumps(made_for(spec, derived), sort_keys=True)
    return {KIT_KEY: kit_key(spec, derived), KIT_MADE_FOR: described}


def kit_environment(spec: ServerSpec, derived: Derived) -> dict[str, str]:
    """Variables of the engine."""
    if not is_warm(spec, derived):
        return {}
    found = cache_variables(f"{MOUNT_PATH}/vllm")
    if derived.image.version is not None and derived.image.version >= _STARTUP_PLAN_SINCE:
        found["VLLM_ENABLE_STARTUP_PLAN"] = "1"
    return found


def cache_variables(root: str) -> dict[str, str]:
    """Variables that keep all that an engine compiles under one folder."""
    return {CACHE_ROOT: root} | {name: f"{root}/{folder}" for name, folder in OTHER_CACHES.items()}


def kit_volumes(spec: ServerSpec, derived: Derived) -> list[Manifest]:
    """The volume of the cache: the pod's own, and never more than half of its local disk."""
    if not is_warm(spec, derived):
        return []
    mebibytes = max(1, derived.resources.ephemeral_bytes // 2 // 1024**2)
    return [{"name": VOLUME, "emptyDir": {"sizeLimit": f"{mebibytes}Mi"}}]


def kit_mounts(spec: ServerSpec, derived: Derived) -> list[Manifest]:
    """Where the volume is in a container."""
    return [{"name": VOLUME, "mountPath": MOUNT_PATH}] if is_warm(spec, derived) else []


def restore_containers(spec: ServerSpec, derived: Derived, *, config_map: str) -> list[Manifest]:
    """A first container that puts the kit in place; without a kit, or with a wrong one, it says so and ends well."""
    if not is_warm(spec, derived):
        return []
    script = files("streamway.server").joinpath("kit_restore.py").read_text()
    resources = {"memory": "256Mi", "ephemeral-storage": "10Mi"}
    return [
        {
            "name": RESTORE_CONTAINER,
            "image": spec.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", script, MOUNT_PATH, _TERMINATION_PATH],
            "env": [
                *({"name": name, "value": value} for name, value in spec.environment.items()),
                *(_from_config_map(name, key, config_map) for name, key in _VARIABLES.items()),
            ],
            "resources": {"requests": {"cpu": "100m", **resources}, "limits": resources},
            "terminationMessagePath": _TERMINATION_PATH,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": kit_mounts(spec, derived),
        }
    ]


def restored_kit(pod: Manifest) -> str:
    """SHA-256 of the kit that a pod has restored; empty for none."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    for status in statuses:
        if status["name"] == RESTORE_CONTAINER:
            ended = (status.get("state") or {}).get("terminated") or {}
            match = _RESTORED.match(str(ended.get("message", "")))
            return match[1] if match else ""
    return ""


def _from_config_map(variable: str, key: str, config_map: str) -> Manifest:
    reference = {"name": config_map, "key": key, "optional": True}
    return {"name": variable, "valueFrom": {"configMapKeyRef": reference}}
