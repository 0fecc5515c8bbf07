"""Whoever finds a lock held waits for its holder, is told so, and goes on when the holder is gone, killed or not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamway.errors import SandboxError
from streamway.sandbox.locks import hold_lock

HOLD = """
import sys
from pathlib import Path
from streamway.sandbox.locks import hold_lock
with hold_lock(Path(sys.argv[1]), doing="testing", longest_seconds=1, on_line=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_free_lock_is_taken_without_a_word(path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        with hold_lock(path, doing="testing", longest_seconds=1, on_line=told.append):
            assert path.exists()
    assert told == []


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended"])
def test_the_next_goes_on_when_the_holder_is_gone(path: Path, holder: subprocess.Popen[str], killed: bool) -> None:
    told: list[str] = []

    def let_go(line: str) -> None:
        told.append(line)
        assert holder.poll() is None
        if killed:
            holder.kill()
        elif holder.stdin is not None:
            holder.stdin.close()

    with hold_lock(path, doing="testing", longest_seconds=60, on_line=let_go):
        assert holder.wait(timeout=10) == (-9 if killed else 0)
    assert told == ["another process is testing; waiting for it"]


def test_a_holder_that_never_ends_is_named_by_what_it_does(path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(SandboxError) as refused,
        hold_lock(path, doing="x", longest_seconds=0, on_line=lambda line: None),
    ):
        pytest.fail("two processes hold one lock")
    assert holder.poll() is None
    assert f"is x for more than 0 s, and holds {path}" in refused.value.problem
    assert f"fuser {path}" in refused.value.next_step
