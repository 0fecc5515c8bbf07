"""The smoke test as one page that needs nothing else: no script, no font, no picture from anywhere."""

from html import escape

from streamway.smoke.report import Answer, Check, SmokeReport

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6470; --line: #d5dae0; --back: #ffffff;
  --good: #1a7f43; --bad: #c0262d; --soft: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --dim: #9aa4b0; --line: #343b44; --back: #14171b;
  --good: #4cc47c; --bad: #ff6b70; --soft: #1d2127; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 700; } .good { color: var(--good); } .bad { color: var(--bad); }
.dim { color: var(--dim); } ul.plain { list-style: none; margin: 0; padding: 0; }
ul.plain > li { border-top: 1px solid var(--line); padding: .6rem 0; }
.row { display: flex; gap: .75rem; justify-content: space-between; align-items: baseline; }
.row .dim { white-space: nowrap; } pre { margin: .4rem 0 0; padding: .6rem; background: var(--soft);
  border-radius: .4rem; white-space: pre-wrap; font: .9rem/1.45 ui-monospace, monospace; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; margin: 0; }
dl div { background: var(--soft); border-radius: .4rem; padding: .6rem; } dt { color: var(--dim); font-size: .85rem; }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
"""

_METRIC_NAMES = {
    "first_token_seconds": ("time to first token", "s"),
    "tokens_per_second": ("tokens a second", ""),
    "latency_p50_seconds": ("latency, median", "s"),
    "latency_p95_seconds": ("latency, 95 of 100", "s"),
    "requests_per_second": ("requests a second", ""),
    "load_requests": ("requests under load", ""),
    "max_model_len": ("context, tokens", ""),
}


def render_html(report: SmokeReport) -> str:
    """Render a report as one HTML page; everything that a model or a repository wrote is escaped."""
    parts = [
        f"<h1>Smoke test of {escape(report.served_model_name)}</h1>",
        _verdict(report),
        *(f'<p class="dim">{escape(note)}</p>' for note in report.notes),
        "<h2>Figures</h2>" + _metrics(report) if report.metrics else "",
        '<h2>Checks</h2><ul class="plain">' + "".join(map(_check, report.checks)) + "</ul>",
        '<h2>Answers</h2><ul class="plain">' + "".join(map(_answer, report.answers)) + "</ul>"
        if report.answers
        else "",
    ]
    title = f"{report.served_model_name}: smoke test {report.verdict}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _verdict(report: SmokeReport) -> str:
    tone = "good" if report.passed else "bad"
    failed = len(report.failures)
    words = (
        f"passed all {len(report.checks)} checks"
        if report.passed
        else (f"failed {failed} of {len(report.checks)} checks")
    )
    return (
        f'<p><span class="verdict {tone}">{words[0].upper()}{words[1:]}</span> '
        f'<span class="dim">Service {escape(report.namespace)}/{escape(report.service)}'
        f"{', commit ' + escape(report.commit_sha) if report.commit_sha else ''}</span></p>"
    )


def _metrics(report: SmokeReport) -> str:
    cells = []
    for name, value in report.metrics.items():
        label, unit = _METRIC_NAMES.get(name, (name.replace("_", " "), ""))
        cells.append(f"<div><dt>{escape(label)}</dt><dd>{value:,.4g}{f' {unit}' if unit else ''}</dd></div>")
    return f"<dl>{''.join(cells)}</dl>"


def _check(check: Check) -> str:
    mark, tone = ("✓", "good") if check.ok else ("✗", "bad")
    detail = "" if check.ok else f"<pre>expected: {escape(check.expected)}\nfound:    {escape(check.found)}</pre>"
    return (
        f'<li><div class="row"><span><span class="{tone}" aria-hidden="true">{mark}</span> {escape(check.name)}'
        f'{"" if check.ok else " — failed"}</span><span class="dim">{check.seconds:.2f} s</span></div>{detail}</li>'
    )


def _answer(answer: Answer) -> str:
    how = f"{answer.kind}, streamed" if answer.streamed else answer.kind
    tokens = f", {answer.tokens} tokens" if answer.tokens else ""
    text = answer.text if answer.kind != "embedding" else f"{answer.text[:120]} …"
    wanted = f'<span class="dim">expected: {escape(answer.expect)}</span>' if answer.expect else ""
    return (
        f'<li><div class="row"><span>{escape(answer.prompt)}</span>'
        f'<span class="dim">{escape(how)}{tokens}, {answer.seconds:.2f} s</span></div>'
        f'<pre class="{"" if answer.ok else "bad"}">{escape(text) or "(nothing)"}</pre>{wanted}</li>'
    )
