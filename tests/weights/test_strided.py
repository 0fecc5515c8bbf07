"""Views come out as rows, whatever their strides, in pieces of bounded size and with few bytes read."""

import math
import re

import pytest
from byte_readers import BytesReader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import WIDTHS, Storage, Tensor

from streamway.errors import CheckpointError
from streamway.storage.segments import Computed, Extent, Segment
from streamway.weights.dtypes import DTYPES
from streamway.weights.overlaps import group_tied, refuse_overlaps
from streamway.weights.strided import Box, gather, merge_dimensions, split_boxes
from streamway.weights.tensors import SourceTensor, strided_dimensions


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """Any view that torch can save: slices, transposes, expansions, diagonals."""
    dtype = draw(st.sampled_from(["uint8", "bfloat16", "float32", "float64"]))
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    strides = tuple(draw(st.integers(0, 40)) for _ in shape)
    offset = draw(st.integers(0, 20))
    reach = 0 if 0 in shape else sum((count - 1) * step for count, step in zip(shape, strides, strict=True)) + 1
    count = offset + reach + draw(st.integers(0, 3))
    data = bytes((7 * index + 3) % 256 for index in range(count * WIDTHS[dtype]))
    return Tensor(Storage(data, dtype), shape, strides, offset)


def described(view: Tensor, reader: BytesReader, code: str = "U8", name: str = "t") -> SourceTensor:
    width = WIDTHS[view.storage.dtype]
    return SourceTensor(
        name=name,
        dtype=DTYPES[code],
        shape=view.shape,
        reader=reader,
        offset_bytes=view.offset * width,
        dimensions=strided_dimensions(view.shape, view.steps, width),
        element_bytes=width,
    )


def joined(segments: list[Segment]) -> bytes:
    row = b""
    for segment in segments:
        if isinstance(segment, Extent):
            row += segment.reader.read(segment.offset_bytes, segment.length_bytes)
        elif isinstance(segment, Computed):
            made = segment.make()
            assert len(made) == segment.length_bytes
            row += made
    return row


@settings(deadline=None, max_examples=300)
@given(view=views(), piece_bytes=st.integers(1, 200))
def test_a_view_is_its_elements_in_order(view: Tensor, piece_bytes: int) -> None:
    tensor = described(view, BytesReader(view.storage.data))
    assert joined(tensor.segments(piece_bytes)) == view.row()


@settings(deadline=None, max_examples=100)
@given(view=views(), piece_bytes=st.integers(8, 100))
def test_pieces_stay_small(view: Tensor, piece_bytes: int) -> None:
    tensor = described(view, BytesReader(view.storage.data))
    pieces = [piece.length_bytes for piece in tensor.segments(piece_bytes) if isinstance(piece, Computed)]
    assert all(length <= piece_bytes for length in pieces)


def test_what_is_a_row_already_is_an_extent() -> None:
    view = Tensor(Storage(bytes(24), "float32"), (1, 2, 3), (999, 3, 1))
    (segment,) = described(view, BytesReader(view.storage.data)).segments(8)
    assert isinstance(segment, Extent)


def test_a_large_transpose_is_read_in_windows() -> None:
    rows, columns = 3000, 2500
    data = bytes((index * 31) % 251 for index in range(rows)) * columns
    reader = BytesReader(data)
    box = Box(offset=0, dimensions=((rows, 1), (columns, rows)), element_bytes=1)
    pieces = list(split_boxes(box, 1024 * 1024))
    assert [piece.size_bytes for piece in pieces] == [419 * columns] * 7 + [67 * columns]
    first = gather(reader, pieces[0])
    assert first[:columns] == data[0 : rows * columns : rows]
    assert first[columns : 2 * columns] == data[1 : rows * columns : rows]
    assert reader.given_bytes <= len(data)


def test_wide_gaps_are_not_read() -> None:
    reader = BytesReader(bytes(range(256)) * 40_000)
    row = gather(reader, Box(offset=5, dimensions=((10, 1_000_000), (4, 2)), element_bytes=2))
    assert len(row) == 80
    assert reader.given_bytes < 1000


@pytest.mark.parametrize(
    ("dimensions", "merged"),
    [
        ([(2, 12), (3, 4)], ((6, 4),)),
        ([(1, 999), (3, 4), (1, 0)], ((3, 4),)),
        ([(3, 4), (2, 12)], ((3, 4), (2, 12))),
        ([(2, 0), (3, 0)], ((6, 0),)),
        ([], ()),
    ],
)
def test_dimensions_that_step_on_are_joined(
    dimensions: list[tuple[int, int]], merged: tuple[tuple[int, int], ...]
) -> None:
    assert merge_dimensions(dimensions) == merged


