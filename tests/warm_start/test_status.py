"""`streamway status` tells an on-call engineer everything that there is to know about an endpoint, on one screen."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SHA = "0123456789abcdef0123456789abcdef01234567"
RUN = [sys.executable, "-c", "from streamway.cli import main; main()"]


def streamway(parts: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own, because gRPC reads its roots once in the life of one.
    done = subprocess.run(
        [*RUN, *arguments], env=os.environ | parts.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def endpoint(house: Any, parts: Any) -> Any:
    """An endpoint with a revision before the one that serves, a kit that was used, and a cache."""
    house.serve()
    house.replace_pod()
    house.serve()
    house.serve(engine_arguments=["--enforce-eager"], strategy="recreate")
    streamway(parts, "cache", "kits", "us-central1-a", "--ingest-on-write", "--ttl-hours", "48", "--wait", "running")
    return house


def test_status_tells_revisions_proof_caches_and_kits(endpoint: Any, parts: Any) -> None:
    shown = streamway(parts, "status", "tiny", "--namespace", endpoint.namespace)
    told = json.loads(streamway(parts, "status", "tiny", "--namespace", endpoint.namespace, "--json").stdout)

    active, previous = told["revisions"]
    assert (active["role"], active["commit_sha"], active["ready"]) == ("active", SHA, 1)
    assert (previous["role"], previous["replicas"]) == ("previous", 0)
    assert told["active_since"] > previous["created"] <= active["created"]
    assert told["last_smoke_test"].startswith("passed")
    assert told["tested_at"] >= active["created"]
    assert told["last_figures"]["first_token_seconds"] > 0
    (cache,) = told["caches"]
    assert (cache["bucket"], cache["zone"], cache["state"]) == ("kits", "us-central1-a", "running")
    assert (cache["ttl_seconds"], cache["ingest_on_write"]) == (48 * 3600, True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", cache["since"])
    assert sorted(kit["saved_seconds"] or 0 for kit in told["kits"]) == [0, 25.0]
    lines = shown.stdout.splitlines()
    for words in (
        [active["name"], told["active_since"]],
        ["Tested", told["last_smoke_test"], told["tested_at"]],
        ["previous", previous["name"], SHA[:12], previous["created"]],
        ["cache", "kits in us-central1-a: running, entries live 48 h, filled by uploads", f"since {cache['since']}"],
        ["warm start", "saved 25.0 s"],
    ):
        assert any(all(word in line for word in words) for line in lines), f"{words} in\n{shown.stdout}"


def test_an_endpoint_is_told_even_where_nobody_answers_for_its_caches(endpoint: Any, parts: Any) -> None:
    away = {"STORAGE_CONTROL_ENDPOINT": "127.0.0.1:9"}
    done = subprocess.run(
        [*RUN, "status", "tiny", "--namespace", endpoint.namespace, "--json"],
        env=os.environ | parts.environment | away,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["revisions"][0]["role"], told["caches"], len(told["kits"])) == ("active", [], 2)
    assert "caches of gs://kits cannot be told" in done.stderr


def test_an_earlier_revision_is_told_as_such_and_must_answer_before_it_serves_again(house: Any, parts: Any) -> None:
    first = house.serve()
    second = house.serve(engine_arguments=["--enforce-eager"])
    third = house.serve(engine_arguments=["--dtype=float16"])
    place = ("tiny", "--namespace", house.namespace)

    before = streamway(parts, "status", *place).stdout
    rolled_back = streamway(parts, "rollback", *place, "--revision", first.revision, "--json")

    (line,) = [line for line in before.splitlines() if first.revision in line]
    assert line.split()[0] == "earlier"
    assert line.endswith("; served earlier, no longer kept: the next rollout removes it")
    told = json.loads(rolled_back.stdout)
    assert told["last_smoke_test"].startswith("passed")
    roles = [(row["name"], row["role"]) for row in told["revisions"]]
    assert roles == [(first.revision, "active"), (third.revision, "previous"), (second.revision, "earlier")]
