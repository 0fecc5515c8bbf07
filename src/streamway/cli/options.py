"""Arguments that several commands share, and how a configuration becomes an environment."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from streamway import hub, sandbox, server
from streamway.cli import output
from streamway.errors import SettingsError
from streamway.settings import Settings

config_argument = click.argument("config", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
state_option = click.option(
    "--state",
    "state_path",
    type=click.Path(path_type=Path),
    default=Path(".streamway"),
    show_default=True,
    help="Folder for the sandbox's state and for the reports of runs.",
)


def set_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--set KEY=VALUE`, which replaces one setting for this command."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Replace one setting, such as model.revision=v2; may be repeated.",
    )(function)


def load_settings(config: Path, overrides: tuple[str, ...] = ()) -> Settings:
    """Read a configuration with its replacements.

    Raises:
        SettingsError: the file or a replacement is wrong.
    """
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
def environment_of(settings: Settings, state_path: Path) -> Iterator[None]:
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


def sandbox_config(settings: Settings) -> sandbox.SandboxConfig:
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


def plan_model(settings: Settings) -> hub.PullPlan:
    """What pulling the model of a configuration would take, as the Hub describes it now."""
    model = settings.model
    return hub.plan_pull(
        model_id=model.id,
        revision=model.revision,
        release_root=settings.storage.release_root,
        token=hub.read_token(model.token_secret),
        allowed_licences=model.allowed_licences,
        allow_remote_code=model.allow_remote_code,
    )


def planned_server(settings: Settings) -> server.ServerSpec:
    """The server that a run of a configuration would make, as the Hub describes its model now."""
    plan = plan_model(settings)
    return server.ServerSpec(
        release_uri=plan.release_uri,
        model_id=plan.model_id,
        commit_sha=plan.commit_sha,
        size_bytes=plan.size_bytes,
        **server_choices(settings),
    )


def server_choices(settings: Settings) -> dict[str, Any]:
    """What a configuration says of the server, as the server room takes it."""
    chosen = settings.server
    return {
        "name": chosen.name,
        "namespace": chosen.namespace,
        "image": chosen.image,
        "accelerator": chosen.accelerator,
        "gpu_count": chosen.gpu_count,
        "zone": settings.pod_zone,
        "engine_arguments": chosen.engine_arguments,
        "environment": chosen.environment,
        "warm_start": chosen.warm_start,
        "served_model_name": chosen.served_model_name,
        "service_account": chosen.service_account,
        "replicas": chosen.replicas,
        "max_replicas": chosen.max_replicas,
        "spot": chosen.spot,
        "node_selector": chosen.node_selector,
        "tolerations": chosen.tolerations,
    }
