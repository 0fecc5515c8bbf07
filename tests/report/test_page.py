"""The report tells the verdict first, holds everything itself, and lets no text of a model become markup."""

import re
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.report import RunJournal, StepRecord, render_page
from streamway.report.journal import STEPS
from streamway.report.page import format_bytes, format_seconds

RESULTS: dict[str, dict[str, Any]] = {
    "pull_model": {"model_id": "org/name", "commit_sha": "a" * 40, "licence": "mit", "size_bytes": 5, "moved_bytes": 5},
    "convert_weights": {"moved_bytes": 0},
    "upload_model": {"uri": "gs://bucket/org/name/sha/", "size_bytes": 2048, "moved_bytes": 0},
    "enable_cache": {"zones": [{"zone": "us-central1-a", "state": "running"}]},
    "deploy_server": {
        "namespace": "models",
        "service": "endpoint",
        "phases": [{"name": "streaming", "seconds": 2.5}, {"name": "warming", "seconds": 7.5}],
        "streamer": {"bytes": 2048, "seconds": 0.5},
    },
    "smoke_test": {
        "checks": [{"name": "model name", "ok": True, "expected": "m", "found": "m"}],
        "answers": [{"prompt": "Capital?", "text": "Paris"}],
        "metrics": {"ttft_seconds": 0.25},
    },
}


def journal_of(*names: str, **replaced: StepRecord) -> RunJournal:
    records = tuple(
        replaced.get(name)
        or StepRecord(name=name, status="succeeded", started="2026-01-01T00:00:00", seconds=2, result=RESULTS[name])
        for name in names
    )
    return RunJournal(run_uri="gs://bucket/.runs/one", records=records)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_success_says_first_that_the_model_serves() -> None:
    page = render_page(journal_of(*STEPS), state="SUCCEEDED")
    text = text_of(page.split("<main>")[1])
    assert text.strip().startswith("Serving org/name")
    assert "models/endpoint" in text
    assert "Paris" in text
    assert "Cold start, 10.0 s" in text
    assert "The streamer read 2.0 KiB in 0.5 s." in text


def test_a_failure_says_first_which_step_why_and_what_to_do() -> None:
    failed = StepRecord(
        name="deploy_server", status="failed", started="x", seconds=3,
        error={"problem": "0/1 nodes are available", "next_step": "Add a node."},
    )  # fmt: skip
    page = render_page(
        journal_of("pull_model", "convert_weights", "upload_model", "enable_cache", "deploy_server",
                   deploy_server=failed),
        state="FAILED",
    )  # fmt: skip
    text = text_of(page.split("<main>")[1])
    assert text.strip().startswith("Failed in Deploy org/name 0/1 nodes are available Next: Add a node.")
    assert "Smoke test not run" in text


def test_a_run_that_left_no_journal_still_has_a_page() -> None:
    text = text_of(render_page(RunJournal(run_uri="", records=()), state="FAILED"))
    assert "ended as FAILED" in text


def test_a_run_that_ended_badly_is_not_shown_as_serving() -> None:
    assert "Failed" in text_of(render_page(journal_of(*STEPS), state="FAILED").split("<main>")[1])[:20]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render_page(journal_of(*STEPS), state="SUCCEEDED")
    for tag, attributes in Tags(page).found:
        assert tag not in ("script", "link", "iframe", "img", "object")
        assert not {"src", "href", "onload", "onclick"} & set(attributes)
    assert "url(" not in page
    assert "@import" not in page


@settings(deadline=None, max_examples=60)
@given(
    st.text() | st.sampled_from(["<script>alert(1)</script>", '"><img src=x onerror=1>', "</style><b>", "&lt;i&gt;"])
)
def test_text_from_outside_never_becomes_markup(text: str) -> None:
    results = {**RESULTS, "pull_model": {**RESULTS["pull_model"], "model_id": text, "licence": text}}
    results["smoke_test"] = {
        "checks": [{"name": text, "ok": False, "expected": text, "found": text}],
        "answers": [{"prompt": text, "text": text}],
        "metrics": {text: 1.0},
    }
    records = tuple(
        StepRecord(name=name, status="succeeded", started="x", seconds=1, result=results[name]) for name in STEPS
    )
    plain_tags = [tag for tag, _ in Tags(render_page(journal_of(*STEPS), state="SUCCEEDED")).found]
    found = [tag for tag, _ in Tags(render_page(RunJournal(run_uri="", records=records), state="SUCCEEDED")).found]
    assert found == plain_tags


def test_sizes_and_durations_read_naturally() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1536) == "1.5 KiB"
    assert format_bytes(3 * 2**40) == "3.0 TiB"
    assert format_seconds(0.25) == "0.2 s"
    assert format_seconds(185) == "3 min 05 s"
