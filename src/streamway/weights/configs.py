"""What config.json says about a model, held against the tensors that are there."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from streamway.weights.findings import Finding, error, info, warning
from streamway.weights.safetensors_file import TensorEntry
from streamway.weights.ties import is_embedding, is_head, ties_embeddings
from streamway.weights.wording import show_name

_HIDDEN = ("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYER_INDEX = re.compile(r"(?P<stack>.*?\b(?:layers?|h|blocks?))\.(?P<number>\d+)\.")
_FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_MOST_COUNT = 1 << 40
"""A larger number is no model's, and numbers of thousands of digits cannot even be written down."""
_FLOAT_CODES = frozenset(_FLOATS.values())
_QUANTISED_NAMES = {"qweight": "GPTQ or AWQ", "weight_packed": "compressed-tensors", "absmax": "bitsandbytes"}
_OTHER_MODEL = "Check that weights and config.json come from the same model and commit."

Entries = Mapping[str, TensorEntry]


def judge_config(config: Mapping[str, Any], entries: Entries) -> Iterator[Finding]:
    """Compare what a configuration says with the tensors, where it says something.

    Packed (quantised) tensors have shapes of their own and are left out.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    quantisation = name_quantisation(config, entries)
    if quantisation:
        yield info("quantised", "config.json", f"The weights are quantised: {quantisation}.")
    if isinstance(text, dict):
        yield from _embeddings(text, entries)
        yield from _layers(text, entries)
        yield from _heads(text, entries)
    yield from _output_head(config, entries)
    if not quantisation:
        yield from _dtype(config, text, entries)


def name_quantisation(config: Mapping[str, Any], entries: Entries) -> str:
    """Return how the weights are quantised, by configuration or by their look; "" where they are not."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if isinstance(stated, dict):
        method = stated.get("quant_method") or stated.get("quant_algo") or "unnamed method"
        detail = stated.get("fmt") or stated.get("format") or (f"{stated['bits']} bits" if "bits" in stated else "")
        return show_name(f"{method}{f' ({detail})' if detail else ''}", 80)
    for name in entries:
        if found := _QUANTISED_NAMES.get(name.rpartition(".")[2]):
            return f"{found}, by the names of its tensors"
    if any(entry.dtype.code.startswith("F8") and len(entry.shape) > 1 for entry in entries.values()):
        return "float8, by the dtype of its tensors"
    return ""


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    found = next((config[key] for key in keys if type(config.get(key)) is int), None)
    return found if found and 0 < found < _MOST_COUNT else None


def _embeddings(config: Mapping[str, Any], entries: Entries) -> Iterator[Finding]:
    vocabulary = _number(config, ("vocab_size",))
    widths = {config[key] for key in _HIDDEN if type(config.get(key)) is int}
    for name, entry in entries.items():
        is_table = is_embedding(name) or name.endswith("lm_head.weight")
        if not is_table or len(entry.shape) != 2 or entry.dtype.code not in _FLOAT_CODES:
            continue
        rows, width = entry.shape
        if vocabulary and rows != vocabulary:
            yield error(
                "vocabulary-size",
                show_name(name),
                f"has {rows:,} rows, expected vocab_size {vocabulary:,} from config.json.",
                _OTHER_MODEL,
            )
        if widths and width not in widths:
            expected = " or ".join(f"{number:,}" for number in sorted(widths))
            yield error(
                "hidden-size",
                show_name(name),
                f"is {width:,} wide, expected {expected} from config.json.",
                _OTHER_MODEL,
            )


def _layers(config: Mapping[str, Any], entries: Entries) -> Iterator[Finding]:
    """Count the layers of the longest stack; a stack that lacks one cannot be loaded."""
    expected = _number(config, _LAYERS)
    stacks: dict[str, set[int]] = {}
    for name in entries:
        if found := _LAYER_INDEX.match(name):
            stacks.setdefault(found["stack"], set()).add(int(found["number"]))
    if not expected or not stacks:
        return
    stack, numbers = max(stacks.items(), key=lambda item: len(item[1]))
    missing = expected - sum(1 for number in numbers if number < expected)
    if missing:
        first = next(number for number in itertools.count() if number not in numbers)
        yield error(
            "layers-missing",
            f"{show_name(stack)}.{first}",
            f"is missing, and {missing:,} of the {expected:,} layers of config.json in all.",
            "Download the model again, all of its shards.",
        )
    elif max(numbers) >= expected:
        yield info(
            "layers-extra",
            show_name(stack),
            f"has {max(numbers) + 1} layers, and config.json speaks of {expected}; some models add prediction layers.",
        )


def _heads(config: Mapping[str, Any], entries: Entries) -> Iterator[Finding]:
    heads, hidden = _number(config, _HEADS), _number(config, _HIDDEN)
    if not heads or not hidden:
        return
    width = _number(config, ("head_dim",)) or hidden // heads
    rows = {"q_proj": heads * width}
    key_heads = _number(config, ("num_key_value_heads",))
    if key_heads:
        rows |= {"k_proj": key_heads * width, "v_proj": key_heads * width}
    odd: Counter[str] = Counter()
    example: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        plain = len(entry.shape) == 2 and entry.dtype.code in _FLOAT_CODES
        if plain and name.endswith(f"self_attn.{part}.weight") and rows.get(part, entry.shape[0]) != entry.shape[0]:
            odd[part] += 1
            example.setdefault(part, entry)
    for part, count in odd.items():
        yield warning(
            "head-size",
            show_name(example[part].name),
            f"has {example[part].shape[0]:,} rows, and config.json's heads make {rows[part]:,} ({count} such tensors).",
            _OTHER_MODEL,
        )


def _output_head(config: Mapping[str, Any], entries: Entries) -> Iterator[Finding]:
    architectures = config.get("architectures")
    generates = isinstance(architectures, list) and any("ForCausalLM" in str(name) for name in architectures)
    if generates and ties_embeddings(config) is False and entries and not any(map(is_head, entries)):
        yield error(
            "output-head-missing",
            "lm_head.weight",
            "is missing, and config.json says that the model does not tie its embeddings.",
            "Download the model again; if it is the same, set tie_word_embeddings to true where that is so.",
        )


def _dtype(config: Mapping[str, Any], text: Any, entries: Entries) -> Iterator[Finding]:
    nested = text if isinstance(text, dict) else {}
    stated = config.get("dtype") or config.get("torch_dtype") or nested.get("dtype") or nested.get("torch_dtype")
    expected = _FLOATS.get(str(stated).removeprefix("torch."))
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        if entry.dtype.code in _FLOAT_CODES:
            sizes[entry.dtype.code] += entry.size_bytes
    if expected and sizes and expected not in sizes:
        found = sizes.most_common(1)[0][0]
        share = math.floor(100 * sizes[found] / sizes.total())
        yield warning(
            "dtype",
            "config.json",
            f"says {stated}, and {share}% of the weights are {found}; the engine will convert them as it loads.",
        )
