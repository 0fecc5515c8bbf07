"""`streamway upload`: a converted model published as a release."""

import click

from streamway import storage
from streamway.cli import output
from streamway.cli.options import json_option, memory_option
from streamway.report.words import format_bytes


@click.command()
@click.argument("weights_uri")
@click.argument("release_root")
@memory_option
@json_option
def upload(weights_uri: str, release_root: str, memory_mib: int, as_json: bool) -> None:
    """Publish the converted model in WEIGHTS_URI under RELEASE_ROOT, its manifest last."""
    with output.narrated(), output.progress("Upload") as on_progress:
        published = storage.upload_model(
            weights_uri=weights_uri, release_root=release_root, memory_bytes=memory_mib << 20, on_progress=on_progress
        )
    moved = f"{format_bytes(published.moved_bytes)} moved of {format_bytes(published.size_bytes)}"
    output.give(published, as_json=as_json, lines=[published.uri, moved])
