"""What time it is for a part of the sandbox: a schedule's next time, or the end of a cache, is an hour away at best.

So a test, or a person who tries things out, may move a part's clock forward: POST /sandbox/clock.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from aiohttp import web


class Clock:
    """The time of day, which a test may move forward."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self.moved = asyncio.Event()

    def now(self) -> datetime:
        """Return the present, in UTC."""
        return datetime.now(UTC) + self._ahead

    def stamp(self) -> str:
        """Return the present as both services write it."""
        return write_time(self.now())

    def advance(self, seconds: float) -> None:
        """Move forward, and wake whoever waits."""
        self._ahead += timedelta(seconds=seconds)
        self.moved.set()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes by which a test reads and moves the clock."""

        async def show(_: web.Request) -> web.Response:
            return web.json_response({"now": self.stamp()})

        async def move(request: web.Request) -> web.Response:
            self.advance(float((await request.json())["advance_seconds"]))
            return web.json_response({"now": self.stamp()})

        return [web.get("/sandbox/clock", show), web.post("/sandbox/clock", move)]


def write_time(moment: datetime) -> str:
    """Write a time as protobuf's JSON does."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
