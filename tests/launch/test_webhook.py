"""A webhook with the right secret makes a watcher look; nothing else it can send does anything."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from streamway.errors import LaunchError
from streamway.launch.watch import Followed
from streamway.launch.webhook import MAX_BODY_BYTES, LookQueue, Told, read_message, serve_webhook, webhook_application

SECRET = "correct-horse-battery-staple"
SHA = "0123456789abcdef0123456789abcdef01234567"
MODEL = Followed(model_id="org/name", revision="main", name="endpoint", namespace="models")
TAGGED = Followed(model_id="org/name", revision="v1", name="tagged", namespace="models")


def message(**changed: Any) -> dict[str, Any]:
    return {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": "org/name", "id": "1", "private": False, "headSha": SHA},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": SHA}],
        "webhook": {"id": "2", "version": 3},
        **changed,
    }


class Receiver:
    """A running receiver and what it was told."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        application = webhook_application(secret=SECRET, followed=[MODEL, TAGGED], on_told=self.told.append)
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        serving = serve_webhook(application, host="127.0.0.1", port=self.port, stop=self._stop)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serving,))
        self._thread.start()
        for _ in range(200):
            try:
                requests.get(f"{self.url}/healthz", timeout=5)
                return
            except requests.ConnectionError:
                continue

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, body: Any, *, secret: str | None = SECRET, **more: Any) -> requests.Response:
        headers = {} if secret is None else {"X-Webhook-Secret": secret}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(f"{self.url}/webhook", data=data, headers=headers, timeout=10, **more)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.stop()


@pytest.fixture
def receiver(running: Receiver) -> Receiver:
    running.told.clear()
    return running


def test_a_message_about_a_followed_model_is_told(receiver: Receiver) -> None:
    answer = receiver.post(message())
    assert answer.status_code == 202
    assert receiver.told == [Told(followed=MODEL, commit_sha=SHA)]


@pytest.mark.parametrize(
    "secret", [None, "", "wrong", SECRET + "x", SECRET[:-1], "corr\u00e9ct".encode().decode("latin-1")]
)
def test_without_the_secret_nothing_is_told(receiver: Receiver, secret: str | None) -> None:
    assert receiver.post(message(), secret=secret).status_code == 401
    assert receiver.told == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
        (b"[1, 2]", 202),
        (b'{"event": 1, "repo": null, "updatedRefs": "x"}', 202),
    ],
)
def test_a_body_that_makes_no_sense_does_no_harm(receiver: Receiver, body: bytes, status: int) -> None:
    assert receiver.post(body).status_code == status
    assert receiver.told == []


def test_other_methods_and_paths_are_refused(receiver: Receiver) -> None:
    assert requests.get(f"{receiver.url}/webhook", timeout=5).status_code == 405
    assert requests.post(f"{receiver.url}/other", timeout=5).status_code == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"event": {"action": "update", "scope": "discussion"}},
        {"event": {"action": "delete", "scope": "repo"}},
        {"repo": {"type": "dataset", "name": "org/name"}},
        {"repo": {"type": "model", "name": "org/other"}},
        {"updatedRefs": [{"ref": "refs/heads/dev", "newSha": SHA}]},
        {"updatedRefs": [{"ref": "refs/pr/1", "newSha": SHA}, "odd"]},
    ],
)
def test_what_is_not_about_a_followed_revision_is_passed_over(changed: dict[str, Any]) -> None:
    assert read_message(message(**changed), [MODEL, TAGGED]) == []


def test_a_tag_is_told_to_who_follows_it() -> None:
    refs = [{"ref": "refs/tags/v1", "oldSha": None, "newSha": SHA}]
    assert read_message(message(updatedRefs=refs), [MODEL, TAGGED]) == [Told(followed=TAGGED, commit_sha=SHA)]


def test_a_message_without_refs_is_believed_about_the_main_branch() -> None:
    found = read_message({key: value for key, value in message().items() if key != "updatedRefs"}, [MODEL, TAGGED])
    assert found == [Told(followed=MODEL, commit_sha=SHA), Told(followed=TAGGED, commit_sha="")]


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(LaunchError, match="has 5 characters, expected at least 16"):
        webhook_application(secret="short", followed=[MODEL], on_told=lambda told: None)


def test_messages_that_come_faster_than_looks_become_one_look() -> None:
    busy, go_on = threading.Event(), threading.Event()
    looked: list[Told] = []

    def look(told: Told) -> None:
        looked.append(told)
        busy.set()
        go_on.wait(10)

    looks = LookQueue(look)
    looks.put(Told(followed=MODEL, commit_sha="1"))
    busy.wait(10)
    for number in "234":
        looks.put(Told(followed=MODEL, commit_sha=number))
    looks.put(Told(followed=TAGGED, commit_sha="5"))
    go_on.set()
    for _ in range(1000):
        if len(looked) == 3:
            break
        threading.Event().wait(0.01)
    looks.close()
    assert [told.commit_sha for told in looked] == ["1", "4", "5"]
