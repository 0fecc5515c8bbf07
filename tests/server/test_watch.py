"""Watches that go on whatever happens to their connections."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from kubernetes import client

from streamway.cluster import ClusterConnection
from streamway.errors import ClusterPermissionError
from streamway.server.rollout import _Clock, _Logs, _Narrator
from streamway.server.watch import LiveView, LogFollower, Source

PODS = "/api/v1/namespaces/models/pods"


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}}


@dataclass
class Script:
    """What an API server does, request by request: lists, and watches as lists of lines."""

    url: str = ""
    lists: list[Any] = field(default_factory=list)
    watches: list[Any] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def listed(self, *items: dict[str, Any], version: int) -> None:
        self.lists.append({"kind": "PodList", "metadata": {"resourceVersion": str(version)}, "items": list(items)})


@pytest.fixture
def script() -> Iterator[Script]:
    state = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            query = {key: values[0] for key, values in parse_qs(urlparse(self.path).query).items()}
            state.asked.append(query)
            rows = state.watches if "watch" in query or "follow" in query else state.lists
            answer = rows.pop(0) if rows else "hold"
            if answer == "drop":
                self.close_connection = True
                return
            if isinstance(answer, int):
                self._whole(answer, {"kind": "Status", "message": "as told", "reason": "Forbidden", "code": answer})
            elif isinstance(answer, dict):
                self._whole(200, answer)
            else:
                self._stream(answer)

        def _whole(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, answer: Any) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            for line in answer if isinstance(answer, list) else ():
                if line == "cut":
                    self.close_connection = True
                    return
                text = line if isinstance(line, str) else json.dumps(line)
                data = text.encode() + b"\n"
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            if answer == "hold":
                state.hold.wait(20)
            self.wfile.write(b"0\r\n\r\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    state.hold.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def connection(script: Script) -> ClusterConnection:
    configuration = client.Configuration(host=script.url)
    return ClusterConnection(client.ApiClient(configuration), name="test")


def watched(connection: ClusterConnection, until: Callable[[list[str]], bool], *, optional: bool = False) -> list[str]:
    """Watch pods until their names are as wanted; return them."""
    seen = 0
    with LiveView(connection, {"pods": Source(path=PODS, label_selector="a=b", optional=optional)}) as view:
        for _ in range(40):
            seen = view.wait(seen, timeout_seconds=0.5)
            names = [item["metadata"]["name"] for item in view.objects("pods")]
            if view.complete and until(names):
                return names
    pytest.fail(f"still {names}")


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_events_change_the_copy(script: Script, connection: ClusterConnection) -> None:
    script.listed(pod("a", 1), version=5)
    script.watches.append(
        [
            {"type": "ADDED", "object": pod("b", 6)},
            {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
            {"type": "DELETED", "object": pod("a", 8)},
        ]
    )

    assert watched(connection, lambda names: names == ["b"]) == ["b"]
    assert script.asked[1]["resourceVersion"] == "5"
    assert script.asked[1]["labelSelector"] == "a=b"


def test_a_watch_that_ends_goes_on_from_the_last_version(script: Script, connection: ClusterConnection) -> None:
    script.listed(version=5)
    script.watches += [
        [
            {"type": "ADDED", "object": pod("a", 6)},
            {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}},
        ],
        [{"type": "ADDED", "object": pod("b", 10)}],
    ]

    watched(connection, lambda names: names == ["a", "b"])

    assert [query.get("resourceVersion") for query in script.asked[:3]] == [None, "5", "9"]


@pytest.mark.parametrize("how", ["event", "status"])
def test_a_version_that_is_gone_is_listed_anew(script: Script, connection: ClusterConnection, how: str) -> None:
    script.listed(pod("old", 1), version=5)
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    script.watches.append([{"type": "ERROR", "object": gone}] if how == "event" else 410)
    script.listed(pod("new", 7), version=8)

    assert watched(connection, lambda names: names == ["new"]) == ["new"]


def test_a_connection_that_is_cut_is_made_again(script: Script, connection: ClusterConnection) -> None:
    script.listed(version=5)
    script.watches += [
        [{"type": "ADDED", "object": pod("a", 6)}, "cut"],
        "drop",
        [{"type": "ADDED", "object": pod("b", 7)}],
    ]

    assert watched(connection, lambda names: len(names) == 2) == ["a", "b"]
    assert [query.get("resourceVersion") for query in script.asked[:4]] == [None, "5", "6", "6"]


def test_a_busy_api_server_is_asked_again(script: Script, connection: ClusterConnection) -> None:
    script.lists.append(503)
    script.listed(pod("a", 1), version=5)

    assert watched(connection, lambda names: bool(names)) == ["a"]
    assert [query.get("resourceVersion") for query in script.asked[:2]] == [None, None]


def test_what_may_not_be_read_ends_the_wait(script: Script, connection: ClusterConnection) -> None:
    script.lists.append(403)

    with pytest.raises(ClusterPermissionError):
        watched(connection, lambda names: bool(names))


def test_what_is_only_useful_may_be_missing(script: Script, connection: ClusterConnection) -> None:
    script.lists.append(403)

    assert watched(connection, lambda names: names == [], optional=True) == []


def test_what_is_only_useful_is_not_waited_for(script: Script, connection: ClusterConnection) -> None:
    script.lists += [504] * 100

    assert watched(connection, lambda names: names == [], optional=True) == []


def test_silence_lasts_from_the_first_loss_until_the_next_answer(script: Script, connection: ClusterConnection) -> None:
    script.listed(version=5)
    script.watches += ["hold", "drop", "drop", "drop", [{"type": "ADDED", "object": pod("a", 6)}]]

    with LiveView(connection, {"pods": Source(path=PODS)}) as view:
        seen = view.wait(0, timeout_seconds=10)
        assert view.silent_seconds == 0.0
        script.hold.set()
        await_that(lambda: view.silent_seconds > 0)
        noticed = time.monotonic()
        script.hold.clear()
        await_that(lambda: len(script.asked) >= 5)
        since_noticed = time.monotonic() - noticed
        # A try that fails as well does not begin it anew.
        assert view.silent_seconds >= since_noticed
        view.wait(seen, timeout_seconds=10)
        assert [item["metadata"]["name"] for item in view.objects("pods")] == ["a"]
        assert view.silent_seconds == 0.0


def test_a_watch_that_was_made_again_and_has_nothing_to_tell_is_no_silence(
    script: Script, connection: ClusterConnection
) -> None:
    script.listed(version=5)
    script.watches += [["cut"], "hold"]

    with LiveView(connection, {"pods": Source(path=PODS)}) as view:
        view.wait(0, timeout_seconds=10)
        await_that(lambda: len(script.asked) >= 3)
        await_that(lambda: not view.silent_seconds)
        assert [item["metadata"]["name"] for item in view.objects("pods")] == []


def test_a_log_is_followed_and_read_again_after_a_restart(script: Script, connection: ClusterConnection) -> None:
    script.watches += [["one", "two"], ["three"]]
    lines: list[str | None] = []
    third = threading.Event()

    def take(line: str | None) -> None:
        lines.append(line)
        if line == "three":
            third.set()

    follower = LogFollower(connection, f"{PODS}/a", "engine", take)
    follower.start()
    assert third.wait(10)
    follower.stop()

    assert lines[:5] == [None, "one", "two", None, "three"]
    assert follower.tail(10) == ["three"]


def test_a_log_that_is_read_again_does_not_move_the_moment_when_the_weights_came(
    script: Script, connection: ClusterConnection
) -> None:
    streamed = "[RunAI Streamer] Overall time to stream 256.6 MiB of all files to cpu: 0.5s, 513.2 MiB/s"
    script.watches += [[streamed], [streamed, "compiled", "captured graphs"]]
    clock = _Clock()
    logs = _Logs(connection, "models", clock, _Narrator(0, None))
    clock.mark("started")

    logs.follow(pod("a", 1))
    for _ in range(100):
        if "captured graphs" in logs.tail():
            break
        time.sleep(0.1)
    logs.stop()
    clock.mark("ready")

    read = logs.when_streamed(0)
    phases = {phase.name: phase.seconds for phase in clock.phases(read.streamer)}
    assert phases["initialise engine"] > 0.9, "a follower waits for a second before it opens a log again"


def test_stopping_does_not_wait_for_a_silent_connection(script: Script, connection: ClusterConnection) -> None:
    script.listed(version=5)
    with LiveView(connection, {"pods": Source(path=PODS)}) as view:
        while not view.complete:
            view.wait(0, timeout_seconds=0.1)

    assert not [thread for thread in threading.enumerate() if thread.name == "streamway-pods"]
