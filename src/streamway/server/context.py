"""How long a context a model is served with: the engine's own choice, unless that could not start on its GPUs.

vLLM serves a model's whole context by default, and does not start where the KV cache of one request of that length does
not fit beside the weights. For such models it is told to fit the length to what is left (--max-model-len=auto, in
vLLM from 0.14.0, vllm#29431): it measures what can only be estimated here. Everything else is left to it, and so is
every model whose config.json does not say what its cache takes, or is of a kind that is not known here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamway.errors import StorageError
from streamway.server.accelerators import GIB, USABLE_SHARE, Accelerator, room_beside_weights
from streamway.server.engine import TITLES
from streamway.server.kv_cache import Demand, NotKnownError, read_demand
from streamway.storage.addresses import join
from streamway.storage.files import exists, read_file

_FIT = "--max-model-len=auto"
_CONFIG_BYTES = 4 * 1024 * 1024
# Whoever sets one of these decides about memory in a way that the figures here do not follow.
_DECIDING = frozenset(
    {
        "--block-size",
        "--config",
        "--cpu-offload-gb",
        "--decode-context-parallel-size",
        "--enable-lora",
        "--hf-overrides",
        "--kv-cache-memory-bytes",
        "--num-gpu-blocks-override",
        "--quantization",
        "--speculative-config",
    }
)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an engine is told about the length of the context.

    Args:
        arguments: For the engine; empty leaves the length to it.
        said: The choice and its reason, in one sentence.
        model_tokens: The model's own longest context; 0 where that is not known.
        fitting_tokens: About how long a context fits; 0 where that is not known.
    """

    arguments: tuple[str, ...] = ()
    said: str
    model_tokens: int = 0
    fitting_tokens: int = 0


def read_model_config(release_uri: str) -> Mapping[str, Any]:
    """Read the config.json of a release; empty where it has none.

    Raises:
        StorageError: it cannot be read.
    """
    uri = join(release_uri, "config.json")
    return parse_model_config(read_file(uri, max_bytes=_CONFIG_BYTES), uri) if exists(uri) else {}


def parse_model_config(data: bytes, name: str) -> Mapping[str, Any]:
    """Read the bytes of a config.json.

    Args:
        data: The bytes.
        name: Of the file, for messages.

    Raises:
        StorageError: they are not a JSON object.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{name} is not JSON: {error}.", next_step="Publish the model again.") from error
    if not isinstance(found, dict):
        raise StorageError(f"{name} holds no JSON object.", next_step="Publish the model again.")
    return found


def choose_context(
    config: Mapping[str, Any] | None,
    *,
    engine: str,
    accelerator: Accelerator,
    gpu_count: int,
    size_bytes: int,
    engine_arguments: Sequence[str],
) -> Context:
    """Decide what to tell an engine about the length of its context.

    Args:
        config: The model's config.json; None or empty where it is not known.
        engine: `vllm` or `sglang`.
        accelerator: What it runs on.
        gpu_count: GPUs that the model is split over.
        size_bytes: Bytes of the release.
        engine_arguments: The caller's own arguments, which have the last word.
    """
    given = _read_arguments(engine_arguments)
    if engine != "vllm":
        # Its name for the length, --context-length, takes no word for "what fits", and it starts without.
        title = TITLES[engine]
        return Context(said=f"the context is left to {title}, which starts with what fits and refuses what is longer")
    if "--max-model-len" in given:
        return Context(said=f"the context is --max-model-len={given['--max-model-len']}, as engine_arguments say")
    try:
        deciding = sorted(_DECIDING & given.keys())
        if deciding:
            raise NotKnownError(f"engine_arguments have {deciding[0]}, which changes what fits")
        demand = read_demand(config or {}, arguments=given, gpu_memory_gib=accelerator.memory_gib, gpu_count=gpu_count)
    except NotKnownError as error:
        return Context(said=f"the context is left to the engine: {error}")
    share = _share(given.get("--gpu-memory-utilization", ""))
    room = room_beside_weights(accelerator, gpu_count, size_bytes, usable_share=share)
    return _choice(demand, room)


def _choice(demand: Demand, room_bytes: float) -> Context:
    cache, model_tokens = demand.cache, demand.model_tokens
    needed, fitting = cache.bytes_for(model_tokens), cache.longest(room_bytes, model_tokens)
    shown = f"of KV cache on each GPU, and about {max(0.0, room_bytes) / GIB:.1f} GiB are free beside the weights"
    figures = f"the model's own context of {model_tokens:,} tokens takes {needed / GIB:.1f} GiB {shown}"
    if fitting == model_tokens:
        return Context(
            said=f"the context is left to the engine: {figures}", model_tokens=model_tokens, fitting_tokens=fitting
        )
    return Context(
        arguments=(_FIT,),
        said=f"the engine is told to fit the context ({_FIT}), to about {fitting // 100 * 100:,} tokens: {figures}",
        model_tokens=model_tokens,
        fitting_tokens=fitting,
    )


def _share(asked: str) -> float:
    try:
        return float(asked or USABLE_SHARE)
    except ValueError:
        # The engine refuses it, and says so better.
        return USABLE_SHARE


def _read_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Arguments by their names, whether a value is in the same text or in the next."""
    found, name = dict[str, str](), ""
    for argument in arguments:
        if argument.startswith("-"):
            flag, _, value = argument.partition("=")
            name = {"-q": "--quantization"}.get(flag, flag.replace("_", "-")).partition(".")[0]
            found[name] = value
        elif name and not found[name]:
            found[name] = argument
    return found
