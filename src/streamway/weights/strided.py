"""Strided views made into rows of bytes, in pieces of bounded size and without an array library.

A view is a box: an offset and (count, step) for each dimension. A big box is cut into pieces along its outer
dimensions, and a piece is gathered from windows of the file that are read whole. Elements move by slice assignment
between memoryviews, along the longest dimension of a piece, so the work in Python is small beside the copying.
"""

import array
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from streamway.storage.segments import ByteReader
from streamway.weights.windows import read_into

_WINDOW_BYTES = 2 * 1024 * 1024
_SKIP_BYTES = 64 * 1024
"""A gap longer than this is not worth reading over."""

_Format = Literal["B", "H", "I", "Q"]
_FORMATS: dict[int, _Format] = {1: "B", 2: "H", 4: "I", 8: "Q"}

Dimensions = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A strided view.

    Args:
        offset: Offset of its first element in the file.
        dimensions: (count, step in bytes), outermost first.
        element_bytes: Width of one element.
    """

    offset: int
    dimensions: Dimensions
    element_bytes: int

    @property
    def size_bytes(self) -> int:
        return math.prod(count for count, _ in self.dimensions) * self.element_bytes

    @property
    def span_bytes(self) -> int:
        return sum((count - 1) * step for count, step in self.dimensions) + self.element_bytes


def merge_dimensions(dimensions: Sequence[tuple[int, int]]) -> Dimensions:
    """Drop dimensions of one element and join those that step on where the next inner one ends."""
    merged: list[tuple[int, int]] = []
    for count, step in dimensions:
        if count == 1:
            continue
        if merged and merged[-1][1] == count * step:
            merged[-1] = (merged[-1][0] * count, step)
        else:
            merged.append((count, step))
    return tuple(merged)


def split_boxes(box: Box, piece_bytes: int) -> Iterator[Box]:
    """Cut a box into boxes of at most `piece_bytes` that follow each other in row order."""
    if box.size_bytes <= piece_bytes or not box.dimensions:
        yield box
        return
    (count, step), inner = box.dimensions[0], box.dimensions[1:]
    inner_bytes = math.prod(size for size, _ in inner) * box.element_bytes
    rows = max(1, piece_bytes // inner_bytes)
    for start in range(0, count, rows):
        taken = min(rows, count - start)
        outer = ((taken, step),) if taken > 1 else ()
        part = Box(offset=box.offset + start * step, dimensions=outer + inner, element_bytes=box.element_bytes)
        yield from split_boxes(part, piece_bytes)


def gather(reader: ByteReader, box: Box, swap_word_bytes: int = 1) -> bytes:
    """Return a box's elements as a row of bytes.

    Args:
        reader: The file.
        box: What to gather; its row must fit in memory.
        swap_word_bytes: Turn the bytes of every word of this width around; 1 leaves them.
    """
    row = bytearray(box.size_bytes)
    strides = _row_strides(box)
    buffer = memoryview(bytearray(min(_WINDOW_BYTES, box.span_bytes)))
    for part, at in _readable_parts(box, strides):
        window = buffer[: part.span_bytes]
        read_into(reader, part.offset, window)
        _scatter(window, row, part, strides, at)
    return _swapped(row, swap_word_bytes) if swap_word_bytes > 1 else bytes(row)


def _row_strides(box: Box) -> dict[int, int]:
    """Return, for each dimension by its position from the end, the step in the row of bytes."""
    steps: dict[int, int] = {}
    step = box.element_bytes
    for index, (count, _) in enumerate(reversed(box.dimensions)):
        steps[index] = step
        step *= count
    return steps


def _readable_parts(box: Box, strides: dict[int, int], at: int = 0) -> Iterator[tuple[Box, int]]:
    """Cut a box, along the dimension that reaches widest in the file, until one read can serve each part."""
    widest = max(range(len(box.dimensions)), key=lambda index: _reach(box.dimensions[index]), default=-1)
    count, step = box.dimensions[widest] if widest >= 0 else (1, 0)
    rest = box.span_bytes - (count - 1) * step
    gaps = step - rest > _SKIP_BYTES
    if count == 1 or (box.span_bytes <= _WINDOW_BYTES and not gaps):
        yield box, at
        return
    taken = 1 if gaps else min(count - 1, max(1, (_WINDOW_BYTES - rest) // step + 1))
    for start in range(0, count, taken):
        kept = (min(taken, count - start), step)
        dimensions = (*box.dimensions[:widest], kept, *box.dimensions[widest + 1 :])
        part = Box(offset=box.offset + start * step, dimensions=dimensions, element_bytes=box.element_bytes)
        yield from _readable_parts(part, strides, at + start * strides[len(box.dimensions) - 1 - widest])


def _reach(dimension: tuple[int, int]) -> int:
    count, step = dimension
    return (count - 1) * step


def _scatter(window: memoryview, row: bytearray, part: Box, strides: dict[int, int], at: int) -> None:
    """Copy a part's elements from the window that holds them to their places in the row."""
    width = part.element_bytes
    source, target = _as_elements(window, width), _as_elements(row, width)
    last = len(part.dimensions) - 1
    steps = [
        (count, step // width, strides[last - index] // width) for index, (count, step) in enumerate(part.dimensions)
    ]
    if not steps:
        target[at // width] = source[0]
        return
    longest = max(range(len(steps)), key=lambda index: steps[index][0])
    count, source_step, target_step = steps.pop(longest)
    base = at // width
    for position in itertools.product(*(range(size) for size, _, _ in steps)):
        source_at = sum(index * step for index, (_, step, _) in zip(position, steps, strict=True))
        target_at = base + sum(index * step for index, (_, _, step) in zip(position, steps, strict=True))
        places = slice(target_at, target_at + (count - 1) * target_step + 1, target_step)
        if source_step:
            target[places] = source[source_at : source_at + (count - 1) * source_step + 1 : source_step]
        else:
            target[places] = _repeat(source[source_at : source_at + 1], count, _FORMATS[width])


def _as_elements(data: bytearray | memoryview, width: int) -> "memoryview[int]":
    whole = memoryview(data)[: len(data) - len(data) % width]
    return whole.cast(_FORMATS[width])


def _repeat(one: "memoryview[int]", count: int, form: _Format) -> "memoryview[int]":
    return memoryview(one.tobytes() * count).cast(form)


def _swapped(row: bytearray, word_bytes: int) -> bytes:
    words = array.array(_FORMATS[word_bytes])
    words.frombytes(row)
    words.byteswap()
    return words.tobytes()
