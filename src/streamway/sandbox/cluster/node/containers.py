"""One container's life: pulled, created, started, probed, restarted, stopped, with the state a pod's status shows."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from streamway.sandbox.cluster.node.command_line import (
    build_command,
    check_executable,
    rewriter_of,
    termination_file,
)
from streamway.sandbox.cluster.node.environment import ConfigError
from streamway.sandbox.cluster.node.images import Image, reference
from streamway.sandbox.cluster.node.processes import Command, ContainerProcess, start_container, start_inside
from streamway.sandbox.cluster.node.pulling import PullFailedError
from streamway.sandbox.cluster.node.supervision import Supervision
from streamway.sandbox.cluster.node.surroundings import PodSurroundings
from streamway.sandbox.cluster.objects import Object, dig, name_of, namespace_of, timestamp, uid_of

_START_ERROR_CODE = 128
_KILLED_CODE = 137
# A container that ran for so long starts with the first back-off again, as in the kubelet.
_FORGIVEN_AFTER_SECONDS = 600.0
_RETRY_SECONDS = 2.0
# The kubelet keeps no more of a termination message, and of a log that stands in for one.
_MESSAGE_BYTES = 4096
_LOG_MESSAGE_LINES, _LOG_MESSAGE_BYTES = 80, 2048


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
        self._supervision = self._supervise()
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
        await self._supervision.end(process, grace_seconds)

    def kill(self) -> None:
        """End it now."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    async def run_inside(
        self, command: list[str], *, with_stdin: bool = False, terminal: int | None = None
    ) -> asyncio.subprocess.Process:
        """Start a process with the container's environment and directory.

        Raises:
            FileNotFoundError: the command is not there, or the container does not run.
        """
        if self._command is None or not self.is_running:
            raise FileNotFoundError(2, f'container "{self.name}" is not running')
        argv = rewriter_of(self._around, self.spec).all(command)
        check_executable(argv[0], self._command)
        inside = Command(argv=argv, environment=self._command.environment, directory=self._command.directory)
        return await start_inside(inside, with_stdin=with_stdin, terminal=terminal)

    async def _run_once(self) -> int:
        self.started.clear()
        image = await self._pull()
        command = await self._prepare(image) if image is not None else None
        if command is None:
            return _KILLED_CODE
        self._id = f"containerd://{secrets.token_hex(32)}"
        self._say("Normal", "Created", f"Container created: {self.name}")
        try:
            check_executable(command.argv[0], command)
        except OSError as error:
            return self._not_started(command.argv[0], error)
        return await self._live(command)

    async def _live(self, command: Command) -> int:
        log = self.log_file()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._forget_old_logs()
        process = await start_container(command, log)
        self._process, self._command, self._supervision = process, command, self._supervise()
        began, loop_began = timestamp(), asyncio.get_running_loop().time()
        self._enter({"running": {"startedAt": began}})
        self._say("Normal", "Started", f"Container started: {self.name}")
        watching = asyncio.create_task(self._supervision.watch(process))
        if self._stopping.is_set():
            process.kill()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
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
        told = termination_file(self._around, self.spec)
        if told.exists() and (text := told.read_text(errors="replace")):
            return text[:_MESSAGE_BYTES]
        if code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            lines = self.log_file().read_text(errors="replace").splitlines()[-_LOG_MESSAGE_LINES:]
            return "\n".join(line.split(" ", 3)[-1] for line in lines)[-_LOG_MESSAGE_BYTES:]
        return ""

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
                command = build_command(self._around, self.spec, image)
            except ConfigError as error:
                self._enter({"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}})
                self._say("Warning", "Failed", f"Error: {error}")
                await self._pause(_RETRY_SECONDS)
            else:
                termination_file(self._around, self.spec).unlink(missing_ok=True)
                return command
        return None

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

    def _supervise(self) -> Supervision:
        return Supervision(self._around, self.spec, self.run_inside, self._say, self._set_started, self._set_ready)

    def _set_started(self) -> None:
        self.started.set()
        self._around.changed()

    def _set_ready(self, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self._around.changed()

    def _enter(self, state: Object) -> None:
        self.state = state
        self._around.changed()

    def _say(self, kind: str, reason: str, message: str) -> None:
        self._around.say(kind, reason, message, self._field_path)


def _go_duration(seconds: float) -> str:
    """Write seconds as the kubelet does: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
