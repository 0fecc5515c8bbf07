"""What the node does to a container while it runs: hooks, probes, and the ways to end it."""

import asyncio
from collections.abc import Callable

from streamway.sandbox.cluster.node.probes import Answer, Prober, RunInside, watch_probe
from streamway.sandbox.cluster.node.processes import ContainerProcess
from streamway.sandbox.cluster.node.surroundings import PodSurroundings
from streamway.sandbox.cluster.objects import Object, dig

Say = Callable[[str, str, str], None]

# A preStop hook that used the whole grace period up still leaves the container this long, as in the kubelet.
_AFTER_HOOK_SECONDS = 2.0
_POST_START_SECONDS = 3600.0


class Supervision:
    """Watches over one container.

    Args:
        around: The pod.
        spec: The container.
        run_inside: Starts a process in it.
        say: Records an event: type, reason, message.
        on_started: Called when it has started, in the sense of its startup probe.
        on_ready: Called with True or False when its readiness may have changed.
    """

    def __init__(
        self,
        around: PodSurroundings,
        spec: Object,
        run_inside: RunInside,
        say: Say,
        on_started: Callable[[], None],
        on_ready: Callable[[bool], None],
    ) -> None:
        self._around = around
        self._spec = spec
        self._say = say
        self._on_started = on_started
        self._on_ready = on_ready
        self._ending = False
        self._prober = Prober(
            session=around.session,
            address=around.facts.pod_ip,
            resolve=self._real_port,
            run_inside=run_inside,
        )

    async def watch(self, process: ContainerProcess) -> None:
        """Run the postStart hook and the probes, and end the container when they say so."""
        hook = dig(self._spec, "lifecycle", "postStart")
        if hook and not await self._run_hook(hook, _POST_START_SECONDS, "FailedPostStartHook", "PostStartHook failed"):
            await self._end_unhealthy(process, "FailedPostStartHook", "")
            return
        startup = self._spec.get("startupProbe")
        if startup is not None and not await self._first_result("Startup", startup):
            await self._end_failing(process, "startup")
            return
        self._on_started()
        self._on_ready(self._spec.get("readinessProbe") is None)
        async with asyncio.TaskGroup() as group:
            if self._spec.get("readinessProbe") is not None:
                group.create_task(self._ask("Readiness", self._spec["readinessProbe"], self._on_ready))
            if self._spec.get("livenessProbe") is not None:
                group.create_task(self._watch_liveness(process))

    async def end(self, process: ContainerProcess, grace_seconds: float) -> None:
        """End the container: its preStop hook, SIGTERM, and after the grace period SIGKILL."""
        self._ending = True
        deadline = asyncio.get_running_loop().time() + grace_seconds
        hook = dig(self._spec, "lifecycle", "preStop")
        least = 0.0
        if hook and grace_seconds > 0:
            least = _AFTER_HOOK_SECONDS
            await self._run_hook(hook, grace_seconds, "FailedPreStopHook", "PreStopHook failed")
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), max(deadline - asyncio.get_running_loop().time(), least))
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _run_hook(self, hook: Object, seconds: float, reason: str, complaint: str) -> bool:
        if hook.get("sleep") is not None:
            await asyncio.sleep(min(float(hook["sleep"].get("seconds", 0)), seconds))
            return True
        if hook.get("httpGet") is not None:
            answer = await self._prober.http(hook["httpGet"], seconds)
        else:
            answer = await self._prober.command(dig(hook, "exec", "command", default=[]), seconds)
        if not answer.ok:
            self._say("Warning", reason, f"{complaint}: {answer.text}".strip())
        return answer.ok

    def _real_port(self, port: int | str) -> int:
        """Give the real port of a declared number or name."""
        if isinstance(port, str):
            named = {one.get("name"): one["containerPort"] for one in self._spec.get("ports") or []}
            port = int(named.get(port, port if port.isdigit() else 0))
        return self._around.ports.get(port, port)

    async def _ask(self, kind: str, probe: Object, on_result: Callable[[bool], None]) -> None:
        def tell(answer: Answer) -> None:
            if not answer.ok and not self._ending:
                self._say("Warning", "Unhealthy", f"{kind} probe failed: {answer.text}")

        await watch_probe(probe, self._prober.ask, tell, on_result)

    async def _first_result(self, kind: str, probe: Object, *, awaited: bool | None = None) -> bool:
        """Ask until a threshold is reached; gives what was found.

        Args:
            kind: The kind of probe, for events.
            probe: The probe.
            awaited: Go on until this is found; None for either.
        """
        found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(ok: bool) -> None:
            if not found.done() and awaited in (None, ok):
                found.set_result(ok)

        asking = asyncio.create_task(self._ask(kind, probe, settle))
        try:
            return await found
        finally:
            asking.cancel()

    async def _watch_liveness(self, process: ContainerProcess) -> None:
        await self._first_result("Liveness", self._spec["livenessProbe"], awaited=False)
        await self._end_failing(process, "liveness")

    async def _end_failing(self, process: ContainerProcess, probe: str) -> None:
        text = f"Container {self._spec['name']} failed {probe} probe, will be restarted"
        await self._end_unhealthy(process, text, f"{probe}Probe")

    async def _end_unhealthy(self, process: ContainerProcess, why: str, probe: str) -> None:
        if self._ending:
            return
        self._say("Normal", "Killing", why)
        grace = dig(self._spec, probe, "terminationGracePeriodSeconds")
        if grace is None:
            grace = self._around.pod["spec"].get("terminationGracePeriodSeconds", 30)
        # The end must not be cut short by the container's own end, which ends this watch.
        await asyncio.shield(self.end(process, float(grace)))
