"""From one real model to another, blue beside green, under a client that keeps asking."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from streamway.cluster import ServiceProxy, connect
from streamway.errors import ClusterUnreachableError

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

PICKLED = "HuggingFaceTB/SmolLM2-135M-Instruct"
SAFETENSORS = "HuggingFaceTB/SmolLM2-135M-Instruct-safetensors"
# No model is named, so that whichever serves may answer.
QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? Answer with the name of the city."}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture
def two_gpus(terminal) -> Iterator[None]:
    """A second GPU for the node, as long as the test needs it."""
    config = yaml.safe_load(Path(terminal.environment["KUBECONFIG"]).read_text())
    set_gpus(config, 2)
    yield
    set_gpus(config, 1)


def set_gpus(config: dict[str, Any], count: int) -> None:
    server, token = config["clusters"][0]["cluster"], config["users"][0]["user"]["token"]
    authority = base64.b64decode(server["certificate-authority-data"]).decode()
    answer = urllib3.PoolManager(ca_cert_data=authority).request(
        "POST",
        f"{server['server']}/sandbox/nodes",
        json={"count": 1, "gpus": count},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status == 200, answer.data


@pytest.fixture
def asking(terminal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """Asks the endpoint over and over; gives what came back from which model."""
    monkeypatch.setenv("KUBECONFIG", terminal.environment["KUBECONFIG"])
    proxy = connect().service_proxy("models", "smollm2", 8000)
    stop, threads = threading.Event(), list[threading.Thread]()
    answers: list[tuple[str, str]] = []

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(proxy))
            stop.wait(0.2)

    def start() -> list[tuple[str, str]]:
        threads.append(threading.Thread(target=keep_asking, daemon=True))
        threads[0].start()
        return answers

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)


def ask(proxy: ServiceProxy) -> tuple[str, str]:
    try:
        response = proxy.request("POST", "/v1/chat/completions", body=QUESTION, timeout_seconds=60)
        found: dict[str, Any] = response.json()
        return str(found["model"]), str(found["choices"][0]["message"]["content"])
    except (ClusterUnreachableError, ValueError, KeyError) as error:
        return "nobody", repr(error)


def served_by(answers: list[tuple[str, str]], model: str) -> bool:
    """Wait until the client has been answered by a model."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if answers and answers[-1][0] == model:
            return True
        time.sleep(0.2)
    return False


def test_blue_green_changes_the_model_without_a_failed_answer(terminal, two_gpus, asking) -> None:
    old = terminal.run(f"model.id={SAFETENSORS}")
    assert old.code == 0, old.err
    answers = asking()
    assert served_by(answers, SAFETENSORS)

    changed = terminal.run(f"model.id={PICKLED}", "server.strategy=blue_green")
    assert changed.code == 0, changed.err
    assert served_by(answers, PICKLED)
    back = terminal.streamway("rollback", "smollm2", "--json", state=False, environment=terminal.environment)
    assert back.code == 0, back.err
    assert served_by(answers, SAFETENSORS)

    models = [model for model, _text in answers]
    assert "nobody" not in models, [text for model, text in answers if model == "nobody"]
    assert all("Paris" in text for _model, text in answers)
    turns = [model for model, before in zip(models, ["", *models], strict=False) if model != before]
    assert turns == [SAFETENSORS, PICKLED, SAFETENSORS]
