"""Results as lines for people; programs ask for --json."""

from streamway.hub import PullPlan
from streamway.report.page import format_bytes, format_seconds
from streamway.smoke import SmokeReport


def plan_lines(plan: PullPlan) -> list[str]:
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


def _estimate(plan: PullPlan) -> str:
    if not plan.move_bytes:
        return "nothing to wait for"
    return f"about {format_seconds(plan.seconds)}" if plan.bytes_per_second else "speed unknown"


def smoke_lines(report: SmokeReport) -> list[str]:
    """Describe what an endpoint was asked and how it did."""
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}" for check in report.checks]
    lines += [f"Asked     {answer.prompt}\nAnswered  {answer.text}" for answer in report.answers]
    return lines + [f"{name:28} {value:.3f}" for name, value in report.metrics.items()]
