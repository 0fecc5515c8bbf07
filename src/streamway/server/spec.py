"""What one server is, before any manifest: the caller's settings, checked, and what follows from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamway.errors import SettingsError
from streamway.server.accelerators import (
    GIB,
    Accelerator,
    Machine,
    derive_gpu_count,
    find_accelerator,
    fits,
    machines_with,
)
from streamway.server.budgets import Budgets, derive_budgets
from streamway.server.context import Context, choose_context
from streamway.server.engine import Image, read_image
from streamway.server.engine_arguments import check_arguments, check_served_model_name
from streamway.server.placement import check_placement

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
# The names of what belongs to a revision are NAME-xxxxxxx-yyyyy, and a Service's name has at most 63 characters.
_NAME_LENGTH = 40
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SHA = re.compile(r"[0-9a-f]{7,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY)S?$")

STRATEGIES = ("auto", "recreate", "surge", "blue_green")
_MOST_TIMEOUT_SECONDS = 86_400
"""A day: no task of a pipeline should hold a worker for longer."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one pod asks for; 0 derives a value.

    Args:
        cpus: CPU cores.
        memory_bytes: Memory, including /dev/shm.
        shm_bytes: Most that /dev/shm may hold.
        ephemeral_bytes: Local disk for logs and the engine's caches; never for weights.
    """

    cpus: float = 0
    memory_bytes: int = 0
    shm_bytes: int = 0
    ephemeral_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """Everything that decides what a server is.

    Args:
        release_uri: The published release, as gs://BUCKET/PREFIX/org/name/sha/.
        model_id: Hugging Face id of the model.
        commit_sha: The commit that is served.
        size_bytes: Bytes of the release.
        model_config: The model's config.json; empty where it is not known.
        name: Name of the endpoint.
        namespace: Kubernetes namespace.
        image: The engine's image, pinned.
        service_account: Kubernetes service account that may read the bucket; empty for one with the endpoint's name.
        accelerator: GKE's name of the accelerator.
        gpu_count: GPUs for each pod; 0 derives it.
        zone: Zone to keep the pods in; empty for any.
        replicas: Pods; with `max_replicas`, the fewest.
        max_replicas: Most pods that an autoscaler may ask for; 0 for no autoscaler.
        engine_arguments: More arguments for the engine.
        environment: More environment variables of the engine.
        resources: What each pod asks for.
        served_model_name: The model's name in the API; empty for the Hugging Face id.
        spot: Whether spot nodes may be used.
        node_selector: More labels that a node must have, such as a compute class.
        tolerations: More taints that may be tolerated, as Kubernetes writes them.
        check_release: Whether each pod first proves that its account can read the release.
        warm_start: Whether the engine's cache is kept and restored; vLLM only.
        drain_seconds: How long a pod goes on answering after it has been told to stop.
        startup_seconds: Longest time from container start to the first healthy answer; 0 derives it.
        timeout_seconds: Longest wait for a rollout; 0 derives it.
    """

    release_uri: str
    model_id: str
    commit_sha: str
    size_bytes: int
    name: str
    namespace: str
    image: str
    model_config: Mapping[str, Any] = field(default_factory=dict)
    service_account: str = ""
    accelerator: str = "nvidia-l4"
    gpu_count: int = 0
    zone: str = ""
    replicas: int = 1
    max_replicas: int = 0
    engine_arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    served_model_name: str = ""
    spot: bool = False
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str | int]] = ()
    check_release: bool = True
    warm_start: bool = True
    drain_seconds: int = 10
    startup_seconds: int = 0
    timeout_seconds: float = 0

    def __post_init__(self) -> None:
        _check_names(self)
        _check_release(self)
        _check_environment(self.environment)
        check_placement(
            zone=self.zone,
            service_account=self.service_account,
            served_model_name=self.served_model_name,
            node_selector=self.node_selector,
            tolerations=self.tolerations,
        )
        _check_timeout(self.timeout_seconds)
        image = read_image(self.image)
        check_arguments(self.engine_arguments, image)
        check_served_model_name(self.served_model_name, image)
        _check_gpu_count(self.gpu_count, find_accelerator(self.accelerator))
        check_resources(self.resources, find_accelerator(self.accelerator))
        check_startup(self.startup_seconds, self.timeout_seconds)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What follows from a spec.

    Args:
        accelerator: The accelerator's figures.
        image: The image and its version.
        gpu_count: GPUs for each pod.
        context: What the engine is told about the length of its context.
        engine_arguments: That, and the caller's own arguments.
        resources: All of them known.
        streamer_memory_bytes: Most that the streamer may buffer in host memory.
        streamer_concurrency: Threads of the streamer.
        budgets: How long things may take.
        served_model_name: The model's name in the API.
        service_account: Name of the Kubernetes service account.
    """

    accelerator: Accelerator
    image: Image
    gpu_count: int
    context: Context
    engine_arguments: tuple[str, ...]
    resources: Resources
    streamer_memory_bytes: int
    streamer_concurrency: int
    budgets: Budgets
    served_model_name: str
    service_account: str

    @property
    def machine_types(self) -> tuple[str, ...]:
        """Machine types whose nodes can hold the pod, smallest first."""
        return tuple(
            machine.name
            for machine in machines_with(self.accelerator, self.gpu_count)
            if _holds(machine, self.resources)
        )


