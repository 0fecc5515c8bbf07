"""The other end of a Hugging Face webhook: a small server that tells a watcher where to look.

What the Hub sends is believed in one thing only: that it is worth looking at a model now. The commit comes from the
Hub's API, and the claim in the bucket keeps it to one run, so a forged or repeated message can at most cause a look;
and without the secret it cannot even do that.
"""

import asyncio
import hmac
import logging
import queue
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from streamway.errors import LaunchError
from streamway.launch.watch import Followed

logger = logging.getLogger("streamway.launch")

SECRET_HEADER = "X-Webhook-Secret"
"""https://huggingface.co/docs/hub/webhooks#webhook-secret"""

MAX_BODY_BYTES = 256 << 10
_BODY_SECONDS = 10.0
_LEAST_SECRET_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a message told of.

    Args:
        followed: The model that changed.
        commit_sha: Its newest commit, as the message has it; empty where it has none.
    """

    followed: Followed
    commit_sha: str


def webhook_application(
    *, secret: str, followed: Sequence[Followed], on_told: Callable[[Told], None]
) -> web.Application:
    """Make the receiver.

    Args:
        secret: What the Hub must send along.
        followed: Models whose messages matter.
        on_told: Called for each of them that a message is about; must return at once.

    Raises:
        LaunchError: the secret is too short to keep anybody out.
    """
    if len(secret) < _LEAST_SECRET_LENGTH:
        raise LaunchError(
            f"The webhook's secret has {len(secret)} characters, expected at least {_LEAST_SECRET_LENGTH}.",
            next_step="Set a long random secret, in the webhook's settings on the Hub and here.",
        )

    async def receive(request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.headers.get(SECRET_HEADER, "").encode(), secret.encode()):
            return _answer(401, "the secret is wrong or missing")
        try:
            message = await asyncio.wait_for(request.json(), _BODY_SECONDS)
        except TimeoutError:
            return _answer(408, "the body did not arrive in time")
        except (ValueError, RecursionError):
            return _answer(400, "the body is not JSON")
        found = read_message(message, followed)
        for told in found:
            logger.info("the Hub tells of %s at %s", told.followed, told.commit_sha[:12] or "some commit")
            on_told(told)
        return _answer(202, ", ".join(str(told.followed) for told in found) or "nothing that is followed")

    async def health(_: web.Request) -> web.Response:
        return _answer(200, "listening")

    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.add_routes([web.post("/", receive), web.post("/webhook", receive), web.get("/healthz", health)])
    return application


def read_message(message: Any, followed: Sequence[Followed]) -> list[Told]:
    """Find what a message is about: changed content of models that are followed.

    Args:
        message: The body, as the Hub documents it (https://huggingface.co/docs/hub/webhooks#webhook-payloads).
        followed: Models that matter.
    """
    if not isinstance(message, dict):
        return []
    event, repo = _object(message, "event"), _object(message, "repo")
    scope = str(event.get("scope", ""))
    if repo.get("type") != "model" or not (scope == "repo" or scope.startswith("repo.content")):
        return []
    if event.get("action") not in ("create", "update", "move"):
        return []
    updated = message.get("updatedRefs")
    refs = [ref for ref in updated if isinstance(ref, dict)] if isinstance(updated, list) else None
    told = []
    for model in followed:
        if model.model_id == repo.get("name"):
            commit_sha = _new_commit(model, refs, repo)
            if commit_sha is not None:
                told.append(Told(followed=model, commit_sha=commit_sha))
    return told


def _new_commit(model: Followed, refs: list[dict[str, Any]] | None, repo: dict[str, Any]) -> str | None:
    """Return what the followed revision means now, as far as the message says; None where it did not change."""
    if refs is None:
        return str(repo.get("headSha") or "") if model.revision == "main" else ""
    names = (f"refs/heads/{model.revision}", f"refs/tags/{model.revision}")
    for ref in refs:
        if ref.get("ref") in names:
            return str(ref.get("newSha") or "")
    return None


class LookQueue:
    """Looks where it was told to, one after the other, away from the server's own thread.

    A model that is told of again before it was looked at is looked at once.

    Args:
        look: Looks at a model, and waits for a commit where one is named.
    """

    def __init__(self, look: Callable[[Told], None]) -> None:
        self._look = look
        self._waiting: dict[Followed, Told] = {}
        self._lock = threading.Lock()
        self._signal: queue.SimpleQueue[Followed | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def put(self, told: Told) -> None:
        """Take note of a message."""
        with self._lock:
            waits = told.followed in self._waiting
            self._waiting[told.followed] = told
        if not waits:
            self._signal.put(told.followed)

    def close(self) -> None:
        """Finish the look that is going on, and no other."""
        self._closed = True
        self._signal.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (followed := self._signal.get()) is not None and not self._closed:
            with self._lock:
                told = self._waiting.pop(followed)
            self._look(told)


def serve_webhook(
    application: web.Application, *, host: str, port: int, stop: asyncio.Event
) -> Coroutine[Any, Any, None]:
    """Take an address at once, and return what serves there until told to stop.

    At once, because what serves runs on a thread of its own, where nobody would hear that the address is taken.

    Raises:
        LaunchError: nothing can listen at this address.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, OverflowError) as error:
        raise LaunchError(
            f"The webhook cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}.",
            next_step="Choose an address of this machine and a free port of 1 to 65535 with --webhook.",
        ) from error
    return _serve(application, listening, stop)


async def _serve(application: web.Application, listening: socket.socket, stop: asyncio.Event) -> None:
    host = listening.getsockname()[0]
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        logger.info("the webhook listens at http://%s:%d/webhook", host, runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    return value if isinstance(value, dict) else {}


def _answer(status: int, text: str) -> web.Response:
    return web.json_response({"told": text} if status < 300 else {"error": text}, status=status)
