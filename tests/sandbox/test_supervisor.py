"""The owner of a sandbox's processes, with small parts that behave and misbehave on request."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamway import sandbox
from streamway.errors import SandboxError
from streamway.sandbox.processes import (
    ProcessIdentity,
    end_processes,
    identify,
    owned_processes,
    read_json,
    wait_until,
)

STUB = textwrap.dedent(
    """
    import argparse, json, signal, subprocess, sys, time
    from pathlib import Path
    from streamway.sandbox.processes import announce, die_with_parent

    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("manner", default="serve")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--port")
    given = parser.parse_args()
    if given.manner == "fail":
        print("the disk says: No space left on device", file=sys.stderr)
        sys.exit(7)
    if given.manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.manner == "parent":
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    if given.manner != "silent":
        pid = child.pid if given.manner == "parent" else 0
        seen = {one.stem: one.read_text() for one in given.state.glob("*.json")}
        environment = {given.name.upper(): "yes", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
        announce(given.state, given.name, url="http://stub", environment=environment, child=pid, seen=seen)
    while True:
        signal.pause()
    """
)


@pytest.fixture
def state_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "sandbox"
    yield path
    sandbox.down(path)
    assert owned_processes(path) == []


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return path


def config_of(stub: Path, *manners: str, **options: Any) -> sandbox.SandboxConfig:
    """A sandbox of stubs called a, b, c, ..."""
    parts = tuple(
        sandbox.PartSpec(
            name=name,
            argv=(sys.executable, str(stub), name, manner),
            deadline_seconds=options.pop("deadline_seconds", 30.0),
            stop_seconds=1.0,
        )
        for name, manner in zip("abcd", manners, strict=False)
    )
    return sandbox.SandboxConfig(engine_image="", seed=False, parts=parts, **options)


def identities(found: sandbox.SandboxStatus) -> list[ProcessIdentity]:
    pids = [found.pid, *(part.pid for part in found.parts)]
    return [identity for identity in map(identify, pids) if identity]


def gone(processes: list[ProcessIdentity]) -> bool:
    return wait_until(lambda: not any(one.is_alive() for one in processes), seconds=15)


def test_up_starts_parts_in_order_and_down_ends_them(state_path: Path, stub: Path) -> None:
    lines: list[str] = []

    started = sandbox.up(state_path, config=config_of(stub, "serve", "serve"), on_line=lines.append)

    assert started.started_here
    assert started.environment["A"] == started.environment["B"] == "yes"
    assert started.environment["GOOGLE_CLOUD_PROJECT"] == "streamway-sandbox"
    assert started.environment == sandbox.environment(state_path)
    assert [line.split(":")[0] for line in lines] == ["a", "b", "the sandbox is up"]
    found = sandbox.status(state_path)
    assert found.running
    assert [(part.name, part.state) for part in found.parts] == [("a", "serving"), ("b", "serving")]
    second_saw = (read_json(state_path / "b.json") or {})["seen"]
    assert "a" in second_saw
    assert "b" not in second_saw
    processes = identities(found)
    assert len(processes) == 3
    sandbox.down(state_path)
    assert not any(one.is_alive() for one in processes)
    assert not sandbox.status(state_path).running
    with pytest.raises(SandboxError, match="No sandbox is up"):
        sandbox.environment(state_path)


def test_up_again_finds_the_one_that_is_up(state_path: Path, stub: Path) -> None:
    config = config_of(stub, "serve")
    sandbox.up(state_path, config=config)
    before = sandbox.status(state_path)

    again = sandbox.up(state_path, config=config)

    assert not again.started_here
    assert sandbox.status(state_path) == before


def test_a_relative_state_folder_is_the_same_one(state_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(state_path.parent)
    sandbox.up(Path("sandbox"), config=config_of(stub, "serve"))

    assert sandbox.status(state_path).running
    sandbox.down(Path("sandbox"))
    assert not sandbox.status(state_path).running


def test_two_callers_at_once_start_one_sandbox(state_path: Path, stub: Path) -> None:
    config = config_of(stub, "serve")
    started: list[bool] = []
    threads = [
        threading.Thread(target=lambda: started.append(sandbox.up(state_path, config=config).started_here))
        for _ in range(2)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(started) == [False, True]


def test_a_part_that_cannot_start_is_named_with_its_last_words(state_path: Path, stub: Path) -> None:
    with pytest.raises(SandboxError) as caught:
        sandbox.up(state_path, config=config_of(stub, "serve", "fail"))

    message = str(caught.value)
    assert "part b ended with exit code 7 before it served" in message
    assert "No space left on device" in message
    assert "Free some disk space" in caught.value.next_step
    assert not sandbox.status(state_path).running
    assert owned_processes(state_path) == []


def test_a_part_that_says_nothing_has_a_deadline(state_path: Path, stub: Path) -> None:
    with pytest.raises(SandboxError, match=r"part a did not serve within 1 s(.|\n)*it said nothing"):
        sandbox.up(state_path, config=config_of(stub, "silent", deadline_seconds=1.0))


def test_a_part_whose_program_is_missing_is_named(state_path: Path) -> None:
    parts = (sandbox.PartSpec(name="a", argv=("/no/such/program",)),)
    config = sandbox.SandboxConfig(engine_image="", seed=False, parts=parts)

    with pytest.raises(SandboxError, match="part a cannot start: No such file or directory: /no/such/program"):
        sandbox.up(state_path, config=config)


def test_a_part_that_dies_is_reported_and_not_replaced(state_path: Path, stub: Path) -> None:
    config = config_of(stub, "serve", "serve")
    sandbox.up(state_path, config=config)
    victim = sandbox.status(state_path).parts[1]

    os.kill(victim.pid, signal.SIGKILL)

    assert wait_until(lambda: not sandbox.status(state_path).running, seconds=10)
    a, b = sandbox.status(state_path).parts
    assert (a.state, b.state) == ("serving", "ended")
    assert "exit code -9" in b.detail
    with pytest.raises(SandboxError, match="is up, but b ended") as caught:
        sandbox.up(state_path, config=config)
    assert "sandbox down" in caught.value.next_step


def test_a_part_that_ignores_being_asked_is_killed(state_path: Path, stub: Path) -> None:
    sandbox.up(state_path, config=config_of(stub, "stubborn", "serve"))
    processes = identities(sandbox.status(state_path))

    sandbox.down(state_path)

    assert not any(one.is_alive() for one in processes)


def test_what_a_part_leaves_behind_is_ended_too(state_path: Path, stub: Path) -> None:
    sandbox.up(state_path, config=config_of(stub, "parent"))
    child = identify((read_json(state_path / "a.json") or {})["child"])
    assert child is not None

    sandbox.down(state_path)

    assert not child.is_alive()


def test_the_sandbox_ends_with_its_owner(state_path: Path, stub: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        sandbox.up(state_path, config=config_of(stub, "serve", "parent"), owner_pid=owner.pid)
        child = identify((read_json(state_path / "b.json") or {})["child"])
        assert child is not None
        processes = [*identities(sandbox.status(state_path)), child]
        assert len(processes) == 4
        owner.kill()
        owner.wait()

        assert gone(processes)
    assert not (state_path / "sandbox.json").exists()


def test_parts_end_when_the_supervisor_is_killed(state_path: Path, stub: Path) -> None:
    sandbox.up(state_path, config=config_of(stub, "serve", "serve"))
    processes = identities(sandbox.status(state_path))

    os.kill(processes[0].pid, signal.SIGKILL)

    assert gone(processes)
    assert not sandbox.status(state_path).running


def test_what_a_killed_sandbox_left_is_cleaned_up(state_path: Path, stub: Path) -> None:
    sandbox.up(state_path, config=config_of(stub, "stubborn", "parent"))
    child = identify((read_json(state_path / "b.json") or {})["child"])
    processes = identities(sandbox.status(state_path))
    os.kill(processes[0].pid, signal.SIGKILL)
    assert gone(processes[:1])
    assert child is not None
    assert processes[1].is_alive()

    again = sandbox.up(state_path, config=config_of(stub, "serve"))

    assert again.started_here
    assert not any(one.is_alive() for one in [*processes, child])
    assert sandbox.status(state_path).running


def test_a_state_file_never_leads_to_somebody_elses_process(state_path: Path, stub: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        state_path.mkdir()
        (state_path / "supervisor.json").write_text(f'{{"pid": {stranger.pid}, "started_ticks": 1}}')

        sandbox.down(state_path)

        assert stranger.poll() is None
        stranger.kill()


def test_images_are_told_what_a_pods_machine_knows(state_path: Path, stub: Path) -> None:
    image = sandbox.Image(pattern="engine:*", bin_path="/opt/engine/bin", environment={"HF_HUB_OFFLINE": "0"})
    sandbox.up(state_path, config=config_of(stub, "serve", "serve", images=(image,)))

    entry, *_ = json.loads((read_json(state_path / "b.json") or {})["seen"]["images"])

    assert (entry["image"], entry["path"]) == ("engine:*", "/opt/engine/bin")
    assert entry["environment"]["STORAGE_EMULATOR_HOST"] == "http://127.0.0.1:9"
    assert entry["environment"]["CLOUD_STORAGE_EMULATOR_ENDPOINT"] == "http://127.0.0.1:9"
    assert entry["environment"]["RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS"] == "true"
    assert entry["environment"]["HF_HUB_OFFLINE"] == "0"


def test_engines_have_a_short_place_for_sockets_that_goes_with_the_sandbox(state_path: Path, stub: Path) -> None:
    image = sandbox.Image(pattern="engine:*", bin_path="/opt/engine/bin")
    sandbox.up(state_path, config=config_of(stub, "serve", images=(image,)))
    entry, *_ = json.loads((state_path / "images.json").read_text())
    sockets = Path(entry["environment"]["VLLM_RPC_BASE_PATH"])

    # A name of 36 characters is added; the kernel allows 107 in all.
    assert len(str(sockets)) + 1 + 36 <= 107
    (sockets / "left-behind").touch()
    sandbox.down(state_path)

    assert not sockets.exists()


def test_processes_that_ended_are_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        identity = identify(process.pid)
        process.wait()

    assert identity is not None
    assert end_processes([identity], grace_seconds=5) == []
