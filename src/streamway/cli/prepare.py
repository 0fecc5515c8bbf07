"""`streamway prepare`: what must be there before the first run, as commands to read and to run."""

from pathlib import Path

import click

from streamway import server, storage
from streamway.cli.choices import plan_model, planned_server
from streamway.cli.configuration import environment_of, load_settings
from streamway.cli.options import config_argument, set_option, state_option
from streamway.server.groundwork import Ground, render_groundwork


@click.command()
@config_argument
@click.option("--standard", is_flag=True, help="A Standard cluster with a pool of GPU nodes, instead of Autopilot.")
@set_option
@state_option
def prepare(config: Path, standard: bool, overrides: tuple[str, ...], state_path: Path) -> None:
    """Print the commands that make what CONFIG needs: services, rights, cluster, nodes and bucket.

    Nothing is made by it. What is there already is left as it is by the script, which may be run again.
    """
    settings = load_settings(config, overrides)
    with environment_of(settings, state_path.absolute()):
        spec: server.ServerSpec = planned_server(settings, plan_model(settings))
    ground = Ground(
        cluster=settings.server.cluster,
        bucket=storage.bucket_of(settings.storage.release_root),
        standard=standard,
        secrets=bool(settings.model.token_secret or settings.watch.webhook_secret),
    )
    click.echo(render_groundwork(ground, spec), nl=False)
