"""One container's life: pulled, created, started, probed, restarted, stopped, with the state a pod's status shows."""

import asyncio
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from streamway.sandbox.cluster.control.events import Recorder
from streamway.sandbox.cluster.node.environment import ConfigError, PodFacts, build_environment, expand
from streamway.sandbox.cluster.node.images import Image, reference
from streamway.sandbox.cluster.node.probes import Answer, Prober, watch_probe
from streamway.sandbox.cluster.node.processes import Command, ContainerProcess, start_container, start_inside
from streamway.sandbox.cluster.node.pulling import Puller, PullFailedError
from streamway.sandbox.cluster.node.rewriting import Mount, Rewriter
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.cluster.node.volumes import Volumes
from streamway.sandbox.cluster.objects import Object, dig, name_of, namespace_of, timestamp, uid_of

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_ERROR_CODE = 128
_KILLED_CODE = 137
# A container that ran for so long starts with the first back-off again, as in the kubelet.
_FORGIVEN_AFTER_SECONDS = 600.0
_RETRY_SECONDS = 2.0
_MESSAGE_BYTES = 4096


@dataclass(kw_only=True)
class PodSurroundings:
    """What all containers of a pod share.

    Args:
        facts: The pod and what its variables may ask about.
        folder: The pod's folder.
        volumes: Its volumes.
        ports: Its declared ports and where they really are.
        recorder: Where events go.
        puller: Fetches images.
        session: The HTTP client of probes and hooks.
        settings: Gives how the node behaves now.
        changed: Called when a container's state has changed.
    """

    facts: PodFacts
    folder: Path
    volumes: Volumes
    recorder: Recorder
    puller: Puller
    session: aiohttp.ClientSession
    settings: Callable[[], NodeSettings]
    changed: Callable[[], None]
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def pod(self) -> Object:
        return self.facts.pod


