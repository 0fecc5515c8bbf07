"""What a person can get wrong, or be given wrong: each ends at once, with a message worth reading and its own code."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STREAMWAY = str(Path(sys.executable).with_name("streamway"))


def start_run(state_path: Path) -> subprocess.Popen[str]:
    command = [STREAMWAY, "run", "configs/sandbox.yaml", "--state", str(state_path)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what a run narrates until it says `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the run ended without saying {text!r}")


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["model.id=nobody/nothing"], 11, ["nobody/nothing", "case-sensitive"]),
        (["model.revision=absent"], 12, ["'absent'", "Choose a branch, a tag or a commit"]),
        (["model.id=sandbox/gated", "model.allowed_licences=[]"], 13, ["sandbox/gated is gated", "token"]),
        (["model.id=sandbox/remote-code", "model.allowed_licences=[]"], 14, ["asks for code of its own"]),
        (["model.allowed_licences=[mit]"], 14, ["apache-2.0", "mit"]),
        (["model.id=sandbox/wrong-hash", "model.allowed_licences=[]"], 21, ["sha256", "expected ffff"]),
        (["model.id=sandbox/no-weights", "model.allowed_licences=[]"], 31, ["no weights"]),
        (["model.id=sandbox/pickle-runs-code", "model.allowed_licences=[]"], 32, ["pytorch_model.bin", "posix.system"]),
        (["storage.release_root=gs://absent-bucket/models"], 41, ["gs://absent-bucket", "Create it"]),
        (["cache.zones=[europe-west4-a]", "server.zone=us-central1-a"], 50, ["europe-west4-a", "US-CENTRAL1"]),
        (["server.engine_arguments=[--disable-log-requests]"], 2, ["--disable-log-requests"]),
        (["server.image=registry.example/vllm-openai:v0.32.0"], 63, ["registry.example/vllm-openai:v0.32.0"]),
        (["server.zone=mars-north1-a"], 2, ["mars-north1-a", "can have no node"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_run_fails_with_a_reason_and_a_next_step(terminal, settings, code, words) -> None:
    failed = terminal.run("server.name=wrong", *settings)
    assert failed.code == code, failed.err
    error = json.loads(failed.out)["error"]
    for word in words:
        assert word in error["problem"] + error["next_step"]
    assert error["next_step"]
    assert "Traceback" not in failed.err


def test_a_failed_run_still_has_its_report(terminal) -> None:
    failed = terminal.run("model.id=nobody/nothing")
    page = Path(failed.json["report"]).read_text()
    assert "Failed in Pull" in page
    assert "nobody/nothing" in page


def test_check_tells_everything_that_is_wrong_at_once_and_moves_nothing(terminal) -> None:
    checked = terminal.streamway(
        "check", "configs/sandbox.yaml", "--json",
        "--set", "model.revision=absent", "--set", "cache.zones=[europe-west4-a]",
    )  # fmt: skip
    found = {entry["name"]: entry for entry in checked.json}
    assert checked.code == 12
    assert [name for name, entry in found.items() if not entry["ok"]] == ["model", "caches", "cluster", "server"]
    assert found["storage"]["found"] == "gs://streamway-models in US-CENTRAL1"
    assert found["cost"]["found"] == "of the caches not known, because the model or their zones are not"
    assert "zone is 'europe-west4-a', where the cluster" in found["cluster"]["found"]


def test_check_is_content_with_a_good_configuration(terminal) -> None:
    checked = terminal.streamway("check", "configs/sandbox.yaml", "--json")
    assert checked.code == 0, checked.out
    assert all(entry["ok"] for entry in checked.json)
    found = {entry["name"]: entry["found"] for entry in checked.json}
    assert set(found) == {"model", "project", "storage", "caches", "cost", "cluster", "server"}
    assert found["cost"].startswith(
        "0.3 GiB in 1 cache: about 0.02 USD a month while it is cached, and 0.00 USD to fill"
    )


def test_check_tells_what_caches_would_cost_of_every_zone(terminal) -> None:
    zones = "cache.zones=[us-central1-a, us-central1-b, us-central1-c]"
    checked = terminal.streamway("check", "configs/sandbox.yaml", "--json", "--set", zones)
    found = {entry["name"]: entry["found"] for entry in checked.json}
    assert found["cost"].startswith("0.3 GiB in 3 caches: about 0.07 USD a month while it is cached, and ")
    assert "list price of a region" in found["cost"]
    none = terminal.streamway("check", "configs/sandbox.yaml", "--json", "--set", "cache.zones=[]")
    assert {entry["name"]: entry["found"] for entry in none.json}["cost"] == "no cache is to be paid for"


def test_an_api_server_that_is_not_there_is_named(terminal, tmp_path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: t}}]\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(Path("configs/sandbox.yaml").read_text().split("# ---")[0])
    environment = {**terminal.environment, "KUBECONFIG": str(kubeconfig)}
    checked = terminal.streamway("check", str(config), environment=environment)
    assert checked.code == 61
    assert "http://127.0.0.1:1" in checked.out


def test_an_interrupted_run_stops_everything_it_started(tmp_path, processes_naming) -> None:
    process = start_run(tmp_path)
    wait_for_line(process, "the engine's container runs")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in err
    assert processes_naming(tmp_path) == []


def test_a_run_that_is_killed_leaves_no_process_behind(tmp_path, processes_naming) -> None:
    process = start_run(tmp_path)
    wait_for_line(process, "[5/6] Deploy")
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while processes_naming(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_naming(tmp_path) == []
