"""`streamway cache`: the Anywhere Caches of a bucket, as they should be."""

import click

from streamway import cache as cache_room
from streamway.cli import output
from streamway.cli.options import json_option


@click.command()
@click.argument("bucket")
@click.argument("zones", nargs=-1, required=True)
@click.option("--ttl-hours", default=24.0, show_default=True, help="How long an entry lives, 1 to 168.")
@click.option("--ingest-on-write", is_flag=True, help="Fill the cache by uploads, instead of first reads.")
@click.option("--wait", type=click.Choice(["none", "running"]), default="none", show_default=True)
@click.option("--timeout-seconds", default=7200.0, show_default=True, help="Longest wait.")
@json_option
def cache(
    bucket: str,
    zones: tuple[str, ...],
    ttl_hours: float,
    ingest_on_write: bool,
    wait: str,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Create, update or resume the Anywhere Cache of BUCKET in each of ZONES."""
    with output.narrated():
        enabled = cache_room.enable_cache(
            bucket=bucket,
            zones=zones,
            ttl_seconds=int(ttl_hours * 3600),
            ingest_on_write=ingest_on_write,
            wait=wait,
            timeout_seconds=timeout_seconds,
        )
    output.give(enabled, as_json=as_json, lines=[f"{zone.zone}  {zone.state}" for zone in enabled.zones])
