"""A command imports the rooms that it needs and no more, and is announced, helped and completed as if it were there."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from streamway.cli.entry import cli

ROOT = Path(__file__).parents[2]
STREAMWAY = str(Path(sys.executable).with_name("streamway"))
# What takes most of the time and memory of a start; the commands here talk to none of them.
HEAVY = ("kfp", "kubernetes", "google", "huggingface_hub", "pydantic", "aiohttp", "requests")
HOUSE = "streamway."
# Interpreters import some packages by themselves, such as namespaces; only what came with the command counts.
WATCHED = """
import atexit, sys
before = set(sys.modules)
atexit.register(lambda: print(*sys.modules.keys() - before, file=sys.stderr))
from streamway.cli import main
main()
"""


def imported(*arguments: str, code: int = 0) -> set[str]:
    """Run a command, and return the modules that its process had imported at the end."""
    done = subprocess.run([sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def top(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_the_front_door_imports_no_room(arguments: list[str]) -> None:
    modules = imported(*arguments)
    assert not top(modules) & set(HEAVY)
    rooms = {name.split(".")[1] for name in modules if name.startswith(HOUSE)}
    assert rooms == {"cli", "errors", "interrupts"}


def test_judging_a_folder_imports_only_what_reads_it(tmp_path: Path) -> None:
    modules = imported("validate", str(tmp_path), code=40)
    assert not top(modules) & set(HEAVY)
    assert "streamway.weights.validate" in modules
    assert not modules & {f"{HOUSE}{room}" for room in ("hub", "server", "cache", "cluster", "launch", "settings")}


def test_looking_at_the_sandbox_reads_no_configuration(tmp_path: Path) -> None:
    assert not top(imported("sandbox", "status", "--state", str(tmp_path), code=3)) & set(HEAVY)


@pytest.mark.parametrize(
    "work",
    [
        "from pathlib import Path; from streamway.settings import Settings; "
        "assert Settings.load(Path('configs/sandbox.yaml')).smoke.questions",
        "import streamway.gate, streamway.retirement, streamway.preflight",
    ],
    ids=["a configuration with questions", "rooms"],
)
def test_who_reaches_no_cluster_does_not_wait_for_its_client(work: str) -> None:
    code = f"import sys; {work}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "kubernetes" not in done.stdout.split()


@pytest.mark.parametrize("command", ["run", "submit", "runs", "schedule", "publish", "promote", "retire"])
def test_help_of_what_starts_pipelines_loads_neither_kfp_nor_kubernetes(command: str) -> None:
    assert not top(imported(command, "--help")) & {"kfp", "kubernetes"}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_line_of_the_list_is_how_the_commands_own_help_begins(name: str) -> None:
    announced = cli.commands[name].short_help
    own = " ".join((cli.load(name).help or "").split())
    assert announced and announced.endswith(".")
    assert own.startswith(announced.removesuffix("."))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_announced_command_is_there_under_its_name(name: str) -> None:
    command = cli.load(name)
    assert command.name == name
    assert isinstance(command, click.Group) == (name in {"sandbox", "schedule"})


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("streamway va", {"validate"}),
        ("streamway s", {"sandbox", "schedule", "smoke", "status", "submit"}),
        ("streamway sandbox ", {"up", "status", "down", "env"}),
        ("streamway pull --dry", {"--dry-run"}),
        ("streamway cache --wait r", {"running"}),
    ],
)
def test_shells_complete_commands_and_their_options(typed: str, expected: set[str]) -> None:
    words = typed.split(" ")
    asked = {"_STREAMWAY_COMPLETE": "zsh_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([STREAMWAY], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.splitlines()[1::3]) == expected


def test_a_completed_command_brings_its_line() -> None:
    asked = {"_STREAMWAY_COMPLETE": "zsh_complete", "COMP_WORDS": "streamway rollb", "COMP_CWORD": "1"}
    done = subprocess.run([STREAMWAY], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["plain", "rollback", cli.commands["rollback"].short_help]


def test_a_command_that_is_not_there_is_a_usage_error() -> None:
    done = subprocess.run([STREAMWAY, "pul"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "No such command 'pul'" in done.stderr
