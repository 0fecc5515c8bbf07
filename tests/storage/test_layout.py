"""Everything of a model has one place, and a manifest says exactly what a release holds."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway import storage
from streamway.errors import ReleaseError, StorageError
from streamway.storage.allowed import is_companion, is_publishable
from streamway.storage.manifest import Manifest, ManifestFile

SHA = "0123456789abcdef0123456789abcdef01234567"


def test_places_of_a_model() -> None:
    layout = storage.ModelLayout("gs://bucket/models/", "org/name", SHA)
    assert layout.staging_uri == f"gs://bucket/models/.staging/org/name/{SHA}/"
    assert layout.snapshot_uri == f"gs://bucket/models/.staging/org/name/{SHA}/source"
    assert layout.weights_uri == f"gs://bucket/models/.staging/org/name/{SHA}/weights"
    assert layout.release_uri == f"gs://bucket/models/org/name/{SHA}/"
    assert layout.manifest_uri == f"gs://bucket/models/org/name/{SHA}.manifest.json"
    assert layout.report_uri == f"gs://bucket/models/org/name/{SHA}.report.html"
    assert storage.ModelLayout("/models", "gpt2", SHA).release_uri == f"/models/gpt2/{SHA}/"


@pytest.mark.parametrize("model_id", ["", "../x", "a/b/c", "org/", "/name", "org/.staging", "org/na me", "org/n\0"])
def test_ids_that_are_no_ids_have_no_place(model_id: str) -> None:
    with pytest.raises(StorageError):
        storage.ModelLayout("gs://bucket", model_id, SHA)


@pytest.mark.parametrize("sha", ["main", SHA[:39], SHA.upper(), ""])
def test_a_revision_that_was_not_resolved_has_no_place(sha: str) -> None:
    with pytest.raises(StorageError, match="40 hex digits"):
        storage.ModelLayout("gs://bucket", "org/name", sha)


def manifest() -> Manifest:
    files = (
        ManifestFile(path="config.json", size_bytes=2, sha256="0" * 64, crc32c=7, generation=11),
        ManifestFile(path="model.safetensors", size_bytes=3, sha256="f" * 64, crc32c=2**32 - 1, generation=12),
    )
    return Manifest(
        model_id="org/name", revision="main", commit_sha=SHA, licence="mit", source="https://hub", files=files
    )


def test_a_manifest_says_the_same_after_it_was_stored() -> None:
    assert Manifest.from_json(manifest().to_json(), uri="x") == manifest()
    assert manifest().size_bytes == 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"surprise": 1}, "surprise"),
        ({"files": [{"path": "a"}]}, "size_bytes"),
        ({"files": [{**asdict(manifest().files[0]), "path": "../a"}]}, "not a path inside"),
        ({"files": [{**asdict(manifest().files[0]), "sha256": "F" * 64}]}, "not a sha256"),
        ({"files": [{**asdict(manifest().files[0]), "crc32c": 2**32}]}, "not sizes and checksums"),
        ({"files": [{**asdict(manifest().files[0]), "size_bytes": True}]}, "not sizes and checksums"),
        ({"files": [asdict(manifest().files[0])] * 2}, "twice"),
        ({"files": 3}, "not iterable"),
    ],
)
def test_a_manifest_that_nobody_here_wrote_is_refused(change: dict[str, Any], complaint: str) -> None:
    fields = json.loads(manifest().to_json()) | change
    with pytest.raises(ReleaseError, match=complaint) as caught:
        Manifest.from_json(json.dumps(fields), uri="gs://bucket/x.manifest.json")
    assert "gs://bucket/x.manifest.json" in caught.value.problem


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(deadline=None, max_examples=60)
def test_no_json_breaks_the_reading_of_manifests(value: Any) -> None:
    with pytest.raises(ReleaseError):
        Manifest.from_json(json.dumps(value), uri="x")


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "chat_template.jinja",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "1_Pooling/config.json",
    ],
)
def test_what_an_engine_reads_is_published(path: str) -> None:
    assert is_companion(path) and is_publishable(path)


@pytest.mark.parametrize(
    "path", ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_weights_are_published_and_are_no_companions(path: str) -> None:
    assert is_publishable(path) and not is_companion(path)


@pytest.mark.parametrize(
    "path",
    [
        "consolidated.safetensors",
        "consolidated.00.safetensors",
        "original/model.safetensors",
        "original/tokenizer.model",
        "pytorch_model.bin",
        "modeling_custom.py",
        "README.md",
        "onnx/model.onnx",
        "adapter_model.safetensors",
        "training_args.bin",
        "optimizer.safetensors",
        "model.gguf",
        "sub/config.json",
    ],
)
def test_what_would_harm_a_pod_is_not_published(path: str) -> None:
    assert not is_publishable(path)
