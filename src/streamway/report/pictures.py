"""Pictures as inline SVG, drawn from figures alone.

No picture has a fixed width: horizontal places are percentages of whatever column it stands in, so that dots stay
round and letters keep their size on a phone. Every picture says in a title what it shows; the figures stand beside it
as text.
"""

from collections import Counter
from collections.abc import Sequence

from streamway.report.words import format_latency, show

_BINS = 48
_DOTS_HEIGHT, _AXIS_Y, _PITCH = 84, 64, 9.0
_LEAST_SHARE = 0.006
"""A stretch of a few milliseconds stays visible."""


def bar(kind: str, start: float, share: float, title: str) -> str:
    """Draw a stretch of a track.

    Args:
        kind: CSS class of its colour.
        start: Where it begins, as a share of the track.
        share: How long it is, as a share of the track.
        title: What it shows.
    """
    return _track([(kind, start, share, title)], "track")


def stack(parts: Sequence[tuple[str, float, str]], scale: float, title: str) -> str:
    """Draw stretches one after another.

    Args:
        parts: CSS class, length and title of each.
        scale: Length of the whole track, in the same unit.
        title: What the picture shows, for whoever cannot see it.
    """
    placed, offset = [], 0.0
    for kind, length, own_title in parts:
        placed.append((kind, offset / scale, length / scale, own_title))
        offset += length
    return _track(placed, "track stack", title)


def _track(parts: Sequence[tuple[str, float, float, str]], classes: str, title: str = "") -> str:
    drawn = []
    for kind, start, share, own_title in parts:
        width = min(max(share, _LEAST_SHARE), 1.0) if share > 0 else 0.0
        x = min(max(start, 0.0), 1.0 - width)
        drawn.append(
            f'<rect class="{kind}" x="{100 * x:.2f}%" y="0" width="{100 * width:.2f}%" height="100%">'
            f"<title>{show(own_title)}</title></rect>"
        )
    # A track without a title says nothing that the words on its line do not say.
    role = f'role="img" aria-label="{show(title)}"' if title else 'aria-hidden="true"'
    return f'<svg class="{classes}" width="100%" height="14" {role}>{"".join(drawn)}</svg>'


def swatch(kind: str) -> str:
    """Draw a key to a colour."""
    return _key(f'<rect class="{kind}" width="10" height="10"/>')


def dots(seconds: Sequence[float], marks: Sequence[tuple[str, float]], title: str) -> str:
    """Draw a distribution of durations: a dot for each, stacked where they are alike.

    Args:
        seconds: The durations.
        marks: CSS class and place of each vertical line.
        title: What the picture shows, for whoever cannot see it.
    """
    top = 1.04 * max([*seconds, *(place for _, place in marks)], default=0.0) or 1.0
    piles = Counter(min(int(_BINS * value / top), _BINS - 1) for value in seconds)
    pitch = min(_PITCH, (_AXIS_Y - 4) / max(piles.values(), default=1))
    drawn = [
        f'<circle cx="{100 * (place + 0.5) / _BINS:.2f}%" cy="{_AXIS_Y - pitch * (level + 0.5):.1f}" '
        f'r="{pitch * 0.44:.2f}"/>'
        for place, height in sorted(piles.items())
        for level in range(height)
    ]
    lines = [
        f'<line class="{kind}" x1="{100 * place / top:.2f}%" x2="{100 * place / top:.2f}%" y1="0" y2="{_AXIS_Y}"/>'
        for kind, place in marks
    ]
    axis = (
        f'<line class="axis" x1="0" x2="100%" y1="{_AXIS_Y}" y2="{_AXIS_Y}"/>'
        f'<text x="0" y="{_DOTS_HEIGHT - 4}">0</text>'
        f'<text x="100%" y="{_DOTS_HEIGHT - 4}" text-anchor="end">{format_latency(top)}</text>'
    )
    return (
        f'<svg class="dots" width="100%" height="{_DOTS_HEIGHT}" role="img"><title>{show(title)}</title>'
        f"{''.join(lines)}{axis}{''.join(drawn)}</svg>"
    )


def line_key(kind: str) -> str:
    """Draw a key to a line."""
    return _key(f'<line class="{kind}" x1="5" x2="5" y1="0" y2="10"/>')


def _key(drawn: str) -> str:
    return f'<svg class="swatch" width="10" height="10" aria-hidden="true">{drawn}</svg>'
