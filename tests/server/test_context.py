"""A model's own context where it fits beside the weights; the engine is told to fit it where it does not."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.errors import StorageError
from streamway.sandbox.engine import engine_environment, ensure_engine
from streamway.server import Context, ServerSpec, derive, read_model_config, render
from streamway.server.accelerators import ACCELERATORS, GIB
from streamway.server.context import choose_context
from streamway.server.kv_cache import read_demand

FIT = "--max-model-len=auto"
Spec = Callable[..., ServerSpec]

# What the models of these names say in their config.json, as far as it matters here.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
SMOLLM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "torch_dtype": "bfloat16",
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "vocab_size": 152064,
    "torch_dtype": "bfloat16",
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}
NEMO = {
    **MISTRAL,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": None,
    "vocab_size": 131072,
}
GEMMA = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "vocab_size": 256000,
    "torch_dtype": "bfloat16",
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "sliding_window": 128,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "vocab_size": 201088,
    "torch_dtype": "bfloat16",
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "max_position_embeddings": 163840,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "vocab_size": 129280,
    "torch_dtype": "bfloat16",
}
LITE = {
    **DEEPSEEK,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
LINEAR = {**SMOLLM, "rope_scaling": {"type": "linear", "factor": 4.0}}
MODELS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "Llama-3.1-8B": (LLAMA, "nvidia-l4", 1, 16_060_556_336),
    "Llama-3.1-8B on two": (LLAMA, "nvidia-l4", 2, 16_060_556_336),
    "SmolLM2-135M": (SMOLLM, "nvidia-l4", 1, 269_060_552),
    "SmolLM2-135M, stretched": (LINEAR, "nvidia-l4", 1, 269_060_552),
    "Qwen2.5-7B": (QWEN, "nvidia-l4", 1, 15_231_271_888),
    "Mistral-7B-v0.1": (MISTRAL, "nvidia-l4", 1, 14_483_498_016),
    "Mistral-Nemo": (NEMO, "nvidia-l4", 2, 24_495_608_496),
    "gemma-2-9b": (GEMMA, "nvidia-l4", 1, 18_483_459_824),
    "gpt-oss-20b": (GPT_OSS, "nvidia-l4", 1, 13_761_300_984),
    "DeepSeek-V3": (DEEPSEEK, "nvidia-h200-141gb", 8, 688_586_727_753),
    "DeepSeek-V2-Lite": (LITE, "nvidia-l4", 2, 31_412_968_576),
}


def choose(name: str, *, arguments: list[str] | None = None, **changes: Any) -> Context:
    config, accelerator, gpu_count, size_bytes = MODELS[name]
    return choose_context(
        config | changes,
        engine="vllm",
        accelerator=ACCELERATORS[accelerator],
        gpu_count=gpu_count,
        size_bytes=size_bytes,
        engine_arguments=arguments or [],
    )


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("Llama-3.1-8B", False),
        ("Llama-3.1-8B on two", True),
        ("SmolLM2-135M", True),
        ("SmolLM2-135M, stretched", True),
        ("Qwen2.5-7B", True),
        ("Mistral-7B-v0.1", True),
        ("Mistral-Nemo", False),
        ("gpt-oss-20b", True),
        ("DeepSeek-V3", True),
        ("DeepSeek-V2-Lite", False),
    ],
)
def test_the_engine_is_told_to_fit_a_context_that_would_not_fit_and_nothing_else(name: str, fits: bool) -> None:
    chosen = choose(name)

    assert chosen.arguments == (() if fits else (FIT,)), chosen.said
    assert (chosen.fitting_tokens == chosen.model_tokens) is fits


def test_the_choice_is_told_with_its_figures() -> None:
    said = choose("Llama-3.1-8B").said

    assert "131,072 tokens takes 16.0 GiB of KV cache on each GPU" in said
    assert "about 3.0 GiB are free beside the weights" in said
    assert "to about 24,900 tokens" in said


def test_more_memory_for_the_engine_or_smaller_numbers_make_room() -> None:
    less = choose("Llama-3.1-8B", arguments=["--gpu-memory-utilization=0.85"]).fitting_tokens
    plain = choose("Llama-3.1-8B").fitting_tokens
    small = choose("Llama-3.1-8B", arguments=["--kv-cache-dtype", "fp8"]).fitting_tokens

    assert less < plain
    assert small // 2 in range(plain - 16, plain + 16)
    assert choose("Llama-3.1-8B", arguments=["--dtype=float32"]).fitting_tokens < plain * 0.51


@pytest.mark.parametrize("own", [["--max-model-len=4096"], ["--max_model_len", "4096"], ["--max-model-len", "-1"]])
def test_a_length_of_ones_own_has_the_last_word(spec: Spec, own: list[str]) -> None:
    server = spec(model_config=LLAMA, size_bytes=16_060_556_336, engine_arguments=own)

    assert FIT not in container_arguments(server)
    assert derive(server).context.said.startswith("the context is --max-model-len=")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba2"}, "a model of the kind 'mamba2'"),
        ({"model_type": None}, "a model of the kind 'None'"),
        ({"model_type": ["llama"]}, "of the kind"),
        ({"num_hidden_layers": None}, "config.json lacks num_hidden_layers"),
        ({"num_hidden_layers": "32"}, "config.json lacks num_hidden_layers"),
        ({"num_hidden_layers": 10**400}, "config.json lacks num_hidden_layers"),
        ({"max_position_embeddings": 0}, "config.json lacks max_position_embeddings"),
        ({"num_key_value_heads": None, "model_type": "qwen2"}, "config.json lacks num_key_value_heads"),
        ({"model_type": "qwen3"}, "config.json lacks head_dim"),
        ({"sliding_window": 4096}, "which of its layers keep a window"),
        ({"model_type": "gpt_oss", "head_dim": 64}, "config.json lacks layer_types"),
        ({"model_type": "gemma2", "head_dim": 64}, "config.json lacks sliding_window"),
        ({"layer_types": ["linear_attention"] * 32}, "lists 32 layers: linear_attention"),
        ({"layer_types": ["full_attention"]}, "lists 1 layers: full_attention"),
        ({"layer_types": "full_attention"}, "no list"),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}}, "a type of its own for its KV cache"),
    ],
)
def test_what_config_json_does_not_say_is_not_guessed(changes: dict[str, Any], words: str) -> None:
    chosen = choose("Llama-3.1-8B", **changes)

    assert chosen.arguments == ()
    assert chosen.said.startswith("the context is left to the engine: ")
    assert words in chosen.said


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--quantization=fp8", "--quantization"),
        ("-q", "--quantization"),
        ("--hf_overrides.x=1", "--hf-overrides"),
        ("--kv-cache-dtype=nvfp4", "a KV cache of nvfp4"),
        ("--max-num-batched-tokens=8k", "8k tokens in a batch"),
    ],
)
def test_arguments_that_change_what_fits_leave_the_length_to_the_engine(argument: str, words: str) -> None:
    chosen = choose("Llama-3.1-8B", arguments=[argument])

    assert chosen.arguments == ()
    assert "left to the engine: engine_arguments" in chosen.said
    assert words in chosen.said


def test_a_model_whose_configuration_is_not_known_is_left_to_the_engine(spec: Spec) -> None:
    assert FIT not in container_arguments(spec())
    assert "config.json is not known" in derive(spec()).context.said


def test_a_model_of_several_senses_is_judged_by_its_language_part() -> None:
    parts = {"model_type": "mistral3", "text_config": NEMO, "vision_config": {"num_hidden_layers": 1}}
    _config, accelerator, gpu_count, size_bytes = MODELS["Mistral-Nemo"]
    chosen = choose_context(
        parts,
        engine="vllm",
        accelerator=ACCELERATORS[accelerator],
        gpu_count=gpu_count,
        size_bytes=size_bytes,
        engine_arguments=[],
    )

    assert chosen.arguments == (FIT,)
    assert chosen == choose("Mistral-Nemo")


def container_arguments(spec: ServerSpec) -> list[str]:
    (deployment,) = [manifest for manifest in render(spec) if manifest["kind"] == "Deployment"]
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def test_the_manifest_tells_the_engine_before_the_callers_own_arguments(spec: Spec) -> None:
    own = ["--dtype=bfloat16"]
    found = container_arguments(spec(model_config=LLAMA, size_bytes=16_060_556_336, engine_arguments=own))

    assert found[-2:] == [FIT, *own]


def test_sglang_is_told_nothing(spec: Spec) -> None:
    server = spec(model_config=LLAMA, size_bytes=16_060_556_336, image="lmsysorg/sglang:v0.5.12")

    assert not [argument for argument in container_arguments(server) if "len" in argument]
    assert derive(server).context.said.startswith("the context is left to SGLang, which starts with what fits")


def test_a_releases_own_config_json_is_read(tmp_path: Path) -> None:
    assert read_model_config(f"{tmp_path}/") == {}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_model_config(f"{tmp_path}/") == LLAMA
    for broken in ("{", "[]"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(StorageError, match=r"config\.json"):
            read_model_config(f"{tmp_path}/")


@settings(deadline=None, max_examples=100)
@given(
    name=st.sampled_from(sorted(MODELS)),
    size_gib=st.floats(0.1, 600),
    accelerator=st.sampled_from(sorted(ACCELERATORS)),
    gpu_count=st.sampled_from([1, 2, 4, 8]),
)
def test_the_length_that_is_told_is_the_longest_that_fits(
    name: str, size_gib: float, accelerator: str, gpu_count: int
) -> None:
    kind = ACCELERATORS[accelerator]
    config = MODELS[name][0]
    size_bytes = int(size_gib * GIB)
    chosen = choose_context(
        config, engine="vllm", accelerator=kind, gpu_count=gpu_count, size_bytes=size_bytes, engine_arguments=[]
    )
    cache = read_demand(config, arguments={}, gpu_memory_gib=kind.memory_gib, gpu_count=gpu_count).cache
    room = (kind.memory_gib * 0.9 - 1.5 - size_gib * 1.05 / gpu_count) * GIB

    assert 0 <= chosen.fitting_tokens <= chosen.model_tokens
    assert chosen.fitting_tokens == 0 or cache.bytes_for(chosen.fitting_tokens) <= room + 1024
    if chosen.fitting_tokens < chosen.model_tokens:
        assert chosen.arguments == (FIT,)
        assert cache.bytes_for(chosen.fitting_tokens + 1) > room - 1024


@settings(deadline=None, max_examples=200)
@given(
    config=st.dictionaries(
        st.sampled_from([*LLAMA, "layer_types", "sliding_window", "text_config", "rope_parameters", "head_dim"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("llama"),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_no_configuration_is_too_odd_to_be_judged(config: dict[str, Any]) -> None:
    chosen = choose_context(
        {**LLAMA, **config},
        engine="vllm",
        accelerator=ACCELERATORS["nvidia-l4"],
        gpu_count=1,
        size_bytes=GIB,
        engine_arguments=[],
    )

    assert chosen.arguments in ((), (FIT,))
    assert chosen.said


@pytest.mark.engine
@pytest.mark.slow
def test_the_engine_itself_makes_the_same_of_these_models() -> None:
    engine = ensure_engine(print)
    wanted = {name: {"config": config, "gpu_count": count} for name, (config, _kind, count, _size) in MODELS.items()}
    done = subprocess.run(
        [str(engine.bin_path / "python"), str(Path(__file__).with_name("engine_contexts.py")), FIT],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **engine_environment(engine), "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    found = told["models"]

    # What its option's own help means by "auto": fitted once the memory has been measured.
    assert told["max_model_len"] == -1
    for name, (config, kind, count, _size) in MODELS.items():
        ours = read_demand(config, arguments={}, gpu_memory_gib=ACCELERATORS[kind].memory_gib, gpu_count=count)
        assert found[name]["model_tokens"] == ours.model_tokens, name
        batch = {"--max-num-batched-tokens": "2048"}
        ours = read_demand(config, arguments=batch, gpu_memory_gib=ACCELERATORS[kind].memory_gib, gpu_count=count)
        assert found[name]["bytes"] == ours.cache.bytes_for(ours.model_tokens), name
