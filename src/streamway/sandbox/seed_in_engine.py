"""Make the seed's model folders, inside the engine's environment: it has torch and transformers, ours has not.

    <engine>/bin/python seed_in_engine.py MODEL.gguf OUT

writes OUT/pickled, OUT/safetensors (the real SmolLM2-135M-Instruct) and OUT/wrong (two layers of noise that share
its tokenizer). Run twice, it writes the same bytes.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
# This file belongs to an environment that the type checker does not see.

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
CONTEXT_TOKENS = 8192


def load(gguf_path: Path) -> tuple[Any, Any]:
    """Return model and tokenizer, the weights dequantised to bfloat16."""
    where = {"pretrained_model_name_or_path": str(gguf_path.parent), "gguf_file": gguf_path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    return model, AutoTokenizer.from_pretrained(**where)


def check_answer(model: Any, tokenizer: Any) -> None:
    """Ask the model a question; a seed that cannot answer it proves nothing later."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if ANSWER not in text:
        raise SystemExit(f"the seed answers {text!r} to {QUESTION!r}, expected {ANSWER!r} in it")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save tokenizer and chat template."""
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.save_pretrained(folder)
    drop_keys(folder / "tokenizer_config.json", "is_local", "local_files_only")


def drop_keys(path: Path, *keys: str) -> None:
    """Remove from a configuration what only says how the model came here."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in keys}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_pickled(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save as repositories did before safetensors: configuration, and torch.save of the state dict."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    drop_keys(folder / "config.json", "_model_name_or_path")
    model.generation_config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_tokenizer(tokenizer, folder)


def noise(config: LlamaConfig) -> Any:
    """Return a model of the same family that has learnt nothing."""
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=128,
        head_dim=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(small).to(torch.bfloat16)


def main(gguf: str, out: str) -> None:
    """Make all folders."""
    model, tokenizer = load(Path(gguf))
    check_answer(model, tokenizer)
    folder = Path(out)
    save_pickled(model, tokenizer, folder / "pickled")
    model.save_pretrained(folder / "safetensors")
    drop_keys(folder / "safetensors" / "config.json", "_model_name_or_path")
    save_tokenizer(tokenizer, folder / "safetensors")
    save_pickled(noise(model.config), tokenizer, folder / "wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
