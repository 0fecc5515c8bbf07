"""`streamway convert` and `streamway validate`: checkpoints made into safetensors, and safetensors judged."""

from dataclasses import asdict

import click

from streamway import weights
from streamway.cli import output
from streamway.cli.options import json_option, memory_option


@click.command()
@click.argument("source")
@click.argument("target")
@memory_option
@json_option
def convert(source: str, target: str, memory_mib: int, as_json: bool) -> None:
    """Convert the checkpoint in SOURCE to safetensors in TARGET; both are folders or gs:// prefixes.

    Pickles are read without being run, and every tensor of the result is proved equal to its source.
    """
    from streamway import hub  # judging alone needs no Hub

    with output.narrated(), output.progress("Convert") as on_progress:
        converted = weights.convert_weights(
            snapshot_uri=source,
            weights_uri=target,
            copy_unchanged=True,
            open_left=hub.open_left_files(),
            memory_bytes=memory_mib << 20,
            on_progress=on_progress,
        )
    output.give(converted, as_json=as_json, lines=weights.report_lines(converted))


@click.command()
@click.argument("uri")
@json_option
@click.pass_context
def validate(context: click.Context, uri: str, as_json: bool) -> None:
    """Judge the safetensors in URI, a folder or a gs:// prefix; exits with 34 when a server would fail on it."""
    found = weights.validate(uri)
    output.give({"ok": found.ok, **asdict(found)} if as_json else found, as_json=as_json, lines=found.lines())
    if not found.ok:
        context.exit(34)
