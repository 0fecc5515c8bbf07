"""Which tensors are the same bytes, and which merely overlap: the first become aliases, the second are an error."""

import itertools
from collections.abc import Iterable, Sequence

from streamway.errors import CheckpointError
from streamway.weights.tensors import SourceTensor
from streamway.weights.wording import show_name

_MAX_COMPARISONS = 200_000


def group_tied(tensors: Iterable[SourceTensor]) -> list[list[SourceTensor]]:
    """Group tensors that are the same bytes in the same shape; each group in the order given.

    Empty tensors have no bytes to share and stay apart.
    """
    groups: dict[object, list[SourceTensor]] = {}
    for tensor in tensors:
        key: object = tensor.identity if tensor.size_bytes else (tensor.name,)
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def refuse_overlaps(tensors: Sequence[SourceTensor]) -> None:
    """Make sure that no two of these tensors, none tied to another, share a byte.

    Raises:
        CheckpointError: two do; both are named.
    """
    ordered = sorted((tensor for tensor in tensors if tensor.size_bytes), key=lambda tensor: tensor.span)
    comparisons = 0
    open_views: list[SourceTensor] = []
    for tensor in ordered:
        open_views = [view for view in open_views if view.span[1] > tensor.span[0]]
        comparisons += len(open_views)
        for view in open_views:
            if comparisons > _MAX_COMPARISONS or not _disjoint(view, tensor):
                raise _overlap_error(view, tensor)
        open_views.append(tensor)


def _overlap_error(first: SourceTensor, second: SourceTensor) -> CheckpointError:
    return CheckpointError(
        f"{first.reader.uri}: tensors {show_name(first.name)} {list(first.shape)} and {show_name(second.name)} "
        f"{list(second.shape)} are different views that overlap, so storing both would break what they share.",
        next_step="Save the model again with one of the two as a copy: tensor.clone().",
    )


def _disjoint(first: SourceTensor, second: SourceTensor) -> bool:
    """Tell whether two views whose spans overlap never touch the same byte, such as columns of one matrix.

    Every byte gets coordinates in the steps that the two views use. Where each step is a multiple of the next, the
    coordinates are unique, and two boxes that do not meet along one of them do not meet at all. Anything less
    regular counts as an overlap.
    """
    steps = sorted({step for view in (first, second) for _, step in view.dimensions} | {1}, reverse=True)
    if 0 in steps or any(wide % narrow for wide, narrow in itertools.pairwise(steps)):
        return False
    origin = min(first.offset_bytes, second.offset_bytes)
    left, right = (_coordinates(view, steps, view.offset_bytes - origin) for view in (first, second))
    if left is None or right is None:
        return False
    return any(a[1] <= b[0] or b[1] <= a[0] for a, b in zip(left, right, strict=True))


def _coordinates(view: SourceTensor, steps: list[int], offset: int) -> list[tuple[int, int]] | None:
    """Return [start, end) of a view along each step, or None where it wraps around one of them."""
    counts = {step: count for count, step in view.dimensions}
    if len(counts) != len(view.dimensions):
        return None
    counts.setdefault(1, view.element_bytes)
    box: list[tuple[int, int]] = []
    capacity: int | None = None
    for index, step in enumerate(steps):
        start, offset = divmod(offset, step)
        end = start + counts.get(step, 1)
        if capacity is not None and end > capacity:
            return None
        box.append((start, end))
        capacity = step // steps[index + 1] if index + 1 < len(steps) else None
    return box
