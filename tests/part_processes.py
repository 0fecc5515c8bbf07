"""Parts of the sandbox as processes of a test's own, all started and awaited in one way."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LONGEST_START_SECONDS = 60.0


def start_part(part: str, state_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a part, and return its process once it serves; what it says goes to `<part>.log`."""
    announced, log_path = state_path / f"{part}.json", state_path / f"{part}.log"
    announced.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"streamway.sandbox.{part}", "--state", str(state_path), *arguments]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + _LONGEST_START_SECONDS
    while not announced.exists():
        assert process.poll() is None, f"{part} ended before it served:\n{log_path.read_text()}"
        assert time.monotonic() < deadline, f"{part} does not serve:\n{log_path.read_text()}"
        time.sleep(0.02)
    return process


def announcement(part: str, state_path: Path) -> dict[str, Any]:
    """What a part that serves says of itself: its pid, its address and the environment of its clients."""
    announced: dict[str, Any] = json.loads((state_path / f"{part}.json").read_text())
    return announced
