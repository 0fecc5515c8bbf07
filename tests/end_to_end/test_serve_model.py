"""From a model id to an endpoint that has answered, with the real client, bucket server, engine and streamer."""

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

PICKLED = "HuggingFaceTB/SmolLM2-135M-Instruct"
SAFETENSORS = "HuggingFaceTB/SmolLM2-135M-Instruct-safetensors"
WRONG = "sandbox/wrong-answers"
# A place of its own in the shared bucket, where nothing has been published by other tests.
OWN_ROOT = "storage.release_root=gs://streamway-models/serve"
STEPS = ["pull_model", "convert_weights", "upload_model", "enable_cache", "deploy_server", "smoke_test"]


# The failures come first: nothing serves yet, so there is nothing to wait for on the way back.


def test_a_model_that_answers_wrongly_fails_the_run_and_never_serves(terminal) -> None:
    failed = terminal.run(OWN_ROOT, f"model.id={WRONG}")
    assert failed.code == 71, failed.err
    assert "Paris" in failed.json["error"]["problem"]
    assert "Nothing serves" in failed.json["error"]["problem"]
    assert "Failed in Smoke test" in Path(failed.json["report"]).read_text()
    assert terminal.kubectl("get", "deployments,services", "-n", "models", "-o", "name").out == ""


def test_an_engine_that_dies_at_start_fails_the_run_with_its_last_lines(terminal) -> None:
    failed = terminal.run(OWN_ROOT, f"model.id={SAFETENSORS}", "server.engine_arguments=[--dtype=nonsense]")
    assert failed.code == 63, failed.err
    assert "argument --dtype" in failed.json["error"]["problem"]
    assert Path(failed.json["report"]).exists()


@pytest.fixture(scope="module")
def first(terminal):
    return terminal.run(OWN_ROOT)


@pytest.fixture(scope="module")
def again(terminal, first):
    return terminal.run(OWN_ROOT)


@pytest.fixture(scope="module")
def switched(terminal, again):
    return terminal.run(OWN_ROOT, f"model.id={SAFETENSORS}")


def test_a_pickled_model_ends_as_an_endpoint_that_answers(first) -> None:
    assert first.code == 0, first.err
    summary = first.json
    assert "Paris" in summary["answers"][0]["text"]
    assert list(summary["steps"]) == STEPS
    assert summary["moved_bytes"] >= summary["size_bytes"]


def test_the_report_of_the_run_holds_the_answer(first) -> None:
    page = Path(first.json["report"]).read_text()
    assert "Serving" in page
    assert "Paris" in page


def test_the_second_run_moves_no_weight_byte_and_restarts_nothing(terminal, first, again) -> None:
    assert again.code == 0, again.err
    assert again.json["moved_bytes"] == 0
    assert "published already; no byte moved" in again.err
    pods = json.loads(terminal.kubectl("get", "pods", "-n", "models", "-o", "json").out)["items"]
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0]


def test_a_safetensors_model_is_served_by_the_same_pipeline_without_conversion(switched) -> None:
    assert switched.code == 0, switched.err
    summary = switched.json
    assert "Paris" in summary["answers"][0]["text"]
    assert SAFETENSORS in summary["release"]


def test_both_models_are_the_same_tensors(terminal, first, switched) -> None:
    """The converted pickle and the safetensors of the same model serve the same answer."""
    assert first.json["answers"][0]["text"] == switched.json["answers"][0]["text"]


def test_a_machine_that_was_restarted_serves_the_same_release_without_moving_a_byte(terminal, switched) -> None:
    assert terminal.streamway("sandbox", "down").code == 0
    assert terminal.streamway("sandbox", "up").code == 0
    restarted = terminal.run(OWN_ROOT, f"model.id={SAFETENSORS}")
    assert restarted.code == 0, restarted.err
    assert restarted.json["moved_bytes"] == 0
    assert "nothing changed" in restarted.err
