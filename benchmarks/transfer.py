"""From the Hub to a published release: this project beside what people use, on the same local servers in one run.

    python benchmarks/transfer.py --work /some/folder --engine-python /path/to/python-with-torch --out results.md

The peer is the usual way: `hf download`, then (for a pickled model) the method of safetensors' convert.py, which loads
the checkpoint with torch, saves it, loads it again and compares, then google-cloud-storage's upload_from_filename for
each file. Servers, disk and machine are the same; each process is measured from outside, with its children.
"""

import argparse
import json
import os
import platform
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy

sys.path.insert(0, str(Path(__file__).parent))

from memory import settle
from transfer_servers import Measured, Servers, measure

MIB = 1024 * 1024
GB = 1_000_000_000
ROOT = "gs://bench/models"
CONFIG = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32}).encode()
CARD = b"---\nlicense: apache-2.0\n---\n"

OURS = """
import json, sys
from streamway import hub, storage, weights

model_id, root = sys.argv[1:]
pulled = hub.pull_model(model_id=model_id, release_root=root, leave_pickled=True)
layout = storage.ModelLayout(root, pulled.model_id, pulled.commit_sha)
converted = weights.convert_weights(
    snapshot_uri=pulled.uri, weights_uri=layout.weights_uri, open_left=hub.open_left_files()
)
release = storage.upload_model(weights_uri=converted.uri, release_root=root)
print(json.dumps({"uri": release.uri, "size_bytes": release.size_bytes,
                  "moved_bytes": pulled.moved_bytes + converted.moved_bytes + release.moved_bytes,
                  "copied_bytes": release.copied_bytes}))
"""

PEER_CONVERT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

source, target = map(Path, sys.argv[1:])
loaded = torch.load(source, map_location="cpu", weights_only=True)
loaded = {name: tensor.contiguous() for name, tensor in loaded.items()}
save_file(loaded, target, metadata={"format": "pt"})
again = load_file(target)
for name, tensor in loaded.items():
    if not torch.equal(tensor, again[name]):
        raise SystemExit(f"{name} differs")
"""

PEER_UPLOAD = """
import sys
from pathlib import Path
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

folder = Path(sys.argv[1])
bucket = storage.Client(project="bench", credentials=AnonymousCredentials()).bucket("bench")
for path in sorted(folder.glob("*")):
    if path.is_file() and path.suffix != ".bin":
        bucket.blob(f"peer/{path.name}").upload_from_filename(path, timeout=3600)
"""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One model.

    Args:
        name: For the table.
        model_id: On the local Hub.
        make: Writes its files to a folder and returns them.
        size_bytes: About, before scaling.
        pickled: Whether the usual way has to convert it.
    """

    name: str
    model_id: str
    make: Callable[[Path, int], list[Path]]
    size_bytes: int
    pickled: bool = False


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one way took, over all its processes.

    Args:
        others_share: Part of the machine's processors that processes of neither side nor the servers used.
        steps: Each process's time and peak memory.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int
    others_share: float
    steps: str


