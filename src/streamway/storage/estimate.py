"""How many parts, requests and bytes of memory a transfer takes, computed beforehand and held to the limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from streamway.storage.transfer import MEMORY_BYTES, WORKERS, choose_part_bytes


@dataclass(frozen=True, kw_only=True)
class TransferEstimate:
    """What moving some files from the Hub to Cloud Storage takes.

    Args:
        part_bytes: Size of a part.
        parts: In all.
        most_parts_of_a_file: Against the limit of 10 000.
        reads: Requests to the source: one to find each file, one for each part.
        writes: Requests to Cloud Storage that write: uploads begun and completed, parts, saved progress.
        other_requests: Requests to Cloud Storage that look or tidy up.
        memory_bytes: For bytes in flight.
    """

    part_bytes: int
    parts: int
    most_parts_of_a_file: int
    reads: int
    writes: int
    other_requests: int
    memory_bytes: int


def estimate_transfer(
    sizes: Sequence[int], *, memory_bytes: int = MEMORY_BYTES, workers: int = WORKERS
) -> TransferEstimate:
    """Compute what moving files of these sizes takes.

    Raises:
        TransferError: a file is beyond what Cloud Storage or the memory allows.
    """
    part_bytes = choose_part_bytes(sizes, memory_bytes=memory_bytes, workers=workers)
    parts = [max(1, -(-size // part_bytes)) for size in sizes]
    large = [count for count in parts if count > 1]
    return TransferEstimate(
        part_bytes=part_bytes,
        parts=sum(parts),
        most_parts_of_a_file=max(parts, default=0),
        reads=sum(parts) + len(sizes),
        writes=sum(parts) + sum(count - 1 for count in large) + 2 * len(large),
        other_requests=0,
        memory_bytes=min(memory_bytes, workers * part_bytes),
    )
