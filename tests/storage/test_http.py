"""Connections are given up when bytes stop, and servers are obeyed when they ask for time, within bounds."""

import email.utils
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from streamway.errors import StalledError, TransferError
from streamway.storage import Patience
from streamway.storage.http import HttpClient, Persistence, RetryableError, Watchdog, read_range, wait_told
from streamway.storage.scatter import Scatter

Script = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Script], str]]:
    """Start a server that treats each connection as the script says; return its address."""
    sockets: list[socket.socket] = []

    def start(script: Script) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                sockets.append(connection)
                threading.Thread(target=_play, args=(script, connection), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/file"

    yield start
    for one in sockets:
        one.close()


def _play(script: Script, connection: socket.socket) -> None:
    try:
        connection.recv(65536)
        script(connection)
    except OSError:
        pass  # the client has gone, which is what some scripts wait for


def answer(connection: socket.socket, head: str, body: bytes = b"") -> None:
    connection.sendall(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "²"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({}, None),
    ],
)
def test_the_time_a_server_asks_for_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_told(headers) == seconds


@pytest.mark.parametrize("usegmt", [True, False])
def test_a_date_to_wait_for_is_understood(usegmt: bool) -> None:
    at = lambda seconds: {"Retry-After": email.utils.formatdate(time.time() + seconds, usegmt=usegmt)}
    assert wait_told(at(1000)) == pytest.approx(1000, abs=100)
    assert wait_told(at(-1000)) == 0


def test_a_server_that_asks_for_too_much_time_ends_the_operation(hurried: Patience) -> None:
    with pytest.raises(TransferError, match=r"asks to wait 86400 s"):
        Persistence("thing", hurried).failed(RetryableError("busy", wait_seconds=86400))


def test_failures_without_progress_are_bounded_and_progress_renews_patience(hurried: Patience) -> None:
    persistence = Persistence("thing", hurried)
    for _ in range(3):
        for _ in range(hurried.attempts - 1):
            persistence.failed(RetryableError("broken"))
        persistence.gained()
    with pytest.raises(TransferError, match=f"thing: broken; tried {hurried.attempts} times"):
        for _ in range(hurried.attempts):
            persistence.failed(RetryableError("broken"))


def test_a_silent_server_is_given_up(serve: Callable[[Script], str], hurried: Patience) -> None:
    client, url = HttpClient(hurried), serve(lambda connection: connection.recv(1) and None)
    with pytest.raises(StalledError, match="no byte arrived in time; tried 4 times"):
        client.ask_patiently(url, lambda: client.ask("GET", url))


def test_a_server_that_drips_is_given_up(serve: Callable[[Script], str], hurried: Patience) -> None:
    def drip(connection: socket.socket) -> None:
        head = b"HTTP/1.1 206 OK\r\nContent-Length: 1000000\r\nContent-Range: bytes 0-999999/1000000\r\n\r\n"
        connection.sendall(head)
        while True:
            connection.sendall(b"x" * 16)
            time.sleep(0.05)

    client = HttpClient(hurried)
    response = client.open("GET", serve(drip), {})
    memory = Scatter([memoryview(bytearray(1_000_000))])
    read_range(client, response, memory, 0, 1_000_000)
    assert 0 < memory.filled_bytes < 16_384, "what little came is kept, and the connection is given up"


def test_the_watchdog_looks_at_bytes_and_not_at_their_number_of_arrivals() -> None:
    patient = Watchdog(stall_seconds=0)
    patient.saw(1_000_000)
    time.sleep(0.01)
    with pytest.raises(RetryableError):
        patient.saw(100)


def test_nobody_listening_is_said_plainly(hurried: Patience) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    client = HttpClient(hurried)
    with pytest.raises(TransferError, match="Connection refused") as caught:
        client.ask_patiently(url, lambda: client.ask("GET", url))
    assert not isinstance(caught.value, StalledError)


def test_refused_attempts_are_repeated_after_the_time_asked_for(
    serve: Callable[[Script], str], hurried: Patience
) -> None:
    came: list[float] = []

    def busy_once(connection: socket.socket) -> None:
        came.append(time.monotonic())
        answer(connection, "200 OK" if len(came) > 1 else "429 Busy\r\nRetry-After: 1")

    client, url = HttpClient(hurried), serve(busy_once)
    assert client.ask_patiently(url, lambda: client.ask("GET", url)).status == 200
    assert came[1] - came[0] >= 1


@pytest.mark.parametrize(
    "head",
    [
        "206 OK\r\nContent-Range: bytes 5-14/100",  # another range
        "206 OK\r\nContent-Range: bytes 0-4/100",  # a shorter one
        "206 OK\r\nContent-Range: bytes 0-9/" + "9" * 5000,  # no number that Python would read
        "206 OK",  # no word about it
        "200 OK",  # all of it
        "416 Range Not Satisfiable\r\nContent-Range: bytes */100",
    ],
)
def test_an_answer_for_another_range_is_not_taken(serve: Callable[[Script], str], hurried: Patience, head: str) -> None:
    client = HttpClient(hurried)
    response = client.open("GET", serve(lambda connection: answer(connection, head, b"0123456789")), {})
    memory = bytearray(b"." * 10)
    with pytest.raises(RetryableError, match="asked for bytes 0-9"):
        read_range(client, response, Scatter([memoryview(memory)]), 0, 100)
    assert memory == b"." * 10


def test_a_proxy_of_the_environment_is_used(
    serve: Callable[[Script], str], hurried: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(lambda connection: answer(connection, "200 OK", b"from the proxy")).removesuffix("/file")
    monkeypatch.setenv("http_proxy", proxy)
    assert HttpClient(hurried).ask("GET", "http://somewhere.invalid/x").body == b"from the proxy"
