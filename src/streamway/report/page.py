"""One page for one run: the verdict first, then what happened, with nothing loaded from anywhere else.

The page must be readable in the sandboxed frame of the Vertex AI console, by phone, in light and in dark, months
later. So it is a single file without scripts; pictures are inline SVG; every text from a model, a repository or a
cluster is escaped.
"""

from html import escape
from importlib.resources import files
from typing import Any

from streamway.report.journal import STEPS, RunJournal, StepRecord

TITLES = {
    "pull_model": "Pull",
    "convert_weights": "Convert",
    "upload_model": "Upload",
    "enable_cache": "Cache",
    "deploy_server": "Deploy",
    "smoke_test": "Smoke test",
}


def render_page(journal: RunJournal, *, state: str) -> str:
    """Render the report of a run.

    Args:
        journal: What its steps wrote.
        state: How the pipeline ended, in the runner's word, such as SUCCEEDED.

    Returns:
        A complete HTML document.
    """
    sections = [
        _verdict(journal, state),
        _source(journal),
        _timeline(journal),
        _bytes(journal),
        _start(journal),
        _caches(journal),
        _answers(journal),
    ]
    body = "\n".join(section for section in sections if section)
    style = files("streamway.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(f"{_model_name(journal)}: {'serving' if _succeeded(journal, state) else 'not serving'}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def format_bytes(count: float) -> str:
    """Write a number of bytes with a binary unit, such as `256.6 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """Write a duration, such as `45.2 s` or `3 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def _succeeded(journal: RunJournal, state: str) -> bool:
    return state == "SUCCEEDED" and journal.failed is None


def _result(journal: RunJournal, name: str) -> dict[str, Any]:
    record = journal.record(name)
    return record.result if record else {}


def _model_name(journal: RunJournal) -> str:
    return str(_result(journal, "pull_model").get("model_id", "The model"))


def _verdict(journal: RunJournal, state: str) -> str:
    if _succeeded(journal, state):
        deployed = _result(journal, "deploy_server")
        name = f"{deployed.get('namespace', '')}/{deployed.get('service', '')}"
        return (
            f'<header class="good"><p class="word">Serving</p><h1>{escape(_model_name(journal))}</h1>'
            f"<p>The endpoint <code>{escape(name)}</code> has answered correctly.</p></header>"
        )
    failed = journal.failed
    if failed is None:
        return (
            f'<header class="bad"><p class="word">Failed</p><h1>{escape(_model_name(journal))}</h1>'
            f"<p>The run ended as {escape(state)}, and no step wrote why: it was stopped from outside, or the journal "
            "could not be written. Read the log of the last task.</p></header>"
        )
    error = failed.error
    problem, step = escape(str(error.get("problem", ""))), escape(TITLES.get(failed.name, failed.name))
    return (
        f'<header class="bad"><p class="word">Failed in {step}</p><h1>{escape(_model_name(journal))}</h1>'
        f'<pre class="problem">{problem}</pre>'
        f"<p><strong>Next:</strong> {escape(str(error.get('next_step', '')))}</p></header>"
    )


def _source(journal: RunJournal) -> str:
    pulled, published = _result(journal, "pull_model"), _result(journal, "upload_model")
    if not pulled:
        return ""
    rows = {
        "Commit": pulled.get("commit_sha", ""),
        "Licence": pulled.get("licence", ""),
        "Release": published.get("uri", "not published"),
        "Size": format_bytes(float(published.get("size_bytes") or pulled.get("size_bytes") or 0)),
    }
    return _section("Model", _definitions(rows))


def _definitions(rows: dict[str, Any]) -> str:
    entries = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in rows.items())
    return f"<dl>{entries}</dl>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _timeline(journal: RunJournal) -> str:
    if not journal.records:
        return ""
    total = sum(record.seconds for record in journal.records) or 1.0
    rows, offset = [], 0.0
    for name in STEPS:
        record = journal.record(name)
        rows.append(_timeline_row(name, record, offset / total, total))
        offset += record.seconds if record else 0.0
    return _section(f"Timeline, {format_seconds(total)}", f'<div class="bars">{"".join(rows)}</div>')


def _timeline_row(name: str, record: StepRecord | None, start: float, total: float) -> str:
    title = f'<span class="name">{escape(TITLES[name])}</span>'
    if record is None:
        return f'<div class="row">{title}<span class="track"></span><span class="value">not run</span></div>'
    kind = "good" if record.status == "succeeded" else "bad"
    return (
        f'<div class="row">{title}{_bar(kind, start, record.seconds / total)}'
        f'<span class="value">{format_seconds(record.seconds)}</span></div>'
    )


def _bar(kind: str, start: float, share: float) -> str:
    # A step of a few milliseconds stays visible; nothing at all stays empty.
    x, width = 100 * start, max(100 * share, 0.4) if share else 0.0
    return (
        '<svg class="track" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-hidden="true">'
        f'<rect class="{kind}" x="{x:.2f}" y="0" width="{width:.2f}" height="10"/></svg>'
    )


def _bytes(journal: RunJournal) -> str:
    published = _result(journal, "upload_model")
    size = float(published.get("size_bytes") or 0)
    if not size:
        return ""
    steps = ("pull_model", "convert_weights", "upload_model")
    moved = {TITLES[name]: float(_result(journal, name).get("moved_bytes") or 0) for name in steps}
    top = max(size, *moved.values())
    rows = [_amount("In the model", size, top, "plain")]
    rows += [_amount(f"Moved by {name.lower()}", count, top, "good") for name, count in moved.items()]
    return _section("Bytes moved", f'<div class="bars">{"".join(rows)}</div>')


def _amount(name: str, count: float, top: float, kind: str) -> str:
    return (
        f'<div class="row"><span class="name">{escape(name)}</span>{_bar(kind, 0, count / top)}'
        f'<span class="value">{format_bytes(count)}</span></div>'
    )


def _start(journal: RunJournal) -> str:
    phases = _result(journal, "deploy_server").get("phases") or []
    if not phases:
        return ""
    total = sum(float(phase["seconds"]) for phase in phases) or 1.0
    rows, offset = [], 0.0
    for phase in phases:
        seconds = float(phase["seconds"])
        rows.append(
            f'<div class="row"><span class="name">{escape(str(phase["name"]))}</span>'
            f"{_bar('good', offset / total, seconds / total)}"
            f'<span class="value">{format_seconds(seconds)}</span></div>'
        )
        offset += seconds
    return _section(
        f"Cold start, {format_seconds(total)}", f'<div class="bars">{"".join(rows)}</div>{_streamer(journal)}'
    )


def _streamer(journal: RunJournal) -> str:
    figures = _result(journal, "deploy_server").get("streamer") or {}
    if not figures:
        return ""
    size, seconds = float(figures.get("bytes") or 0), float(figures.get("seconds") or 0)
    read = f"{format_bytes(size)} in {format_seconds(seconds)}" if size else f"the weights in {format_seconds(seconds)}"
    return f"<p>The streamer read {read}.</p>"


def _caches(journal: RunJournal) -> str:
    zones = _result(journal, "enable_cache").get("zones") or []
    if not zones:
        return ""
    return _section("Anywhere Cache", _definitions({zone["zone"]: zone.get("state", "") for zone in zones}))


def _answers(journal: RunJournal) -> str:
    smoke = _result(journal, "smoke_test")
    if not smoke:
        return ""
    rows = []
    for check in smoke.get("checks") or []:
        mark = "good" if check.get("ok") else "bad"
        rows.append(
            f'<tr class="{mark}"><th scope="row">{escape(str(check.get("name", "")))}</th>'
            f"<td>{escape(str(check.get('expected', '')))}</td><td>{escape(str(check.get('found', '')))}</td></tr>"
        )
    table = (
        '<div class="scroll"><table><thead><tr><th>Check</th><th>Expected</th><th>Found</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    asked = "".join(
        f"<blockquote><p>{escape(str(answer.get('prompt', '')))}{' (streamed)' if answer.get('streamed') else ''}</p>"
        f"<p><strong>{escape(str(answer.get('text', '')))}</strong></p></blockquote>"
        for answer in smoke.get("answers") or []
        if isinstance(answer, dict)
    )
    metrics = {key: f"{float(value):.3f}" for key, value in (smoke.get("metrics") or {}).items()}
    return _section("Smoke test", asked + table + (_definitions(metrics) if metrics else ""))
