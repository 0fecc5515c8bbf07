"""What a warm-start kit saves: first and later starts of a real engine, in imports, weights and initialisation.

    python benchmarks/warm_start.py --vllm /path/to/vllm --model gs://bucket/org/name/sha/ -- --max-model-len=4096

It runs wherever vLLM is; on a GPU the engine compiles, and that is where kits gain. The kit is packed and restored by
the code that does it for pods: the engine's cache goes through `tar` and `pack_kit`, all of it is removed, and
`kit_restore` unpacks it at the same place. Every start is a new process with a home folder of its own, as a pod has.
One start before all others reads the model and the engine's files once, so that the first start that counts is not
slower for the disk's sake.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from streamway.server import kit_restore
from streamway.server.kit import cache_variables
from streamway.server.kit_archive import PackedKit, pack_kit
from streamway.server.streamer_log import EngineLog

READY_SECONDS = 1800.0
STOP_SECONDS = 60.0
MAX_KIT_BYTES = 4 << 30
# vLLM says this when all of it is imported and its configuration is known.
ENGINE_BEGINS = "LLM engine (v"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of the engine, in seconds; -1 where its log does not say.

    Args:
        name: Which one.
        imports: From the process's start to the engine's first word.
        weights: Loading the weights.
        initialisation: Compilation, profiling, the key-value cache and warm-up.
        compilation: The part of it that was compilation.
        ready: From the process's start to the first healthy answer.
        first_token: And to the first token of an answer.
    """

    name: str
    imports: float
    weights: float
    initialisation: float
    compilation: float
    ready: float
    first_token: float


class Engine:
    """A running engine, whose log is read as it comes."""

    def __init__(self, command: Sequence[str], cache: Path, home: Path) -> None:
        self.began = time.monotonic()
        log_path = home / "engine.log"
        environment = {**os.environ, **cache_variables(str(cache)), "VLLM_ENABLE_STARTUP_PLAN": "1"}
        environment |= {"RUNAI_STREAMER_LOG_TO_STDERR": "1", "HOME": str(home), "TMPDIR": str(home / "tmp")}
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.read, self.imports = EngineLog(), -1.0
        self._reader = threading.Thread(target=self._follow, args=(log_path,), daemon=True)
        self._reader.start()

    def _follow(self, log_path: Path) -> None:
        assert self._process.stdout is not None
        with log_path.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self.read = self.read.read(line)
                if ENGINE_BEGINS in line and self.imports < 0:
                    self.imports = time.monotonic() - self.began

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def stop(self) -> None:
        """End it with everything it has started."""
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


