"""A real Hub's API for the real client, beside the Cloud Storage that the storage tests use."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

from streamway.sandbox.hub_repository import RepositorySettings, add_commit, set_repository

_SPEC = importlib.util.spec_from_file_location("storage_parts", Path(__file__).parents[1] / "storage" / "conftest.py")
assert _SPEC and _SPEC.loader
_parts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_parts)

_bucket_part = _parts._bucket_part
cloud, bucket_uri, hurried, root_uri = _parts.cloud, _parts.bucket_uri, _parts.hurried, _parts.root_uri

CONFIG = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


def make_weights(size_bytes: int) -> bytes:
    """Return a safetensors file of about that size, with bytes of its own."""
    import numpy

    return save({"weight": numpy.frombuffer(os.urandom(size_bytes), dtype=numpy.uint8)})


@dataclass
class LocalHub:
    """The Hub's process, with what tests do to it."""

    part: Any

    @property
    def repos(self) -> Path:
        return self.part.state / "hub" / "repos"

    def push(self, model_id: str, files: Mapping[str, bytes | None], **more: Any) -> str:
        return add_commit(self.repos, model_id, files, **more)

    def model(self, model_id: str, *, size_bytes: int = 200_000, **files: bytes) -> str:
        content = {"config.json": CONFIG, "README.md": CARD, "model.safetensors": make_weights(size_bytes)}
        return self.push(model_id, content | files)

    def settle(self, model_id: str, **settings: Any) -> None:
        set_repository(self.repos, model_id, RepositorySettings(**settings))

    def tokens(self, tokens: Mapping[str, list[str]]) -> None:
        described = {token: {"name": "reader", "models": models} for token, models in tokens.items()}
        (self.part.state / "hub" / "tokens.json").write_text(json.dumps(described))

    def expire_links(self) -> None:
        self.part.ask("POST", "links/expire")

    def ignore_ranges(self, times: int) -> None:
        self.part.ask("POST", "ranges/ignore", {"times": times})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


@pytest.fixture(scope="session")
def _hub_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    part = _parts.Part("hub", tmp_path_factory.mktemp("hub"))
    yield part
    part.stop()


@pytest.fixture
def hub(_hub_part: Any, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The Hub as the environment names it, without tokens, faults or counters."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in _hub_part.environment.items():
        monkeypatch.setenv(name, value)
    local = LocalHub(_hub_part)
    local.begin_anew()
    local.tokens({})
    return local
