"""How the Hub's bytes leave it: signed addresses that expire, ranges, conditions, and sendfile.

Rules of ranges and conditions: RFC 9110, sections 13 and 14. A request for several ranges gets the whole file,
as S3 answers it.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from streamway.sandbox.faults import send_file

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class LinkSigner:
    """Makes addresses of large files that work for a while and cannot be made by anybody else.

    Args:
        valid_seconds: How long an address works.
        origin: Scheme, host and port that serve the files.
    """

    def __init__(self, *, valid_seconds: float, origin: str = "") -> None:
        self.origin = origin
        self._valid_seconds = valid_seconds
        self._key = secrets.token_bytes(32)

    def link(self, raw_path: str) -> str:
        """Return the signed address of a path."""
        expires = str(int(time.time() + self._valid_seconds))
        return f"{self.origin}{raw_path}?Expires={expires}&Signature={self._sign(unquote(raw_path), expires)}"

    def accepts(self, request: web.Request) -> bool:
        """Say whether an address is one of ours and has not expired."""
        expires = request.query.get("Expires", "")
        signature = request.query.get("Signature", "")
        genuine = hmac.compare_digest(signature, self._sign(request.path, expires))
        return genuine and time.time() < int(expires)

    def forget(self) -> None:
        """Refuse every address given so far."""
        self._key = secrets.token_bytes(32)

    def _sign(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}?{expires}".encode(), hashlib.sha256).hexdigest()


async def serve_blob(
    request: web.Request, blob: Path, headers: Mapping[str, str], *, ignore_range: bool
) -> web.StreamResponse:
    """Answer GET or HEAD with a file or the range that was asked for.

    Args:
        request: What was asked.
        blob: The file.
        headers: Headers of the answer; `ETag` among them.
        ignore_range: Send the whole file whatever range is asked for, as some caches do.
    """
    size = blob.stat().st_size
    etag = headers["ETag"]
    refused = _unmet_condition(request, etag)
    if refused:
        return web.Response(status=refused, headers={"ETag": etag})
    span = None if ignore_range else _range(request, size, etag)
    start, end = span or (0, size)
    answer = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    if span:
        if start >= end:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        answer["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    response = web.StreamResponse(status=206 if span else 200, headers=answer)
    if request.method == "HEAD":
        response.content_length = end - start
        await response.prepare(request)
        return response
    return await send_file(request, response, blob, start, end - start)


def _unmet_condition(request: web.Request, etag: str) -> int:
    wanted = request.headers.get("If-Match")
    if wanted and wanted != "*" and etag not in _entity_tags(wanted):
        return 412
    known = request.headers.get("If-None-Match")
    return 304 if known and (known == "*" or etag in _entity_tags(known)) else 0


def _entity_tags(header: str) -> list[str]:
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _range(request: web.Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return the offsets to send from and to: None for the whole file, an empty span for nothing there."""
    match = _ONE_RANGE.fullmatch(request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", etag) != etag:
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)
