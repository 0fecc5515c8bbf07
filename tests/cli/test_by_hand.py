"""The steps by hand, one command after the other, as the README lists them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STREAMWAY = str(Path(sys.executable).with_name("streamway"))


def streamway(*arguments: str, code: int = 0) -> Any:
    """Run a command, and return what it gives to programs."""
    done = subprocess.run([STREAMWAY, *arguments, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_a_model_is_pulled_converted_judged_and_published(hub: Any, bucket_uri: str) -> None:
    commit = hub.model("org/tiny")
    root = f"{bucket_uri}/models"
    planned = streamway("pull", "org/tiny", root, "--dry-run")
    assert (planned["commit_sha"], planned["move_bytes"]) == (commit, planned["size_bytes"])
    pulled = streamway("pull", "org/tiny", root)
    converted = streamway("convert", pulled["uri"], pulled["uri"].replace("/source", "/weights"))
    judged = streamway("validate", converted["uri"])
    assert judged["kind"] == "model" and judged["ok"] is True
    published = streamway("upload", converted["uri"], root)
    assert published["uri"] == f"{root}/org/tiny/{commit}/"
    assert streamway("pull", "org/tiny", root)["already_published"]


def test_a_folder_that_was_converted_here_is_published_by_its_content(
    hub: Any, bucket_uri: str, tmp_path: Path
) -> None:
    hub.model("org/tiny")
    pulled = streamway("pull", "org/tiny", f"{bucket_uri}/models")
    streamway("convert", pulled["uri"], str(tmp_path / "mine"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()}
    published = streamway("upload", str(tmp_path / "mine"), f"{bucket_uri}/models")
    assert published["uri"].startswith(f"{bucket_uri}/models/local/mine/")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "mine").iterdir()} == before
    assert streamway("upload", str(tmp_path / "mine"), f"{bucket_uri}/models")["moved_bytes"] == 0


def test_a_folder_that_no_server_would_load_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"no checkpoint")
    said = streamway("upload", str(tmp_path), str(tmp_path / "releases"), code=30)
    assert "cannot be published" in said
    assert "Next:" in said
    assert not (tmp_path / "releases").exists()
