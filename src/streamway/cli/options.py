"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

config_argument = click.argument("config", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace one setting, such as model.revision=v2; may be repeated.",
)
state_option = click.option(
    "--state",
    "state_path",
    type=click.Path(path_type=Path),
    default=Path(".streamway"),
    show_default=True,
    help="Folder for the sandbox's state and for the reports of runs.",
)
memory_option = click.option(
    "--memory-mib", default=256, show_default=True, type=click.IntRange(min=32), help="Most memory for bytes in flight."
)
kfp_option = click.option("--kfp", "kfp_url", default="", metavar="URL", help="A Kubeflow API instead of Vertex AI.")
wait_options = (
    click.option("--wait", is_flag=True, help="Follow the run until it is over; exits with its outcome."),
    click.option("--timeout-minutes", default=24 * 60.0, show_default=True, help="Longest wait; the run goes on."),
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be asked for, and ask for nothing.")


def with_options(*options: Decorator) -> Decorator:
    """Add several options to a command, in order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
