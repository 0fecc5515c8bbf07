"""The process: it starts clean, remembers, stops quickly, and leaves nothing behind however it ends."""

import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest, is_ready, wait_until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningCluster]:
    """A cluster of the test's own."""
    running = RunningCluster(tmp_path).start()
    try:
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop(signal.SIGKILL)


def processes_with(mark: str) -> list[int]:
    """Find processes by a word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in words:
                found.append(int(entry.name))
    return found


def start_stubborn_pod(cluster: RunningCluster, mark: str) -> None:
    """Run a container that ignores SIGTERM and has a child of its own session."""
    script = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)', sys.argv[1]], start_new_session=True);"
        "time.sleep(900)"
    )
    wait_until(lambda: cluster.request("GET", "/api/v1/namespaces/default/serviceaccounts/default").ok)
    cluster.run_pod("default", "p", command=["python3", "-c", script, mark])
    wait_until(lambda: len(processes_with(mark)) == 2)


def test_state_file_names_everything_a_client_needs(own: RunningCluster) -> None:
    assert own.process is not None
    assert own.state["pid"] == own.process.pid
    assert own.state["environment"] == {"KUBECONFIG": own.state["kubeconfig"]}
    mode = stat.S_IMODE(Path(own.state["kubeconfig"]).stat().st_mode)
    assert mode == 0o600
    assert own.state["url"].startswith("https://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(own: RunningCluster, number: int) -> None:
    mark = f"mark-{uuid.uuid4()}"
    start_stubborn_pod(own, mark)
    own.stop(number)
    wait_until(lambda: processes_with(mark) == [], 10)
    if number == signal.SIGTERM:
        assert not (own.folder / "cluster.json").exists()


def test_restart_remembers_and_starts_containers_again(own: RunningCluster) -> None:
    wait_until(lambda: own.request("GET", "/api/v1/namespaces/default/serviceaccounts/default").ok)
    own.apply(deployment_manifest("web", "default", command=["sh", "-c", "echo run; sleep 900"]))
    own.kubectl("rollout", "status", "deploy/web", "--timeout=20s")
    name = own.get("/api/v1/namespaces/default/pods")["items"][0]["metadata"]["name"]
    version = int(own.get("/api/v1/pods")["metadata"]["resourceVersion"])
    token, url = own.kubeconfig["users"][0]["user"]["token"], own.state["url"]
    own.stop()
    own.start()
    assert (own.kubeconfig["users"][0]["user"]["token"], own.state["url"]) == (token, url)
    pod = own.wait_pod("default", name, is_ready)
    status = pod["status"]["containerStatuses"][0]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 255)
    assert int(pod["metadata"]["resourceVersion"]) > version
    wait_until(lambda: own.log("default", name) == "run\n")
    own.stop(signal.SIGKILL)
    own.start()
    own.wait_pod("default", name, lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 2)


def test_watch_from_before_a_restart_is_expired(own: RunningCluster) -> None:
    wait_until(lambda: own.request("GET", "/api/v1/namespaces/default/serviceaccounts/default").ok)
    version = own.get("/api/v1/configmaps")["metadata"]["resourceVersion"]
    own.create("/api/v1/namespaces/default/configmaps", {"metadata": {"name": "later"}})
    own.stop()
    own.start()
    path = f"/api/v1/configmaps?watch=1&timeoutSeconds=5&resourceVersion={version}"
    assert '"code":410' in own.request("GET", path).text


def test_cluster_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'streamway.sandbox.cluster', '--state', sys.argv[1]])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_until((tmp_path / "cluster.json").exists)
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_unreadable_image_table_is_named(tmp_path: Path) -> None:
    images = tmp_path / "images.json"
    images.write_text("{")
    command = [sys.executable, "-m", "streamway.sandbox.cluster", "--state", str(tmp_path), "--images", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 90
    assert f"The table of images {images} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
