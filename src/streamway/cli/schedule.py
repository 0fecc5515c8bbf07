"""`streamway schedule`: the pipeline at set times, on Vertex AI or on a Kubeflow API with --kfp."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from streamway.cli import output
from streamway.cli.configuration import load_settings
from streamway.cli.options import (
    config_argument,
    dry_run_option,
    json_option,
    kfp_option,
    set_option,
    state_option,
    with_options,
)
from streamway.cli.service import connect, show_request, started
from streamway.cron import Cron
from streamway.launch.schedules import create_schedule, find_by_name
from streamway.launch.service import PipelineService, ScheduleRequest, ScheduleStatus


@click.group("schedule")
def schedule_group() -> None:
    """Schedules of the pipeline: made, paused, resumed and deleted.

    Each is read back and compared with what was asked for. A scheduled run of a model that has not changed moves
    nothing and changes nothing.
    """


@schedule_group.command("create")
@with_options(config_argument, click.argument("cron"), set_option, state_option, kfp_option)
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name, such as Europe/Berlin.")
@click.option("--name", default="", help="Its name; the endpoint's by default.")
@click.option("--end", default="", help="RFC 3339 time after which nothing is started.")
@dry_run_option
@json_option
def schedule_create(
    config: Path,
    cron: str,
    overrides: tuple[str, ...],
    state_path: Path,
    kfp_url: str,
    time_zone: str,
    name: str,
    end: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run CONFIG's pipeline at the times of CRON, such as '30 4 * * mon-fri'."""
    settings = load_settings(config, overrides)
    parsed = Cron.parse(cron, zone=time_zone)
    for moment in parsed.upcoming(datetime.now(UTC), 3):
        output.say(f"  would fire at {moment:%Y-%m-%d %H:%M} UTC", style="dim")
    with started(settings, state_path, "serve_model", settings.parameters(), kfp_url) as (service, run):
        if dry_run:
            show_request(service, run, as_json=as_json)
            return
        request = ScheduleRequest(name=name or settings.server.name, cron=parsed, run=run, end=end)
        location = "" if kfp_url else settings.launch.location
        created = create_schedule(service, request, location=location)
    output.give(created, as_json=as_json, lines=_schedule_lines(created))


@schedule_group.command("list")
@with_options(config_argument, set_option, state_option, kfp_option, json_option)
def schedule_list(config: Path, overrides: tuple[str, ...], state_path: Path, kfp_url: str, as_json: bool) -> None:
    """List the schedules where CONFIG starts its runs."""
    service = connect(load_settings(config, overrides), state_path, kfp_url)
    found = service.list_schedules()
    lines = [
        f"{entry.state:10} {entry.name:30} {entry.cron:20} {entry.time_zone:20} next {_moment(entry.next_run)}"
        for entry in found
    ]
    output.give(found, as_json=as_json, lines=lines or [f"There are no schedules in {service.place}."])


def _changing(verb: str, help_text: str, change: Callable[[PipelineService, str, bool], None]) -> None:
    """Add a command that changes one schedule, and shows what it is afterwards."""
    options: list[Callable[..., Any]] = [
        config_argument,
        click.argument("name"),
        set_option,
        state_option,
        kfp_option,
        json_option,
    ]
    if verb == "resume":
        options.append(click.option("--catch-up", is_flag=True, help="Also start what was missed meanwhile."))

    @schedule_group.command(verb, help=help_text)
    @with_options(*options)
    def command(
        config: Path,
        name: str,
        overrides: tuple[str, ...],
        state_path: Path,
        kfp_url: str,
        as_json: bool,
        catch_up: bool = False,
    ) -> None:
        service = connect(load_settings(config, overrides), state_path, kfp_url)
        found = find_by_name(service, name)
        change(service, found.id, catch_up)
        after = service.find_schedule(found.id)
        lines = _schedule_lines(after) if after else [f"{found.name} is deleted; runs that it started stay."]
        output.give(after or {"deleted": found.id}, as_json=as_json, lines=lines)


_changing("pause", "Let the schedule NAME start nothing until it is resumed.", lambda s, i, _: s.pause_schedule(i))
_changing("resume", "Let the schedule NAME go on.", lambda s, i, catch_up: s.resume_schedule(i, catch_up=catch_up))
_changing("delete", "Delete the schedule NAME; its runs stay.", lambda s, i, _: s.delete_schedule(i))


def _moment(text: str) -> str:
    """Write when a schedule fires next; services say it in UTC, whatever the schedule's own zone is."""
    return f"{text[:16].replace('T', ' ')} UTC" if text else "never"


def _schedule_lines(found: ScheduleStatus) -> list[str]:
    return [
        f"Schedule  {found.name} ({found.id}), {found.state}",
        f"Fires     {found.cron} in {found.time_zone}; next {_moment(found.next_run)}",
        f"Runs as   {found.service_account or 'the default account of the service'}",
        f"Page      {found.page}",
    ]
