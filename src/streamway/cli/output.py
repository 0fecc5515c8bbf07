"""What a person sees: narration on stderr, results on stdout, bars only where there is a terminal.

Much of it was written by others: names of files and tensors, licences, a pod's log. It must not move the cursor, turn
the text around or end the command because it cannot be encoded.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from streamway.storage.segments import Progress as ProgressCallback

console = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_INTERVAL_SECONDS = 5.0
_MISCHIEF = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but tabs and newlines, marks that change the direction of text, and halves of characters."""


def say(text: str, *, style: str = "") -> None:
    """Narrate one line on stderr."""
    console.print(escape(_harmless(text)), style=style or None)


def _harmless(text: str) -> str:
    """Write out what a terminal would obey."""
    return _MISCHIEF.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def show_error(problem: str, next_step: str) -> None:
    """Show an error: what is wrong, then what to do."""
    console.print(f"[bold red]Error:[/] {escape(_harmless(problem))}")
    if next_step:
        console.print(f"[bold]Next:[/] {escape(_harmless(next_step))}")


def give(result: Any, *, as_json: bool, lines: list[str]) -> None:
    """Put a result on stdout: as JSON for programs, as lines for people."""
    from streamway.report.journal import plain

    click.echo(json.dumps(plain(result), indent=1) if as_json else _harmless("\n".join(lines)))


@contextlib.contextmanager
def narrated() -> Iterator[None]:
    """Show what the rooms narrate."""
    logger = logging.getLogger("streamway")
    handler = _ConsoleHandler()
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"  {record.getMessage()}", style="yellow" if record.levelno >= logging.WARNING else "dim")


@contextlib.contextmanager
def progress(title: str) -> Iterator["ProgressCallback"]:
    """Show how far a transfer has come: a bar on a terminal, a line every few seconds elsewhere."""
    if not console.is_terminal:
        yield _LineProgress(title)
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(binary_units=True),
        rich_progress.TransferSpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _LineProgress:
    def __init__(self, title: str) -> None:
        self._title = title
        self._spoke = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._spoke >= LINE_INTERVAL_SECONDS:
            self._spoke = now
            share = 100 * done_bytes / total_bytes if total_bytes else 100
            say(f"{self._title}: {share:.0f}% of {total_bytes / 2**20:.0f} MiB")
