"""Small model folders on disk or in a bucket, and what the reference reader finds in the result."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch_writer import Storage, Tensor, checkpoint_bytes, tensor

from streamway.storage import join, list_files, read_file, write_file
from streamway.storage.digests import crc32c
from streamway.storage.records import SNAPSHOT_RECORD, RecordedFile, Snapshot

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 6, "hidden_size": 4, "tie_word_embeddings": True}

Rows = dict[str, tuple[str, list[int], bytes]]


def ramp(count: int, start: int = 0) -> bytes:
    return struct.pack(f"<{count}H", *((start + index) % 65536 for index in range(count)))


PLAIN_ROWS = {
    "model.embed_tokens.weight": ("BF16", [6, 4], ramp(24)),
    "model.layers.0.weight": ("F32", [3], ramp(6)),
    "lm_head.weight": ("BF16", [6, 4], ramp(24, 9)),
}


def small_model() -> dict[str, Tensor]:
    """A tied model with a transposed matrix, a scalar and two dtypes."""
    embeddings = Storage(ramp(24), "bfloat16")
    return {
        "model.embed_tokens.weight": Tensor(embeddings, (6, 4)),
        "model.layers.0.mlp.weight": Tensor(Storage(ramp(20, 100), "bfloat16"), (4, 5), (1, 4)),
        "model.layers.0.scale": tensor(struct.pack("<f", 1.5), ()),
        "model.layers.1.mask": tensor(bytes([1, 0, 1]), (3,), "bool"),
        "lm_head.weight": Tensor(embeddings, (6, 4)),
    }


def put(folder: str | Path, files: Mapping[str, bytes | dict[str, Any]]) -> str:
    """Write files below a folder or prefix."""
    for path, content in files.items():
        write_file(join(str(folder), path), content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder)


def pickled_model(folder: str | Path, state: Mapping[str, Tensor] | None = None, **more: Any) -> str:
    """A repository with one pickled checkpoint."""
    content = checkpoint_bytes(small_model() if state is None else state)
    return put(folder, {"pytorch_model.bin": content, "config.json": CONFIG, "tokenizer.json": {}, **more})


def safetensors_bytes(rows: Rows, *, metadata: dict[str, str] | None = None, padding: int | None = None) -> bytes:
    """Write a safetensors file, with as many spaces behind its header as asked."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name, (code, shape, data) in rows.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if padding is None else (padding - len(text)) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in rows.values())


def safetensors_model(folder: str, **files: Any) -> str:
    """A repository with one good safetensors file."""
    content = safetensors_bytes(PLAIN_ROWS, metadata={"format": "pt"})
    return put(folder, {"model.safetensors": content, "config.json": CONFIG, "tokenizer.json": {}, **files})


def snapshot_of(folder: str, *, sha: str = "a" * 40) -> str:
    """Record a folder as a pull would."""
    files = []
    for file in list_files(folder):
        data = read_file(file.uri)
        sha256, checksum = checksums(data)
        files.append(RecordedFile(path=file.path, uri=file.uri, size_bytes=len(data), sha256=sha256, crc32c=checksum))
    record = Snapshot(
        model_id="org/model", revision="main", commit_sha=sha, licence="mit", source="hub", files=tuple(files)
    )
    write_file(join(folder, SNAPSHOT_RECORD), record.to_json().encode())
    return folder


def checksums(data: bytes) -> tuple[str, int]:
    return hashlib.sha256(data).hexdigest(), crc32c(data)


def stored_rows(*uris: str) -> Rows:
    """Return what the reference reader finds in safetensors files."""
    rows: Rows = {}
    for uri in uris:
        for name, info in safetensors.deserialize(read_file(uri)):
            assert name not in rows
            rows[name] = (info["dtype"], list(info["shape"]), bytes(info["data"]))
    return rows


def metadata_of(uri: str) -> dict[str, str]:
    data = read_file(uri)
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
