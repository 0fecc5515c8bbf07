"""HTTP with manners: bounded retries, a watchdog on bytes, and no credential sent where it does not belong.

Both sides of a transfer speak through here, the Hub and Cloud Storage. A request ends in an answer that the caller
asked for, or in a TransferError that says how often it was tried and what was seen; never in silence.
"""

import contextlib
import email.utils
import logging
import os
import random
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC

import certifi
import urllib3

from streamway.errors import SourceChangedError, StalledError, TransferError
from streamway.storage.scatter import Scatter

log = logging.getLogger("streamway.storage")

READ_BYTES = 256 * 1024
SEND_BYTES = 256 * 1024
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_LEAST_BYTES = 16 * 1024
"""A connection that moves less than this while the watchdog waits is as good as silent."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what.

    Args:
        connect_seconds: For a connection to be made.
        stall_seconds: Without a byte before a connection is given up.
        attempts: Failures in a row, without a byte gained in between, before an operation is given up.
        first_wait_seconds: Before the first retry; doubled each time, with jitter.
        longest_wait_seconds: The most that doubling leads to.
        longest_told_seconds: The most that a server's own Retry-After is obeyed; beyond it the operation fails.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    longest_told_seconds: float = 330.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A small answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The start of the body, for messages."""
        return " ".join(self.body[:600].decode("utf-8", "replace").split())


Body = Callable[[], Iterable[bytes | memoryview]]
"""Makes the row of bytes to send, anew for each attempt."""


class RetryableError(Exception):
    """An attempt failed in a way that may pass; `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, *, wait_seconds: float | None = None, stalled: bool = False) -> None:
        self.reason = reason
        self.wait_seconds = wait_seconds
        self.stalled = stalled
        super().__init__(reason)


class Persistence:
    """Counts the failures of one operation, sleeps between them and gives up in the end."""

    def __init__(self, subject: str, patience: Patience) -> None:
        self._subject = subject
        self._patience = patience
        self._failures = 0

    def gained(self) -> None:
        """Start counting anew, because bytes arrived."""
        self._failures = 0

    def failed(self, retry: RetryableError) -> None:
        """Sleep before the next attempt.

        Raises:
            TransferError: there have been too many, or the server asks for more time than there is.
        """
        self._failures += 1
        wait = self._wait(retry)
        if self._failures >= self._patience.attempts:
            self._give_up(retry, f"tried {self._failures} times without gaining a byte")
        if retry.wait_seconds is not None and retry.wait_seconds > self._patience.longest_told_seconds:
            self._give_up(retry, f"the server asks to wait {retry.wait_seconds:.0f} s")
        log.info("%s: %s; trying again in %.1f s.", self._subject, retry.reason, wait)
        time.sleep(wait)

    def _wait(self, retry: RetryableError) -> float:
        if retry.wait_seconds is not None:
            return retry.wait_seconds + random.uniform(0, 0.25)
        ceiling = self._patience.first_wait_seconds * 2 ** (self._failures - 1)
        return random.uniform(0.5, 1.0) * min(ceiling, self._patience.longest_wait_seconds)

    def _give_up(self, retry: RetryableError, why: str) -> None:
        error = StalledError if retry.stalled else TransferError
        raise error(
            f"{self._subject}: {retry.reason}; {why}.",
            next_step="Check the network and the service's status, then run again; what has arrived is kept.",
        ) from retry


def wait_told(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait: Retry-After, or the Hub's RateLimit with its `t=`."""
    told = headers.get("Retry-After")
    if told is not None:
        if re.fullmatch(r"[0-9]+", told.strip()):
            return float(told)
        try:
            when = email.utils.parsedate_to_datetime(told)
            return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
    reset = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return float(reset.group(1)) if reset else None


def raise_if_retried(status: int, headers: Mapping[str, str]) -> None:
    """Raise RetryableError for an answer that says to try again."""
    if status in RETRIED:
        raise RetryableError(f"the server answers {status}", wait_seconds=wait_told(headers))


def without_query(url: str) -> str:
    """Return a URL without its query, where signatures live, for messages."""
    return url.partition("?")[0]


@dataclass
class Watchdog:
    """Fails a connection that moves too few bytes, however the time between them is spread."""

    stall_seconds: float
    _since: float = field(default_factory=time.monotonic)
    _bytes: int = 0

    def saw(self, count: int) -> None:
        """Note that `count` bytes moved.

        Raises:
            RetryableError: they are too few for the time that has passed.
        """
        self._bytes += count
        if self._bytes >= _LEAST_BYTES:
            self._since, self._bytes = time.monotonic(), 0
        elif time.monotonic() - self._since > self.stall_seconds:
            raise RetryableError(f"fewer than {_LEAST_BYTES} bytes in {self.stall_seconds:.0f} s", stalled=True)