def derive(spec: ServerSpec) -> Derived:
    """Work out what a spec leaves open.

    Raises:
        SettingsError: the model does not fit the accelerators that were asked for.
    """
    accelerator = find_accelerator(spec.accelerator)
    gpu_count = spec.gpu_count or derive_gpu_count(accelerator, spec.size_bytes)
    if not fits(accelerator, gpu_count, spec.size_bytes):
        raise SettingsError(
            f"gpu_count is {gpu_count}, but {spec.size_bytes / GIB:.1f} GiB of weights need at least "
            f"{derive_gpu_count(accelerator, spec.size_bytes)} of {spec.accelerator}.",
            next_step="Leave gpu_count at 0 to derive it.",
        )
    image = read_image(spec.image)
    context = choose_context(
        spec.model_config,
        engine=image.engine,
        accelerator=accelerator,
        gpu_count=gpu_count,
        size_bytes=spec.size_bytes,
        engine_arguments=spec.engine_arguments,
    )
    streamer_memory = _streamer_memory(spec.size_bytes, gpu_count, spec.resources.memory_bytes)
    resources = _resources(spec.resources, gpu_count, streamer_memory)
    return Derived(
        accelerator=accelerator,
        image=image,
        gpu_count=gpu_count,
        context=context,
        engine_arguments=(*context.arguments, *spec.engine_arguments),
        resources=resources,
        streamer_memory_bytes=streamer_memory,
        streamer_concurrency=min(16, max(4, int(resources.cpus) * 2)),
        budgets=derive_budgets(spec.size_bytes, spec.timeout_seconds, spec.startup_seconds),
        served_model_name=spec.served_model_name or spec.model_id,
        service_account=spec.service_account or spec.name,
    )


