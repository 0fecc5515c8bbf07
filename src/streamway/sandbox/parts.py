"""What the sandbox is made of: the parts, the order they start in, and what they are told."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamway.sandbox.engine import Engine, engine_environment
from streamway.sandbox.processes import OWNER_VARIABLE, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket that exists from the start.

    Args:
        name: Its name.
        location: Region, dual-region or multi-region, as Cloud Storage writes it.
    """

    name: str
    location: str = "US-CENTRAL1"


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a container image means on this machine.

    Args:
        pattern: fnmatch pattern of the image's name with its tag.
        bin_path: Folder that comes first on the PATH of its processes.
        environment: What the image's own ENV lines would set.
        entrypoint: What runs where a container names no command.
    """

    pattern: str
    bin_path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HubToken:
    """A token that the local Hub accepts.

    Args:
        token: The token.
        name: Who it belongs to.
        models: fnmatch patterns of private and gated models that it opens.
    """

    token: str
    name: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """One process of the sandbox; it is started with `--state DIR --port 0` added.

    Args:
        name: Its name; it writes `DIR/<name>.json` once it serves.
        argv: Its command.
        deadline_seconds: How long it may take to serve.
        stop_seconds: How long it may take to end.
    """

    name: str
    argv: tuple[str, ...]
    deadline_seconds: float = 60.0
    stop_seconds: float = 2.0


# They open nothing outside this machine, so they are no secrets.
DEFAULT_TOKENS = (
    HubToken(token="hf_sandboxreader", name="reader", models=("sandbox/*",)),
    HubToken(token="hf_sandboxstranger", name="stranger"),
)


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """What a sandbox should have.

    Args:
        buckets: Buckets that exist from the start.
        engine_image: fnmatch pattern of the images that the local engine stands for; empty for no engine.
        images: Further images.
        zone: Zone of the cluster's node.
        gpu_count: `nvidia.com/gpu` of the cluster's node.
        seed: Whether the Hub has the real model; the small synthetic ones are always there.
        vertex: Whether Vertex AI's Pipelines and Schedules API is a part.
        project: Google Cloud project that clients are told.
        tokens: Tokens that the Hub accepts.
        parts: Processes to start instead of the usual ones.
    """

    buckets: tuple[Bucket, ...] = ()
    engine_image: str = "vllm/vllm-openai:*"
    images: tuple[Image, ...] = ()
    zone: str = "us-central1-a"
    gpu_count: int = 1
    seed: bool = True
    vertex: bool = False
    project: str = "streamway-sandbox"
    tokens: tuple[HubToken, ...] = DEFAULT_TOKENS
    parts: tuple[PartSpec, ...] | None = None


def usual_parts(config: SandboxConfig, state_path: Path) -> tuple[PartSpec, ...]:
    """Return the parts in the order they start; each may read what those before it have announced."""
    buckets = ",".join(f"{bucket.name}={bucket.location}" for bucket in config.buckets)
    cluster = ["--images", str(images_path(state_path)), "--zone", config.zone, "--gpus", str(config.gpu_count)]
    parts = (
        PartSpec(name="hub", argv=_module("hub")),
        PartSpec(name="bucket", argv=_module("bucket", "--buckets", buckets)),
        PartSpec(name="caches", argv=_module("caches")),
        # Its pods are given time to end in order.
        PartSpec(name="cluster", argv=_module("cluster", *cluster), stop_seconds=5.0),
    )
    return (*parts, PartSpec(name="vertex", argv=_module("vertex"), stop_seconds=4.0)) if config.vertex else parts


def write_plan(config: SandboxConfig, state_path: Path, engine: Engine | None) -> None:
    """Write down what the supervisor is to start, and what the Hub is to accept."""
    # Small things of our own run in it, such as what stops a kept revision.
    images = [*config.images, Image(pattern="python:*", bin_path=str(Path(sys.executable).parent))]
    if engine:
        environment = engine_environment(engine)
        # The entry point of the vllm/vllm-openai images.
        images.append(
            Image(
                pattern=config.engine_image,
                bin_path=str(engine.bin_path),
                environment=environment,
                entrypoint=("vllm", "serve"),
            )
        )
    parts = config.parts if config.parts is not None else usual_parts(config, state_path)
    plan = {
        "parts": [{**vars(part), "argv": list(part.argv)} for part in parts],
        "images": [_row(image) for image in images],
        "project": config.project,
    }
    write_json(state_path / "plan.json", plan)
    tokens = {token.token: {"name": token.name, "models": list(token.models)} for token in config.tokens}
    write_json(state_path / "hub" / "tokens.json", tokens)


def read_plan(state_path: Path) -> tuple[tuple[PartSpec, ...], list[dict[str, Any]], str]:
    """Return parts, images and project of a plan."""
    plan = read_json(state_path / "plan.json") or {}
    parts = tuple(PartSpec(**{**part, "argv": tuple(part["argv"])}) for part in plan["parts"])
    return parts, plan["images"], plan["project"]


def images_path(state_path: Path) -> Path:
    """Where the cluster reads what images mean: a list of {"image", "path", "environment", "entrypoint"}."""
    return state_path / "images.json"


def sockets_path(state_path: Path) -> Path:
    """Where engines put their sockets, which they leave behind.

    The path of a socket has at most 107 characters, and a pod's own folder for temporary files is too deep for one.
    """
    return Path("/tmp") / f"streamway-{hashlib.sha256(str(state_path).encode()).hexdigest()[:12]}"


def write_images(state_path: Path, images: list[dict[str, Any]], announced: Mapping[str, str], project: str) -> None:
    """Write what images mean, with what a pod's machine knows about the services around it.

    On GKE a pod finds Cloud Storage and its project by itself; here it has to be told. vLLM's streamer lists in
    Python and reads in C++, and each side has a variable of its own.
    """
    storage = announced.get("STORAGE_EMULATOR_HOST", "")
    surroundings = {
        OWNER_VARIABLE: str(state_path),
        "GOOGLE_CLOUD_PROJECT": project,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_RPC_BASE_PATH": str(sockets_path(state_path)),
    }
    if storage:
        surroundings |= {
            "STORAGE_EMULATOR_HOST": storage,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": storage,
            "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
        }
    entries = [{**image, "environment": {**surroundings, **image["environment"]}} for image in images]
    path = images_path(state_path)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(entries, indent=1) + "\n")
    temporary.replace(path)


def _row(image: Image) -> dict[str, Any]:
    return {
        "image": image.pattern,
        "path": image.bin_path,
        "environment": dict(image.environment),
        "entrypoint": list(image.entrypoint),
    }


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"streamway.sandbox.{name}", *arguments)
