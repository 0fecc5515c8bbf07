"""Probes: is a container started, ready, alive? As the kubelet asks, with its words where the answer is no."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from streamway.sandbox.cluster.dialling import dial_failure
from streamway.sandbox.cluster.objects import Object

_USER_AGENT = "kube-probe/1.36"
# The kubelet quotes no more than this of an answer.
_LONGEST_QUOTE = 10 * 1024

RunInside = Callable[[list[str]], Awaitable[asyncio.subprocess.Process]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe found.

    Args:
        ok: Whether the container passed.
        text: Why it did not.
    """

    ok: bool
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Prober:
    """Asks one container.

    Args:
        session: The HTTP client.
        address: The pod's address.
        resolve: Gives the real port of a declared number or name.
        run_inside: Starts a process in the container.
    """

    session: aiohttp.ClientSession
    address: str
    resolve: Callable[[int | str], int]
    run_inside: RunInside

    async def ask(self, probe: Object) -> Answer:
        """Ask once, within the probe's timeout."""
        timeout = float(probe.get("timeoutSeconds", 1))
        if probe.get("httpGet") is not None:
            return await self.http(probe["httpGet"], timeout)
        if probe.get("exec") is not None:
            return await self.command(probe["exec"].get("command") or [], timeout)
        socket = probe.get("tcpSocket") or probe.get("grpc") or {}
        return await self._tcp(socket.get("host") or self.address, self.resolve(socket.get("port", 0)), timeout)

    async def http(self, action: Object, timeout_seconds: float) -> Answer:
        """Send a GET request; every status from 200 to 399 is well."""
        host = action.get("host") or self.address
        port = self.resolve(action["port"])
        path = action.get("path") or "/"
        url = f"{action.get('scheme', 'HTTP').lower()}://{host}:{port}{path if path.startswith('/') else '/' + path}"
        headers = {"User-Agent": _USER_AGENT, "Accept": "*/*", "Connection": "close"}
        headers |= {one["name"]: one["value"] for one in action.get("httpHeaders") or []}
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                self.session.get(url, headers=headers, allow_redirects=False, ssl=False) as response,
            ):
                if 200 <= response.status < 400:
                    return Answer(ok=True)
                return Answer(ok=False, text=f"HTTP probe failed with statuscode: {response.status}")
        except TimeoutError:
            why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        except aiohttp.ClientConnectorError as error:
            why = dial_failure(host, port, error.os_error)
        except (aiohttp.ClientError, OSError) as error:
            why = "EOF" if isinstance(error, aiohttp.ServerDisconnectedError) else str(error)
        return Answer(ok=False, text=f'Get "{url}": {why}')

    async def command(self, command: list[str], timeout_seconds: float) -> Answer:
        """Run a command in the container; exit code 0 is well."""
        try:
            process = await self.run_inside(command)
        except OSError as error:
            return Answer(ok=False, text=f'exec: "{command[0] if command else ""}": {error.strerror or error}')
        try:
            async with asyncio.timeout(timeout_seconds):
                output, complaints = await process.communicate()
        except TimeoutError:
            process.kill()
            text = f'command timed out: "{" ".join(command)}" timed out after {timeout_seconds:g}s'
            return Answer(ok=False, text=text)
        said = (output + complaints).decode(errors="replace")[:_LONGEST_QUOTE]
        return Answer(ok=process.returncode == 0, text=said)

    async def _tcp(self, host: str, port: int, timeout_seconds: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_seconds):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            return Answer(ok=False, text=f"dial tcp {host}:{port}: i/o timeout")
        except OSError as error:
            return Answer(ok=False, text=dial_failure(host, port, error))
        writer.close()
        return Answer(ok=True)


async def watch_probe(
    probe: Object,
    ask: Callable[[Object], Awaitable[Answer]],
    on_answer: Callable[[Answer], None],
    on_result: Callable[[bool], None],
) -> None:
    """Ask again and again, and report when the thresholds are reached, until cancelled.

    Args:
        probe: The probe.
        ask: Asks once.
        on_answer: Called with every single answer.
        on_result: Called with True or False whenever enough equal answers came in a row.
    """
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    in_a_row, last = 0, None
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        answer = await ask(probe)
        in_a_row = in_a_row + 1 if answer.ok == last else 1
        last = answer.ok
        on_answer(answer)
        if in_a_row >= int(probe.get("successThreshold" if answer.ok else "failureThreshold", 1)):
            on_result(answer.ok)
        await asyncio.sleep(max(0.0, float(probe.get("periodSeconds", 10)) - (loop.time() - began)))
