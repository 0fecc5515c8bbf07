"""A configuration file as settings, and as the environment in which their work happens."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from streamway import sandbox
from streamway.cli import output
from streamway.errors import SandboxError, SettingsError

if TYPE_CHECKING:
    from streamway.settings import Settings


def load_settings(config: Path, overrides: tuple[str, ...] = ()) -> "Settings":
    """Read a configuration with its replacements.

    Raises:
        SettingsError: the file or a replacement is wrong.
    """
    from streamway.settings import Settings

    pairs = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SettingsError(
                f"--set {override} is not KEY=VALUE.", next_step="Write it like --set model.revision=v2."
            )
        pairs[key] = value
    return Settings.load(config, overrides=pairs)


@contextlib.contextmanager
def environment_of(settings: "Settings", state_path: Path) -> Iterator[None]:
    """Point this process at where the settings say the work happens.

    A configuration with a `sandbox` section works on this machine: the sandbox is used if it is up, and otherwise
    started here and stopped at the end. Without that section, the environment is the user's own.
    """
    if settings.sandbox is None:
        yield
        return
    folder = state_path / "sandbox"
    started_here = not sandbox.status(folder).running
    if started_here:
        output.say("Starting the sandbox (the first time makes the engine's environment, which takes minutes)")
    config = sandbox_config(settings)
    try:
        sandbox.up(
            folder, config=config, owner_pid=os.getpid(), on_line=lambda line: output.say(f"  {line}", style="dim")
        )
        os.environ.update(sandbox.environment(folder))
        yield
    finally:
        if started_here:
            sandbox.down(folder)
            output.say("The sandbox has been stopped.", style="dim")


def sandbox_config(settings: "Settings") -> sandbox.SandboxConfig:
    """The sandbox that a configuration asks for.

    Raises:
        SettingsError: it has no `sandbox` section.
    """
    wanted = settings.sandbox
    if wanted is None:
        raise SettingsError(
            "This configuration has no `sandbox` section, so it works with the real services.",
            next_step="Use configs/sandbox.yaml, or add the section.",
        )
    return sandbox.SandboxConfig(
        buckets=tuple(sandbox.Bucket(name=bucket.name, location=bucket.location) for bucket in wanted.buckets),
        engine_image=wanted.engine_image,
        zone=wanted.zone,
        gpu_count=wanted.gpu_count,
        vertex=wanted.vertex,
        seed=wanted.seed == "real",
    )


def point_at_sandbox(settings: "Settings", state_path: Path) -> None:
    """Point this process at the sandbox, where the settings mean it; what is submitted must outlive this command."""
    if settings.sandbox is None:
        return
    folder = state_path.absolute() / "sandbox"
    found = sandbox.status(folder)
    if not found.running:
        raise SandboxError(
            f"No sandbox runs in {folder}, and what is submitted needs one that stays.",
            next_step="Start it with `streamway sandbox up`, or run the pipeline here with `streamway run`.",
        )
    if "vertex" not in {part.name for part in found.parts}:
        raise SandboxError(
            f"The sandbox in {folder} has no Vertex AI and no Kubeflow API to submit to.",
            next_step="Set sandbox.vertex to true, then `streamway sandbox down` and `streamway sandbox up`.",
        )
    os.environ.update(sandbox.environment(folder))
