"""What a model keeps of each token while it answers, by its own config.json; never guessed where that does not say.

The figures are vLLM's: the same as its classes compute for the same configuration, as a test with the engine shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Tokens of one page of the cache (DEFAULT_BLOCK_SIZE in vllm/config/cache.py).
_BLOCK_TOKENS = 16
# Batches that may be under way at once with asynchronous scheduling, and tokens of each by default
# (EngineArgs.get_batch_defaults in vllm/engine/arg_utils.py).
_BATCHES_UNDER_WAY = 2
_BATCH_TOKENS = ((160, 16384), (70, 8192), (0, 2048))
# Bytes of one number; "auto" is the model's own type, and models of 32 bits are served in 16 unless told otherwise.
_CACHE_TYPES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_MODEL_TYPES_OF_32_BITS = frozenset({"float", "float32"})
# Kinds of models (`model_type`) that keep keys and values of every layer, and nothing else.
_EVERY_LAYER = frozenset(
    [
        "cohere",
        "gemma",
        "glm",
        "glm4",
        "gpt_neox",
        "granite",
        "granitemoe",
        "llama",
        "nemotron",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
    ]
)
# Kinds whose `sliding_window` is that of every layer.
_EVERY_WINDOW = frozenset({"mistral", "mixtral", "phi3", "starcoder2"})
# Kinds of which one layer in so many sees everything, where the configuration does not list its layers.
_ONE_FULL_IN = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6}
# Kinds that keep one compressed row for each token instead (multi-head latent attention), on every GPU the same.
_LATENT = frozenset({"deepseek_v2", "deepseek_v3", "kimi_k2"})
_LISTED = frozenset({"gpt_oss"})
_KNOWN = _EVERY_LAYER | _EVERY_WINDOW | _ONE_FULL_IN.keys() | _LATENT | _LISTED
_MOST = 2**31
_ORIGINAL = "original_max_position_embeddings"
# Kinds with a head size of their own where none is written; and those with as many key heads as heads.
_OWN_HEAD_SIZE = frozenset({"gemma", "gemma2", "gemma3_text", "gpt_oss", "qwen3", "qwen3_moe"})
_ALL_HEADS = frozenset({"gpt_neox", "llama", "opt", "phi"})


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """What one request takes of each GPU's memory.

    Args:
        row_bytes: Of one token in one layer.
        full_layers: Layers that keep every token.
        window_layers: Layers that keep a window only.
        window_tokens: Tokens of that window, and of the batches that are under way.
    """

    row_bytes: int
    full_layers: int
    window_layers: int = 0
    window_tokens: int = 0

    def bytes_for(self, tokens: int) -> int:
        """Memory that a request of so many tokens takes, in whole pages.

        As vLLM admits it: FullAttentionSpec and SlidingWindowSpec.max_memory_usage_bytes in
        vllm/v1/kv_cache_interface.py. Layers of two kinds share one pool in groups of as many layers as the smaller
        kind has, and the last group is filled up (_get_kv_cache_groups_uniform_page_size in
        vllm/v1/core/kv_cache_utils.py).
        """
        every = self.full_layers * _in_pages(tokens)
        if not self.window_layers:
            return every * self.row_bytes
        # One page more, because a window need not begin where a page does.
        within = _in_pages(min(tokens, self.window_tokens)) + _BLOCK_TOKENS
        if not self.full_layers:
            return self.window_layers * within * self.row_bytes
        most, fewest = max(self.full_layers, self.window_layers), min(self.full_layers, self.window_layers)
        group = most if most < fewest * 1.5 else fewest
        full, windowed = (-(-layers // group) * group for layers in (self.full_layers, self.window_layers))
        return (full * _in_pages(tokens) + windowed * within) * self.row_bytes

    def longest(self, room_bytes: float, most_tokens: int) -> int:
        """Longest context whose cache fits, at most the model's own; 0 for none."""
        low, high = 0, most_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_for(middle) <= room_bytes else (low, middle - 1)
        return low


class NotKnownError(Exception):
    """Why it cannot be told what a model's cache takes."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a model asks for.

    Args:
        model_tokens: Its own longest context.
        cache: What one request takes of each GPU.
    """

    model_tokens: int
    cache: KvCache


def read_demand(
    config: Mapping[str, Any], *, arguments: Mapping[str, str], gpu_memory_gib: float, gpu_count: int
) -> Demand:
    """Work out what a model asks for.

    Args:
        config: Its config.json.
        arguments: What the engine is told beside, by name.
        gpu_memory_gib: Memory of one GPU.
        gpu_count: GPUs that the model is split over.

    Raises:
        NotKnownError: the configuration does not say it, or is of a kind that is not known here.
    """
    text = _text_part(config)
    cache = _kv_cache(text, arguments, gpu_memory_gib, gpu_count)
    return Demand(model_tokens=_model_tokens(text), cache=cache)


