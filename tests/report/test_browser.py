"""The report as people meet it: in a real browser, wide and narrow, light and dark, in a frame, and under attack."""

from html import escape
from pathlib import Path

import pytest

from streamway import report
from tests.report.conftest import MODEL, Browser, hostile_run

WIDTHS = (1000, 390)
ATTACKS = (
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "</title></style></svg><svg onload=\"document.title='taken'\">",
    "'-alert(1)-' javascript:alert(1) <a href=javascript:alert(1) autofocus onfocus=alert(1)>",
    "\u202egnp.exe\u2066 \x00\x07\x1b[31m\ud800 &lt;b&gt; ]]> --> {{7*7}}",
    "endless" * 4000,
)


def page_of(run: Path, *, state: str) -> Path:
    report.finish_run(str(run), state=state)
    return run / "report.html"


def dark_background(browser: Browser) -> bool:
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) < 64


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["success", "failure"])
def test_the_page_fits_every_screen_and_is_silent(
    browser: Browser, request: pytest.FixtureRequest, tmp_path: Path, kind: str, width: int, dark: bool
) -> None:
    state = {"success": "SUCCEEDED", "failure": "FAILED"}[kind]
    page = page_of(request.getfixturevalue(kind), state=state)
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert dark_background(browser) is dark
    picture = tmp_path / f"{kind}-{width}-{'dark' if dark else 'light'}.png"
    browser.photograph(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_every_detail_opened_still_fits_a_phone(browser: Browser, success: Path) -> None:
    browser.open(page_of(success, state="SUCCEEDED"), width=390)
    closed = browser.evaluate("document.documentElement.scrollHeight")
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.evaluate("document.documentElement.scrollHeight") > closed + 1000
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_nothing_on_the_page_lies_over_something_else(browser: Browser, success: Path) -> None:
    browser.open(page_of(success, state="SUCCEEDED"), width=390)
    clipped = browser.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,p,dt,dd,td,th,.name,.value')]"
        ".filter(part => part.scrollWidth > part.clientWidth + 1).map(part => part.textContent)"
    )
    assert clipped == []


@pytest.mark.parametrize("attack", ATTACKS, ids=["script", "image", "closing", "links", "control", "endless"])
def test_hostile_text_stays_text(browser: Browser, tmp_path: Path, attack: str) -> None:
    page = page_of(hostile_run(tmp_path, attack), state="SUCCEEDED")
    browser.open(page, width=390)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("document.title").endswith(": serving")
    assert browser.evaluate("document.querySelectorAll('script, img, a, iframe, [onload], [onerror]').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    shown = browser.evaluate("document.querySelector('.answer').textContent")
    assert len(shown) < 1300
    if attack.startswith(("<", '"', "'")):
        assert shown == attack
    if "\u202e" in attack:
        assert shown == "[U+202E]gnp.exe[U+2066] \\x00\\x07\\x1b[31m\ufffd &lt;b&gt; ]]> --> {{7*7}}"


@pytest.mark.parametrize("kind", ["success", "failure"])
def test_the_page_can_be_read_in_a_frame_that_allows_nothing(
    browser: Browser, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    state = {"success": "SUCCEEDED", "failure": "FAILED"}[kind]
    inner = page_of(request.getfixturevalue(kind), state=state).read_text()
    outer = tmp_path / "console.html"
    outer.write_text(
        "<!doctype html><title>console</title><body style='margin:0'>"
        f'<iframe sandbox style="border:0;width:100%;height:4000px" srcdoc="{escape(inner)}"></iframe>'
    )
    browser.open(outer, width=800)
    text = browser.laid_out_text()
    assert {"success": "Serving", "failure": "Failed in Deploy"}[kind] in text
    assert MODEL in text
    assert "Timeline" in text
    assert browser.complaints() == []
    browser.photograph(tmp_path / f"framed-{kind}.png")


def test_pictures_have_names_for_those_who_cannot_see_them(browser: Browser, success: Path) -> None:
    browser.open(page_of(success, state="SUCCEEDED"), width=1000)
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    pictures = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "image"]
    begin = "stop old revision 20.1 s, schedule 2.1 s, pull image 0.2 s, prepare pod 0.1 s"
    phases = f"{begin}, start engine 40.6 s, stream weights 0.8 s, initialise engine 4.9 s"
    assert f"This run: {phases}" in pictures
    assert f"19 Nov 18:00: {phases}" in pictures
    assert "How long 40 requests took, from 260 ms to 458 ms" in pictures
    headings = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "heading"]
    assert headings[0] == MODEL
    assert {"Model", "Conversion", "Anywhere Cache", "Questions and answers"} <= set(headings)
    captions = [node for node in tree if node.get("role", {}).get("value") == "table"]
    assert all(node["name"]["value"] for node in captions)
