"""The sandbox on the command line: up, looked at, pointed at, and told apart from what it does not have."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamway import sandbox

STREAMWAY = str(Path(sys.executable).with_name("streamway"))
CONFIG = """
model: {id: org/name}
storage: {release_root: "gs://models/models"}
server: {name: tiny}
sandbox: {}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder beside a configuration, with a sandbox that has neither models nor an engine nor Vertex AI."""
    made = tmp_path_factory.mktemp("beside")
    (made / "config.yaml").write_text(CONFIG)
    config = sandbox.SandboxConfig(engine_image="", seed=False, buckets=(sandbox.Bucket(name="models"),))
    try:
        sandbox.up(made / ".streamway" / "sandbox", config=config)
        yield made
    finally:
        sandbox.down(made / ".streamway" / "sandbox")


def streamway(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [STREAMWAY, *arguments]
    surroundings = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=120)


def test_the_state_of_every_part_is_told(folder: Path) -> None:
    told = json.loads(streamway(folder, "sandbox", "status", "--json").stdout)
    assert told["running"] is True
    assert {part["name"]: part["state"] for part in told["parts"]} == dict.fromkeys(
        ("hub", "bucket", "caches", "cluster"), "serving"
    )


def test_a_shell_is_pointed_at_it_by_what_is_printed(folder: Path) -> None:
    script = f'eval "$({STREAMWAY} sandbox env)" && exec {Path(STREAMWAY).with_name("kubectl")} get nodes --output=name'
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("node/"), done.stderr


@pytest.mark.parametrize("command", [["runs"], ["submit"], ["watch", "--once"], ["schedule", "list"]], ids=" ".join)
def test_what_needs_vertex_ai_says_how_to_get_it_here(folder: Path, command: list[str]) -> None:
    done = streamway(folder, *command, "config.yaml")
    assert done.returncode == 90, done.stderr
    assert "has no Vertex AI" in done.stderr
    assert "sandbox.vertex" in done.stderr
