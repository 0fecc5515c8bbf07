"""Run in the engine's environment: what vLLM itself makes of some configurations.

python engine_contexts.py ARGUMENT < CONFIGS prints what the engine's parser makes of an argument, and for each of
{"name": {"config": {...}, "gpu_count": N}}, its longest context and the bytes of KV cache that one request of that
length takes of each GPU.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec


def layer_specs(found: Any, gpu_count: int) -> dict[str, Any]:
    """Describe each layer's part of the cache as vLLM's attention layers do."""
    text = found.hf_text_config
    shape = {
        "block_size": 16,
        "num_kv_heads": found.get_num_kv_heads(SimpleNamespace(tensor_parallel_size=gpu_count)),
        "head_size": found.get_head_size(),
        "dtype": torch.bfloat16,
    }
    windows = [window_of(text, number) for number in range(text.num_hidden_layers)]
    if found.use_mla:
        return {f"layers.{number}": MLAAttentionSpec(**shape) for number in range(text.num_hidden_layers)}
    return {
        f"layers.{number}": SlidingWindowSpec(**shape, sliding_window=window) if window else FullAttentionSpec(**shape)
        for number, window in enumerate(windows)
    }


def window_of(text: Any, layer: int) -> int | None:
    listed = getattr(text, "layer_types", None)
    if listed is not None and listed[layer] == "full_attention":
        return None
    return getattr(text, "sliding_window", None)


def measure(config: dict[str, Any], gpu_count: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        arguments = EngineArgs(
            model=folder, skip_tokenizer_init=True, max_num_batched_tokens=2048, async_scheduling=True
        )
        whole = arguments.create_engine_config()
    # As on a GPU, where batches overlap.
    whole.scheduler_config.async_scheduling = True
    whole.cache_config.kv_cache_layout = "LBNHC"
    groups = kv_cache_utils.get_kv_cache_groups(whole, layer_specs(whole.model_config, gpu_count))
    return {
        "model_tokens": whole.model_config.max_model_len,
        "bytes": kv_cache_utils._max_memory_usage_bytes_from_groups(whole, groups),
    }


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(sys.argv[1:])
    found = {name: measure(one["config"], one["gpu_count"]) for name, one in wanted.items()}
    json.dump({"max_model_len": parsed.max_model_len, "models": found}, sys.stdout)
