"""State dicts as models have them, in all of torch's dtypes and with all of its ways to share bytes."""

import itertools

from hypothesis import strategies as st
from torch_writer import WIDTHS, Storage, Tensor

DTYPES = sorted(set(WIDTHS) - {"complex128"})
NAMES = st.text(st.characters(codec="utf-8", min_codepoint=32), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__" and not name.startswith("module.")
)


@st.composite
def storages(draw: st.DrawFn, least: int = 0) -> Storage:
    dtype = draw(st.sampled_from(DTYPES))
    count = draw(st.integers(least, 60))
    return Storage(draw(st.binary(min_size=count * WIDTHS[dtype], max_size=count * WIDTHS[dtype])), dtype)


@st.composite
def rows_of_one_buffer(draw: st.DrawFn) -> list[Tensor]:
    """Tensors that lie one after the other in a flat buffer, with gaps, as DeepSpeed saves them."""
    storage = draw(storages(least=4))
    count = len(storage.data) // WIDTHS[storage.dtype]
    cuts = sorted(draw(st.sets(st.integers(0, count), min_size=2, max_size=5)))
    return [Tensor(storage, (end - start,), None, start) for start, end in itertools.pairwise(cuts)]


@st.composite
def lone_views(draw: st.DrawFn) -> list[Tensor]:
    """One view of one storage: a matrix, its transpose, a slice, an expansion, a scalar, nothing."""
    storage = draw(storages(least=36))
    kind = draw(st.sampled_from(["matrix", "transpose", "slice", "expand", "scalar", "empty", "every_third"]))
    shape, strides, offset = {
        "matrix": ((4, 9), None, 0),
        "transpose": ((9, 4), (1, 9), 0),
        "slice": ((3, 5), (9, 1), 2),
        "expand": ((3, 7), (0, 1), 1),
        "scalar": ((), None, 5),
        "empty": ((0, 3), None, 0),
        "every_third": ((2, 6), (18, 3), 0),
    }[kind]
    return [Tensor(storage, shape, strides, offset, parameter=draw(st.booleans()))]


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    """Names and tensors, some of them tied."""
    groups = draw(st.lists(rows_of_one_buffer() | lone_views(), min_size=1, max_size=6))
    tensors = [tensor for group in groups for tensor in group]
    tensors += draw(st.lists(st.sampled_from(tensors), max_size=2))
    names = draw(st.lists(NAMES, min_size=len(tensors), max_size=len(tensors), unique=True))
    return dict(zip(names, tensors, strict=True))
