"""The whole of a warm start with the real engine: kept after it has passed, in place when the next one starts, and left
out where it was tampered with.
"""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.server import Resources
from streamway.storage.digests import crc32c
from streamway.storage.kits import read_kits
from streamway.storage.manifest import Manifest, ManifestFile

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

# Two cores: no compilation, a short context, small batches, a small key-value cache.
SETTINGS: dict[str, Any] = {
    "image": "vllm/vllm-openai:v0.32.0",
    "engine_arguments": [
        "--dtype=bfloat16",
        "--enforce-eager",
        "--max-model-len=2048",
        "--max-num-batched-tokens=512",
        "--max-num-seqs=8",
    ],
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "resources": Resources(cpus=1, memory_bytes=8 << 30, shm_bytes=1 << 30, ephemeral_bytes=4 << 30),
    "timeout_seconds": 600,
}


def publish(folder: Path, release_uri: str) -> int:
    """Put a model's files where the release is, with a manifest that says so; return their bytes."""
    files = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        stored = storage.write_file(f"{release_uri}{path.name}", data)
        files.append(
            ManifestFile(
                path=path.name,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                crc32c=crc32c(data),
                generation=stored.generation,
            )
        )
    manifest = Manifest(
        model_id="org/tiny",
        revision="main",
        commit_sha=release_uri.rstrip("/").rpartition("/")[2],
        licence="apache-2.0",
        source="here",
        files=tuple(files),
    )
    storage.write_file(f"{release_uri.rstrip('/')}.manifest.json", manifest.to_json())
    return manifest.size_bytes


def test_the_real_engines_cache_is_kept_and_in_place_when_it_starts_again_and_left_out_once_tampered_with(
    house: Any, real_model: Path
) -> None:
    settings = {**SETTINGS, "size_bytes": publish(real_model, house.release_uri)}
    house.serve(**settings)

    (kit,) = read_kits(house.release_uri).values()
    with tarfile.open(fileobj=io.BytesIO(storage.read_file(kit.uri))) as packed:
        kept = {entry.name: packed.extractfile(entry).read() for entry in packed}  # type: ignore[union-attr]
    assert kept, "vLLM keeps at least what it saw in the model's class"
    assert kit.first_start.engine_seconds

    pod = house.replace_pod(seconds=300)

    assert house.said_about_kit(pod).startswith(f"Restored warm-start kit {kit.sha256}")
    in_place = house.files_in_cache(pod["metadata"]["name"])
    assert {name: in_place[name] for name in kept} == {
        name: hashlib.sha256(data).hexdigest() for name, data in kept.items()
    }

    house.serve(**settings)

    (kit,) = read_kits(house.release_uri).values()
    assert [start.pod for start in kit.later_starts] == [pod["metadata"]["name"]]

    sound = storage.read_file(kit.uri)
    storage.write_file(kit.uri, sound[:-1] + bytes([sound[-1] ^ 1]))

    assert "is refused: its SHA-256 is" in house.said_about_kit(house.replace_pod(seconds=300))