def _in_pages(tokens: int) -> int:
    return -(-tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model of a configuration, which for models of several senses is a part of it."""
    if not config:
        raise NotKnownError("the model's config.json is not known")
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    kind = str(text.get("model_type"))
    if kind not in _KNOWN:
        raise NotKnownError(f"what a model of the kind {kind!r} keeps for each token is not known here")
    for owner in (config, text):
        scheme = owner.get("quantization_config") or owner.get("compression_config") or {}
        if isinstance(scheme, Mapping) and (scheme.get("kv_cache_scheme") or scheme.get("kv_cache_quant_algo")):
            raise NotKnownError("the model brings a type of its own for its KV cache")
    return text


def _model_tokens(text: Mapping[str, Any]) -> int:
    """Longest context by the model's own word.

    As _get_and_verify_max_len in vllm/config/model.py: YaRN and Llama 3's scaling are in max_position_embeddings
    already, linear and dynamic scaling are not, and LongRoPE is served at its original length.
    """
    tokens = _positive(text, "max_position_embeddings")
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        return tokens
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if kind in ("longrope", "su"):
        return _positive(text if "original_max_position_embeddings" in text else scaling, _ORIGINAL)
    factor = scaling.get("factor") if kind in ("linear", "dynamic") else 1
    # gemma3 counts its scaling in already.
    scaled = isinstance(factor, int | float) and 0 < factor < _MOST and text.get("model_type") != "gemma3_text"
    return int(tokens * factor) if scaled and factor is not None else tokens


def _kv_cache(text: Mapping[str, Any], arguments: Mapping[str, str], gpu_memory_gib: float, gpu_count: int) -> KvCache:
    number_bytes = _number_bytes(arguments)
    layers = _positive(text, "num_hidden_layers")
    if text["model_type"] in _LATENT:
        # One row for all heads, which every GPU keeps whole (ModelConfig.get_num_kv_heads, MLAAttentionSpec).
        row = _positive(text, "kv_lora_rank") + _positive(text, "qk_rope_head_dim")
        return KvCache(row_bytes=row * number_bytes, full_layers=layers)
    heads = max(1, _key_heads(text) // gpu_count)
    full, window = _layers(text, layers)
    tokens = next(tokens for gibibytes, tokens in _BATCH_TOKENS if gpu_memory_gib >= gibibytes)
    if asked := arguments.get("--max-num-batched-tokens", ""):
        if not asked.isdecimal():
            raise NotKnownError(f"engine_arguments ask for {asked} tokens in a batch")
        tokens = int(asked)
    return KvCache(
        row_bytes=2 * heads * _head_size(text) * number_bytes,
        full_layers=full,
        window_layers=layers - full,
        window_tokens=window - 1 + _BATCHES_UNDER_WAY * tokens if window else 0,
    )


def _number_bytes(arguments: Mapping[str, str]) -> int:
    wanted = arguments.get("--kv-cache-dtype") or "auto"
    if wanted not in _CACHE_TYPES:
        raise NotKnownError(f"engine_arguments ask for a KV cache of {wanted}")
    return 4 if wanted == "auto" and arguments.get("--dtype") in _MODEL_TYPES_OF_32_BITS else _CACHE_TYPES[wanted]


def _key_heads(text: Mapping[str, Any]) -> int:
    if text.get("num_key_value_heads") is None and text["model_type"] in _ALL_HEADS:
        return _positive(text, "num_attention_heads")
    return _positive(text, "num_key_value_heads")


def _head_size(text: Mapping[str, Any]) -> int:
    if text.get("head_dim") is None and text["model_type"] not in _OWN_HEAD_SIZE:
        return _positive(text, "hidden_size") // _positive(text, "num_attention_heads")
    return _positive(text, "head_dim")


def _layers(text: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """Layers that see everything, and the window of the others; 0 where there are none."""
    kind, listed = text["model_type"], text.get("layer_types")
    if listed:
        if not isinstance(listed, list):
            raise NotKnownError("config.json has layer_types that are no list")
        kinds = set(map(str, listed))
        if len(listed) != layers or not kinds <= {"full_attention", "sliding_attention"}:
            raise NotKnownError(f"config.json lists {len(listed)} layers: {', '.join(sorted(kinds))}")
        full = listed.count("full_attention")
        return full, 0 if full == layers else _positive(text, "sliding_window")
    if kind in _LISTED:
        raise NotKnownError("config.json lacks layer_types")
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        if kind in _ONE_FULL_IN:
            raise NotKnownError("config.json lacks sliding_window")
        return layers, 0
    window = _positive(text, "sliding_window")
    if kind in _EVERY_WINDOW:
        return 0, window
    if kind in _ONE_FULL_IN:
        pattern = "sliding_window_pattern"
        return layers // (_positive(text, pattern) if pattern in text else _ONE_FULL_IN[kind]), window
    raise NotKnownError("config.json does not say which of its layers keep a window only")


def _positive(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if type(value) is not int or not 0 < value < _MOST:
        raise NotKnownError(f"config.json lacks {key}")
    return value
