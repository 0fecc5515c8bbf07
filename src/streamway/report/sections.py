"""The sections of the page, each from what the steps wrote; a section without anything to say is empty text."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from streamway.report.history import EndpointStart
from streamway.report.journal import RunJournal, StepRecord
from streamway.report.parts import definitions, paragraph, row, rows, section, table
from streamway.report.pictures import bar
from streamway.report.words import (
    brief,
    count,
    format_bytes,
    format_dollars,
    format_seconds,
    items,
    mapping,
    mappings,
    number,
    show,
)

TITLES = {
    "check_parameters": "Parameters",
    "pull_model": "Pull",
    "convert_weights": "Convert",
    "upload_model": "Upload",
    "enable_cache": "Cache",
    "deploy_server": "Deploy",
    "smoke_test": "Smoke test",
    "promote_release": "Promote",
    "plan_retirement": "Plan",
    "retire_server": "Server",
    "retire_cache": "Caches",
    "retire_releases": "Releases",
    "record_passage": "Gate",
}
_MOVING_STEPS = ("pull_model", "convert_weights", "upload_model", "promote_release")
_LEAST_GAP_SECONDS = 1.0
_MOST_TENSORS, _MOST_LINES = 200, 20
_MOST_ZONES = 40


def result_of(journal: RunJournal, name: str) -> dict[str, Any]:
    """Return what a step returned; nothing for one that left no record."""
    record = journal.record(name)
    return record.result if record else {}


def release_of(journal: RunJournal) -> dict[str, Any]:
    """Return the published release that the run made or took over."""
    return result_of(journal, "upload_model") or result_of(journal, "promote_release")


def model_of(journal: RunJournal) -> dict[str, Any]:
    """Return what is known of the model: id, commit, licence and source, from whichever step knows them."""
    deployed = result_of(journal, "deploy_server")
    known = [mapping(release_of(journal).get("manifest")), result_of(journal, "pull_model")]
    facts: dict[str, Any] = {"model_id": deployed.get("served_model_name"), "commit_sha": deployed.get("commit_sha")}
    for source in known:
        facts |= {
            key: source[key] for key in ("model_id", "commit_sha", "licence", "source", "revision") if key in source
        }
    return facts


def notices(journal: RunJournal) -> str:
    """Say what of the journal could not be read, and what only in part."""
    said = [
        f"The record of {TITLES.get(record.name, record.name)} cannot be read: {record.reason}."
        for record in journal.unreadable
    ]
    for record in journal.records:
        title = TITLES.get(record.name, record.name)
        if record.format_version != 1:
            said.append(f"The record of {title} is of another version; this page shows what it understands of it.")
        if record.shortened:
            said.append(f"The record of {title} was too long and has been shortened.")
    return f'<aside class="notice">{"".join(map(paragraph, said))}</aside>' if said else ""


def source(journal: RunJournal) -> str:
    """Where the model is from, and where it is now."""
    facts, published, pulled = model_of(journal), release_of(journal), result_of(journal, "pull_model")
    if not published and not pulled:
        return ""
    files = items(published.get("files") or pulled.get("files"), most=10**6)
    size = format_bytes(number(published.get("size_bytes")) or number(pulled.get("size_bytes")))
    in_files = f" in {count(len(files), 'file')}" if files else ""
    deployed = result_of(journal, "deploy_server")
    revision = facts.get("revision") if facts.get("revision") != facts.get("commit_sha") else ""
    lines = {
        "Source": facts.get("source") or "Hugging Face Hub",
        "Commit": f"{brief(facts.get('commit_sha', ''))}{f' (asked for as {brief(revision)})' if revision else ''}",
        "Licence": brief(facts.get("licence", "")),
        "Release": published.get("uri", "not published"),
        "Size": f"{size}{in_files}",
    }
    if published.get("promoted_from"):
        stages = ", ".join(map(str, items(published.get("required_stages"), most=_MOST_LINES)))
        passed = f", where it has passed {stages}" if stages else ""
        lines["Promoted"] = f"from {published['promoted_from']}{passed}"
    if deployed:
        named = {"revision ": deployed.get("revision"), "pod ": deployed.get("pod"), "node ": deployed.get("node")}
        lines["Server"] = ", ".join(f"{kind}{name}" for kind, name in named.items() if name)
    return section("Model", definitions(lines, "facts"))


def timeline(journal: RunJournal) -> str:
    """Every step of a run of this kind, where it lay in the whole."""
    if not journal.records:
        return ""
    began = _offsets(journal)
    total = max(began[record.name] + record.seconds for record in journal.records) or 1.0
    lines = []
    for name in journal.steps:
        record = journal.record(name)
        lines.append(_timeline_row(journal, name, record, began.get(name, 0.0), total))
    worked = sum(record.seconds for record in journal.records)
    waited = ""
    if total - worked >= _LEAST_GAP_SECONDS:
        waited = paragraph(
            f"The steps took {format_seconds(worked)}; between them {format_seconds(total - worked)} went by until "
            "the next one was started.",
            "aside",
        )
    return section(f"Timeline, {format_seconds(total)}", rows(lines), waited)


def _timeline_row(journal: RunJournal, name: str, record: StepRecord | None, began: float, total: float) -> str:
    title = show(TITLES.get(name, name))
    if record is None:
        unreadable = any(entry.name == name for entry in journal.unreadable)
        begun = any(entry.name == name for entry in journal.unfinished)
        words = "unreadable" if unreadable else "not ended" if begun else "not run"
        return row(title, bar("good", 0, 0, ""), words)
    kind = "good" if record.status == "succeeded" else "bad"
    words = (
        f"{TITLES.get(name, name)}, {record.status}: {format_seconds(record.seconds)}, from {format_seconds(began)} on"
    )
    took = format_seconds(record.seconds)
    return row(
        title, bar(kind, began / total, record.seconds / total, words), took if kind == "good" else f"failed, {took}"
    )


def _offsets(journal: RunJournal) -> dict[str, float]:
    """When each step began, after the first one; one after another where the journal does not say."""
    times = {record.name: _seconds_of(record.started) for record in journal.records}
    known = [when for when in times.values() if when is not None]
    if len(known) == len(times) and len(set(known)) == len(known):
        return {name: (when or 0.0) - min(known) for name, when in times.items()}
    offsets, passed = {}, 0.0
    for record in journal.records:
        offsets[record.name] = passed
        passed += record.seconds
    return offsets


def _seconds_of(started: str) -> float | None:
    try:
        when = datetime.fromisoformat(started)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def bytes_moved(journal: RunJournal) -> str:
    """Bytes that travelled, beside the bytes of the model."""
    published = release_of(journal)
    size = number(published.get("size_bytes")) or number(result_of(journal, "pull_model").get("size_bytes"))
    if not size:
        return ""
    steps = [name for name in _MOVING_STEPS if journal.record(name)]
    moved = {name: number(result_of(journal, name).get("moved_bytes")) for name in steps}
    total, copied = sum(moved.values()), number(published.get("copied_bytes"))
    top = max(size, *moved.values())
    lines = [row("In the model", bar("plain", 0, size / top, "the model"), format_bytes(size))]
    for name, amount in moved.items():
        title = f"{TITLES[name]} moved {format_bytes(amount)}"
        lines.append(row(show(TITLES[name]), bar("accent", 0, amount / top, title), format_bytes(amount)))
    if total:
        told = f"{format_bytes(total)} travelled in this run, {total / size:.2f} times the model."
    else:
        told = "Nothing travelled in this run."
    if copied:
        told += f" {format_bytes(copied)} were copied where they lay, without passing through a worker."
    if published.get("already_published") is True:
        told += " The release had been published before."
    return section("Bytes moved", rows(lines), paragraph(told, "aside"))


def proof(journal: RunJournal) -> str:
    """What the conversion did, and how it was proved."""
    converted = result_of(journal, "convert_weights")
    report = mapping(converted.get("report"))
    if not report:
        return ""
    proved = mapping(report.get("proof"))
    compared = int(number(proved.get("tensors_compared")))
    stored = count(int(number(report.get("tensors"))), "tensor")
    lines = {
        "Source": f"{report.get('format', 'unknown')}, {_what_was_done(report)}",
        "Stored": f"{stored}, {format_bytes(number(report.get('tensor_bytes')))}",
        "Compared": f"{count(compared, 'tensor')}, {format_bytes(number(proved.get('bytes_compared')))}"
        if compared
        else "nothing had to be",
        "Proof": proved.get("method", "none is recorded"),
    }
    earlier = result_of(journal, "pull_model").get("already_published") is True
    return section(
        "Conversion",
        paragraph("Done and proved by the run that published this release.") if earlier else "",
        definitions(lines, "facts"),
        _tensors(proved),
        _listed("Shards written", [
            f"{shard.get('path')}: {count(int(number(shard.get('tensors'))), 'tensor')}, "
            f"{format_bytes(number(shard.get('size_bytes')))}"
            for shard in mappings(report.get("shards"), most=10**6)
        ]),
        _listed("Tied tensors, stored once", [f"{a} is {b}" for a, b in mapping(report.get("aliases")).items()]),
        _listed("Left behind", [
            f"{entry.get('path')}: {entry.get('reason')}" for entry in mappings(report.get("left_behind"), most=10**6)
        ]),
        _listed("Notes", [str(note) for note in items(report.get("notes"), most=10**6)]),
    )  # fmt: skip


def _what_was_done(report: dict[str, Any]) -> str:
    if report.get("converted"):
        return "converted to safetensors"
    realigned = items(report.get("realigned"), most=10**6)
    return f"{count(len(realigned), 'shard')} written again, aligned" if realigned else "passed through as it was"


def _tensors(proved: dict[str, Any]) -> str:
    tensors = mapping(proved.get("tensors"))
    if not tensors:
        return ""
    lines = [(show(name, limit=160), show(words, limit=200)) for name, words in list(tensors.items())[:_MOST_TENSORS]]
    left = len(tensors) - len(lines)
    more = paragraph(f"{left:,} more are in the release's manifest.", "aside") if left else ""
    return (
        f"<details><summary>{count(len(tensors), 'tensor')}, each with its checksum</summary>"
        f"{table('Proof of each tensor', ('Tensor', 'Type, shape, file and crc32c, the same on both sides'), lines)}"
        f"{more}</details>"
    )


def _listed(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    drawn = "".join(f"<li>{show(line)}</li>" for line in lines[:_MOST_LINES])
    more = f"<li>and {len(lines) - _MOST_LINES:,} more</li>" if len(lines) > _MOST_LINES else ""
    return f"<h3>{show(title)}</h3><ul>{drawn}{more}</ul>"


def caches(journal: RunJournal) -> str:
    """The caches of the bucket, and what they cost."""
    cached = result_of(journal, "enable_cache") or result_of(journal, "retire_cache")
    if not cached:
        return ""
    zones = mappings(cached.get("zones"), most=_MOST_ZONES)
    cost = mapping(cached.get("cost"))
    note = str(cached.get("note", "")).partition(" Cost: ")[0]
    lines = [
        (show(zone.get("zone", "")), show(zone.get("state", "")), show(zone.get("action", "")), _life(zone))
        for zone in zones
    ]
    drawn = table("Caches", ("Zone", "State", "Done", "Entries live"), lines) if lines else ""
    return section("Anywhere Cache", drawn, paragraph(note, "aside") if note else "", _cost(cost) if cost else "")


def _life(zone: dict[str, Any]) -> str:
    hours = number(zone.get("ttl_seconds")) / 3600
    return f"{hours:g} h" if hours and zone.get("state") != "absent" else "—"


def _cost(cost: dict[str, Any]) -> str:
    held = f"{format_bytes(number(cost.get('size_bytes')))} in {count(int(number(cost.get('zones'))), 'zone')}"
    return definitions(
        {
            "Holding it": f"{format_dollars(number(cost.get('usd_a_month')))} a month for {held}, while it is cached",
            "Filling it": format_dollars(number(cost.get("ingest_usd"))),
            "Reckoned with": mapping(cost.get("price")).get("source", ""),
        },
        "facts",
    )


def retired(journal: RunJournal) -> str:
    """What a retirement took away."""
    plan = result_of(journal, "plan_retirement")
    if not plan:
        return ""
    named = {
        "Servers": plan.get("deployments"),
        "Releases": plan.get("releases"),
        "Cached zones": plan.get("zones"),
        "History": ["what was kept of earlier starts"] if plan.get("forgets_starts") else [],
    }
    kept = {
        "Older releases": plan.get("stays"),
        "Served elsewhere": plan.get("in_use"),
        "Not looked at": plan.get("unseen"),
    }
    done = journal.record(journal.steps[-1])
    over = done is not None and done.status == "succeeded"
    stays = section("What stays", _lists(kept)) if any(kept.values()) else ""
    return section("What went" if over else "What goes", _lists(named)) + stays


def _lists(named: Mapping[str, Any]) -> str:
    """List things by kind, each on a line of its own; a kind without any is left out."""
    lines = {kind: "\n".join(map(str, items(value, most=_MOST_LINES))) for kind, value in named.items() if value}
    return definitions(lines or {"Nothing": "nothing of it was there"}, "facts")


def middle(values: Sequence[float]) -> float:
    """Return the median of some figures."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def when(start: EndpointStart) -> str:
    """Write when a run began, such as `22 Nov 18:30`."""
    try:
        return f"{datetime.fromisoformat(start.started).astimezone(UTC):%d %b %H:%M}"
    except ValueError:
        return "earlier"