def safetensors_file(path: Path, size: int, *, name: str = "weight") -> Path:
    """Write one aligned file with tensors of 64 MiB, of bytes that do not repeat."""
    lengths = [64 * MIB] * (size // (64 * MIB)) + [size % (64 * MIB) // 2 * 2]
    header, offset = {}, 0
    for number, length in enumerate(lengths):
        span = [offset, offset + length]
        header[f"{name}.{number}"] = {"dtype": "BF16", "shape": [length // 2], "data_offsets": span}
        offset += length
    header["__metadata__"] = {"format": "pt"}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        write_random(file, offset)
    return path


def write_random(file: IO[bytes], size: int) -> None:
    """Write bfloat16 numbers that do not repeat and are never NaN, which would not equal itself in the peer's check."""
    while size:
        block = numpy.frombuffer(os.urandom(min(size, 16 * MIB)), dtype=numpy.uint16) & 0xBFFF
        file.write(block.tobytes())
        size -= block.nbytes


def one_file(folder: Path, size: int) -> list[Path]:
    return [safetensors_file(folder / "model.safetensors", size)]


def eight_files(folder: Path, size: int) -> list[Path]:
    names = [f"model-{number:05d}-of-00008.safetensors" for number in range(1, 9)]
    files = [safetensors_file(folder / name, size // 8, name=f"layer{n}") for n, name in enumerate(names)]
    tensors = {}
    for file in files:
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        tensors |= {tensor: file.name for tensor in header if tensor != "__metadata__"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": tensors}))
    return [*files, index]


def pickled_file(folder: Path, size: int) -> list[Path]:
    """Write what torch.save writes for a dictionary of bfloat16 tensors, without torch."""
    import pickle

    count = size // (64 * MIB)
    path = folder / "pytorch_model.bin"
    rows, columns = 64 * MIB // 2 // 4096, 4096
    pickled = torch_pickle(count, rows, columns)
    assert pickle.HIGHEST_PROTOCOL >= 2
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for number in range(count):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as entry:
                write_random(entry, 64 * MIB)
        archive.writestr("archive/version", b"3\n")
    return [path]


def torch_pickle(count: int, rows: int, columns: int) -> bytes:
    """Spell the pickle: an OrderedDict of _rebuild_tensor_v2 calls on persistent storages (protocol 2)."""
    text = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for number in range(count):
        text += _string(f"model.layers.{number}.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n("
        text += b"(" + _string("storage") + b"ctorch\nBFloat16Storage\n" + _string(str(number)) + _string("cpu")
        text += _number(rows * columns) + b"tQ" + _number(0)
        text += _number(rows) + _number(columns) + b"\x86" + _number(columns) + _number(1) + b"\x86"
        text += b"\x89ccollections\nOrderedDict\n)RtR"
    return bytes(text + b"u.")


def _string(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


class Bench:
    """One run of everything."""

    def __init__(self, servers: Servers, given: argparse.Namespace) -> None:
        self._servers = servers
        self._given = given
        self._environment = {**servers.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def run(self, scenarios: Sequence[Scenario]) -> None:
        self.say(f"Fastest of {self._given.repeat} runs of each way.")
        self.say("")
        self.say("| model | way (each process: time, peak memory) | seconds | ratio | CPU s | disk, MB | others' CPU |")
        self.say("|---|---|---|---|---|---|---|")
        notes = []
        for scenario in scenarios:
            folder = self._given.work / "model"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            files = scenario.make(folder, int(scenario.size_bytes * self._given.scale))
            self._servers.push(scenario.model_id, {file.name: file for file in files} | small_files())
            shutil.rmtree(folder)
            notes += self._scenario(scenario)
            self._servers.empty_bucket("bench")
            self._servers.remove(self._servers.repos / scenario.model_id)
        self.say("")
        for note in notes:
            self.say(f"- {note}")

    def _scenario(self, scenario: Scenario) -> list[str]:
        ours, told = self._fastest(lambda: self._ours(scenario))
        notes = self._reruns(scenario, told)
        peer, _ = self._fastest(lambda: self._peer(scenario))
        size = told["size_bytes"] / GB
        faster = f"{peer.seconds / ours.seconds:.1f}x faster"
        for name, way, ratio in (("usual", peer, ""), ("streamway", ours, faster)):
            self.say(
                f"| {scenario.name}, {size:.2f} GB | {name} ({way.steps}) | {way.seconds:.1f} | {ratio} | "
                f"{way.cpu_seconds:.1f} | {way.written_bytes / 1e6:.1f} | {way.others_share:.0%} |"
            )
        return notes

    def _fastest(self, run: Callable[[], tuple[Side, dict[str, int]]]) -> tuple[Side, dict[str, int]]:
        """Return the fastest of a few runs, because other work on the machine can only slow one down."""
        found = []
        for _ in range(self._given.repeat):
            self._servers.empty_bucket("bench")
            found.append(run())
        return min(found, key=lambda one: one[0].seconds)

    def _ours(self, scenario: Scenario) -> tuple[Side, dict[str, int]]:
        servers = self._servers.cpu_seconds()
        measured = self._run_ours(scenario)
        taken = side([measured], self._servers.cpu_seconds() - servers)
        told = json.loads(measured.output.splitlines()[-1])
        self._verify(told["uri"])
        return taken, told

    def _run_ours(self, scenario: Scenario) -> Measured:
        settle(self._given.work, [self._servers.repos / scenario.model_id])
        return measure([sys.executable, "-c", OURS, scenario.model_id, ROOT], environment=self._environment)

    def _verify(self, uri: str) -> None:
        """Read the release back and compare every hash, outside all measurements."""
        from streamway import storage

        os.environ.update(self._servers.environment)
        storage.verify_release(uri, deep=True)

    def _reruns(self, scenario: Scenario, first: dict[str, int]) -> list[str]:
        self._servers.counters("hub"), self._servers.counters("bucket")
        measured = self._run_ours(scenario)
        again = json.loads(measured.output.splitlines()[-1])
        moved = self._servers.counters("hub")[2] + self._servers.counters("bucket")[1]
        notes = [
            f"{scenario.name}, the same release again: {measured.seconds:.1f} s, {again['moved_bytes']} weight bytes "
            f"moved ({moved / 1e3:.0f} kB of requests and descriptions), release {first['size_bytes'] / GB:.2f} GB."
        ]
        return notes + (self._one_of_eight(scenario) if "eight" in scenario.name else [])

    def _one_of_eight(self, scenario: Scenario) -> list[str]:
        size = int(scenario.size_bytes * self._given.scale) // 8
        changed = safetensors_file(self._given.work / "changed.safetensors", size, name="layer2")
        self._servers.push(scenario.model_id, {"model-00003-of-00008.safetensors": changed})
        changed.unlink()
        self._servers.counters("hub"), self._servers.counters("bucket")
        measured = self._run_ours(scenario)
        told = json.loads(measured.output.splitlines()[-1])
        served, received = self._servers.counters("hub")[2], self._servers.counters("bucket")[1]
        self._verify(told["uri"])
        return [
            f"{scenario.name}, a new commit that changes one shard of {size / 1e6:.1f} MB: {measured.seconds:.1f} s, "
            f"{told['moved_bytes'] / 1e6:.1f} MB moved, {told['copied_bytes'] / 1e6:.1f} MB copied in the bucket; the "
            f"Hub served {served / 1e6:.1f} MB and the bucket received {received / 1e6:.1f} MB in all."
        ]

    def _peer(self, scenario: Scenario) -> tuple[Side, dict[str, int]]:
        servers = self._servers.cpu_seconds()
        folder = self._given.work / "peer"
        shutil.rmtree(folder, ignore_errors=True)
        hf = str(Path(sys.executable).with_name("hf"))
        cache = {**self._environment, "HF_HOME": str(self._given.work / "hf-home")}
        commands = [[hf, "download", scenario.model_id, "--local-dir", str(folder)]]
        if scenario.pickled:
            made = [str(folder / "pytorch_model.bin"), str(folder / "model.safetensors")]
            commands.append([self._given.engine_python, "-c", PEER_CONVERT, *made])
        commands.append([sys.executable, "-c", PEER_UPLOAD, str(folder)])
        steps = []
        for command in commands:
            settle(self._given.work, [folder if folder.exists() else self._servers.repos / scenario.model_id])
            steps.append(measure(command, environment=cache))
        shutil.rmtree(folder)
        shutil.rmtree(self._given.work / "hf-home", ignore_errors=True)
        return side(steps, self._servers.cpu_seconds() - servers), {}


def side(steps: Sequence[Measured], servers_cpu_seconds: float) -> Side:
    seconds = sum(step.seconds for step in steps)
    cpu_seconds = sum(step.cpu_seconds for step in steps)
    machine = sum(step.machine_cpu_seconds for step in steps)
    others = machine - cpu_seconds - servers_cpu_seconds
    return Side(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=max(step.peak_bytes for step in steps),
        written_bytes=sum(step.written_bytes for step in steps),
        others_share=max(0.0, others / seconds / (os.cpu_count() or 1)),
        steps=" + ".join(f"{step.seconds:.1f} s, {step.peak_bytes / MIB:.0f} MiB" for step in steps),
    )


def small_files() -> dict[str, bytes]:
    return {"config.json": CONFIG, "README.md": CARD, "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}


def eight_hundred_gb() -> list[str]:
    """Return what a model of 800 GB in 200 files would take."""
    from streamway.storage.cloud import MOST_PARTS
    from streamway.storage.estimate import estimate_transfer

    plan = estimate_transfer([4 * GB] * 200)
    return [
        "",
        "A plan for 800 GB in 200 files (computed, and checked in tests against what really happens):",
        "",
        f"- {plan.parts:,} parts of {plan.part_bytes // MIB} MiB, at most {plan.most_parts_of_a_file} in a file "
        f"(Cloud Storage allows {MOST_PARTS:,}); {plan.memory_bytes // MIB} MiB of memory in flight, no disk.",
        f"- {plan.hub_requests:,} requests to the Hub and its storage, 200 of them to the Hub itself.",
        f"- {plan.class_a_requests:,} class A, {plan.class_b_requests:,} class B and {plan.free_requests:,} free "
        "requests to Cloud Storage at most.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for four copies of a model")
    parser.add_argument("--engine-python", required=True, help="a Python with torch and safetensors, for the peer")
    parser.add_argument("--scale", type=float, default=1.0, help="of the models' sizes")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way, of which the fastest counts")
    parser.add_argument("--only", default="", help="part of a scenario's name")
    parser.add_argument("--out", type=Path, help="where the table goes")
    given = parser.parse_args()
    scenarios = [
        Scenario(name="safetensors, one file", model_id="bench/one", make=one_file, size_bytes=4 * GB),
        Scenario(name="safetensors, eight files", model_id="bench/eight", make=eight_files, size_bytes=4 * GB),
        Scenario(
            name="pickled, one file", model_id="bench/pickled", make=pickled_file, size_bytes=2 * GB, pickled=True
        ),
    ]
    with Servers(given.work, buckets="bench=US-CENTRAL1") as servers:
        bench = Bench(servers, given)
        bench.say(
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start, Python {platform.python_version()}."
        )
        bench.say("")
        bench.run([scenario for scenario in scenarios if given.only in scenario.name])
    for line in eight_hundred_gb():
        bench.say(line)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("# From the Hub to a release\n\n" + "\n".join(bench.lines) + "\n")


if __name__ == "__main__":
    main()
