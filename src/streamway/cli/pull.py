"""`streamway pull`: a model from the Hub to its staging place, or the plan of that."""

from typing import Any

import click

from streamway import hub
from streamway.cli import output
from streamway.cli.options import json_option, memory_option
from streamway.errors import PolicyError
from streamway.report.words import format_bytes, format_seconds


@click.command()
@click.argument("model_id")
@click.argument("release_root")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--token-secret", default="", help="Secret Manager resource name of a Hub token.")
@click.option("--allow-licence", "allowed_licences", multiple=True, help="Licence that may be served; may be repeated.")
@click.option("--allow-remote-code", is_flag=True, help="Accept a model that brings its own Python code.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and move nothing.")
@memory_option
@json_option
def pull(model_id: str, release_root: str, dry_run: bool, memory_mib: int, as_json: bool, **choices: Any) -> None:
    """Pull MODEL_ID from the Hub to the staging place of RELEASE_ROOT (gs://BUCKET/PREFIX or a folder)."""
    wanted = {
        "model_id": model_id,
        "release_root": release_root,
        "revision": choices["revision"],
        "token": hub.read_token(choices["token_secret"]),
        "allowed_licences": choices["allowed_licences"],
        "allow_remote_code": choices["allow_remote_code"],
    }
    with output.narrated():
        if dry_run:
            plan = hub.plan_pull(**wanted)
            output.give(plan, as_json=as_json, lines=_plan_lines(plan))
            if plan.refused:
                raise PolicyError(plan.refused)
            return
        with output.progress("Pull") as on_progress:
            pulled = hub.pull_model(**wanted, memory_bytes=memory_mib << 20, on_progress=on_progress)
    lines = [
        f"{pulled.model_id} at {pulled.commit_sha} ({pulled.licence})",
        f"{format_bytes(pulled.moved_bytes)} moved of {format_bytes(pulled.size_bytes)}",
        pulled.uri,
    ]
    output.give(pulled, as_json=as_json, lines=lines)


def _plan_lines(plan: hub.PullPlan) -> list[str]:
    """Describe what a pull would do, file by file."""
    lines = [
        f"{plan.model_id} at {plan.commit_sha} ({plan.revision})",
        f"Licence   {plan.licence}{', gated' if plan.gated else ''}",
        f"Scan      {plan.scan}",
        f"Weights   {'pickled, to be converted' if plan.pickled else 'safetensors'}",
        f"Release   {plan.release_uri}{' (already published)' if plan.already_published else ''}",
        f"Moves     {format_bytes(plan.move_bytes)} of {format_bytes(plan.size_bytes)}, {_estimate(plan)}",
    ]
    if plan.remote_code:
        lines.append(f"Code      asked for by {', '.join(plan.remote_code)}")
    if plan.refused:
        lines.append(f"Refused   {plan.refused}")
    return lines + [f"  {file.path:44} {format_bytes(file.size_bytes):>10}  {file.state}" for file in plan.files]


def _estimate(plan: hub.PullPlan) -> str:
    if not plan.move_bytes:
        return "nothing to wait for"
    return f"about {format_seconds(plan.seconds)}" if plan.bytes_per_second else "speed unknown"
