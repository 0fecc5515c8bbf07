"""Figures and foreign text, made fit for a page.

What a model, a repository or a cluster has written is escaped, stripped of characters that move or hide other text,
and cut where it is endless; what a journal of another version holds is read for what it is worth.
"""

import math
import re
from html import escape
from typing import Any

MOST_CHARACTERS = 600
"""Of any text, where nothing else is said."""

_NEWLINES = re.compile(r"\n{3,}")
# Marks that reorder or isolate the text around them (Unicode Standard Annex #9), and so can fake what is read.
_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_REPLACED: dict[int, int | str] = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F) if chr(code) not in "\n\t"},
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), 0xFFFD),
    **{code: f"[U+{code:04X}]" for code in _BIDIRECTIONAL},
}
_MOST = 1e18
"""Beyond this a figure is a mistake."""


def show(value: Any, *, limit: int = MOST_CHARACTERS) -> str:
    """Write any value as text of a page: escaped, harmless and of bounded length."""
    text = _NEWLINES.sub("\n\n", str(value)[: 4 * limit].replace("\r\n", "\n"))
    more = len(str(value)) - limit
    if more > 0:
        text = f"{text[:limit].rstrip()}… ({more:,} more characters)"
    return escape(text.translate(_REPLACED))


def brief(value: Any, *, limit: int = 100) -> str:
    """Cut a name that should be short."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def number(value: Any) -> float:
    """Read a figure; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), _MOST))


def mapping(value: Any) -> dict[str, Any]:
    """Read an object; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any, *, most: int) -> list[dict[str, Any]]:
    """Read the first objects of a list; what is none is left out."""
    return [entry for entry in items(value, most=most) if isinstance(entry, dict)]


def items(value: Any, *, most: int) -> list[Any]:
    """Read the first entries of a list; none for what is no list."""
    return list(value[:most]) if isinstance(value, list | tuple) else []


def format_bytes(count: float) -> str:
    """Write a number of bytes with a binary unit, such as `256.6 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """Write a duration, such as `45.2 s` or `3 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def format_latency(seconds: float) -> str:
    """Write a short duration with what matters of it, such as `86 ms` or `1.25 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_dollars(amount: float) -> str:
    """Write an amount of money; the smallest ones as what they are beside a cent."""
    if 0 < amount < 0.01:
        return "less than 0.01 USD"
    return f"{amount:,.2f} USD"


def count(number_of: int, noun: str) -> str:
    """Write a number with its noun, such as `1 shard` or `1,204 tensors`."""
    return f"{number_of:,} {noun}" if number_of == 1 else f"{number_of:,} {noun}s"
