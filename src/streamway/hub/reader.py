"""A file of the Hub as bytes that can be read by offset, from many threads at once.

The Hub answers with a redirect to a signed address on another host, which expires. It is looked up once for each file
and again when it is refused. The token goes to the Hub alone: never to the other host, never from https to http.
"""

import functools
import logging
import threading
import urllib.parse
from collections.abc import Mapping, Sequence

import urllib3

from streamway.errors import AccessDeniedError, HubError, SourceChangedError, TransferError
from streamway.hub.repository import Commit, HubFile, hub_endpoint, hub_token
from streamway.hub.secrets import read_token
from streamway.storage.http import HttpClient, Patience, Persistence, RetryableError, raise_if_retried, read_range
from streamway.storage.records import LeftFile, OpenLeft
from streamway.storage.scatter import Scatter

log = logging.getLogger("streamway.hub")

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HubReader:
    """One file at one commit.

    Args:
        client: Connections, shared by all files of a pull.
        commit: Which model, at which commit.
        file: Which file.
        token: The Hub's token, or None.
    """

    def __init__(self, client: HttpClient, commit: Commit, file: HubFile, token: str | None) -> None:
        self._client = client
        self._file = file
        self._token = token
        self._origin = _origin(commit.endpoint)
        self._commit_sha = commit.commit_sha
        path = urllib.parse.quote(f"{commit.model_id}/resolve/{commit.commit_sha}/{file.path}")
        self.uri = f"{commit.endpoint}/{path}"
        self.size_bytes = file.size_bytes
        self._address = ""
        self._etag = ""
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        return self._file.etag

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`; see `read_rows`."""
        self.read_rows(offset, [view])

    def read_rows(self, offset: int, rows: Sequence[memoryview]) -> None:
        """Fill several pieces of memory, one after the other, from one stretch of the file, in one request.

        Raises:
            AccessDeniedError: the token does not open the file any more.
            SourceChangedError: the file is not what it was.
            TransferError: it cannot be read.
        """
        memory = Scatter(rows)
        if offset < 0 or offset + memory.size_bytes > self.size_bytes:
            raise TransferError(
                f"{self.uri}: asked for {memory.size_bytes} bytes at {offset}, it has {self.size_bytes}."
            )
        persistence = Persistence(self.uri, self._client.patience)
        while memory.left_bytes:
            try:
                self._read_once(offset + memory.filled_bytes, memory)
                persistence.gained()
            except RetryableError as retryable:
                persistence.failed(retryable)

    def _read_once(self, offset: int, memory: Scatter) -> None:
        address = self._locate()
        wanted = f"bytes={offset}-{offset + memory.left_bytes - 1}"
        response = self._client.open("GET", address, {"Range": wanted, **self._authorization(address)})
        if response.status not in (200, 206):
            response.close()
            raise_if_retried(response.status, response.headers)
            raise self._refusal(response.status, address)
        self._pin(response)
        read_range(self._client, response, memory, offset, self.size_bytes)

    def _pin(self, response: urllib3.BaseHTTPResponse) -> None:
        """Hold every answer to the first one's entity tag, so that two versions are never mixed."""
        etag = response.headers.get("ETag", "")
        with self._lock:
            self._etag = self._etag or etag
            if etag == self._etag:
                return
        response.close()
        raise SourceChangedError(
            f"{self.uri}: its entity tag was {self._etag}, now it is {etag}; it changed while it was read.",
            next_step="Run again; the revision is resolved anew.",
        )

    def _locate(self) -> str:
        """Return where the bytes are, asking the Hub only if that is not known or not valid any more."""
        with self._lock:
            if not self._address:
                self._address = self._follow()
            return self._address

    def _follow(self) -> str:
        address = self.uri
        for _ in range(_MOST_REDIRECTS):
            answer = self._client.ask("HEAD", address, self._authorization(address))
            if answer.status in _REDIRECTS:
                self._check_promise(answer.headers)
                address = self._next_address(address, answer.headers.get("Location", ""))
                if _origin(address) != self._origin:
                    return address  # a signed address is for GET, and for whoever holds it
            elif 200 <= answer.status < 300:
                self._check_promise(answer.headers)
                return address
            else:
                raise self._refusal(answer.status, address)
        raise HubError(f"{self.uri}: more than {_MOST_REDIRECTS} redirects, the last to {_shown(address)}.")

    def _next_address(self, address: str, location: str) -> str:
        target = urllib.parse.urljoin(address, location)
        scheme = urllib.parse.urlsplit(target).scheme
        secure = urllib.parse.urlsplit(address).scheme == "https"
        if not location or scheme not in ("http", "https") or (secure and scheme != "https"):
            raise HubError(
                f"{_shown(address)} redirects to {_shown(target)!r}, which is not a secure address.",
                next_step="Check HF_ENDPOINT and any proxy between here and the Hub.",
            )
        return target

    def _check_promise(self, headers: Mapping[str, str]) -> None:
        """Compare what the Hub says about the file now with what it said when the model was asked for."""
        commit = headers.get("X-Repo-Commit", self._commit_sha)
        size = headers.get("X-Linked-Size")
        etag = headers.get("X-Linked-ETag") or headers.get("ETag", "")
        etag = etag.removeprefix("W/").strip('"')
        changed = commit != self._commit_sha or size not in (None, str(self.size_bytes))
        if changed or (etag and etag != self._file.etag):
            raise SourceChangedError(
                f"{self.uri}: the Hub now says commit {commit}, {size or '?'} bytes, entity tag {etag}; expected "
                f"{self._commit_sha}, {self.size_bytes} bytes, {self._file.etag}.",
                next_step="Run again; the revision is resolved anew.",
            )

    def _refusal(self, status: int, address: str) -> Exception:
        """Say what a refusal means."""
        if _origin(address) != self._origin and status in (400, 401, 403, 404, 410):
            self._forget(address)
            return RetryableError(f"the signed address was refused ({status}), asking the Hub for a new one")
        if status in (401, 403):
            return AccessDeniedError(
                f"{self.uri}: the Hub answers {status}: the token was revoked, or access was withdrawn.",
                next_step="Give a valid token and run again; what has arrived is kept.",
            )
        if status in (404, 412):
            return SourceChangedError(
                f"{self.uri}: the Hub answers {status}; the file is gone from this commit.",
                next_step="Run again; the revision is resolved anew.",
            )
        return HubError(
            f"{_shown(address)}: the server answers {status}, which was not expected.",
            next_step="Look at https://status.huggingface.co, then run again.",
        )

    def _forget(self, address: str) -> None:
        with self._lock:
            if self._address == address:
                self._address = ""

    def _authorization(self, address: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token and _origin(address) == self._origin else {}


def open_left_files(*, token: str | None = None, token_secret: str = "", patience: Patience | None = None) -> OpenLeft:
    """Return what opens the files that a pull left at the Hub.

    Args:
        token: The Hub's token; None for HF_TOKEN. It goes to the Hub that HF_ENDPOINT names, and to no other that a
            record might name.
        token_secret: Where the token is instead, as `read_token` takes it; read only if a file is opened, because most
            models leave none.
        patience: How long to wait for the Hub.
    """
    client = HttpClient(patience)

    @functools.cache
    def read_once() -> str | None:
        return hub_token(token or read_token(token_secret))

    def open_left(file: LeftFile) -> HubReader:
        commit = Commit(endpoint=hub_endpoint(), model_id=file.model_id, commit_sha=file.commit_sha)
        promised = HubFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256, blob_id="")
        reader = HubReader(client, commit, promised, read_once())
        if reader.uri != file.uri:
            raise HubError(
                f"{file.uri} is not at {commit.endpoint}, which is the Hub here.",
                next_step="Set HF_ENDPOINT as it was for the pull, or pull again.",
            )
        return reader

    return open_left


def _origin(address: str) -> tuple[str, str]:
    split = urllib.parse.urlsplit(address)
    return split.scheme, split.netloc


def _shown(address: str) -> str:
    return address.partition("?")[0]