class HttpClient:
    """Pools of connections that any thread may use; follows no redirect and retries nothing by itself."""

    def __init__(self, patience: Patience | None = None, *, connections: int = 32) -> None:
        self.patience = patience or Patience()
        self._connections = connections
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def open(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the answer with its body unread.

        Raises:
            RetryableError: no answer came.
        """
        # While a request is sent urllib3 holds each write to the connect timeout, so that is the watchdog there.
        patience = self.patience
        connect = patience.stall_seconds if body else patience.connect_seconds
        timeout = urllib3.Timeout(connect=connect, read=patience.stall_seconds)
        try:
            return self._pool(url).request(
                method,
                url,
                headers={"Accept-Encoding": "identity", "User-Agent": "streamway", **headers},
                body=body() if body else None,  # type: ignore[arg-type]  # urllib3 sends any buffer
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise as_retryable(error) from error

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        *,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> Answer:
        """Send a request once and read its whole answer.

        Raises:
            RetryableError: no complete answer came, or one that says to try again.
        """
        response = self.open(method, url, headers or {}, body)
        try:
            content = b"" if method == "HEAD" else response.read(max_bytes)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            response.close()
            raise as_retryable(error) from error
        if response.length_remaining and method != "HEAD":
            response.close()
        response.release_conn()
        raise_if_retried(response.status, response.headers)
        return Answer(status=response.status, headers=response.headers, body=content)

    def ask_patiently(self, subject: str, attempt: Callable[[], Answer], *, patience: Patience | None = None) -> Answer:
        """Call `attempt` until it returns, within the bounds of patience."""
        persistence = Persistence(subject, patience or self.patience)
        while True:
            try:
                return attempt()
            except RetryableError as retry:
                persistence.failed(retry)

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _make_pool(proxy, self._connections)
            return self._pools[proxy]


def _make_pool(proxy: str, connections: int) -> urllib3.PoolManager:
    roots = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()
    if proxy:
        return urllib3.ProxyManager(proxy, num_pools=8, maxsize=connections, ca_certs=roots)
    return urllib3.PoolManager(num_pools=8, maxsize=connections, ca_certs=roots)


def _proxy_for(url: str) -> str:
    split = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    if split.scheme not in proxies or urllib.request.proxy_bypass(split.netloc):
        return ""
    return proxies[split.scheme]


def as_retryable(error: Exception) -> RetryableError:
    """Say in a few words what went wrong with a connection."""
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    stalled = not refused and isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
    reason = "no byte arrived in time" if stalled else f"the connection failed ({_root_cause(error)})"
    return RetryableError(reason, stalled=stalled)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {error}"[:200]


def read_refusal(response: urllib3.BaseHTTPResponse) -> Answer:
    """Return an answer that is no success with as much of its text as comes, and give its connection up."""
    body = b""
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        body = response.read(65536)
    response.close()
    return Answer(status=response.status, headers=response.headers, body=body)


def read_range(
    client: HttpClient, response: urllib3.BaseHTTPResponse, memory: Scatter, offset: int, size_bytes: int
) -> None:
    """Fill memory from the answer to a request for the rest of it, as far as it comes.

    Args:
        client: Whose patience counts.
        response: A 206, or a 200 where the range is the whole source.
        memory: Where the bytes go; what is left of it is what was asked for.
        offset: What the range began at.
        size_bytes: What the whole source measures.

    Raises:
        RetryableError: nothing usable came.
        SourceChangedError: the source is no longer as long as it was.
    """
    before = memory.filled_bytes
    watchdog = Watchdog(client.patience.stall_seconds)
    try:
        _check_range(response, offset, memory.left_bytes, size_bytes)
        while memory.left_bytes:
            # One piece as the socket has it: a longer read would hide a dripping server from the watchdog.
            data = response.read1(min(READ_BYTES, memory.left_bytes))
            if not data:
                break
            memory.put(data)
            watchdog.saw(len(data))
        if memory.filled_bytes == before:
            raise RetryableError("the answer ended before its first byte")
    except (urllib3.exceptions.HTTPError, OSError, RetryableError) as error:
        response.close()
        if memory.filled_bytes == before:
            raise error if isinstance(error, RetryableError) else as_retryable(error) from error
        return
    if memory.left_bytes:
        response.close()
    else:
        response.release_conn()


def _check_range(response: urllib3.BaseHTTPResponse, offset: int, length: int, size_bytes: int) -> None:
    told = response.headers.get("Content-Range", "")
    if response.status == 200 and offset == 0 and length == size_bytes:
        told = f"bytes 0-{length - 1}/{response.headers.get('Content-Length', size_bytes)}"
    match = re.fullmatch(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)", told.strip())
    if response.status not in (200, 206) or not match:
        raise RetryableError(
            f"asked for bytes {offset}-{offset + length - 1}, the server answers {response.status} "
            f"with Content-Range {told!r}"
        )
    if match[3] != "*" and int(match[3]) != size_bytes:
        raise SourceChangedError(
            f"The source is now {match[3]} bytes long; it was {size_bytes} when it was opened.",
            next_step="Run again; the files that changed are read anew.",
        )
    if int(match[1]) != offset or int(match[2]) != offset + length - 1:
        raise RetryableError(f"asked for bytes {offset}-{offset + length - 1}, the server sent {told!r}")
