"""Servers to render and roll out."""

from collections.abc import Callable
from typing import Any

import pytest

from streamway.server import ServerSpec

SHA = "0123456789abcdef0123456789abcdef01234567"
GIB = 1024**3
SETTINGS: dict[str, Any] = {
    "release_uri": f"gs://models/prefix/org/tiny/{SHA}/",
    "model_id": "org/tiny",
    "commit_sha": SHA,
    "size_bytes": 16 * GIB,
    "name": "tiny",
    "namespace": "models",
    "image": "vllm/vllm-openai:v0.32.0",
}


@pytest.fixture
def spec() -> Callable[..., ServerSpec]:
    """Makes a spec, with what a test changes."""
    return lambda **changes: ServerSpec(**{**SETTINGS, **changes})
