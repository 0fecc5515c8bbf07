"""Run in a process of its own: read hostile files, and tell everything that Python was asked to do meanwhile.

    python watched.py events FOLDER   prints the audit events while every file of FOLDER is converted
    python watched.py memory          prints by how many MiB the process grew while it read bombs

Python reports imports, compilations, executions, processes, sockets and opened files to audit hooks, whoever causes
them, so a reader that executes anything cannot hide it here.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from byte_readers import BytesReader
from torch_writer import checkpoint_bytes, tensor

from streamway.errors import StreamwayError
from streamway.weights import convert_weights
from streamway.weights.pickles import read_pickle
from streamway.weights.torch_objects import TorchVocabulary
from streamway.weights.windows import ByteWindow

BUDGET_BYTES = 48 * 1024 * 1024
BOMBS = (b"}", b"]", b"(", b"N", b"\x8f", b"N\x85", b"K\x01", b"\x8c\x03abc", b"N\x94", b"]\x94", b")2\x86")


def convert(source: Path, out: str) -> str:
    try:
        convert_weights(snapshot_uri=str(source), weights_uri=str(source.parent.parent / out / source.name))
    except StreamwayError as error:
        return type(error).__name__
    return "converted"


def events(folder: Path) -> None:
    warm = folder.parent / "warm" / "model"
    warm.mkdir(parents=True)
    (warm / "pytorch_model.bin").write_bytes(checkpoint_bytes({"w": tensor(bytes(8), (2,))}))
    "".encode("raw-unicode-escape")  # Python imports the codec when it is first used
    assert convert(warm, "warm-out") == "converted"
    seen: list[Any] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching:
            seen.append([event, *(str(argument)[:300] for argument in arguments[:3])])

    sys.addaudithook(hook)
    outcomes = {source.name: convert(source, "out") for source in sorted(folder.iterdir())}
    watching = False
    print(json.dumps({"outcomes": outcomes, "events": seen}))


def memory() -> None:
    programs = [b"\x80\x04" + bomb * (BUDGET_BYTES // 16) for bomb in BOMBS]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in programs:
        window = ByteWindow(BytesReader(data), 0, len(data), subject="bomb")
        try:
            read_pickle(window, TorchVocabulary("bomb"), subject="bomb", budget_bytes=BUDGET_BYTES)
        except StreamwayError as error:
            assert "too large" in str(error), error
    print(json.dumps({"grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory()
    else:
        events(Path(sys.argv[2]))
