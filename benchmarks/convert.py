"""Converting a torch checkpoint on local disk: this project beside `cp` and beside the published converter's method.

    python benchmarks/convert.py --size 0.25 --size 2 --size 8

All run in turns on the same files, so that what else the machine does hits each of them. Seconds are those of the work
itself, without starting an interpreter and importing, which favours the peer (importing torch takes seconds); memory is
the peak of the whole process. The peer's method is what safetensors publishes for this: load the checkpoint with torch,
drop shared tensors, save, load again, compare. It needs a Python with torch, by default the engine's environment.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from memory import settle  # noqa: E402 - beside this file, which need not be installed

RESULTS = HERE / "results"
GB = 1_000_000_000
MIB = 1024 * 1024

MAKE = """
import sys
from pathlib import Path
import torch

size, folder = int(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True)
state, left, number = {}, size // 2, 0
block = torch.randint(0, 30000, (4096, 8192), dtype=torch.int16)
while left >= 4096:
    rows = min(8192, left // 4096)
    state[f"model.layers.{number}.mlp.weight"] = block[:, :rows].clone().view(torch.bfloat16)
    state[f"model.layers.{number}.norm.weight"] = torch.ones(4096, dtype=torch.bfloat16)
    left, number = left - 4096 * rows, number + 1
torch.save(state, folder / "pytorch_model.bin")
(folder / "config.json").write_text("{}")
"""

OURS = """
import sys, time
from streamway.weights import convert_weights

more = {"shard_bytes": int(sys.argv[3]), "sha256": True} if len(sys.argv) > 3 else {}
begun = time.monotonic()
converted = convert_weights(snapshot_uri=sys.argv[1], weights_uri=sys.argv[2], copy_unchanged=True, **more)
seconds = time.monotonic() - begun
assert converted.report["proof"]["tensors_compared"] == converted.tensors
"""

PEER = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import _remove_duplicate_names, load_file, save_file

source, target = Path(sys.argv[1]) / "pytorch_model.bin", Path(sys.argv[2]) / "model.safetensors"
target.parent.mkdir(parents=True)
begun = time.monotonic()
loaded = torch.load(source, map_location="cpu", weights_only=True)
for names in _remove_duplicate_names(loaded).values():
    for name in names:
        del loaded[name]
loaded = {name: tensor.contiguous() for name, tensor in loaded.items()}
save_file(loaded, target, metadata={"format": "pt"})
reloaded = load_file(target)
for name, tensor in loaded.items():
    if not torch.equal(tensor, reloaded[name]):
        raise SystemExit(f"{name} differs")
seconds = time.monotonic() - begun
"""

COPY = """
import subprocess, sys, time
from pathlib import Path

Path(sys.argv[2]).mkdir(parents=True)
begun = time.monotonic()
subprocess.run(["cp", str(Path(sys.argv[1]) / "pytorch_model.bin"), sys.argv[2]], check=True)
seconds = time.monotonic() - begun
"""

BARE = ""


TELL = """
import json
seconds = globals().get("seconds", 0.0)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_mib": int(peak.split()[1]) / 1024}))
"""
"""The last act of each contender. The kernel's own account of a child also counts what its parent had before."""


@dataclass
class Contender:
    """One way to do it, and what was measured."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main() -> None:
    options = read_options()
    python = options.engine_python or engine_python()
    with tempfile.TemporaryDirectory(prefix="convert-", dir=options.folder) as folder:
        results = [measure_size(size, Path(folder), python, options) for size in options.size or [2.0]]
        sweep = measure_shards(Path(folder), python, options) if options.shards else []
    record = {"machine": describe_machine(), "results": results, "shards": sweep}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert.json").write_text(json.dumps(record, indent=1) + "\n")
    table = render(record)
    (RESULTS / "convert.md").write_text(table)
    print(table)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, action="append", help="checkpoint in GB; may be given several times")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--peer-rounds", type=int, default=3, help="how often the peer runs")
    parser.add_argument("--shards", type=float, default=0, help="also try shard sizes on a checkpoint of so many GB")
    parser.add_argument("--folder", help="where the files go, on the disk to be measured")
    parser.add_argument("--engine-python", help="a Python with torch and safetensors")
    return parser.parse_args()


def engine_python() -> str:
    from streamway.sandbox.engine import ensure_engine

    return str(ensure_engine(lambda line: print(line, file=sys.stderr)).bin_path / "python")


def measure_size(size: float, folder: Path, python: str, options: argparse.Namespace) -> dict[str, object]:
    """Let the contenders take turns on one checkpoint."""
    source, target = folder / "source", folder / "target"
    subprocess.run([python, "-c", MAKE, str(int(size * GB)), str(source)], check=True)
    contenders = [
        Contender("bare interpreter", [sys.executable, BARE]),
        Contender("cp", [sys.executable, COPY, str(source), str(target)]),
        Contender("streamway", [sys.executable, OURS, str(source), str(target)]),
    ]
    peer = Contender("torch load, save, reload, compare", [python, PEER, str(source), str(target)])
    # The peer holds the model twice, and others need memory too.
    fits = available_bytes() > 2.3 * size * GB + 6 * GB
    for number in range(options.rounds):
        for contender in [*contenders, *([peer] if fits and number < options.peer_rounds else [])]:
            run(contender, target)
    shutil.rmtree(source)
    return summarise(size, [*contenders, *([peer] if peer.seconds else [])])


def measure_shards(folder: Path, python: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Try shard sizes on the way to a release, where each file also gets a sha256; they take turns as well."""
    source, target = folder / "source", folder / "target"
    subprocess.run([python, "-c", MAKE, str(int(options.shards * GB)), str(source)], check=True)
    sizes = [gigabytes for gigabytes in (0.5, 1, 2, 5, 10, 50) if gigabytes <= 2 * options.shards]
    contenders = [
        Contender(f"{size:g} GB", [sys.executable, OURS, str(source), str(target), str(int(size * GB))])
        for size in sizes
    ]
    for _ in range(options.rounds):
        for contender in contenders:
            run(contender, target)
    shutil.rmtree(source)
    return [{"shard": c.name, "best": c.best, "median": c.median, "peak_mib": max(c.peak_mib)} for c in contenders]


def run(contender: Contender, target: Path) -> None:
    """Run once from a clean state: no result there, no writes of others pending, no memory to be fetched first."""
    shutil.rmtree(target, ignore_errors=True)
    settle(target.parent, [target.parent / "source"])
    python, script, *arguments = contender.command
    done = subprocess.run([python, "-c", script + TELL, *arguments], stdout=subprocess.PIPE, check=True)
    said = json.loads(done.stdout)
    contender.seconds.append(said["seconds"])
    contender.peak_mib.append(said["peak_mib"])
    shutil.rmtree(target, ignore_errors=True)


def summarise(size: float, contenders: Sequence[Contender]) -> dict[str, object]:
    named = {contender.name: contender for contender in contenders}
    bare, copy, ours = named["bare interpreter"], named["cp"], named["streamway"]
    peer = named.get("torch load, save, reload, compare")
    return {
        "size_gb": size,
        "times_cp": ours.median / copy.median,
        "times_cp_best": ours.best / copy.best,
        "times_faster_than_peer": peer.median / ours.median if peer else None,
        "mib_above_bare": max(ours.peak_mib) - statistics.median(bare.peak_mib),
        "contenders": [asdict(contender) | {"command": ""} for contender in contenders],
    }


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def describe_machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    when = time.strftime("%B %Y")
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, one virtual disk, shared with "
        f"other work (load {os.getloadavg()[0]:.1f}), Python {platform.python_version()}, {when}"
    )