def _streamer_memory(size_bytes: int, gpu_count: int, asked_bytes: int) -> int:
    """Host memory for the streamer: a limit of 4 GiB was as fast as none on an H100, and each rank has its share.

    It must hold the largest single tensor; the largest that are published (the embeddings of a 405B model) take 4.2
    GB. A model smaller than the limit is buffered whole. Of memory that was asked for it has the share that it has of
    what is derived for a large model.
    """
    limit = 4 * GIB * gpu_count
    if asked_bytes:
        limit = asked_bytes * limit // (limit + _engine_memory(gpu_count) + _shared_memory(gpu_count))
    return min(max(size_bytes, GIB // 4), limit)


def _engine_memory(gpu_count: int) -> int:
    """The engine's processes: one for the API, one for the scheduler, and one for each GPU."""
    return 6 * GIB + 3 * GIB * gpu_count


def _shared_memory(gpu_count: int) -> int:
    return 2 * GIB * gpu_count


def _resources(asked: Resources, gpu_count: int, streamer_memory: int) -> Resources:
    shm = asked.shm_bytes or _shared_memory(gpu_count)
    if asked.memory_bytes and not asked.shm_bytes:
        # What lies there counts as the pod's memory.
        shm = min(shm, asked.memory_bytes // 2)
    return Resources(
        cpus=asked.cpus or 4 * gpu_count,
        memory_bytes=asked.memory_bytes or _engine_memory(gpu_count) + _whole_gib(streamer_memory) + shm,
        shm_bytes=shm,
        ephemeral_bytes=asked.ephemeral_bytes or 10 * GIB,
    )


def _holds(machine: Machine, resources: Resources) -> bool:
    return machine.pod_memory_bytes >= resources.memory_bytes and machine.pod_cpus >= resources.cpus


def _whole_gib(size_bytes: int) -> int:
    return -(-size_bytes // GIB) * GIB


def _check_names(spec: ServerSpec) -> None:
    if not _NAME.fullmatch(spec.name):
        raise SettingsError(
            f"name is {spec.name!r}, expected at most {_NAME_LENGTH} lower-case letters, digits and dashes, "
            "beginning with a letter.",
            next_step="Choose another name for the endpoint.",
        )
    if spec.name == "vllm":
        raise SettingsError(
            "name is 'vllm': a Service of that name makes Kubernetes set VLLM_PORT in every pod of the namespace, "
            "at which vLLM servers crash.",
            next_step="Choose another name for the endpoint, such as the model's.",
        )
    if not _NAMESPACE.fullmatch(spec.namespace):
        raise SettingsError(
            f"namespace is {spec.namespace!r}, expected at most 63 lower-case letters, digits and dashes.",
            next_step="Choose another namespace.",
        )


def _check_gpu_count(gpu_count: int, accelerator: Accelerator) -> None:
    largest = accelerator.counts[-1]
    possible = [count for count in (1, 2, 4, 8, 16) if count <= largest]
    if gpu_count and gpu_count not in possible:
        raise SettingsError(
            f"gpu_count is {gpu_count}, expected {', '.join(map(str, possible))} with {accelerator.name}: a model is "
            f"split into equal parts, and one node has at most {largest}.",
            next_step="Choose one of these, or 0 to derive it from the model's size.",
        )


def check_resources(resources: Resources, accelerator: Accelerator) -> None:
    """Refuse what no node has; the largest machine holds any number of GPUs that there is.

    Raises:
        SettingsError: says how much there is.
    """
    largest = accelerator.machines[-1]
    if _holds(largest, resources):
        return
    asked = f"cpu {resources.cpus:g}" if largest.pod_cpus < resources.cpus else ""
    asked = asked or f"memory {resources.memory_bytes / GIB:.1f} GiB"
    raise SettingsError(
        f"pod has {asked}, expected at most {largest.pod_cpus:g} cores and {largest.pod_memory_bytes / GIB:.1f} GiB: "
        f"that is what pods can have of {largest.name}, the largest machine with {accelerator.name}.",
        next_step="Ask for less, leave it out to derive it, or choose another accelerator.",
    )


def check_startup(startup_seconds: float, timeout_seconds: float) -> None:
    """Refuse a startup that a rollout's own end would cut off: the limit of the startup is the one that says why.

    Raises:
        SettingsError: says how long it may be.
    """
    if not (startup_seconds and timeout_seconds):
        return
    most = derive_budgets(0, timeout_seconds).progress_seconds
    if startup_seconds > most:
        raise SettingsError(
            f"pod has startup_seconds {startup_seconds:g}, expected at most {most} with timeout_seconds "
            f"{timeout_seconds:g}: the wait for the rollout would end before the engine's startup does.",
            next_step="Raise timeout_seconds, or leave it at 0 to derive it from startup_seconds.",
        )


def _check_release(spec: ServerSpec) -> None:
    if not spec.release_uri.startswith("gs://"):
        raise SettingsError(
            f"release_uri is {spec.release_uri!r}, expected gs://BUCKET/PREFIX/.",
            next_step="Publish the model to a bucket first; a server streams from there.",
        )
    if spec.size_bytes <= 0:
        raise SettingsError(
            f"size_bytes is {spec.size_bytes}, expected the bytes of the release.",
            next_step="Take it from the release's manifest.",
        )
    if spec.commit_sha and not _SHA.fullmatch(spec.commit_sha):
        raise SettingsError(
            f"commit_sha is {spec.commit_sha!r}, expected lower-case hex digits.",
            next_step="Take it from the release's manifest.",
        )
    if spec.replicas < 1:
        raise SettingsError(f"replicas is {spec.replicas}, expected 1 or more.", next_step="Ask for at least one pod.")
    if spec.max_replicas and spec.max_replicas <= spec.replicas:
        raise SettingsError(
            f"max_replicas is {spec.max_replicas}, expected more than the {spec.replicas} of replicas.",
            next_step="Raise it, or leave it at 0 for no autoscaler.",
        )


def _check_timeout(seconds: float) -> None:
    if not 0 <= seconds <= _MOST_TIMEOUT_SECONDS:
        raise SettingsError(
            f"timeout_seconds is {seconds:g}, expected 0 to {_MOST_TIMEOUT_SECONDS}.",
            next_step="Leave it at 0 to derive it from the size of the model.",
        )


def _check_environment(environment: Mapping[str, str]) -> None:
    for variable, value in environment.items():
        if not _VARIABLE.fullmatch(variable) or not isinstance(value, str):
            raise SettingsError(
                f"environment has {variable!r}: {value!r}, expected a name and a text.",
                next_step="Put the value in quotes.",
            )
        if _SECRET_VARIABLE.search(variable.upper()) and value:
            raise SettingsError(
                f"environment has {variable!r}, which looks like a secret; everyone who may read pods would see it.",
                next_step="Keep it in a Secret, or remove it: a released model needs no token.",
            )