def main() -> None:
    given = read_arguments()
    with tempfile.TemporaryDirectory(prefix="warm-start-", dir=given.work) as folder:
        work = Path(folder)
        cache = work / "mount" / "vllm"
        starts = [measure(given, "before, not counted", cache, work)]
        remove(cache)
        starts.append(measure(given, "first, without a kit", cache, work))
        kit = pack(cache, work / "kit.tar")
        for number in range(1, given.starts + 1):
            restored = restore(kit, cache)
            starts.append(measure(given, f"later {number}, kit restored in {restored:.1f} s", cache, work))
    show(starts, kit, given)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", default=shutil.which("vllm") or "vllm", help="the engine's program")
    parser.add_argument("--model", required=True, help="a folder, gs://BUCKET/PREFIX/ or a Hub id")
    parser.add_argument("--starts", type=int, default=2, help="how many later starts are measured")
    parser.add_argument("--work", type=Path, help="folder for the cache and the logs")
    parser.add_argument("--logs", type=Path, help="folder that keeps the engine's logs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("arguments", nargs="*", help="more arguments for `vllm serve`, after --")
    return parser.parse_args()


def measure(given: argparse.Namespace, name: str, cache: Path, work: Path) -> Start:
    """Start the engine, wait for its first token, and stop it."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    port = free_port()
    command = [given.vllm, "serve", given.model, "--host=127.0.0.1", f"--port={port}", "--served-model-name=model"]
    if given.model.startswith("gs://"):
        command.append("--load-format=runai_streamer")
    # As in a pod of its own nothing but the kit comes from the start before; and as in all pods of one image the path
    # is the same, because vLLM 0.26 counts folders under the home folder among what a compiled graph depends on.
    home = work / "home"
    remove(home)
    (home / "tmp").mkdir(parents=True)
    engine = Engine([*command, *given.arguments], cache, home)
    try:
        wait_until_healthy(engine, port, home / "engine.log")
        ready = engine.seconds()
        ask(port)
        first_token = engine.seconds()
    finally:
        engine.stop()
    log = engine.read
    if given.logs:
        shutil.copy(home / "engine.log", given.logs / f"{name.partition(',')[0].replace(' ', '-')}.log")
    return Start(
        name=name,
        imports=round(engine.imports, 1),
        weights=round(log.streamer.seconds if log.streamer else -1.0, 2),
        initialisation=known(log.initialisation_seconds),
        compilation=known(log.compilation_seconds),
        ready=round(ready, 1),
        first_token=round(first_token, 1),
    )


def known(seconds: float | None) -> float:
    return -1.0 if seconds is None else round(seconds, 2)


def wait_until_healthy(engine: Engine, port: int, log_path: Path) -> None:
    while engine.seconds() < READY_SECONDS:
        if engine.ended:
            raise SystemExit(f"The engine ended:\n{''.join(log_path.open().readlines()[-30:])}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"The engine was not healthy within {READY_SECONDS:.0f} s.")


def ask(port: int) -> None:
    body = json.dumps({"model": "model", "prompt": "The sea is", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        answer.read()


def pack(cache: Path, path: Path) -> PackedKit:
    """Pack what the engine left, as it comes out of a pod."""
    sending = subprocess.Popen(["tar", "-cf", "-", "."], cwd=cache, stdout=subprocess.PIPE)

    def pieces() -> Iterator[bytes]:
        assert sending.stdout is not None
        while piece := sending.stdout.read(1 << 16):
            yield piece

    kit = pack_kit(pieces(), path, max_bytes=MAX_KIT_BYTES)
    if sending.wait():
        raise SystemExit("tar could not read the engine's cache.")
    return kit


def restore(kit: PackedKit, cache: Path) -> float:
    """Put the kit in place of whatever is there; return the seconds, without the way from the bucket."""
    remove(cache)
    began = time.monotonic()
    cache.mkdir(parents=True)
    kit_restore.unpack(str(kit.path), str(cache), kit.size_bytes)
    return time.monotonic() - began


def remove(cache: Path) -> None:
    shutil.rmtree(cache, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show(starts: Sequence[Start], kit: PackedKit, given: argparse.Namespace) -> None:
    print(f"Model {given.model}, {' '.join(given.arguments) or 'no more arguments'}")
    print(f"Kit: {kit.file_count} files, {kit.size_bytes / 2**20:.1f} MiB\n")
    print("| start | imports | weights | engine initialisation | of which compilation | ready | first token |")
    print("|---|---|---|---|---|---|---|")
    for start in starts:
        figures = (start.imports, start.weights, start.initialisation, start.compilation, start.ready)
        shown = " | ".join("-" if value < 0 else f"{value:.1f} s" for value in (*figures, start.first_token))
        print(f"| {start.name} | {shown} |")
    first, later = starts[1], min(starts[2:], key=lambda start: start.initialisation)
    if first.initialisation > 0 and later.initialisation >= 0:
        share = later.initialisation / first.initialisation
        print(f"\nEngine initialisation of a later start: {share:.2f} of the first one's (budget: 0.33 on a GPU).")
    if given.out:
        figures_of_all = [asdict(start) for start in starts]
        given.out.write_text(json.dumps({"kit_bytes": kit.size_bytes, "starts": figures_of_all}, indent=1))


if __name__ == "__main__":
    main()
