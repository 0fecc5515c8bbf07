"""A judgement names everything that is wrong with a model at once, from its headers alone."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from models import put, ramp, safetensors_bytes, snapshot_of
from torch_writer import checkpoint_bytes, tensor

from streamway.errors import StorageError
from streamway.weights import ValidationReport, convert_weights, validate

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def matrix(rows: int, columns: int, dtype: str = "BF16") -> tuple[str, list[int], bytes]:
    width = {"BF16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1}[dtype]
    return dtype, [rows, columns], bytes(rows * columns * width)


def llama_rows() -> dict[str, Any]:
    rows = {"model.embed_tokens.weight": matrix(10, 8), "lm_head.weight": matrix(10, 8)}
    for layer in range(2):
        for name, count in (("q", 8), ("k", 4), ("v", 4)):
            rows[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = matrix(count, 8)
    return rows


def llama(folder: Path | str, rows: dict[str, Any] | None = None, **files: Any) -> str:
    content = safetensors_bytes(llama_rows() if rows is None else rows, metadata={"format": "pt"})
    whole = {
        "model.safetensors": content,
        "config.json": CONFIG,
        "tokenizer.json": {},
        "chat_template.jinja": b"x",
        **files,
    }
    return put(folder, {path: data for path, data in whole.items() if data is not None})


def codes(report: ValidationReport, severity: str = "") -> list[str]:
    return [finding.code for finding in report.findings if severity in ("", finding.severity)]


def test_a_good_model_has_no_findings(tmp_path: Path) -> None:
    report = validate(llama(tmp_path))
    assert (report.ok, report.findings, report.kind) == (True, (), "model")
    assert report.tensors == 8
    assert report.dtypes == {"BF16": report.tensor_bytes}
    assert report.lines()[0] == f"{tmp_path}: model, ok"


def test_a_prefix_is_judged_like_a_folder(bucket_uri: str) -> None:
    assert validate(llama(bucket_uri)).findings == ()
    put(bucket_uri, {"stray.safetensors": b"x"})
    assert codes(validate(bucket_uri)) == ["stray-weights"]


def test_a_single_file_is_judged_alone(tmp_path: Path) -> None:
    report = validate(llama(tmp_path) + "/model.safetensors")
    assert (report.ok, report.findings, report.files) == (True, (), ("model.safetensors",))


def test_prepared_weights_are_judged_where_their_files_are(tmp_path: Path) -> None:
    source = snapshot_of(llama(tmp_path / "source"))
    convert_weights(snapshot_uri=source, weights_uri=str(tmp_path / "weights"))
    report = validate(str(tmp_path / "weights"))
    assert (report.findings, report.tensors) == ((), 8)


def changed(**changes: Any) -> dict[str, Any]:
    return {name: row for name, row in {**llama_rows(), **changes}.items() if row is not None}


def renamed(**changes: Any) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changes.items()}


ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "vocabulary": (renamed(model__embed_tokens__weight=matrix(11, 8)), "error", "vocabulary-size"),
    "width": (renamed(model__embed_tokens__weight=matrix(10, 9)), "error", "hidden-size"),
    "layers": (
        {f"model.layers.1.self_attn.{name}_proj.weight": None for name in "qkv"},
        "error",
        "layers-missing",
    ),
    "head": (renamed(lm_head__weight=None), "error", "output-head-missing"),
    "head_size": ({"model.layers.0.self_attn.k_proj.weight": matrix(5, 8)}, "warning", "head-size"),
    "more_layers": ({"model.layers.2.extra.weight": matrix(1, 8)}, "info", "layers-extra"),
}


@pytest.mark.parametrize("case", ROWS)
def test_tensors_are_held_against_the_configuration(tmp_path: Path, case: str) -> None:
    changes, severity, code = ROWS[case]
    report = validate(llama(tmp_path, changed(**changes)))
    assert codes(report, severity) == [code]
    assert report.ok == (severity != "error")


CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dtype": ({"torch_dtype": "float32"}, ["dtype"]),
    "newer_dtype": ({"torch_dtype": None, "dtype": "float16"}, ["dtype"]),
    "nested": ({"hidden_size": None, "vocab_size": None, "text_config": {"vocab_size": 99}}, ["vocabulary-size"] * 2),
    "silent": ({**dict.fromkeys(CONFIG), "model_type": "x"}, []),
    "tied": ({"tie_word_embeddings": True}, []),
    "head_dim": ({"head_dim": 4}, ["head-size"] * 3),
    "quantised": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised"]),
    "nonsense": ({"hidden_size": "wide", "num_hidden_layers": -1, "architectures": 5, "quantization_config": 3}, []),
    "layers_without_end": ({"num_hidden_layers": 10**11}, ["layers-missing"]),
    "remote_code": ({"auto_map": {"AutoModel": "modeling_x.X"}}, ["remote-code"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_are_held_against_the_tensors(tmp_path: Path, case: str) -> None:
    changes, expected = CONFIGS[case]
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    assert codes(validate(llama(tmp_path, **{"config.json": config}))) == expected


def test_quantisation_is_named_from_configuration_or_looks(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    assert (
        validate(llama(tmp_path / "a", **{"config.json": config})).quantisation == "compressed-tensors (pack-quantized)"
    )
    packed = {**llama_rows(), "model.layers.0.mlp.qweight": matrix(2, 2, "I32")}
    assert validate(llama(tmp_path / "b", packed)).quantisation == "GPTQ or AWQ, by the names of its tensors"
    narrow = {**llama_rows(), "model.layers.0.mlp.weight": matrix(2, 2, "F8_E4M3")}
    assert validate(llama(tmp_path / "c", narrow)).quantisation == "float8, by the dtype of its tensors"


FOLDERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no_config": ({"config.json": None}, ["config-missing"]),
    "broken_config": ({"config.json": b"{nope"}, ["not-json", "config-missing"]),
    "config_list": ({"config.json": b"[]"}, ["not-json", "config-missing"]),
    "no_tokenizer": ({"tokenizer.json": None}, ["tokenizer-missing"]),
    "no_template": ({"chat_template.jinja": None}, ["chat-template-missing"]),
    "empty_tokenizer": ({"tokenizer.json": b""}, ["tokenizer-missing"]),
    "empty_template": ({"chat_template.jinja": b""}, ["chat-template-missing"]),
    "template_inside": ({"chat_template.jinja": None, "tokenizer_config.json": {"chat_template": "x"}}, []),
    "consolidated": ({"consolidated.safetensors": b"x"}, ["stray-weights"]),
    "second_set": ({"model-00001-of-00001.safetensors": b"x"}, ["stray-weights"]),
    "no_tensors": ({"model.safetensors": safetensors_bytes({}, metadata={"format": "pt"})}, ["no-tensors"]),
    "adapter": ({"adapter_model.safetensors": b"x"}, ["stray-weights"]),
    "pickle": ({"pytorch_model.bin": b"x"}, ["stray-file"]),
    "original": ({"original/consolidated.00.pth": b"x"}, ["stray-file"]),
    "training": ({"optimizer.pt": b"x"}, ["stray-file"]),
    "onnx": ({"onnx/model.onnx": b"x"}, ["stray-file"]),
    "gguf": ({"model.gguf": b"x"}, ["stray-file"]),
    "readme": ({"README.md": b"x"}, []),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_judged_by_what_lies_in_them(tmp_path: Path, case: str) -> None:
    files, expected = FOLDERS[case]
    report = validate(llama(tmp_path, **files))
    assert codes(report) == expected
    errors = {"config-missing", "no-tensors", "not-json", "stray-weights"}
    assert report.ok == (not errors & set(expected))


def sharded(folder: Path, weight_map: dict[str, int] | None, total: float = 4, **files: Any) -> str:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    contents = [
        safetensors_bytes({name: ("U8", [2], b"ab") for name in group}, metadata={"format": "pt"})
        for group in (["a"], ["b"])
    ]
    found: dict[str, Any] = {**dict(zip(names, contents, strict=True)), "config.json": {"x": 1}, "tokenizer.json": {}}
    if weight_map is not None:
        homes = {name: names[number] for name, number in weight_map.items()}
        found["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": homes}
    return put(folder, {**found, **files})


@pytest.mark.parametrize(
    ("weight_map", "total", "expected"),
    [
        ({"a": 0, "b": 1}, 4, []),
        ({"a": 0, "b": 1}, 5, ["index-total-size"]),
        ({"a": 0, "b": 1}, math.inf, ["index-total-size"]),
        ({"a": 1, "b": 0}, 4, ["index-wrong-file", "index-wrong-file"]),
        ({"a": 0, "b": 1, "c": 1}, 4, ["index-unknown-tensor"]),
        (None, 4, ["index-missing"]),
    ],
)
def test_an_index_is_held_against_the_headers(
    tmp_path: Path, weight_map: dict[str, int] | None, total: float, expected: list[str]
) -> None:
    assert codes(validate(sharded(tmp_path, weight_map, total))) == expected


def test_an_index_that_forgets_tensors_is_a_warning(tmp_path: Path) -> None:
    twice = safetensors_bytes({"b": ("U8", [1], b"b"), "c": ("U8", [1], b"c")}, metadata={"format": "pt"})
    folder = sharded(tmp_path, {"a": 0, "b": 1}, **{"model-00002-of-00002.safetensors": twice})
    assert codes(validate(folder), "warning") == ["index-incomplete"]


@pytest.mark.parametrize(
    ("name", "config", "severity"),
    [
        ("lm_head.weight", {"tie_word_embeddings": True}, "warning"),
        ("encoder.embed_tokens.weight", {}, "warning"),
        ("lm_head.weight", {"tie_word_embeddings": False}, "error"),
        ("model.layers.0.weight", {"tie_word_embeddings": True}, "error"),
    ],
)
def test_an_index_may_name_what_the_model_ties_and_nothing_else_that_is_not_there(
    tmp_path: Path, name: str, config: dict[str, Any], severity: str
) -> None:
    embeddings = safetensors_bytes({"shared.weight": ("U8", [2], b"aa")}, metadata={"format": "pt"})
    files = {"model-00001-of-00002.safetensors": embeddings, "config.json": {"x": 1, **config}}
    folder = sharded(tmp_path, {"shared.weight": 0, "b": 1, name: 1}, **files)
    expected = {"warning": ["index-tied-name"], "error": ["index-unknown-tensor"]}
    assert codes(validate(folder), severity) == expected[severity]


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    twice = safetensors_bytes({"a": ("U8", [1], b"b"), "b": ("U8", [1], b"c")}, metadata={"format": "pt"})
    folder = sharded(tmp_path, {"a": 0, "b": 1}, **{"model-00002-of-00002.safetensors": twice})
    assert "duplicate-tensor" in codes(validate(folder), "error")


def test_all_broken_shards_are_named_at_once(tmp_path: Path) -> None:
    files = {
        "model-00001-of-00002.safetensors": struct.pack("<Q", 2**60) + b"x" * 100,
        "model-00002-of-00002.safetensors": b"x",
    }
    report = validate(sharded(tmp_path, {"a": 0, "b": 1}, **files))
    assert codes(report, "error") == ["header-too-large", "too-short"]
    assert [finding.subject for finding in report.findings] == list(files)


def test_layout_is_judged(tmp_path: Path) -> None:
    content = safetensors_bytes(llama_rows(), padding=1)
    report = validate(llama(tmp_path, **{"model.safetensors": content}))
    assert codes(report) == ["misaligned", "format-metadata"]
    assert report.ok


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    content = safetensors_bytes({"base_model.lora_A.weight": matrix(2, 8)}, metadata={"format": "pt"})
    folder = put(
        tmp_path,
        {"adapter_model.safetensors": content, "adapter_config.json": {"base_model_name_or_path": "org/base"}},
    )
    report = validate(folder)
    assert (report.kind, report.ok, codes(report)) == ("lora_adapter", True, ["lora-adapter"])
    assert "org/base" in report.findings[0].message


def test_a_pickled_adapter_is_an_adapter_without_safetensors(tmp_path: Path) -> None:
    report = validate(put(tmp_path, {"adapter_model.bin": b"x", "adapter_config.json": {}}))
    assert (report.kind, report.ok, codes(report)) == ("lora_adapter", False, ["no-weights"])


def test_other_folders_say_what_they_are(tmp_path: Path) -> None:
    gguf = validate(put(tmp_path / "gguf", {"model.gguf": b"GGUF"}))
    assert (gguf.kind, gguf.ok) == ("gguf", False)
    assert "quantised from" in gguf.findings[0].next_step
    pickled = validate(put(tmp_path / "bin", {"pytorch_model.bin": checkpoint_bytes({"a": tensor(ramp(2), (1,))})}))
    assert (pickled.kind, codes(pickled)) == ("pickle", ["pickled-weights"])
    assert "streamway convert" in pickled.findings[0].next_step
    nothing = validate(put(tmp_path / "none", {"config.json": {}}))
    assert (nothing.kind, nothing.ok) == ("none", False)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        validate(str(tmp_path / "nowhere"))


def test_hostile_text_cannot_reach_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;gotcha\x07"
    config = {**CONFIG, "auto_map": {"AutoModel": evil}, "quantization_config": {"quant_method": evil}}
    rows = {**llama_rows(), "lm_head.weight": matrix(10, 9)}
    report = validate(llama(tmp_path, rows, **{"config.json": config, "adapter_config.json": {"x": evil}}))
    assert "\x1b" not in "\n".join(report.lines())
    assert json.dumps(report.quantisation)


def test_of_one_kind_of_finding_a_person_is_shown_the_first_few(tmp_path: Path) -> None:
    report = validate(sharded(tmp_path, {"a": 0, "b": 1, **{f"gone{number}": 1 for number in range(12)}}))
    assert codes(report) == ["index-unknown-tensor"] * 12
    lines = report.lines()
    assert sum("gone" in line for line in lines) == 10
    assert lines[-1] == "  2 more of index-unknown-tensor; --json lists them all."


def test_every_error_has_a_next_step(tmp_path: Path) -> None:
    report = validate(llama(tmp_path, {}, **{"config.json": None, "x.safetensors": b"x"}))
    assert report.findings
    assert all(finding.next_step for finding in report.findings if finding.severity == "error")
