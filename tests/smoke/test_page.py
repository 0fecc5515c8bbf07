"""The report as a page."""

from dataclasses import replace
from html.parser import HTMLParser

from streamway.smoke import Answer, Check, SmokeReport, render_html

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
REPORT = SmokeReport(
    served_model_name="org/tiny",
    commit_sha="a" * 40,
    service="tiny",
    namespace="models",
    checks=(Check(name="answers", ok=False, expected="Paris", found=HOSTILE, seconds=0.5),),
    answers=(
        Answer(prompt=HOSTILE, kind="chat", text=HOSTILE, expect=HOSTILE, ok=False, streamed=True, seconds=1, tokens=3),
    ),
    metrics={"tokens_per_second": 12.345, "new_figure": 1.0},
    notes=(HOSTILE,),
)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(report: SmokeReport) -> Reader:
    reader = Reader()
    reader.feed(render_html(report))
    return reader


def test_text_from_a_model_stays_text() -> None:
    page = read(REPORT)

    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not [name for name, _value in page.attributes if name.startswith("on") or name in {"src", "href"}]
    assert page.text.count(HOSTILE) == 5


def test_the_verdict_comes_first() -> None:
    assert "Failed 1 of 1 checks" in read(REPORT).text
    good = replace(REPORT, checks=(replace(REPORT.checks[0], ok=True),))
    assert "Passed all 1 checks" in read(good).text


def test_unknown_figures_are_shown_too() -> None:
    assert "new figure" in read(REPORT).text


def test_an_empty_report_is_a_page_too() -> None:
    empty = replace(REPORT, checks=(), answers=(), metrics={}, notes=())

    assert "Smoke test of org/tiny" in read(empty).text
