"""The command line teaches, answers on stdout, and exits with a code that means something."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy
import pytest
from safetensors.numpy import save

from streamway.cli.entry import cli
from streamway.cli.lazy import LazyGroup

ROOT = Path(__file__).parents[2]
STREAMWAY = str(Path(sys.executable).with_name("streamway"))


def streamway(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STREAMWAY, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def loaded(group: click.Group, name: str) -> click.Command:
    return group.load(name) if isinstance(group, LazyGroup) else group.commands[name]


def every_command(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in group.commands:
        path, command = (*prefix, name), loaded(group, name)
        found += every_command(command, path) if isinstance(command, click.Group) else [path]
    return found


COMMANDS = every_command(cli)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_in_the_readme(path: tuple[str, ...]) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"`streamway {path[0]}" in readme
    assert f"`{path[-1]}`" in readme or f"`streamway {' '.join(path)}" in readme


@pytest.mark.parametrize("name", [path[0] for path in COMMANDS if len(path) == 1])
def test_what_the_readme_says_is_to_be_typed_is_what_the_command_takes(name: str) -> None:
    command = loaded(cli, name)
    taken = command.collect_usage_pieces(click.Context(command))[1:]
    required = [option.opts[0] for option in command.params if isinstance(option, click.Option) and option.required]
    (row,) = re.findall(rf"^\| `streamway {name}\b *([^`]*)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    arguments, *options = row.split(" --")
    assert arguments.split() == taken
    assert [f"--{option.split()[0]}" for option in options] == required


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = loaded(command, name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not isinstance(parameter.type, click.Choice):
            assert parameter.help, parameter.name


def test_help_names_the_first_things_to_try() -> None:
    done = streamway("--help")
    assert done.returncode == 0
    assert "streamway run configs/sandbox.yaml" in done.stdout


def test_a_wrong_configuration_exits_with_2_and_says_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {id: a/b}\nstorage: {release_root: r}\nserver: {nam: x}\n")
    done = streamway("run", "c.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "perhaps you meant name?" in done.stderr
    assert "Next:" in done.stderr
    assert done.stdout == ""


def test_a_replacement_that_is_not_a_pair_is_refused(tmp_path: Path) -> None:
    done = streamway("run", "configs/sandbox.yaml", "--set", "model.revision")
    assert done.returncode == 2
    assert "KEY=VALUE" in done.stderr


def test_what_others_wrote_cannot_disturb_the_terminal(tmp_path: Path) -> None:
    evil = b"\x1b]0;gotcha\x07 \xc2\x9b31m \xe2\x80\xae \xff.txt"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(save({"weight": numpy.zeros(1)}))
    Path(os.fsdecode(bytes(tmp_path) + b"/" + evil)).touch()
    done = subprocess.run([STREAMWAY, "convert", tmp_path, tmp_path / "out"], capture_output=True)
    assert done.returncode == 0
    assert rb"\x1b]0;gotcha\x07 \x9b31m \u202e \udcff.txt: not needed for serving" in done.stdout
    refused = subprocess.run([STREAMWAY, "validate", os.fsdecode(evil)], capture_output=True)
    assert refused.returncode == 40
    assert b"\x1b" not in refused.stderr


def test_compile_writes_the_file_and_prints_its_path(tmp_path: Path) -> None:
    done = streamway("compile", "-o", str(tmp_path / "p.yaml"))
    assert done.stdout.strip() == str(tmp_path / "p.yaml")
    assert (tmp_path / "p.yaml").exists()


def test_the_state_of_a_sandbox_that_never_was_is_told_by_the_exit_code(tmp_path: Path) -> None:
    done = streamway("sandbox", "status", "--json", "--state", str(tmp_path))
    assert done.returncode == 3
    assert json.loads(done.stdout)["running"] is False
    assert list(tmp_path.iterdir()) == []


def test_the_environment_of_a_sandbox_that_never_was_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    done = streamway("sandbox", "env", "--state", str(tmp_path))
    assert done.returncode == 90
    assert "streamway sandbox up" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([STREAMWAY, "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr
