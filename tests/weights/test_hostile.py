"""Hostile models execute nothing, write nowhere else, and stay within bounds."""

import builtins
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import put, safetensors_bytes, safetensors_model, small_model, snapshot_of
from torch_writer import Call, Global, Member, Raw, checkpoint_bytes, legacy_bytes, members_of, with_member, zip_bytes
from watched import BUDGET_BYTES

from streamway.errors import StreamwayError
from streamway.storage.records import SNAPSHOT_RECORD
from streamway.weights import convert_weights, validate

WATCHED = Path(__file__).parent / "watched.py"

LISTING = ("os.listdir", "os.scandir", "os.walk")


class Exploit:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


def hostile_files(marker: Path) -> dict[str, bytes]:
    """Checkpoints of every trick, each of which would leave the marker if any part of it ran."""
    calls = {
        "system": Exploit(os.system, f"touch {marker}"),
        "popen": Exploit(subprocess.Popen, ["touch", str(marker)]),
        "exec": Exploit(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "import": Exploit(__import__, "antigravity"),
        "mkdir": Exploit(os.mkdir, str(marker)),
    }
    files = {}
    for name, call in calls.items():
        for protocol in range(6):
            raw = pickle.dumps({"weight": call}, protocol)
            body = raw[2:-1] if protocol >= 2 else raw[:-1]
            files[f"{name}_{protocol}_plain"] = raw
            files[f"{name}_{protocol}_zip"] = zip_bytes([Member("archive/data.pkl", raw)])
            if protocol < 4:
                files[f"{name}_{protocol}_legacy"] = legacy_bytes({"weight": Raw(body)})
    inst = b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."
    files["inst"] = zip_bytes([Member("archive/data.pkl", inst)])
    state = Call(Global("collections", "OrderedDict"), (), {"__class__": Global("os", "system")})
    files["build"] = checkpoint_bytes({"weight": state})
    files["module_attribute"] = checkpoint_bytes({"weight": Global("torch", "nn.Module")})
    for name, changes in {"escape": "../../escape", "absolute": str(marker), "dots": "archive/../../x"}.items():
        files[name] = zip_bytes(with_member(members_of(small_model()), "data/0", name=changes, local_name=changes))
    return files


def run_watched(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, str(WATCHED), *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_nothing_runs_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = tmp_path / "sources"
    files = hostile_files(marker)
    for name, data in files.items():
        put(folder / name, {"pytorch_model.bin": data, "config.json": {}})
    before = set(tmp_path.rglob("*"))
    found = run_watched("events", str(folder))
    assert set(found["outcomes"]) == set(files)
    assert set(found["outcomes"].values()) == {"UnsafePickleError", "CheckpointError"}
    assert not marker.exists()
    grown = set(tmp_path.rglob("*")) - before
    assert {path.relative_to(tmp_path).parts[0] for path in grown} <= {"warm", "warm-out", "out"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    odd = [event for event in found["events"] if event[0] not in LISTING and not is_reading(event, folder)]
    assert odd == []


def is_reading(event: list[str], folder: Path) -> bool:
    """Tell whether an event is the opening of a file of the model for reading."""
    if event[0] != "open":
        return False
    flags = int(event[3]) if len(event) > 3 and event[3].isdigit() else 0
    return event[1].startswith(str(folder)) and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)


def test_memory_stays_within_its_budget() -> None:
    assert run_watched("memory")["grown_mib"] < BUDGET_BYTES / 2**20 * 1.3


def test_a_record_that_came_with_the_folder_takes_no_files_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "credentials"
    secret.write_text("secret")
    source = snapshot_of(safetensors_model(str(tmp_path / "source")))
    record = json.loads((tmp_path / "source" / SNAPSHOT_RECORD).read_text())
    record["files"].append({"path": "LICENSE", "uri": str(secret), "size_bytes": 6, "sha256": "", "crc32c": None})
    put(source, {SNAPSHOT_RECORD: record})
    with pytest.raises(StreamwayError, match="'LICENSE' without the SHA-256"):
        convert_weights(snapshot_uri=source, weights_uri=str(tmp_path / "out"), copy_unchanged=True)
    assert not (tmp_path / "out").exists()


def test_an_archive_bomb_is_not_unpacked(tmp_path: Path) -> None:
    members = with_member(members_of(small_model()), "data/0", method=8, packed=40, size=2**40)
    put(tmp_path / "source", {"pytorch_model.bin": zip_bytes(members), "config.json": {}})
    with pytest.raises(StreamwayError, match=r"pytorch_model\.bin.*compressed"):
        convert_weights(snapshot_uri=str(tmp_path / "source"), weights_uri=str(tmp_path / "out"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["zip", "legacy", "safetensors"]),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4),
)
def test_damaged_models_are_refused_or_whole(
    kind: str, changes: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("damaged")
    rows = {"a": ("F32", [3], bytes(12)), "b": ("BF16", [2, 2], bytes(8))}
    data = bytearray(
        {"zip": checkpoint_bytes, "legacy": legacy_bytes}[kind](small_model())
        if kind != "safetensors"
        else safetensors_bytes(rows, metadata={"format": "pt"})
    )
    for where, value in changes:
        data[int(where * len(data))] = value
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    put(tmp_path / "source", {name: bytes(data), "config.json": {}})
    try:
        convert_weights(snapshot_uri=str(tmp_path / "source"), weights_uri=str(tmp_path / "out"), copy_unchanged=True)
    except StreamwayError as error:
        assert name in str(error) or "tensor" in str(error)
        assert not (tmp_path / "out" / "_weights.json").exists()
    else:
        assert not [finding for finding in validate(str(tmp_path / "out")).findings if finding.code == "misaligned"]
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "out"}
