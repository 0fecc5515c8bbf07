"""A tensor as bytes somewhere, and how those bytes become a row: the one shape that every source is turned into."""

import math
from dataclasses import dataclass
from functools import cached_property

from streamway.storage.segments import ByteReader, Computed, Extent, Segment
from streamway.weights.dtypes import DTYPES, DType
from streamway.weights.strided import Box, gather, merge_dimensions, split_boxes


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """One named tensor of a source file.

    Args:
        name: Its name in the model.
        dtype: Its element type.
        shape: Its dimensions, as safetensors counts them.
        reader: The file that holds it.
        offset_bytes: Where its first element is in that file.
        dimensions: (count, step in bytes) of each dimension of its elements in the file, outermost first, merged;
            empty for one single element.
        element_bytes: Width of one element in the file.
        swap: Whether the file has the other byte order.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    reader: ByteReader
    offset_bytes: int
    dimensions: tuple[tuple[int, int], ...]
    element_bytes: int
    swap: bool = False

    @cached_property
    def size_bytes(self) -> int:
        """Its length as a row of bytes; like what follows from it, asked for again at every step of a conversion."""
        return math.prod(count for count, _ in self.dimensions) * self.element_bytes

    @cached_property
    def is_row(self) -> bool:
        """Whether its bytes already are such a row."""
        if self.size_bytes == 0:
            return True
        in_order = not self.dimensions or self.dimensions == (
            (self.size_bytes // self.element_bytes, self.element_bytes),
        )
        return in_order and not self.needs_swap

    @property
    def needs_swap(self) -> bool:
        """Whether turning the bytes of each number around changes anything."""
        return self.swap and self.dtype.word_bytes > 1

    @cached_property
    def span(self) -> tuple[int, int]:
        """First and last-but-one offset of the bytes it touches in its file."""
        if self.size_bytes == 0:
            return self.offset_bytes, self.offset_bytes
        reach = sum((count - 1) * step for count, step in self.dimensions)
        return self.offset_bytes, self.offset_bytes + reach + self.element_bytes

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two names of the same bytes in the same shape."""
        return self.reader.uri, self.offset_bytes, self.dtype.code, self.shape, self.dimensions

    def segments(self, piece_bytes: int) -> list[Segment]:
        """Describe its bytes as a row, in pieces that each fit in `piece_bytes` where they must be computed."""
        if self.size_bytes == 0:
            return []
        if self.is_row:
            return [Extent(reader=self.reader, offset_bytes=self.offset_bytes, length_bytes=self.size_bytes)]
        box = Box(offset=self.offset_bytes, dimensions=self.dimensions, element_bytes=self.element_bytes)
        return [self._computed(piece) for piece in split_boxes(box, piece_bytes)]

    def _computed(self, piece: Box) -> Computed:
        word_bytes = self.dtype.word_bytes if self.needs_swap else 1
        return Computed(make=lambda: gather(self.reader, piece, word_bytes), length_bytes=piece.size_bytes)


def row_tensor(
    *, name: str, code: str, shape: tuple[int, ...], reader: ByteReader, offset_bytes: int, size_bytes: int
) -> SourceTensor:
    """Describe a tensor whose bytes are a row already, as in a safetensors file."""
    return SourceTensor(
        name=name,
        dtype=DTYPES[code],
        shape=shape,
        reader=reader,
        offset_bytes=offset_bytes,
        dimensions=((size_bytes, 1),),
        element_bytes=1,
    )


def strided_dimensions(
    shape: tuple[int, ...], strides: tuple[int, ...], element_bytes: int
) -> tuple[tuple[int, int], ...]:
    """Turn torch's shape and strides into merged (count, step in bytes), outermost first."""
    if 0 in shape:
        return ((0, element_bytes),)
    steps = [(count, stride * element_bytes) for count, stride in zip(shape, strides, strict=True)]
    return merge_dimensions(steps)