def render(record: dict[str, object]) -> str:
    lines = [
        "# Converting a torch checkpoint on local disk",
        "",
        f"`python benchmarks/convert.py`, on {record['machine']}. Contenders took turns; median seconds (best).",
        "",
        "| checkpoint | cp | streamway | torch load, save, reload, compare | times cp | times faster | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:  # type: ignore[attr-defined]
        by_name = {contender["name"]: contender for contender in result["contenders"]}
        peer = by_name.get("torch load, save, reload, compare")
        faster = result["times_faster_than_peer"]
        lines.append(
            f"| {result['size_gb']:g} GB | {show(by_name['cp'])} | {show(by_name['streamway'])} | "
            f"{show(peer) if peer else 'does not fit into memory'} | {result['times_cp']:.2f} "
            f"({result['times_cp_best']:.2f}) | {f'{faster:.1f}' if faster else '-'} | {memory(by_name)} |"
        )
    lines += [
        "",
        "Memory is the peak of each process in MiB: bare interpreter, streamway, peer. Streamway's time includes the "
        "proof: every tensor read back from disk and compared by crc32c with what its source gave.",
    ]
    if record["shards"]:
        lines += ["", "Towards a release, with a sha256 for each shard, which only one thread at a time can compute:"]
        lines += ["", "| shards of at most | seconds (best) | peak MiB |", "|---|---|---|"]
        for entry in record["shards"]:  # type: ignore[attr-defined]
            lines.append(
                f"| {entry['shard']} | {entry['median']:.2f} ({entry['best']:.2f}) | {entry['peak_mib']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def show(contender: dict[str, list[float]]) -> str:
    return f"{statistics.median(contender['seconds']):.2f} s ({min(contender['seconds']):.2f})"


def memory(by_name: dict[str, dict[str, list[float]]]) -> str:
    names = ("bare interpreter", "streamway", "torch load, save, reload, compare")
    return ", ".join(f"{max(by_name[name]['peak_mib']):.0f}" for name in names if name in by_name)


if __name__ == "__main__":
    main()
