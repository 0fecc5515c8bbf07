"""A command that changes the cluster and is told to end (SIGTERM) leaves the cluster as it found it, as on Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamway import server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100)]
RUN = [sys.executable, "-c", "from streamway.cli import main; main()"]
INTERRUPTED = 130
Terminated = Callable[..., str]


@pytest.fixture
def terminated(parts: Any) -> Iterator[Terminated]:
    """Runs a command, ends it when it says something, and returns all that it said."""
    processes: list[subprocess.Popen[str]] = []

    def run(words: str, *arguments: str, signals: tuple[signal.Signals, ...]) -> str:
        process = subprocess.Popen(
            [*RUN, *arguments],
            env=os.environ | parts.environment | {"COLUMNS": "400"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if words in line:
                break
        else:
            pytest.fail(f"it never said {words!r}, but:\n{''.join(said)}")
        for number in signals:
            process.send_signal(number)
        _, rest = process.communicate(timeout=60)
        said.append(rest)
        assert process.returncode == INTERRUPTED, "".join(said)
        return "".join(said)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def config(house: Any, tmp_path: Path) -> Callable[..., str]:
    """Writes a configuration of the endpoint; names in capitals are variables of the double."""

    def write(**changes: Any) -> str:
        chosen = {
            "name": "tiny",
            "namespace": house.namespace,
            "image": "example.com/engine-double:1",
            **{name: value for name, value in changes.items() if not name.isupper()},
            "environment": {name: value for name, value in changes.items() if name.isupper()},
        }
        root = house.release_uri.partition("/org/")[0]
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model": {"id": "org/tiny"}, "storage": {"release_root": root}, "server": chosen}))
        return str(path)

    return write


def leases(house: Any) -> list[str]:
    return [item["metadata"]["name"] for item in house.get("/apis/coordination.k8s.io/v1", "leases")["items"]]


def rows(house: Any) -> list[tuple[str, str, int]]:
    found = server.read_status(name="tiny", namespace=house.namespace)
    return [(row.name, row.role, row.replicas) for row in found.revisions]


@pytest.mark.parametrize(
    ("strategy", "words", "behaviour"),
    [
        ("surge", "was scheduled on node", {"DOUBLE_UNHEALTHY": "1"}),
        ("recreate", "was scheduled on node", {"DOUBLE_UNHEALTHY": "1"}),
        ("recreate", "Service tiny-", {"DOUBLE_BUSY": "100000"}),
        ("recreate", "returning to revision", {"DOUBLE_CRASH": "oh no"}),
    ],
    ids=["beside", "in place", "while it is asked", "while it goes back"],
)
def test_a_deployment_that_is_told_to_end_withdraws_what_it_brought(
    terminated: Terminated,
    config: Callable[..., str],
    house: Any,
    until_ready: Callable[[int], None],
    strategy: str,
    words: str,
    behaviour: dict[str, str],
) -> None:
    first = house.serve()
    path = config(strategy=strategy, **behaviour)
    command = ["deploy", path, "--release", house.release_uri]

    said = terminated(words, *command, signals=(signal.SIGTERM, signal.SIGTERM))

    assert "run the same command again" in " ".join(said.split())
    assert rows(house) == [(first.revision, "active", 1)]
    assert leases(house) == []
    until_ready(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rollback_that_is_told_to_end_leaves_what_serves(
    terminated: Terminated, house: Any, number: signal.Signals
) -> None:
    first = house.serve(START_SECONDS="5")
    second = house.serve(engine_arguments=["--enforce-eager"])
    command = ["rollback", "tiny", "--namespace", house.namespace]

    terminated("was scheduled on node", *command, signals=(number,))

    assert rows(house) == [(second.revision, "active", 1), (first.revision, "previous", 0)]
    assert leases(house) == []
