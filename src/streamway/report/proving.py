"""The two sections with pictures that compare: how the server started, and how it answered."""

from collections.abc import Mapping, Sequence
from typing import Any

from streamway.report.history import EndpointStart, describe_start
from streamway.report.journal import RunJournal
from streamway.report.parts import paragraph, row, rows, section, table
from streamway.report.pictures import dots, line_key, stack, swatch
from streamway.report.sections import middle, result_of, when
from streamway.report.words import (
    count,
    format_bytes,
    format_latency,
    format_seconds,
    items,
    mapping,
    mappings,
    number,
    show,
)
from streamway.storage.kits import StartFigures, StoredKit

_PHASES = {
    "stop old revision": "stop",
    "schedule": "schedule",
    "pull image": "image",
    "prepare pod": "prepare",
    "start engine": "engine",
    "stream weights": "weights",
    "initialise engine": "initialise",
}
"""CSS class of each phase's colour."""

_SECONDS, _RATE, _COUNT = "seconds", "rate", "count"
_METRICS = {
    "first_token_seconds": ("Time to first token", _SECONDS),
    "tokens_per_second": ("Tokens a second", _RATE),
    "latency_p50_seconds": ("Latency, median", _SECONDS),
    "latency_p95_seconds": ("Latency, 95 of 100 below", _SECONDS),
    "requests_per_second": ("Requests a second", _RATE),
    "load_requests": ("Requests of the load", _COUNT),
    "max_model_len": ("Context, in tokens", _COUNT),
}
_MOST_ANSWERS, _MOST_CHECKS, _MOST_LATENCIES, _MOST_METRICS = 40, 80, 2000, 30
_ANSWER_CHARACTERS = 1200
_MOST_KITS = 6


def cold_start(journal: RunJournal, earlier: Sequence[EndpointStart]) -> str:
    """The start of the server, split into its phases, beside the starts before it."""
    start = describe_start(journal)
    if start is None:
        return _no_start(journal, earlier)
    starts = [("This run", start), *((when(other), other) for other in earlier)]
    return section(
        f"Cold start, {format_seconds(start.seconds)}", _stacks(starts), _phases(start, earlier), _streamed(journal)
    )


def warm_starts(kits: Sequence[StoredKit]) -> str:
    """What the engine's kept cache saves: the start that made it beside the latest that restored it.

    Args:
        kits: Those of the release, in any order.
    """
    lines = []
    for kit in sorted(kits, key=lambda kit: kit.captured)[-_MOST_KITS:]:
        lines.append([f"First, {show(_made_for(kit))}", *_start_cells(kit.first_start)])
        if kit.later_starts:
            restored = f"{len(kit.later_starts)} with its kit of {format_bytes(kit.size_bytes)}, the latest"
            lines.append([restored, *_start_cells(kit.later_starts[-1])])
    if not lines:
        return ""
    heads = ["Start", "Weights", "Engine", "Ready"]
    saved = [kit.saved_seconds for kit in kits if kit.saved_seconds is not None]
    told = (
        f"The latest start with a kit initialised its engine {format_seconds(saved[-1])} faster than the first."
        if saved and saved[-1] > 0
        else "A later pod of this release restores the engine's cache, and is shown here once it has."
    )
    return section("Warm starts", table("First and later starts", heads, lines, figures=3), paragraph(told, "aside"))


def _made_for(kit: StoredKit) -> str:
    told = kit.made_for
    return f"{told.get('gpu_count', 1)} x {told.get('accelerator', 'any')}, {str(told.get('image', '')).split('/')[-1]}"


def _start_cells(start: StartFigures) -> list[str]:
    figures = (start.weights_seconds, start.engine_seconds, start.ready_seconds)
    return ["—" if seconds is None else format_seconds(seconds) for seconds in figures]


def _no_start(journal: RunJournal, earlier: Sequence[EndpointStart]) -> str:
    record = journal.record("deploy_server")
    if record is None or (record.status != "succeeded" and not earlier):
        return ""
    if record.status == "succeeded":
        title, said = "Cold start", "Nothing had to start: the server was ready already."
    else:
        title, said = "Earlier cold starts", f"The server did not become ready in {format_seconds(record.seconds)}."
    if not earlier:
        return section(title, paragraph(said))
    before = _stacks([(when(other), other) for other in earlier])
    return section(title, paragraph(f"{said} Starts that came to serve before:"), before, _phases(None, earlier))


def _phases(start: EndpointStart | None, earlier: Sequence[EndpointStart]) -> str:
    """The figures of each phase, which are also the key to the colours of the stacks."""
    starts = [*([start] if start else []), *earlier]
    names = list(dict.fromkeys(name for other in starts for name, _ in other.phases))
    heads = [*(["This run"] if start else []), *(["Median before"] if earlier else [])]
    lines = [_phase_line(name, start, earlier) for name in names]
    return table("Phases of the cold start", ("Phase", *heads), lines, figures=len(heads))


def _stacks(starts: Sequence[tuple[str, EndpointStart]]) -> str:
    scale = max(start.seconds for _, start in starts) or 1.0
    return rows(_stack(title, start, scale) for title, start in starts)


def _stack(title: str, start: EndpointStart, scale: float) -> str:
    parts = [(_tone(name), seconds, f"{name} {format_seconds(seconds)}") for name, seconds in start.phases]
    told = f"{title}: {', '.join(words for _, _, words in parts)}"
    return row(show(title), stack(parts, scale, told), format_seconds(start.seconds))


def _tone(name: str) -> str:
    return _PHASES.get(name, "other")


