"""configs/*.yaml as frozen, typed settings: the one place that knows what a person may write.

An unknown key is an error that names the nearest known one: a setting that is silently ignored is worse than a run
that does not start.
"""

import difflib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamway.errors import SettingsError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSettings(_Section):
    """Which model."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="Hugging Face model id, as org/name.")
    revision: str = Field("main", min_length=1, description="Branch, tag or commit.")
    token_secret: str = Field("", description="Secret Manager resource name of a Hub token.")
    allowed_licences: tuple[str, ...] = Field((), description="Licence ids that may be served; empty allows any.")
    allow_remote_code: bool = Field(False, description="Whether a model may bring its own Python code.")


class StorageSettings(_Section):
    """Where releases live."""

    release_root: str = Field(min_length=1, description="gs://BUCKET/PREFIX, or a folder.")


class CacheSettings(_Section):
    """Anywhere Cache."""

    zones: tuple[str, ...] | Literal["cluster"] = Field(
        (), description="Zones to cache in, or `cluster` for every zone of the cluster; empty for none."
    )
    ttl_hours: float = Field(24.0, ge=1, le=168, description="How long an entry lives, in hours.")
    ingest_on_write: bool = Field(False, description="Whether uploads fill the caches, instead of first reads.")
    wait_minutes: float = Field(
        0.0, ge=0, le=1440, description="Longest wait until the caches serve, in minutes; 0 goes on at once."
    )

    def plain_zones(self) -> list[str]:
        """Zones as steps take them."""
        return [self.zones] if isinstance(self.zones, str) else list(self.zones)


class PodSettings(_Section):
    """What a pod of the engine gets, where that shall not follow from the size of the model."""

    cpu: str | int | float = Field("", description="CPU cores, as Kubernetes writes them; empty derives them.")
    memory: str | int | float = Field("", description="Memory, such as 64Gi; empty derives it.")
    ephemeral_storage: str | int | float = Field("", description="Local disk, such as 20Gi; empty derives it.")
    startup_seconds: int = Field(
        0, ge=0, description="Longest time from container start to the first healthy answer; 0 derives it."
    )

    def plain(self) -> dict[str, Any]:
        """What was written down."""
        return self.model_dump(exclude_defaults=True)


class ServerSettings(_Section):
    """The engine on the cluster."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", description="Name of the endpoint, a DNS label.")
    namespace: str = Field("models", description="Kubernetes namespace.")
    cluster: str = Field("", description="projects/P/locations/L/clusters/C; empty for the current kubeconfig.")
    image: str = Field("vllm/vllm-openai:v0.32.0", description="The engine's image, pinned.")
    accelerator: str = Field("nvidia-l4", description="GKE accelerator.")
    gpu_count: int = Field(0, ge=0, le=16, description="GPUs; 0 derives them from the model's size.")
    zone: str = Field(
        "", description="Zone to keep the server in; empty for the cached one where there is one, else for any."
    )
    engine_arguments: tuple[str, ...] = Field((), description="More arguments for the engine.")
    environment: dict[str, str] = Field(default_factory=dict, description="More environment for the engine.")
    strategy: Literal["auto", "surge", "blue_green", "recreate"] = Field(
        "auto", description="How a new revision takes over."
    )
    keep_hours: float = Field(
        1.0, ge=0, description="How long blue_green keeps the old revision running, in hours; 0 keeps it no longer."
    )
    stopper_image: str = Field(
        "python:3.11.14-slim-bookworm",
        description="Image with python3, in which the cluster stops what blue_green kept when its time is over.",
    )
    timeout_seconds: float = Field(
        0.0, ge=0, description="Longest wait for a rollout, in seconds; 0 derives it from the size of the model."
    )
    served_model_name: str = Field("", description="The model's name in the API; empty for the Hugging Face id.")
    service_account: str = Field(
        "", description="Kubernetes service account that may read the bucket; empty for one named as the endpoint."
    )
    replicas: int = Field(1, ge=1, description="Pods; with max_replicas, the fewest.")
    max_replicas: int = Field(0, ge=0, description="Most pods that an autoscaler may ask for; 0 for no autoscaler.")
    spot: bool = Field(False, description="Whether spot nodes may be used.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="More labels that a node must have, such as a compute class."
    )
    tolerations: tuple[dict[str, str | int], ...] = Field((), description="More taints that may be tolerated.")
    warm_start: bool = Field(True, description="Whether the engine's cache is kept and restored by later pods.")
    pod: PodSettings = Field(PodSettings(), description="What a pod gets instead of what is derived for it.")

    @model_validator(mode="after")
    def _pod_can_be(self) -> Self:
        # As with questions: only where something is said does reading settings wait for the room that judges it.
        if not self.pod.plain():
            return self
        from streamway.server.pod import check_pod

        try:
            check_pod(self.pod.plain(), accelerator=self.accelerator, timeout_seconds=self.timeout_seconds)
        except SettingsError as error:
            raise ValueError(error.problem) from error
        return self


