"""From a submission to staging, by its commit to production, and away: the whole sandbox, with the engine double."""

import contextlib
import io
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc_roots import share_authority

from streamway import sandbox, server, storage
from streamway.cache import enable_cache, list_caches
from streamway.cli import main
from streamway.errors import CacheError
from streamway.retirement import retire_cache
from streamway.sandbox.hub_repository import add_commit
from streamway.server.serving import list_serving
from streamway.storage.gates import check_passages

DOUBLE = Path(__file__).parents[1] / "server" / "images" / "double"
MODEL = "sandbox/tiny"
CONFIG = """
model: {{id: sandbox/tiny}}
storage: {{release_root: "gs://{stage}/models"}}
cache: {{zones: [us-central1-a]}}
server: {{name: tiny, namespace: {stage}, image: "example.com/engine-double:1"}}
launch: {{service_account: runner@project.iam.gserviceaccount.com, labels: {{team: red}}}}
promotion: {{stage: {stage}, source_root: "gs://staging/models", requires: [staging]}}
smoke: {{questions: [{{prompt: "What is the capital of France?", expect: Paris}}]}}
sandbox: {{vertex: true}}
"""

pytestmark = pytest.mark.slow


class Shell:
    """A terminal beside a sandbox that stays up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state" / "sandbox"
        for stage in ("staging", "production"):
            (folder / f"{stage}.yaml").write_text(CONFIG.format(stage=stage))

    def streamway(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json; return what it printed, or what it said where it must fail."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([self._placed(word) for word in (*arguments, "--state", str(self.folder / "state"), "--json")])
        assert ended.value.code == code, err.getvalue() + out.getvalue()
        return json.loads(out.getvalue()) if code == 0 else err.getvalue()

    def _placed(self, word: str) -> str:
        return str(self.folder / word) if word.endswith(".yaml") else word

    def wait(self, run_id: str) -> Any:
        deadline = time.monotonic() + 120
        while True:
            found = self.streamway("runs", "staging.yaml", "--id", run_id)
            if found["state"] not in ("queued", "running"):
                return found
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def push(self, text: str) -> str:
        files = {"generation_config.json": json.dumps({"comment": text}).encode()}
        return add_commit(self.state / "hub" / "repos", MODEL, files)

    def publish_older(self, stage: str) -> str:
        """Put a release of the same model, which nothing has ever served, beside the others; return its URI."""
        release = f"gs://{stage}/models/{MODEL}/{'1' * 40}"
        storage.write_file(f"{release}/model.safetensors", b"weights")
        storage.write_file(f"{release}.manifest.json", b"{}")
        return release

    def advance(self, seconds: float, part: str = "vertex") -> None:
        announced = json.loads((self.state / f"{part}.json").read_text())
        url = announced.get("admin_url", announced["url"])
        body = json.dumps({"advance_seconds": seconds}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/sandbox/clock", body, headers)).read()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    made = Shell(tmp_path_factory.mktemp("transitions"))
    config = sandbox.SandboxConfig(
        engine_image="",
        images=(sandbox.Image(pattern="example.com/engine-double:*", bin_path=str(DOUBLE)),),
        seed=False,
        vertex=True,
        gpu_count=3,
        buckets=tuple(sandbox.Bucket(name=name) for name in ("staging", "production", "retiring")),
    )
    before = dict(os.environ)
    try:
        share_authority(made.state)
        sandbox.up(made.state, config=config)
        os.environ.update(sandbox.environment(made.state))
        yield made
    finally:
        sandbox.down(made.state)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def staged(shell: Shell) -> Any:
    """The run that brought the model to staging."""
    return shell.streamway("submit", "staging.yaml", "--wait")


@pytest.fixture(scope="module")
def staged_sha(staged: Any) -> str:
    return active_commit("staging")


@pytest.fixture(scope="module")
def promoted(shell: Shell, staged_sha: str) -> Any:
    """The run that promoted that commit."""
    return shell.streamway("promote", "production.yaml", staged_sha, "--submit", "--wait")


@pytest.fixture
def retiring_bucket(shell: Shell) -> str:
    """A bucket that nothing serves from."""
    return "retiring"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def active_commit(namespace: str) -> str:
    status = server.read_status(name="tiny", namespace=namespace)
    return next(revision.commit_sha for revision in status.revisions if revision.role == "active")


def test_a_submitted_run_serves_and_its_release_has_passed_the_stage(staged: Any, staged_sha: str) -> None:
    assert (staged["state"], staged["step_error"]) == ("succeeded", {})
    assert [task["name"] for task in staged["tasks"] if task["name"] != "check-parameters"] == [
        *("pull-model", "convert-weights", "upload-model", "enable-cache", "deploy-server", "smoke-test"),
        *("record-passage", "report-run"),
    ]
    assert staged["service_account"] == "runner@project.iam.gserviceaccount.com"
    (passage,) = check_passages(
        model_id=MODEL, commit_sha=staged_sha, release_root="gs://staging/models", requires=["staging"]
    )
    assert passage.run_uri == f"gs://staging/models/.runs/{staged['id']}"
    assert passage.evidence["passed"] is True


def test_the_report_lies_beside_the_runs_outputs(staged: Any) -> None:
    pages = [file for file in storage.list_files("gs://staging/models/.pipelines") if file.path.endswith("/page")]
    assert any(staged["id"] in file.path and b"<!doctype html>" in storage.read_file(file.uri) for file in pages)


def test_a_release_that_has_passed_serves_in_production_by_its_commit(promoted: Any, staged_sha: str) -> None:
    assert promoted["state"] == "succeeded"
    assert {task["name"] for task in promoted["tasks"][:2]} == {"promote-release", "check-parameters"}
    assert active_commit("production") == staged_sha
    release = storage.verify_release(f"gs://production/models/{MODEL}/{staged_sha}/")
    assert release.manifest.model_id == MODEL
    assert check_passages(
        model_id=MODEL, commit_sha=staged_sha, release_root="gs://production/models", requires=["production"]
    )


def test_what_has_not_passed_is_refused_with_what_is_missing(shell: Shell, staged_sha: str) -> None:
    wanted = ("promote", "production.yaml", staged_sha, "--set", "promotion.requires=[staging, canary]")
    refused = shell.streamway(*wanted, "--set", "storage.release_root=gs://production/refused", "--dry-run", code=44)
    assert "may not be promoted. canary: it has not passed" in refused
    refused = shell.streamway(*wanted, "--submit", "--wait", code=44)
    assert "may not be promoted. canary: it has not passed" in refused


def test_a_failed_deployment_is_reported_beside_earlier_starts(shell: Shell, staged: Any) -> None:
    shell.streamway("submit", "staging.yaml", "--wait", "--set", "server.image=example.com/absent:1", code=63)
    newest, *_ = shell.streamway("runs", "staging.yaml")
    assert newest["state"] == "failed"
    page = storage.read_file(f"gs://staging/models/.runs/{newest['id']}/report.html").decode()
    assert "Failed in Deploy" in page
    assert "Starts that came to serve before:" in page


def test_a_new_commit_on_the_hub_starts_one_run_and_is_served(shell: Shell, staged: Any) -> None:
    sha = shell.push("newer")
    (look,) = shell.streamway("watch", "staging.yaml", "--once")
    assert (look["outcome"], look["commit_sha"]) == ("started", sha)
    (again,) = shell.streamway("watch", "staging.yaml", "--once")
    assert (again["outcome"], again["run"]) == ("unchanged", look["run"])
    assert shell.wait(look["run"])["state"] == "succeeded"
    assert active_commit("staging") == sha


def test_a_schedule_fires_with_what_it_was_given(shell: Shell, staged: Any) -> None:
    made = shell.streamway("schedule", "create", "staging.yaml", "30 4 * * *", "--time-zone", "Asia/Tokyo")
    assert (made["time_zone"], made["state"], made["next_run"][11:16]) == ("Asia/Tokyo", "active", "19:30")
    shell.advance(24 * 3600)
    deadline = time.monotonic() + 60
    while not (
        runs := [run for run in shell.streamway("runs", "staging.yaml") if run["id"].startswith("serve-model-")]
    ):
        assert time.monotonic() < deadline
    assert shell.wait(runs[0]["id"])["state"] == "succeeded"
    paused = shell.streamway("schedule", "pause", "staging.yaml", "tiny")
    assert paused["state"] == "paused"
    assert [found["name"] for found in shell.streamway("schedule", "list", "staging.yaml")] == ["tiny"]
    shell.streamway("schedule", "delete", "staging.yaml", "tiny")
    assert shell.streamway("schedule", "list", "staging.yaml") == []


def test_retiring_leaves_nothing(shell: Shell, promoted: Any) -> None:
    everything = ("--caches", "--releases", "--older-releases")
    older = shell.publish_older("production")
    planned = shell.streamway("retire", "production.yaml", *everything, "--dry-run")
    assert (len(planned["releases"]), planned["forgets_starts"]) == (2, True)
    assert shell.streamway("retire", "production.yaml", "--releases", "--dry-run")["stays"] == [older]
    # Cloud Storage takes its time, and who waits for less is told what is left.
    said = shell.streamway("retire", "production.yaml", *everything, "--cache-wait-minutes", "0.01", code=50)
    assert "The caches of gs://production are not gone after 0.01 min: us-central1-a disabled" in " ".join(said.split())
    assert list_serving(namespace="production") == ()
    left = {file.path.split("/")[0] for file in storage.list_files("gs://production/models")}
    assert left <= {".runs", ".pipelines"}
    assert storage.list_files("gs://production/models/.runs/endpoints") == ()
    assert storage.list_files("gs://staging/models/.runs/endpoints/staging/tiny") != ()
    shell.advance(3600, part="caches")
    again = shell.streamway("retire", "production.yaml", *everything, "--cache-wait-minutes", "5")
    assert again["succeeded"]
    assert Path(again["report"]).read_text().startswith("<!doctype html>")
    assert list_caches("production") == ()
    assert {entry.namespace for entry in list_serving()} == {"staging"}


def test_caches_that_somebody_enables_again_are_not_waited_for(shell: Shell, retiring_bucket: str) -> None:
    enable = partial(enable_cache, bucket=retiring_bucket, zones=["us-central1-a"])
    enable(wait="running", timeout_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            retire_cache, release_root=f"gs://{retiring_bucket}/models", zones=["us-central1-a"],
            namespace="production", wait_minutes=5,
        )  # fmt: skip
        wait_until(lambda: [cache.state for cache in list_caches(retiring_bucket)] == ["disabled"])
        enable()
        with pytest.raises(CacheError, match="were disabled and are not any more: us-central1-a running") as caught:
            waiting.result(timeout=60)
    assert "Find who enables them" in caught.value.next_step
