"""The report tells the verdict first, holds everything itself, and lets no text of a model become markup."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.report import RunJournal, StepRecord, UnreadableRecord, render_page
from streamway.report.journal import KNOWN_STEPS, STEPS
from streamway.report.page import format_bytes, format_seconds
from streamway.storage.kits import StartFigures, StoredKit

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


def kit_of(*later: float) -> StoredKit:
    return StoredKit(
        uri="gs://bucket/kit",
        sha256="0" * 64,
        size_bytes=36_000_000,
        generation=1,
        captured="2026-01-01T00:00:00Z",
        made_for={"accelerator": "nvidia-<b>", "gpu_count": 2, "image": "vllm/vllm-openai:v0.32.0"},
        first_start=StartFigures(pod="a", ready_seconds=160, weights_seconds=5.0, engine_seconds=60.0),
        later_starts=tuple(StartFigures(pod=str(s), ready_seconds=77, engine_seconds=s) for s in later),
    )


def test_the_first_start_is_compared_with_those_that_restored_its_kit() -> None:
    text = text_of(render_page(journal_of(*STEPS), state="SUCCEEDED", kits=[kit_of(11.0, 10.0)]))
    assert "Warm starts" in text
    assert "First, 2 x nvidia-&lt;b&gt;, vllm-openai:v0.32.0 5.0 s 1 min 00 s 2 min 40 s" in text
    assert "2 with its kit of 34.3 MiB, the latest — 10.0 s" in text
    assert "initialised its engine 50.0 s faster than the first" in text


def test_a_kit_that_nobody_has_restored_promises_nothing() -> None:
    text = text_of(render_page(journal_of(*STEPS), state="SUCCEEDED", kits=[kit_of()]))
    assert "A later pod of this release restores the engine" in text
    assert "faster" not in text


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(
        ["zones", "zone", "phases", "seconds", "checks", "answers", "metrics", "latencies_seconds", "report", "proof",
         "tensors", "shards", "files", "size_bytes", "moved_bytes", "cost", "manifest", "streamer", "ttl_seconds",
         "name", "aliases", "left_behind", "model_id", "price", "latency_p95_seconds", "namespace", "endpoint"]
    ), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from(KNOWN_STEPS), st.dictionaries(st.text(max_size=8), JSON) | JSON), max_size=6),
    st.sampled_from(["SUCCEEDED", "FAILED", "CANCELLED", ""]),
)
def test_no_record_whatever_its_shape_keeps_the_page_from_being_made(found: list[tuple[str, Any]], state: str) -> None:
    records = tuple(
        StepRecord(
            name=name, status="succeeded" if place % 2 else "failed", started="x", seconds=place,
            result=result if isinstance(result, dict) else {"zones": result, "phases": result, "metrics": result,
                                                            "report": result, "files": result, "answers": result},
            error=result if isinstance(result, dict) else {},
        )
        for place, (name, result) in enumerate(found)
    )  # fmt: skip
    page = render_page(RunJournal(run_uri="gs://b/.runs/r", records=records), state=state)
    page.encode()
    assert page.endswith("</html>\n")


def test_what_could_not_be_read_is_said() -> None:
    newer = StepRecord(name="pull_model", status="succeeded", started="", seconds=1, format_version=2)
    journal = RunJournal(
        run_uri="gs://b/.runs/r",
        records=(newer,),
        unreadable=(UnreadableRecord(name="upload_model", reason="it is not JSON"),),
    )
    text = text_of(render_page(journal, state="SUCCEEDED"))
    assert "The record of Upload cannot be read: it is not JSON." in text
    assert "The record of Pull is of another version" in text
    assert "Upload unreadable" in text
    assert "no step wrote why; the record of Upload cannot be read" in text_of(render_page(journal, state="FAILED"))


def test_a_run_whose_worker_was_killed_names_the_step_that_left_nothing() -> None:
    page = render_page(journal_of("pull_model", "convert_weights"), state="FAILED", message="exit code 137")
    text = text_of(page.split("<main>")[1])
    assert "ended as FAILED after Convert" in text
    assert "Upload never began to work" in text
    assert "exit code 137" in text
    assert "Next: Read the log" in text


def test_a_run_of_a_published_commit_does_not_claim_the_conversion() -> None:
    def text_with(already_published: bool) -> str:
        results = {
            "pull_model": {"commit_sha": "a" * 40, "revision": "a" * 40, "already_published": already_published},
            "convert_weights": {"report": {"format": "torch zip", "converted": True}},
        }
        records = {
            name: StepRecord(name=name, status="succeeded", started="", seconds=1, result=result)
            for name, result in results.items()
        }
        return text_of(render_page(journal_of(*records, **records), state="SUCCEEDED"))

    assert "Done and proved by the run that published this release." in text_with(True)
    assert "Done and proved" not in text_with(False)
    assert "asked for as" not in text_with(False)


def test_a_promotion_is_shown_as_what_it_is() -> None:
    result = {"uri": "gs://prod/org/name/sha/", "size_bytes": 2048, "moved_bytes": 0, "copied_bytes": 2048,
              "promoted_from": "gs://staging", "required_stages": ["staging", "canary"],
              "manifest": {"model_id": "org/name", "commit_sha": "b" * 40, "licence": "mit"}}  # fmt: skip
    promoted = StepRecord(name="promote_release", status="succeeded", started="", seconds=1, result=result)
    journal = journal_of("promote_release", "deploy_server", "smoke_test", promote_release=promoted)
    text = text_of(render_page(journal, state="SUCCEEDED").split("<main>")[1])
    assert text.strip().startswith("Serving org/name")
    assert "b" * 40 in text
    assert "Promoted from gs://staging, where it has passed staging, canary" in text
    assert "2.0 KiB were copied where they lay" in text
    assert "Promote 2.0 s" not in text
    assert "Convert" not in text


def test_a_page_says_how_to_ask_what_serves() -> None:
    result = {"endpoint": "smollm2", "namespace": "models", "port": 8000, "served_model_name": "org/name"}
    deployed = StepRecord(name="deploy_server", status="succeeded", started="", seconds=1, result=result)
    text = text_of(render_page(journal_of("deploy_server", deploy_server=deployed), state="SUCCEEDED"))
    assert "In the cluster it is at http://smollm2.models.svc:8000/v1 as the model org/name" in text
    assert "kubectl port-forward -n models service/smollm2 8000" in text
    without = StepRecord(name="deploy_server", status="succeeded", started="", seconds=1)
    assert "In the cluster" not in text_of(
        render_page(journal_of("deploy_server", deploy_server=without), state="SUCCEEDED")
    )


def test_a_retirement_says_what_went() -> None:
    plan = {"name": "endpoint", "namespace": "models", "deployments": ["endpoint-1"], "releases": [], "zones": ["z-a"],
            "forgets_starts": True}  # fmt: skip
    record = StepRecord(name="plan_retirement", status="succeeded", started="", seconds=1, result=plan)
    text = text_of(
        render_page(journal_of("plan_retirement", plan_retirement=record), state="SUCCEEDED").split("<main>")[1]
    )
    assert text.strip().startswith("Retired models/endpoint")
    assert "What goes Servers endpoint-1" in text
    assert "History what was kept of earlier starts" in text
    assert "Pull" not in text


def test_a_retirement_that_is_over_says_what_stays_and_why() -> None:
    plan = {"name": "endpoint", "namespace": "models", "deployments": [], "releases": ["gs://b/o/m/1", "gs://b/o/m/2"],
            "zones": ["z-a"], "stays": ["gs://b/o/m/3"], "in_use": ["gs://b/o/m/4"], "unseen": ["team-b"]}  # fmt: skip
    gone = {"zones": [{"zone": "z-a", "state": "absent", "action": "removed", "ttl_seconds": 86400}]}
    records = {
        name: StepRecord(name=name, status="succeeded", started="", seconds=1, result=result)
        for name, result in {"plan_retirement": plan, "retire_cache": gone}.items()
    }
    text = text_of(render_page(journal_of(*records, **records), state="SUCCEEDED"))
    assert "What went Releases gs://b/o/m/1 gs://b/o/m/2" in text
    assert "What stays Older releases gs://b/o/m/3 Served elsewhere gs://b/o/m/4 Not looked at team-b" in text
    assert "z-a absent removed —" in text


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_letters_and_pictures_stand_out_from_what_is_behind_them(scheme: int) -> None:
    style = files("streamway.report").joinpath("page.css").read_text()
    colours = dict(
        re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", style.split("@media (prefers-color-scheme: dark)")[scheme])
    )
    for letters in ("ink", "dim", "good", "bad", "accent"):
        for behind in ("paper", "faint"):
            assert contrast(colours[letters], colours[behind]) >= 4.5, (letters, behind)
    for shape in ("plain", "stop", "schedule", "image", "prepare", "engine", "weights", "initialise", "other"):
        assert contrast(colours[shape], colours["paper"]) >= 3, shape


def test_endless_text_is_cut_and_says_so() -> None:
    long = StepRecord(
        name="smoke_test", status="succeeded", started="", seconds=1,
        result={"answers": [{"prompt": "p", "text": "a" * 10**6}] * 10**4, "checks": [{"name": "n" * 10**6}] * 10**4},
    )  # fmt: skip
    page = render_page(journal_of(*STEPS, smoke_test=long), state="SUCCEEDED")
    assert len(page) < 300_000
    assert "more characters)" in page
