"""Batch requests, which fake-gcs-server answers without knowing what the front knows.

Source: https://cloud.google.com/storage/docs/batch
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser

from aiohttp import web

from streamway.sandbox.bucket_store import StoreError

MOST_CALLS = 100


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request inside a batch, or its answer.

    Args:
        start: Its first line.
        headers: Its headers.
        body: Its body.
    """

    start: str
    headers: dict[str, str]
    body: bytes


async def answer_batch(request: web.Request, ask: Callable[[Call], Awaitable[Call]]) -> web.Response:
    """Answer POST /batch/storage/v1: each call by itself, in order.

    Args:
        request: The batch.
        ask: Sends one call to the front and returns its answer.
    """
    head = f"Content-Type: {request.headers.get('Content-Type', '')}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + await request.read())
    parts = message.get_payload()
    if not message.is_multipart() or not isinstance(parts, list):
        raise StoreError(400, "badRequest", "The batch is not multipart/mixed.")
    if len(parts) > MOST_CALLS:
        raise StoreError(400, "badRequest", f"The batch holds {len(parts)} calls, at most {MOST_CALLS} are allowed.")
    boundary = f"batch_{uuid.uuid4().hex}"
    answers = [_answer_part(part, await ask(_read_call(part))) for part in parts if isinstance(part, Message)]
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + answer + b"\r\n" for answer in answers)
    content_type = f'multipart/mixed; boundary="{boundary}"'
    return web.Response(body=body + b"--" + boundary.encode() + b"--\r\n", headers={"Content-Type": content_type})


def _read_call(part: Message) -> Call:
    payload = part.get_payload(decode=True)
    head, _, body = (payload if isinstance(payload, bytes) else b"").replace(b"\r\n", b"\n").partition(b"\n\n")
    start, *lines = head.decode().lstrip().split("\n")
    headers = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in headers.items()}
    return Call(start=start.strip(), headers=named, body=body)


def _answer_part(part: Message, answer: Call) -> bytes:
    identity = str(part.get("Content-ID", "<>")).strip().removeprefix("<")
    lines = [
        "Content-Type: application/http",
        f"Content-ID: <response-{identity}",
        "",
        answer.start,
        *(f"{name}: {value}" for name, value in answer.headers.items()),
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + answer.body