def pair(first: Tensor, second: Tensor) -> list[SourceTensor]:
    reader = BytesReader(first.storage.data)
    return [described(first, reader, name="first"), described(second, reader, name="second")]


def cut(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return Tensor(STORAGE, shape, strides, offset)


STORAGE = Storage(bytes(4 * 1000), "float32")

APART = {
    "halves_of_a_buffer": (cut((10,), (1,), 0), cut((10,), (1,), 10)),
    "columns_of_a_matrix": (cut((8, 5), (20, 1), 0), cut((8, 5), (20, 1), 5)),
    "columns_with_a_gap": (cut((8, 5), (20, 1), 3), cut((8, 5), (20, 1), 12)),
    "even_and_odd": (cut((50,), (2,), 0), cut((50,), (2,), 1)),
    "planes": (cut((4, 3, 5), (60, 20, 1), 0), cut((4, 3, 5), (60, 20, 1), 10)),
    "empty": (cut((0,), (1,), 5), cut((10,), (1,), 0)),
}
MEETING = {
    "shifted": (cut((10,), (1,), 0), cut((10,), (1,), 9)),
    "inside": (cut((10,), (1,), 0), cut((2,), (1,), 4)),
    "another_shape": (cut((10,), (1,), 0), cut((2, 5), (5, 1), 0)),
    "transposed": (cut((5, 5), (5, 1), 0), cut((5, 5), (1, 5), 0)),
    "columns_that_meet": (cut((8, 6), (20, 1), 0), cut((8, 5), (20, 1), 5)),
    "row_that_wraps_around": (cut((30,), (1,), 0), cut((8, 5), (20, 1), 25)),
    "same_step_twice": (cut((3, 3), (1, 1), 0), cut((2,), (1,), 3)),
    "row_and_column": (cut((20,), (1,), 20), cut((8, 5), (20, 1), 0)),
}


def refusal(tensors: list[SourceTensor]) -> str:
    """Why tensors may not share their storage; "" where they may."""
    try:
        refuse_overlaps(tensors)
    except CheckpointError as error:
        return error.problem
    return ""


@pytest.mark.parametrize("name", APART)
def test_views_that_do_not_meet_may_share_a_storage(name: str) -> None:
    assert refusal(pair(*APART[name])) == ""


@pytest.mark.parametrize("name", MEETING)
def test_views_that_meet_are_refused_with_both_names(name: str) -> None:
    assert re.search(r"first .* and second|second .* and first", refusal(pair(*MEETING[name])))


@settings(deadline=None, max_examples=300)
@given(first=views(), shape=st.lists(st.integers(1, 4), max_size=3), data=st.data())
def test_views_are_never_called_apart_when_they_share_a_byte(
    first: Tensor, shape: list[int], data: st.DataObject
) -> None:
    strides = tuple(data.draw(st.sampled_from([*first.steps, 1, 2, 7])) for _ in shape)
    second = Tensor(Storage(bytes(100_000), first.storage.dtype), tuple(shape), strides, data.draw(st.integers(0, 30)))
    first = Tensor(second.storage, first.shape, first.strides, first.offset)
    if places(first) & places(second):
        with pytest.raises(CheckpointError):
            refuse_overlaps(pair(first, second))


def places(view: Tensor) -> set[int]:
    found = {view.offset} if math.prod(view.shape) else set()
    for count, step in zip(view.shape, view.steps, strict=True):
        found = {place + index * step for place in found for index in range(count)}
    return found


def test_the_same_bytes_in_the_same_shape_are_tied_and_empty_ones_are_not() -> None:
    one, same, other = cut((2, 5), (5, 1), 0), cut((2, 5), (5, 1), 0), cut((5, 2), (2, 1), 0)
    reader = BytesReader(STORAGE.data)
    tensors = [described(view, reader, name=name) for name, view in {"a": one, "b": same, "c": other}.items()]
    tensors += [described(cut((0,), (1,), 0), reader, name=name) for name in ("d", "e")]
    assert [[tensor.name for tensor in group] for group in group_tied(tensors)] == [["a", "b"], ["c"], ["d"], ["e"]]
