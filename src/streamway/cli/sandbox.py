"""`streamway sandbox`: the stand-ins for the cloud, up, looked at, and down."""

import shlex
from pathlib import Path

import click

from streamway import sandbox
from streamway.cli import output
from streamway.cli.configuration import load_settings, sandbox_config
from streamway.cli.options import json_option, state_option
from streamway.errors import SandboxError


@click.group("sandbox")
def sandbox_group() -> None:
    """The Hub, Cloud Storage, caches and a cluster, on this machine.

    \b
    streamway sandbox up
    eval "$(streamway sandbox env)"
    kubectl get nodes
    streamway sandbox down
    """


@sandbox_group.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/sandbox.yaml"))
@state_option
def up(config: Path, state_path: Path) -> None:
    """Start every part, as CONFIG says, and leave them running."""
    settings = load_settings(config)
    sandbox.up(
        state_path.absolute() / "sandbox",
        config=sandbox_config(settings),
        on_line=lambda line: output.say(f"  {line}", style="dim"),
    )
    output.say('The sandbox is up. To point this shell at it: eval "$(streamway sandbox env)"')


@sandbox_group.command()
@state_option
@json_option
@click.pass_context
def status(context: click.Context, state_path: Path, as_json: bool) -> None:
    """Say which parts run; exits with 0 when all do, 3 when none does."""
    found = sandbox.status(state_path.absolute() / "sandbox")
    lines = [f"{part.name:10} {part.state:10} {part.url}" for part in found.parts]
    output.give(found, as_json=as_json, lines=lines or ["The sandbox is not running."])
    if not found.running:
        context.exit(3)


@sandbox_group.command()
@state_option
def down(state_path: Path) -> None:
    """Stop every part; what they stored stays for the next time."""
    sandbox.down(state_path.absolute() / "sandbox")
    output.say("The sandbox is down.")


@sandbox_group.command("env")
@state_option
def env_command(state_path: Path) -> None:
    """Print the variables that point a shell at the sandbox."""
    folder = state_path.absolute() / "sandbox"
    if not sandbox.status(folder).running:
        raise SandboxError(f"No sandbox runs in {folder}.", next_step="Start one with: streamway sandbox up")
    for name, value in sorted(sandbox.environment(folder).items()):
        click.echo(f"export {name}={shlex.quote(value)}")