class QuestionSettings(_Section):
    """A question with a known answer."""

    prompt: str = Field(min_length=1, description="What is asked.")
    expect: str | dict[str, Any] = Field(
        "", description="The answer; a tool's name for a tool call; empty asks for a sound answer only."
    )
    match: Literal["regex", "exact", "json_schema"] = Field("regex", description="How `expect` is meant.")
    kind: Literal["chat", "completion", "embedding", "tool"] = Field("chat", description="How it is asked.")
    max_tokens: int = Field(64, ge=1, description="Longest answer.")

    @model_validator(mode="after")
    def _is_a_question(self) -> Self:
        # What is only found when the endpoint is asked is found after every byte has been moved.
        from streamway.smoke.questions import parse_questions

        try:
            parse_questions([self.model_dump()])
        except SettingsError as error:
            raise ValueError(error.problem) from error
        return self


class SmokeSettings(_Section):
    """What the endpoint must answer."""

    questions: tuple[QuestionSettings, ...] = Field((), description="Questions; none ask for a sound answer only.")
    allowed_regression: float = Field(
        0.0, ge=0, le=10, description="By what share figures may be worse than before; 0 does not compare."
    )
    chat_required: bool = Field(False, description="Whether a model that cannot chat fails.")
    min_context_length: int = Field(0, ge=0, description="Shortest context to be served with, in tokens.")

    def plain_questions(self) -> list[dict[str, Any]]:
        """The questions, as far as they were written down."""
        return [question.model_dump(exclude_unset=True) for question in self.questions]

    def expectations(self) -> dict[str, Any]:
        """What a revision is held to, as steps and the gate take it."""
        return {
            "questions": self.plain_questions(),
            "allowed_regression": self.allowed_regression,
            "chat_required": self.chat_required,
            "min_context_length": self.min_context_length,
        }


class PipelineSettings(_Section):
    """What a compiled pipeline fixes."""

    image: str = Field("", description="Image of the components; empty for the one that compile fills in.")


class LaunchSettings(_Section):
    """Where pipelines are started: Vertex AI, or a Kubeflow API."""

    project: str = Field("", description="Google Cloud project; empty for the one of the credentials.")
    location: str = Field("us-central1", pattern=r"^[a-z]+-[a-z]+\d+$", description="Region of Vertex AI.")
    service_account: str = Field("", description="Account that the tasks run as; empty for the service's default.")
    network: str = Field("", description="VPC network to peer with, as projects/NUMBER/global/networks/NAME.")
    pipeline_root: str = Field("", description="Where small outputs go; empty for .pipelines below the release root.")
    endpoint: str = Field("", description="Another address of the Vertex AI API, such as a private endpoint.")
    experiment: str = Field("streamway", min_length=1, description="Experiment of the runs, on Kubeflow.")
    templates: str = Field("", description="Template repository, as https://LOCATION-kfp.pkg.dev/PROJECT/REPOSITORY.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the runs, on Vertex AI.")