class Container:
    """One container of a pod.

    Args:
        surroundings: What it shares with the pod's others.
        spec: Its spec.
        field_path: Where its spec stands, for events.
        restarts: Tells whether it is started again after an exit code.
        before: What was known of it before the node was started again.
    """

    def __init__(
        self,
        surroundings: PodSurroundings,
        spec: Object,
        field_path: str,
        restarts: Callable[[int], bool],
        before: Object | None,
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.state: Object = {"waiting": {"reason": "PodInitializing"}}
        self.last_state: Object = {}
        self.restart_count = 0
        self.ready = False
        self.started = asyncio.Event()
        self._around = surroundings
        self._field_path = f"{field_path}{{{self.name}}}"
        self._restarts = restarts
        self._stopping = asyncio.Event()
        self._process: ContainerProcess | None = None
        self._command: Command | None = None
        self._id = ""
        self._backoff = 0.0
        self._killed_because = ""
        if before is not None:
            self._take_over(before)

    def _take_over(self, before: Object) -> None:
        """Go on counting where the node was when it went down."""
        self.restart_count = before.get("restartCount", 0)
        self.last_state = before.get("lastState") or {}
        running = dig(before, "state", "running")
        if running is not None:
            self.restart_count += 1
            ended = {
                "exitCode": 255,
                "reason": "Unknown",
                "startedAt": running.get("startedAt"),
                "finishedAt": timestamp(),
                "containerID": before.get("containerID"),
            }
            self.last_state = {"terminated": ended}

    @property
    def process(self) -> ContainerProcess | None:
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def log_file(self, *, previous: bool = False) -> Path:
        """Name the log of the current or the previous run."""
        run = self.restart_count - 1 if previous else self.restart_count
        return self._around.folder / "logs" / self.name / f"{run}.log"

    def find_log(self, *, previous: bool) -> Path | None:
        """Give the log of the current or the previous run; a container that waits has only its last one."""
        if "waiting" in self.state:
            logs = sorted(self.log_file().parent.glob("*.log"), key=lambda path: int(path.stem))
            return logs[-1] if logs else None
        path = self.log_file(previous=previous)
        return path if path.exists() else None

    def status(self) -> Object:
        """Write the ContainerStatus."""
        return {
            "name": self.name,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "restartCount": self.restart_count,
            "image": self.spec["image"],
            "imageID": reference(self.spec["image"]) if self._id else "",
            "containerID": self._id,
            "started": self.started.is_set() and self.is_running,
        }

    async def run(self) -> int:
        """Run until the container is done for good; gives its last exit code."""
        while True:
            code = await self._run_once()
            if self._stopping.is_set() or not self._restarts(code):
                return code
            await self._wait_to_restart()
            if self._stopping.is_set():
                return code

    async def stop(self, grace_seconds: float) -> None:
        """Stop it: the preStop hook, SIGTERM, and after the grace period SIGKILL."""
        self._stopping.set()
        process = self._process
        if process is None or not process.is_running:
            return
        self._say("Normal", "Killing", f"Stopping container {self.name}")
        await self._end(process, grace_seconds)

    def kill(self) -> None:
        """End it now."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    async def run_inside(self, command: list[str], *, with_stdin: bool = False) -> asyncio.subprocess.Process:
        """Start a process with the container's environment and directory.

        Raises:
            FileNotFoundError: the command is not there, or the container does not run.
        """
        if self._command is None or not self.is_running:
            raise FileNotFoundError(2, f'container "{self.name}" is not running')
        argv = self._rewriter().all(command)
        _check_executable(argv[0], self._command)
        inside = Command(argv=argv, environment=self._command.environment, directory=self._command.directory)
        return await start_inside(inside, with_stdin=with_stdin)

    async def _run_once(self) -> int:
        self.started.clear()
        image = await self._pull()
        command = await self._prepare(image) if image is not None else None
        if command is None:
            return _KILLED_CODE
        self._id = f"containerd://{secrets.token_hex(32)}"
        self._say("Normal", "Created", f"Container created: {self.name}")
        try:
            _check_executable(command.argv[0], command)
        except OSError as error:
            return self._not_started(command.argv[0], error)
        return await self._live(command)

    async def _live(self, command: Command) -> int:
        log = self.log_file()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._forget_old_logs()
        process = await start_container(command, log)
        self._process, self._command, self._killed_because = process, command, ""
        began, loop_began = timestamp(), asyncio.get_running_loop().time()
        self._enter({"running": {"startedAt": began}})
        self._say("Normal", "Started", f"Container started: {self.name}")
        probes = asyncio.create_task(self._probe(process))
        if self._stopping.is_set():
            process.kill()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            probes.cancel()
        if asyncio.get_running_loop().time() - loop_began > _FORGIVEN_AFTER_SECONDS:
            self._backoff = 0.0
        self.ready = False
        code = _KILLED_CODE if process.killed_for_memory else code
        self._enter({"terminated": self._ended(code, began, memory=process.killed_for_memory)})
        return code

    def _ended(self, code: int, began: str, *, memory: bool) -> Object:
        reason = "OOMKilled" if memory else "Completed" if code == 0 else "Error"
        ended: Object = {
            "exitCode": code,
            "reason": reason,
            "startedAt": began,
            "finishedAt": timestamp(),
            "containerID": self._id,
        }
        message = self._termination_message(code)
        return ended | ({"message": message} if message else {})

    def _termination_message(self, code: int) -> str:
        told = self._termination_file()
        if told.exists() and (text := told.read_text(errors="replace")):
            return text[:_MESSAGE_BYTES]
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.log_file().read_text(errors="replace").splitlines()[-80:]
            return "\n".join(line.split(" ", 3)[-1] for line in lines)[-2048:]
        return ""

    def _termination_file(self) -> Path:
        return self._around.folder / f"termination-{self.name}"

    def _not_started(self, program: str, error: OSError) -> int:
        why = "executable file not found in $PATH" if isinstance(error, FileNotFoundError) else "permission denied"
        text = (
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create"
            " failed: unable to start container process: error during container init: exec:"
            f' "{program}": {why}'
        )
        self._say("Warning", "Failed", f"Error: {text}")
        ended: Object = {
            "exitCode": _START_ERROR_CODE,
            "reason": "StartError",
            "message": text,
            "startedAt": timestamp(),
            "finishedAt": timestamp(),
            "containerID": self._id,
        }
        self._enter({"terminated": ended})
        return _START_ERROR_CODE

    async def _pull(self) -> Image | None:
        """Have the image; None when the container is stopped meanwhile."""
        name, policy = self.spec["image"], self.spec.get("imagePullPolicy", "IfNotPresent")
        if "terminated" not in self.state:
            self._enter({"waiting": {"reason": "ContainerCreating"}})
        backoff = self._around.settings().backoff_seconds
        while not self._stopping.is_set():
            try:
                return await self._around.puller.pull(name, policy, self._say)
            except PullFailedError as error:
                reason = "ErrImageNeverPull" if policy == "Never" else "ErrImagePull"
                self._enter({"waiting": {"reason": reason, "message": str(error)}})
                self._say("Warning", "Failed", f"Error: {reason}")
                await self._pause(min(1.0, backoff / 2))
                if policy != "Never":
                    text = f'Back-off pulling image "{name}"'
                    self._say("Normal", "BackOff", text)
                    self._say("Warning", "Failed", "Error: ImagePullBackOff")
                    message = f"{text}: ErrImagePull: {error}"
                    self._enter({"waiting": {"reason": "ImagePullBackOff", "message": message}})
                await self._pause(backoff)
                backoff = min(backoff * 2, self._around.settings().longest_backoff_seconds)
        return None

    async def _prepare(self, image: Image) -> Command | None:
        """Put the command together; None when the container is stopped while something is missing for it."""
        while not self._stopping.is_set():
            try:
                return self._build_command(image)
            except ConfigError as error:
                self._enter({"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
                self._say("Warning", "Failed", f"Error: {error}")
                await self._pause(_RETRY_SECONDS)
        return None

    def _build_command(self, image: Image) -> Command:
        facts, rewriter = self._around.facts, self._rewriter()
        root = self._around.folder / "root" / self.name
        (root / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {
            "HOME": str(root),
            "HOSTNAME": name_of(facts.pod),
            "TMPDIR": str(root / "tmp"),
        } | build_environment(facts, self.spec, image.environment)
        given = environment.get("PATH", _SYSTEM_PATH)
        environment["PATH"] = f"{image.path}:{given}" if image.path else given
        argv = [*(self.spec.get("command") or image.entrypoint)]
        argv += self.spec.get("args") or ([] if self.spec.get("command") else image.cmd)
        if not argv:
            raise ConfigError("no command specified")
        argv = rewriter.all(expand(text, environment) for text in argv)
        environment = {name: rewriter.text(value) for name, value in environment.items()}
        self._termination_file().unlink(missing_ok=True)
        return Command(argv=argv, environment=environment, directory=self._directory(root, rewriter))

    def _directory(self, root: Path, rewriter: Rewriter) -> Path:
        wanted = self.spec.get("workingDir")
        if not wanted:
            return root
        place = Path(rewriter.path(wanted))
        return place if place.is_dir() else root

    def _rewriter(self) -> Rewriter:
        around = self._around
        path = self.spec.get("terminationMessagePath") or "/dev/termination-log"
        told = Mount(path=path, source=self._termination_file())
        return Rewriter(
            address=around.facts.pod_ip,
            ports=around.ports,
            mounts=(*around.volumes.mounts(self.spec), told),
        )

    def _forget_old_logs(self) -> None:
        keep = {self.log_file().name, self.log_file(previous=True).name}
        for path in self.log_file().parent.glob("*.log"):
            if path.name not in keep:
                path.unlink()

    async def _wait_to_restart(self) -> None:
        """Wait as long as the back-off says; the first restart comes at once."""
        pod = self._around.pod
        if self._backoff:
            text = f"restarting failed container={self.name} pod={name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})"
            self.last_state = self.state
            message = f"back-off {_go_duration(self._backoff)} {text}"
            self._enter({"waiting": {"reason": "CrashLoopBackOff", "message": message}})
            event = f"Back-off restarting failed container {self.name} in pod"
            self._say("Warning", "BackOff", f"{event} {name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})")
            await self._pause(self._backoff)
        settings = self._around.settings()
        doubled = self._backoff * 2 if self._backoff else settings.backoff_seconds
        self._backoff = min(doubled, settings.longest_backoff_seconds)
        if self._stopping.is_set():
            return
        if "terminated" in self.state:
            self.last_state = self.state
        self.restart_count += 1

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _end(self, process: ContainerProcess, grace_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        hook = dig(self.spec, "lifecycle", "preStop")
        if hook and grace_seconds > 0:
            await self._run_hook(hook, grace_seconds, "FailedPreStopHook", "PreStopHook failed")
        process.terminate()
        try:
            # A hook that took the whole grace period still leaves two seconds, as in the kubelet.
            left = deadline - loop.time()
            await asyncio.wait_for(process.wait(), max(left, 2.0 if hook and grace_seconds else left, 0.0))
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _run_hook(self, hook: Object, seconds: float, reason: str, complaint: str) -> bool:
        if hook.get("sleep") is not None:
            await asyncio.sleep(min(float(hook["sleep"].get("seconds", 0)), seconds))
            return True
        if hook.get("httpGet") is not None:
            answer = await self._prober().http(hook["httpGet"], seconds)
        else:
            answer = await self._prober().command(dig(hook, "exec", "command", default=[]), seconds)
        if not answer.ok:
            self._say("Warning", reason, f"{complaint}: {answer.text}".strip())
        return answer.ok

    def _prober(self) -> Prober:
        return Prober(
            session=self._around.session,
            address=self._around.facts.pod_ip,
            resolve=self._resolve,
            run_inside=self.run_inside,
        )

    def _resolve(self, port: int | str) -> int:
        """Give the real port of a declared number or name."""
        if isinstance(port, str):
            named = {one.get("name"): one["containerPort"] for one in self.spec.get("ports") or []}
            port = int(named.get(port, port if port.isdigit() else 0))
        return self._around.ports.get(port, port)

    async def _probe(self, process: ContainerProcess) -> None:
        """Run the container's hooks and probes as long as it runs."""
        hook = dig(self.spec, "lifecycle", "postStart")
        if hook and not await self._run_hook(hook, 3600.0, "FailedPostStartHook", "PostStartHook failed"):
            await self._kill_unhealthy(process, "FailedPostStartHook")
            return
        startup = self.spec.get("startupProbe")
        if startup is not None:
            await self._until_started(process, startup)
        self.started.set()
        self.ready = self.spec.get("readinessProbe") is None
        self._around.changed()
        async with asyncio.TaskGroup() as group:
            if self.spec.get("readinessProbe") is not None:
                group.create_task(self._watch("Readiness", self.spec["readinessProbe"], self._set_ready))
            if self.spec.get("livenessProbe") is not None:
                group.create_task(self._watch_liveness(process))

    async def _watch(self, kind: str, probe: Object, on_result: Callable[[bool], None]) -> None:
        def tell(answer: Answer) -> None:
            if not answer.ok and not self._stopping.is_set():
                self._say("Warning", "Unhealthy", f"{kind} probe failed: {answer.text}")

        await watch_probe(probe, self._prober().ask, tell, on_result)

    async def _until_started(self, process: ContainerProcess, probe: Object) -> None:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(ok: bool) -> None:
            if not done.done():
                done.set_result(ok)

        watching = asyncio.create_task(self._watch("Startup", probe, settle))
        try:
            if not await done:
                await self._kill_unhealthy(process, "startup")
                await asyncio.Event().wait()
        finally:
            watching.cancel()

    async def _watch_liveness(self, process: ContainerProcess) -> None:
        failed = asyncio.Event()

        def settle(ok: bool) -> None:
            if not ok:
                failed.set()

        watching = asyncio.create_task(self._watch("Liveness", self.spec["livenessProbe"], settle))
        try:
            await failed.wait()
            await self._kill_unhealthy(process, "liveness")
        finally:
            watching.cancel()

    def _set_ready(self, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self._around.changed()

    async def _kill_unhealthy(self, process: ContainerProcess, probe: str) -> None:
        if self._stopping.is_set():
            return
        if probe == "FailedPostStartHook":
            self._say("Normal", "Killing", "FailedPostStartHook")
        else:
            self._say("Normal", "Killing", f"Container {self.name} failed {probe} probe, will be restarted")
        own = dig(self.spec, f"{probe}Probe", "terminationGracePeriodSeconds")
        grace = own if own is not None else self._around.pod["spec"].get("terminationGracePeriodSeconds", 30)
        await self._end(process, float(grace))

    def _enter(self, state: Object) -> None:
        self.state = state
        self._around.changed()

    def _say(self, kind: str, reason: str, message: str) -> None:
        recorder = self._around.recorder
        record = recorder.normal if kind == "Normal" else recorder.warning
        record(self._around.pod, reason, message, self._field_path)


def _go_duration(seconds: float) -> str:
    """Write seconds as the kubelet does: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _check_executable(program: str, command: Command) -> None:
    """Look a program up as the container would.

    Raises:
        FileNotFoundError: it is not there.
        PermissionError: it cannot be executed.
    """
    if os.sep in program:
        place = command.directory / program
        if not place.exists():
            raise FileNotFoundError(2, "no such file or directory", program)
        if not os.access(place, os.X_OK):
            raise PermissionError(13, "permission denied", program)
    elif shutil.which(program, path=command.environment["PATH"]) is None:
        raise FileNotFoundError(2, "executable file not found in $PATH", program)