def _phase_line(name: str, start: EndpointStart | None, earlier: Sequence[EndpointStart]) -> list[str]:
    line = [f"{swatch(_tone(name))} {show(name)}"]
    if start:
        own = dict(start.phases)
        line.append(format_seconds(own[name]) if name in own else "—")
    if earlier:
        line.append(format_seconds(middle([dict(other.phases).get(name, 0.0) for other in earlier])))
    return line


def _streamed(journal: RunJournal) -> str:
    figures = mapping(result_of(journal, "deploy_server").get("streamer"))
    if not figures:
        return ""
    size, seconds = number(figures.get("bytes")), number(figures.get("seconds"))
    read = f"{format_bytes(size)} in {format_seconds(seconds)}" if size else f"the weights in {format_seconds(seconds)}"
    rate = number(figures.get("gib_per_second"))
    return paragraph(f"The streamer read {read}{f', {rate:.2f} GiB/s' if rate else ''}.", "aside")


def answers(journal: RunJournal) -> str:
    """What the model was asked and what it answered."""
    proved = result_of(journal, "smoke_test")
    asked = mappings(proved.get("answers"), most=_MOST_ANSWERS)
    notes = "".join(paragraph(str(note), "aside") for note in items(proved.get("notes"), most=5))
    return section("Questions and answers", *map(_answer, asked), notes) if asked else ""


def _answer(answer: dict[str, Any]) -> str:
    how = [show(answer.get("kind", "asked"), limit=40)] + (["streamed"] if answer.get("streamed") else [])
    seconds, tokens = number(answer.get("seconds")), int(number(answer.get("tokens")))
    how += [format_latency(seconds)] if seconds else []
    how += [count(tokens, "token")] if tokens else []
    how += [f"expected {show(answer['expect'], limit=200)}"] if answer.get("expect") else []
    refused = answer.get("ok") is False
    how += ["not accepted"] if refused else []
    return (
        f'<article class="{"bad" if refused else "good"}"><h3>{show(answer.get("prompt", ""))}</h3>'
        f'<p class="answer">{show(answer.get("text", ""), limit=_ANSWER_CHARACTERS) or "(nothing)"}</p>'
        f'<p class="how">{", ".join(how)}</p></article>'
    )


def checks(journal: RunJournal) -> str:
    """Everything that was checked; what failed comes first."""
    done = mappings(result_of(journal, "smoke_test").get("checks"), most=_MOST_CHECKS)
    if not done:
        return ""
    failed = sum(check.get("ok") is not True for check in done)
    title = f"Checks, {failed} of {len(done)} failed" if failed else f"Checks, all {len(done)} passed"
    ordered = sorted(done, key=lambda check: check.get("ok") is True)
    return section(title, f'<ul class="checks">{"".join(map(_check, ordered))}</ul>')


def _check(check: dict[str, Any]) -> str:
    kind, word = ("good", "ok") if check.get("ok") is True else ("bad", "failed")
    found = show(check.get("found", ""), limit=300)
    if kind == "bad":
        found = f"expected {show(check.get('expected', ''), limit=300)}, found {found}"
    return (
        f'<li class="{kind}"><span class="mark">{word}</span>'
        f'<span>{show(check.get("name", ""), limit=200)}<span class="found">{found}</span></span></li>'
    )


def latency(journal: RunJournal, earlier: Sequence[EndpointStart]) -> str:
    """How long answers took, as a picture and as figures beside those of earlier runs."""
    proved = result_of(journal, "smoke_test")
    metrics = {str(name): number(value) for name, value in list(mapping(proved.get("metrics")).items())[:_MOST_METRICS]}
    if not metrics:
        return ""
    before = [start.metrics for start in earlier if start.metrics]
    heads = ("Figure", "This run", *(["Median before"] if before else []))
    figures = table(
        "Figures of the smoke test", heads, [_metric_line(name, metrics, before) for name in _in_order(metrics)],
        figures=len(heads) - 1,
    )  # fmt: skip
    return section("Latency", _distribution(proved, metrics), figures)


def _in_order(metrics: Mapping[str, float]) -> list[str]:
    return [name for name in _METRICS if name in metrics] + [name for name in metrics if name not in _METRICS]


def _metric_line(name: str, metrics: Mapping[str, float], before: Sequence[Mapping[str, float]]) -> list[str]:
    line = [show(_METRICS[name][0] if name in _METRICS else name, limit=80), _figure(name, metrics[name])]
    if before:
        known = [figures[name] for figures in before if name in figures]
        line.append(_figure(name, middle(known)) if known else "—")
    return line


def _figure(name: str, value: float) -> str:
    kind = _METRICS.get(name, ("", _RATE))[1]
    if kind == _SECONDS:
        return format_latency(value)
    return f"{value:,.0f}" if kind == _COUNT else f"{value:,.4g}"


def _distribution(proved: dict[str, Any], metrics: Mapping[str, float]) -> str:
    seconds = [number(value) for value in items(proved.get("latencies_seconds"), most=_MOST_LATENCIES)]
    if not seconds:
        return ""
    lines = {"p50": metrics.get("latency_p50_seconds", 0.0), "p95": metrics.get("latency_p95_seconds", 0.0)}
    marks = [(kind, place) for kind, place in lines.items() if place]
    words = {"p50": "the median", "p95": "95 of 100 are faster"}
    fastest, slowest = format_latency(min(seconds)), format_latency(max(seconds))
    told = f"How long {count(len(seconds), 'request')} took, from {fastest} to {slowest}"
    keys = "".join(f"<span>{line_key(kind)} {words[kind]}, {format_latency(place)}</span>" for kind, place in marks)
    return (
        f"<figure>{dots(seconds, marks, told)}<figcaption><span>Each dot is one of {count(len(seconds), 'request')}."
        f"</span>{keys}</figcaption></figure>"
    )
