"""Run in the engine's environment: build small models of real architectures as pickled repositories, and load them.

python engine_models.py make FOLDER     writes FOLDER/<architecture>/source
python engine_models.py compare FOLDER  loads source and converted of each, prints one JSON line for each
python engine_models.py serve FOLDER    generates with vLLM through the streamer, prints one JSON line
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

PROMPT = [5, 17, 42, 8, 23]
SIZES = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {
    **SIZES,
    "head_dim": 32,
    "intermediate_size": 96,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def architectures() -> dict[str, tuple[Any, Any, dict[str, str]]]:
    """Return (class, config, ties) by name; a tie is another name for a stored tensor."""
    import transformers as t

    untied = {**LLAMA, "tie_word_embeddings": False}
    mixture = {**untied, "num_local_experts": 4, "num_experts_per_tok": 2}
    embeddings = "bert.embeddings.word_embeddings.weight"
    t5_ties = {f"{part}.embed_tokens.weight": "shared.weight" for part in ("encoder", "decoder")}
    llama_tie = {"lm_head.weight": "model.embed_tokens.weight"}
    return {
        "llama_tied": (t.LlamaForCausalLM, t.LlamaConfig(**LLAMA, tie_word_embeddings=True), llama_tie),
        "llama_untied": (t.LlamaForCausalLM, t.LlamaConfig(**untied), {}),
        "llama_shared_but_untied": (t.LlamaForCausalLM, t.LlamaConfig(**untied), llama_tie),
        "gpt2": (
            t.GPT2LMHeadModel,
            t.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=128),
            {"lm_head.weight": "transformer.wte.weight"},
        ),
        "mixtral": (t.MixtralForCausalLM, t.MixtralConfig(**mixture), {}),
        "bert": (
            t.BertForMaskedLM,
            t.BertConfig(**SIZES, intermediate_size=96),
            {"cls.predictions.decoder.weight": embeddings, "cls.predictions.decoder.bias": "cls.predictions.bias"},
        ),
        "t5": (
            t.T5ForConditionalGeneration,
            t.T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
            {**t5_ties, "lm_head.weight": "shared.weight"},
        ),
        "llama_float8": (t.LlamaForCausalLM, t.LlamaConfig(**untied), {}),
    }


def make(folder: Path) -> None:
    from safetensors.torch import load_file

    for seed, (name, (kind, config, ties)) in enumerate(architectures().items()):
        torch.manual_seed(seed)
        source = folder / name / "source"
        kind(config).save_pretrained(source)
        state = load_file(source / "model.safetensors")
        (source / "model.safetensors").unlink()
        if name == "llama_float8":
            projections = [key for key in state if key.endswith("proj.weight")]
            state.update({key: state[key].to(torch.float8_e4m3fn) for key in projections})
        state.update({alias: state[kept] for alias, kept in ties.items()})
        parts = [dict(list(state.items())[:4]), dict(list(state.items())[4:])] if name == "mixtral" else [state]
        save(source, parts)


def save(source: Path, parts: list[dict[str, torch.Tensor]]) -> None:
    if len(parts) == 1:
        torch.save(parts[0], source / "pytorch_model.bin")
        return
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
        torch.save(part, source / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def compare(folder: Path) -> None:
    for name, (kind, config, _) in architectures().items():
        loaded = [load(kind, folder / name / part) for part in ("source", "converted")]
        answers = [answer(model, config) for model, _ in loaded]
        found = {
            "name": name,
            "equal": bool(torch.equal(*answers)),
            "finite": bool(torch.isfinite(answers[0]).all()) and float(answers[0].std()) > 0,
            "missing": [sorted(map(str, info["missing_keys"])) for _, info in loaded],
            "unexpected": sorted(map(str, loaded[1][1]["unexpected_keys"])),
        }
        print(json.dumps(found), flush=True)


def load(kind: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), info


def answer(model: Any, config: Any) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([PROMPT])}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([PROMPT[:2]])
    with torch.no_grad():
        return model(**inputs).logits


def serve(folder: Path) -> None:
    """Let vLLM stream the converted model, and hold its words against those of the pickled one in transformers."""
    from vllm import LLM, SamplingParams

    source, converted = folder / "llama_tied" / "source", folder / "llama_tied" / "converted"
    kind, _, _ = architectures()["llama_tied"]
    model, _ = load(kind, source)
    words = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)[0, len(PROMPT) :].tolist()
    engine = LLM(
        str(converted), load_format="runai_streamer", dtype="float32", enforce_eager=True, skip_tokenizer_init=True,
        max_model_len=64, max_num_seqs=1,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=8, detokenize=False, ignore_eos=True)
    (result,) = engine.generate([{"prompt_token_ids": PROMPT}], sampling)
    print(json.dumps({"expected": words, "served": list(result.outputs[0].token_ids)}), flush=True)


if __name__ == "__main__":
    action, where = sys.argv[1], Path(sys.argv[2])
    if action == "make" and where.exists():
        shutil.rmtree(where)
    {"make": make, "compare": compare, "serve": serve}[action](where)