class FollowSettings(_Section):
    """One model to follow."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="Hugging Face model id, as org/name.")
    revision: str = Field("main", min_length=1, description="Branch or tag.")
    name: str = Field("", description="Name of its endpoint; empty for server.name.")


class WatchSettings(_Section):
    """Which models to follow, and how often to look."""

    follow: tuple[FollowSettings, ...] = Field((), description="Models; empty for the one of the model section.")
    interval_seconds: float = Field(300.0, ge=30, description="Time between two looks at a model.")
    webhook_secret: str = Field("", description="Secret Manager resource name of the webhook's secret.")


class PromotionSettings(_Section):
    """What a release must have passed, and what it passes here."""

    stage: str = Field("", pattern=r"^([a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$", description="Stage that a run proves.")
    source_root: str = Field("", description="Where releases come from when they are promoted.")
    requires: tuple[str, ...] = Field((), description="Stages that a release must have passed at its source.")


class SandboxBucket(_Section):
    """A bucket of the stand-in for Cloud Storage."""

    name: str = Field(min_length=3, description="Its name.")
    location: str = Field("US-CENTRAL1", description="Region, multi-region or dual-region, as Cloud Storage names it.")


class SandboxSettings(_Section):
    """The stand-ins for the cloud on this machine; absent for the real one."""

    engine_image: str = Field(
        "vllm/vllm-openai:*", description="Images that the local engine's environment stands for."
    )
    buckets: tuple[SandboxBucket, ...] = Field((), description="Buckets that are there from the start.")
    zone: str = Field("us-central1-a", description="Zone of the cluster's one node.")
    gpu_count: int = Field(1, ge=0, le=16, description="GPUs that the node says it has.")
    vertex: bool = Field(False, description="Whether Vertex AI and Kubeflow are among the stand-ins.")
    seed: Literal["real", "none"] = Field("real", description="Whether the Hub holds real models, or none.")


class Settings(_Section):
    """One endpoint, from model to questions."""

    model: ModelSettings
    storage: StorageSettings
    server: ServerSettings
    cache: CacheSettings = CacheSettings()
    smoke: SmokeSettings = SmokeSettings()
    pipeline: PipelineSettings = PipelineSettings()
    launch: LaunchSettings = LaunchSettings()
    watch: WatchSettings = WatchSettings()
    promotion: PromotionSettings = PromotionSettings()
    sandbox: SandboxSettings | None = None

    @classmethod
    def load(cls, path: Path, *, overrides: dict[str, str] | None = None) -> Self:
        """Read a configuration file.

        Args:
            path: The YAML file.
            overrides: Dotted keys with YAML values that replace the file's, such as {"model.revision": "v2"}.

        Raises:
            SettingsError: the file is missing, is not YAML, or does not say what it must.
        """
        data = _read(path)
        for key, value in (overrides or {}).items():
            _set(data, key, yaml.safe_load(value))
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SettingsError(
                f"{path} has {error.error_count()} wrong setting(s):\n{_explain(error, cls)}",
                next_step=f"Correct {path} and run again; configs/ holds examples.",
            ) from error

    @property
    def pod_zone(self) -> str:
        """Zone to keep pods in: from any but the cached one, reads never come from the cache."""
        cached = [] if isinstance(self.cache.zones, str) else self.cache.zones
        return self.server.zone or (cached[0] if len(cached) == 1 else "")

    def parameters(self) -> dict[str, Any]:
        """The parameters of serve_model."""
        return {
            "model_id": self.model.id,
            "revision": self.model.revision,
            "token_secret": self.model.token_secret,
            "allowed_licences": list(self.model.allowed_licences),
            "allow_remote_code": self.model.allow_remote_code,
            "release_root": self.storage.release_root.rstrip("/"),
            "cache_zones": self.cache.plain_zones(),
            "cache_ttl_hours": self.cache.ttl_hours,
            "cache_ingest_on_write": self.cache.ingest_on_write,
            "cache_wait_minutes": self.cache.wait_minutes,
            "name": self.server.name,
            "namespace": self.server.namespace,
            "cluster": self.server.cluster,
            "image": self.server.image,
            "accelerator": self.server.accelerator,
            "gpu_count": self.server.gpu_count,
            "zone": self.pod_zone,
            "engine_arguments": list(self.server.engine_arguments),
            "environment": dict(self.server.environment),
            "strategy": self.server.strategy,
            "keep_hours": self.server.keep_hours,
            "stopper_image": self.server.stopper_image,
            "timeout_seconds": self.server.timeout_seconds,
            "pod": self.server.pod.plain(),
            "served_model_name": self.server.served_model_name,
            "service_account": self.server.service_account,
            "replicas": self.server.replicas,
            "max_replicas": self.server.max_replicas,
            "spot": self.server.spot,
            "node_selector": dict(self.server.node_selector),
            "tolerations": [dict(toleration) for toleration in self.server.tolerations],
            "warm_start": self.server.warm_start,
            **self.smoke.expectations(),
            "stage": self.promotion.stage,
        }

    def promotion_parameters(self, commit_sha: str) -> dict[str, Any]:
        """The parameters of promote_model.

        Args:
            commit_sha: The commit to promote, as 40 hex digits.

        Raises:
            SettingsError: the configuration does not say where releases come from.
        """
        if not self.promotion.source_root:
            raise SettingsError(
                "promotion.source_root is empty, so there is nowhere to promote from.",
                next_step="Set it to the release root of the stage before, such as gs://STAGING-BUCKET/models.",
            )
        of_the_hub = {"revision", "token_secret", "allowed_licences", "allow_remote_code"}
        return {
            **{name: value for name, value in self.parameters().items() if name not in of_the_hub},
            "commit_sha": commit_sha,
            "source_root": self.promotion.source_root.rstrip("/"),
            "requires": list(self.promotion.requires),
        }

    def retirement_parameters(
        self,
        *,
        caches: bool,
        releases: bool,
        older_releases: bool = False,
        despite_unseen: bool = False,
        cache_wait_minutes: float = 0.0,
    ) -> dict[str, Any]:
        """The parameters of retire_model.

        Args:
            caches: Whether the caches of the cache section go too.
            releases: Whether the releases that the endpoint serves from go too.
            older_releases: Whether every other release of its models goes with them.
            despite_unseen: Whether to go on although some namespaces of the cluster cannot be looked into.
            cache_wait_minutes: Longest wait until the caches are gone, in minutes; 0 waits for nothing.
        """
        return {
            "name": self.server.name,
            "namespace": self.server.namespace,
            "cluster": self.server.cluster,
            "release_root": self.storage.release_root.rstrip("/"),
            "cache_zones": self.cache.plain_zones() if caches else [],
            "cache_wait_minutes": cache_wait_minutes,
            "delete_releases": releases,
            "older_releases": older_releases,
            "releases": [],
            "despite_unseen": despite_unseen,
        }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"There is no configuration file {path}.", next_step="Give the path of one, such as configs/sandbox.yaml."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(
            f"{path} cannot be read as YAML: {error}", next_step="Correct the file and run again."
        ) from error
    if not isinstance(data, dict):
        raise SettingsError(
            f"{path} holds {type(data).__name__}, expected sections such as model, storage and server.",
            next_step="Start from configs/gke-l4.yaml.",
        )
    return data


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        entry = data.setdefault(parent, {})
        if not isinstance(entry, dict):
            raise SettingsError(f"{dotted} cannot be set: {parent} is not a section.", next_step="Check the key.")
        data = entry
    data[last] = value


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    lines = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            lines.append(f"  {where} is not a setting{_nearest(entry['loc'], root)}")
        elif entry["type"] == "missing":
            lines.append(f"  {where} is missing")
        elif entry["type"] == "value_error" and isinstance(entry["input"], dict):
            # A fault of several settings together; the whole section would hide it.
            lines.append(f"  {where}: {entry['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"  {where} is {entry['input']!r}: {entry['msg']}")
    return "\n".join(lines)


def _nearest(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    known = list(_fields_at(location[:-1], root))
    match = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if match:
        return f"; perhaps you meant {match[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _fields_at(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, ...]:
    current: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is None:
            return ()
        current = _section_of(field.annotation)
        if current is None:
            return ()
    return tuple(current.model_fields)


def _section_of(annotation: Any) -> Any:
    """The section class inside an annotation such as `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found is not None:
            return found
    return None
