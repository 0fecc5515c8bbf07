"""`streamway deploy` does what a run's deploy step does: the strategy, the kit and the length of the context."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamway import server, storage
from streamway.storage.kits import read_kits

pytestmark = pytest.mark.slow
RUN = [sys.executable, "-c", "from streamway.cli import main; main()"]
LONG_CONTEXT = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1048576,
}


@pytest.fixture
def deploy(house: Any, parts: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command, with settings of the server and variables of the double."""

    def run(*options: str, code: int = 0, release_uri: str = "", **changes: Any) -> subprocess.CompletedProcess[str]:
        chosen = {
            "name": "tiny",
            "namespace": house.namespace,
            "image": "example.com/engine-double:1",
            **{name: value for name, value in changes.items() if not name.isupper()},
            "environment": {name: value for name, value in changes.items() if name.isupper()},
        }
        config = tmp_path / "config.json"
        root = house.release_uri.partition("/org/")[0]
        settings = {"model": {"id": "org/tiny"}, "storage": {"release_root": root}, "server": chosen}
        config.write_text(json.dumps(settings))
        done = subprocess.run(
            [*RUN, "deploy", str(config), "--release", release_uri or house.release_uri, "--json", *options],
            env=os.environ | parts.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def test_it_rolls_out_by_the_strategy_of_the_configuration(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    first = json.loads(deploy().stdout)
    beside = deploy(strategy="blue_green", keep_hours=2, engine_arguments=["--dtype=bfloat16"])
    after_beside = server.read_status(name="tiny", namespace=house.namespace)
    in_place = deploy(strategy="recreate", engine_arguments=["--dtype=float16"])
    again = deploy(strategy="recreate", engine_arguments=["--dtype=float16"])

    assert (first["service"], first["changed"], first["gap"]) == ("tiny", True, False)
    assert json.loads(beside.stdout)["gap"] is False
    assert after_beside.previous == first["revision"]
    assert after_beside.keep_previous_until > after_beside.active_since
    assert [row.replicas for row in after_beside.revisions] == [1, 1]
    assert json.loads(in_place.stdout)["gap"] is True
    assert "endpoint tiny will not answer from now" in in_place.stderr
    assert (json.loads(again.stdout)["changed"], json.loads(again.stdout)["gap"]) == (False, False)
    assert server.read_status(name="tiny", namespace=house.namespace).active == json.loads(in_place.stdout)["revision"]


def test_a_release_serves_once_it_has_answered_and_its_proof_and_its_kit_are_kept(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    deploy()

    found = server.read_status(name="tiny", namespace=house.namespace)
    assert found.last_smoke_test.startswith("passed")
    assert found.last_figures["first_token_seconds"] > 0
    assert len(read_kits(house.release_uri)) == 1


@pytest.mark.parametrize("strategy", ["surge", "recreate"])
def test_a_release_that_answers_wrongly_does_not_serve(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any, strategy: str
) -> None:
    first = json.loads(deploy().stdout)
    wrong = deploy(code=71, strategy=strategy, DOUBLE_ANSWERS=json.dumps({"": "na " * 40}))

    assert "over and over" in wrong.stderr
    assert f"Revision {first['revision']} serve" in " ".join(wrong.stderr.split())
    found = server.read_status(name="tiny", namespace=house.namespace)
    assert [(row.name, row.role, row.ready) for row in found.revisions] == [(first["revision"], "active", 1)]
    assert found.previous == ""


def test_fields_of_another_manager_are_taken_over_only_where_that_is_asked_for(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    revision = json.loads(deploy().stdout)["revision"]
    path = f"/apis/apps/v1/namespaces/{house.namespace}/deployments/tiny-{revision}"
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"tiny-{revision}", "namespace": house.namespace},
        "spec": {"progressDeadlineSeconds": 77},
    }
    query = {"fieldManager": "someone", "force": True}
    house.connection.request("PATCH", path, query=query, body=theirs, content_type="application/apply-patch+yaml")

    refused = deploy(code=62)
    assert "someone" in refused.stderr
    assert "`streamway deploy --force`" in " ".join(refused.stderr.split())
    assert house.connection.get(path)["spec"]["progressDeadlineSeconds"] == 77

    deploy("--force")
    assert house.connection.get(path)["spec"]["progressDeadlineSeconds"] != 77


@pytest.fixture
def rollback(house: Any, parts: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command, and gives it a configuration where there are expectations of answers."""

    def run(*options: str, expected: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        command = [*RUN, "rollback", "tiny", "--namespace", house.namespace, *options]
        if expected is not None:
            config = tmp_path / "expected.json"
            server = {"name": "tiny", "namespace": house.namespace}
            settings = {"model": {"id": "org/tiny"}, "storage": {"release_root": "gs://kits"}, "server": server}
            config.write_text(json.dumps({**settings, "smoke": expected}))
            command += ["--questions", str(config)]
        environment = os.environ | parts.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=150)

    return run


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"DOUBLE_ANSWERS": json.dumps({"": "na " * 40})}, "over and over"),
        ({"DOUBLE_ANSWERS": json.dumps({"": "[0, 0]"}), "DOUBLE_ONLY_EMBEDS": "no route"}, "same value everywhere"),
    ],
    ids=["chat", "embeddings"],
)
def test_a_rollback_to_what_never_served_asks_it_first(
    rollback: Callable[..., subprocess.CompletedProcess[str]], house: Any, behaviour: dict[str, str], reason: str
) -> None:
    first = house.serve()
    held = house.deploy(engine_arguments=["--enforce-eager"], **behaviour)

    done = rollback("--revision", held.revision)

    assert done.returncode == 71, done.stderr
    assert reason in " ".join(done.stderr.split())
    assert server.read_status(name="tiny", namespace=house.namespace).active == first.revision


def test_a_rollback_to_what_only_embeds_asks_it_for_an_embedding(
    rollback: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    house.serve()
    held = house.deploy(DOUBLE_ONLY_EMBEDS="no route", DOUBLE_ANSWERS=json.dumps({"": "[0.1, 0.2]"}))

    done = rollback("--revision", held.revision)

    assert done.returncode == 0, done.stderr
    assert "asked for an embedding" in " ".join(done.stderr.split())
    found = server.read_status(name="tiny", namespace=house.namespace)
    assert (found.active, found.last_smoke_test.partition(":")[0]) == (held.revision, "passed")


CAPITAL = {"prompt": "What is the capital of France?", "expect": "Paris"}


def test_a_rollback_to_what_never_served_is_held_to_what_a_configuration_expects(
    rollback: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    first = house.serve()
    held = house.deploy(
        engine_arguments=["--enforce-eager"], DOUBLE_ANSWERS=json.dumps({"": "The capital of France is Berlin."})
    )

    done = rollback("--revision", held.revision, expected={"questions": [CAPITAL], "min_context_length": 4096})

    assert done.returncode == 71, done.stderr
    said = " ".join(done.stderr.split())
    assert "expected a match of 'Paris', found 'The capital of France is Berlin.'" in said
    assert "the context is long enough: expected at least 4096 tokens" in said
    assert server.read_status(name="tiny", namespace=house.namespace).active == first.revision


def test_a_rollback_holds_what_served_before_to_a_configuration_too(
    rollback: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    house.serve()
    second = house.serve(engine_arguments=["--enforce-eager"])

    done = rollback(expected={"questions": [{**CAPITAL, "expect": "Rome"}]})

    assert done.returncode == 71, done.stderr
    assert server.read_status(name="tiny", namespace=house.namespace).active == second.revision


def test_it_restores_the_kit_of_the_release(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    house.serve()
    (kit,) = read_kits(house.release_uri).values()
    server.retire_server(name="tiny", namespace=house.namespace)

    deploy()

    (pod,) = house.pods()
    assert kit.sha256 in house.said_about_kit(pod)


def test_it_drops_a_kit_that_the_engine_does_not_survive(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    house.serve(WARM_CRASH="warm")
    (kit,) = read_kits(house.release_uri).values()
    server.retire_server(name="tiny", namespace=house.namespace)

    done = deploy(WARM_CRASH="warm")

    assert "so it is tried without" in done.stderr
    assert f"the warm-start kit {kit.uri} was dropped" in " ".join(done.stderr.split())
    assert not storage.exists(kit.uri)


def test_it_has_the_engine_fit_a_context_that_would_not_fit(
    deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any
) -> None:
    storage.write_file(f"{house.release_uri}config.json", json.dumps(LONG_CONTEXT).encode())

    done = deploy()

    (deployment,) = house.get("/apis/apps/v1", "deployments")["items"]
    (engine,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--max-model-len=auto" in engine["args"]
    assert "the engine is told to fit the context" in done.stderr


def test_what_is_no_release_is_refused(deploy: Callable[..., subprocess.CompletedProcess[str]], house: Any) -> None:
    elsewhere = house.release_uri.replace("/org/", "/elsewhere/")
    done = deploy(code=43, release_uri=elsewhere)

    assert f"{elsewhere} is not a published release" in " ".join(done.stderr.split())
    assert house.pods() == []
