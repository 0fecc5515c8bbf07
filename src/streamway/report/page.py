"""One page for one run: the verdict first, then what happened, with nothing loaded from anywhere else.

The page must be readable in the sandboxed frame of the Vertex AI console, by phone, in light and in dark, months
later. So it is a single file without scripts; pictures are inline SVG; every text from a model, a repository or a
cluster is escaped.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from streamway.report import proving, sections
from streamway.report.history import EndpointStart, describe_start
from streamway.report.journal import RETIREMENT_STEPS, RunJournal, StepRecord
from streamway.report.parts import definitions, paragraph
from streamway.report.sections import TITLES, model_of, release_of, result_of
from streamway.report.silence import explain_silence
from streamway.report.words import format_bytes, format_latency, format_seconds, mapping, number, show
from streamway.storage.kits import StoredKit

__all__ = ["TITLES", "format_bytes", "format_seconds", "render_page"]

_PROBLEM_CHARACTERS = 6000


def render_page(
    journal: RunJournal,
    *,
    state: str,
    message: str = "",
    earlier: Sequence[EndpointStart] = (),
    kits: Sequence[StoredKit] = (),
    resource: str = "",
) -> str:
    """Render the report of a run.

    Args:
        journal: What its steps wrote.
        state: How the pipeline ended, in the runner's word, such as SUCCEEDED.
        message: What the runner itself says of a failure.
        earlier: Earlier starts of the same endpoint, the newest first.
        kits: The engine's kept caches of the release that is served.
        resource: What the service calls the run.

    Returns:
        A complete HTML document.
    """
    drawn = [
        _verdict(journal, state, message, resource),
        sections.notices(journal),
        _key_figures(journal),
        sections.source(journal),
        sections.retired(journal),
        sections.timeline(journal),
        sections.bytes_moved(journal),
        proving.cold_start(journal, earlier),
        proving.warm_starts(kits),
        proving.answers(journal),
        proving.latency(journal, earlier),
        proving.checks(journal),
        sections.proof(journal),
        sections.caches(journal),
        _footer(journal),
    ]
    body = "\n".join(part for part in drawn if part)
    style = files("streamway.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"{show(_subject(journal), limit=100)}: {show(_word(journal, state, message).lower())}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _succeeded(journal: RunJournal, state: str) -> bool:
    return state == "SUCCEEDED" and journal.failed is None


def _subject(journal: RunJournal) -> str:
    plan = result_of(journal, "plan_retirement")
    if plan:
        return f"{plan.get('namespace', '')}/{plan.get('name', '')}"
    return str(model_of(journal).get("model_id") or journal.name or "This run")


def _word(journal: RunJournal, state: str, message: str) -> str:
    if _succeeded(journal, state):
        return "Retired" if journal.steps[0] in RETIREMENT_STEPS else "Serving"
    failed = journal.failed
    if failed is not None:
        return f"Failed in {TITLES.get(failed.name, failed.name)}"
    if state == "CANCELLED":
        return "Cancelled"
    silent = explain_silence(journal, state=state, message=message).step
    return f"Failed in {TITLES[silent]}" if silent and journal.unfinished else "Failed"


def _verdict(journal: RunJournal, state: str, message: str, resource: str) -> str:
    kind = "good" if _succeeded(journal, state) else "bad"
    said = _success(journal) if kind == "good" else _failure(journal, state, message, resource)
    return (
        f'<header class="{kind}"><p class="word">{show(_word(journal, state, message))}</p>'
        f"<h1>{show(_subject(journal), limit=100)}</h1>{said}</header>"
    )


def _success(journal: RunJournal) -> str:
    if journal.steps[0] in RETIREMENT_STEPS:
        return paragraph("The endpoint is gone, with what only it used.")
    deployed = result_of(journal, "deploy_server")
    name = f"{deployed.get('namespace', '')}/{deployed.get('endpoint') or deployed.get('service', '')}"
    return f"<p>The endpoint <code>{show(name)}</code> has answered correctly.</p>{_address(deployed)}"


def _address(deployed: Mapping[str, Any]) -> str:
    """Say how to ask the endpoint; nothing where the journal does not know it."""
    endpoint, namespace, port = (deployed.get(key) for key in ("endpoint", "namespace", "port"))
    if not (endpoint and namespace and port):
        return ""
    url = f"http://{endpoint}.{namespace}.svc:{port}/v1"
    return (
        f"<p>In the cluster it is at <code>{show(url)}</code> as the model "
        f"<code>{show(deployed.get('served_model_name', ''), limit=200)}</code>; from outside, after "
        f"<code>{show(f'kubectl port-forward -n {namespace} service/{endpoint} {port}')}</code>, at "
        f"<code>{show(f'http://127.0.0.1:{port}/v1')}</code>.</p>"
    )


def _failure(journal: RunJournal, state: str, message: str, resource: str) -> str:
    failed = journal.failed
    if failed is None:
        return _failure_without_words(journal, state, message, resource)
    error = failed.error
    problem = show(error.get("problem") or "The step left no reason.", limit=_PROBLEM_CHARACTERS)
    step = show(error.get("next_step") or "Read the step's log.", limit=_PROBLEM_CHARACTERS)
    return f'<div class="problem">{problem}</div><p class="next"><strong>Next:</strong> {step}</p>{_kind(failed)}'


def _kind(failed: StepRecord) -> str:
    kind, code = failed.error.get("kind"), failed.error.get("exit_code")
    if not kind:
        return ""
    return paragraph(f"{kind}, exit code {code}" if code is not None else str(kind), "aside")


def _failure_without_words(journal: RunJournal, state: str, message: str, resource: str) -> str:
    silence = explain_silence(journal, state=state, message=message, resource=resource)
    said = f'<div class="problem">{show(message, limit=_PROBLEM_CHARACTERS)}</div>' if message else ""
    return (
        f"{paragraph(silence.problem)}{said}"
        f'<p class="next"><strong>Next:</strong> {show(silence.next_step, limit=_PROBLEM_CHARACTERS)}</p>'
    )


def _key_figures(journal: RunJournal) -> str:
    start, metrics = describe_start(journal), mapping(result_of(journal, "smoke_test").get("metrics"))
    size = number(release_of(journal).get("size_bytes"))
    figures = {
        "Release": format_bytes(size) if size else "",
        "Cold start": format_seconds(start.seconds) if start else "",
        "First token": format_latency(number(metrics.get("first_token_seconds")))
        if "first_token_seconds" in metrics
        else "",
        "Tokens a second": f"{number(metrics.get('tokens_per_second')):.1f}" if "tokens_per_second" in metrics else "",
    }
    told = {name: figure for name, figure in figures.items() if figure}
    return definitions(told, "figures") if len(told) > 1 else ""


def _footer(journal: RunJournal) -> str:
    began = min((record.started for record in journal.records), default="")
    since = f", began {began[:19].replace('T', ' ')} UTC" if began[:4].isdigit() else ""
    told = paragraph(f"Run {journal.name or 'without a name'}{since}. Journal: {journal.run_uri or 'none'}")
    return f"<footer>{told}</footer>"
