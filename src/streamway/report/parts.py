"""The building blocks of the page: sections, rows, tables and lists of definitions, all from escaped text."""

from collections.abc import Iterable, Mapping, Sequence

from streamway.report.words import show


def section(title: str, *content: str) -> str:
    """Put content under a heading."""
    return f"<section><h2>{show(title)}</h2>{''.join(content)}</section>"


def definitions(rows: Mapping[str, object], kind: str = "") -> str:
    """List facts with their names; `kind` is a CSS class."""
    entries = "".join(f"<div><dt>{show(key)}</dt><dd>{show(value) or '—'}</dd></div>" for key, value in rows.items())
    return f'<dl class="{kind}">{entries}</dl>'


def row(name: str, track: str, value: str) -> str:
    """Put a name, a track and its figure on one line; the name may hold markup of our own."""
    return f'<div class="row"><span class="name">{name}</span>{track}<span class="value">{show(value)}</span></div>'


def rows(lines: Iterable[str]) -> str:
    """Put lines under each other."""
    return f'<div class="rows">{"".join(lines)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """Write a sentence."""
    return f'<p class="{kind}">{show(text)}</p>'


def table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[str]], figures: int = 0) -> str:
    """Draw a table whose cells are markup already; the last `figures` columns hold numbers."""
    split = len(heads) - figures

    def cells(line: Sequence[str]) -> str:
        first, *rest = line
        drawn = [f"<td{' class=figure' if place >= split else ''}>{cell}</td>" for place, cell in enumerate(rest, 1)]
        return f'<tr><th scope="row">{first}</th>{"".join(drawn)}</tr>'

    head = "".join(
        f'<th scope="col"{" class=figure" if place >= split else ""}>{show(name)}</th>'
        for place, name in enumerate(heads)
    )
    return (
        f'<table><caption class="unseen">{show(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(map(cells, lines))}</tbody></table>"
    )
